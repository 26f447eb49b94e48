"""How long the kernels and their peers take on the GPU at hand, and what it could do at all.

Calls are captured into a CUDA graph, `CALLS` at a time, because launching costs microseconds
itself. Peers take turns, a repetition each. Two replays that are not timed run directly before the
timed one: its launch then lies behind them, and not between the two events, and the first call
finds in L2 what its own peer left there, not what another one did.

What fails is not measured, with its reason, and ends nothing: a lent GPU is had once. Only a GPU
that cannot run the bare instruction ends it: nothing else would run on it.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cases
import torch
from cases import Call, Case
from torch import Tensor

from edgekd.engine.native import Kernels

REPETITIONS = 9
CALLS = 20
COPY_BYTES = 1 << 30
WARM_SECONDS, RATES_ROUNDS = 0.5, 5
STATE = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu",
         "power.draw", "clocks_event_reasons.active")  # fmt: skip
_FLUSH = "flush"


@dataclass(frozen=True)
class Timed:
    """Medians and spreads (largest minus smallest) of one call, and why others have none."""

    us: dict[str, float]
    spread_us: dict[str, float]
    not_measured: dict[str, str]


def timed(calls: Mapping[str, Call], flush: Tensor | None = None) -> Timed:
    """Time peers that do the same work.

    Args:
        calls: One call of each, by name.
        flush: A buffer larger than L2, written before each call, so that weights and tokens come
            from memory; the time of as many writes alone is taken off again.
    """
    work: dict[str, Sequence[Call]] = {name: [call] for name, call in calls.items()}
    if flush is not None:
        work = {name: [flush.zero_, call] for name, call in calls.items()}
        work[_FLUSH] = [flush.zero_]
    graphs, missing = {}, {}
    for name, several in work.items():
        try:
            graphs[name] = _captured(several)
        except Exception as error:
            missing[name] = cases.reason(error)
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(REPETITIONS):
        for name in [name for name in graphs if name not in missing]:
            try:
                found[name].append(_replayed(graphs[name]))
            except Exception as error:
                missing[name] = cases.reason(error)
    alone = found.pop(_FLUSH, [0.0] * REPETITIONS)
    us, spread_us = {}, {}
    for name, times in found.items():
        if _FLUSH in missing:
            missing[name] = missing[_FLUSH]
        if name in missing:
            continue
        own = [both - without for both, without in zip(times, alone, strict=True)]
        median = round(statistics.median(own), 3)
        if median <= 0:
            flushes = statistics.median(alone)
            missing[name] = f"not measured: it is lost in the {flushes:.3f} us of flushing L2"
            continue
        us[name], spread_us[name] = median, round(max(own) - min(own), 3)
    missing.pop(_FLUSH, None)
    return Timed(us, spread_us, missing)


def _captured(several: Sequence[Call]) -> torch.cuda.CUDAGraph:
    for _ in range(3):
        for call in several:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            for call in several:
                call()
    return graph


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Microseconds of one call, of a replay that follows two others."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(2):  # one alone may take less time than the next one's launch
        graph.replay()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / CALLS


def shape_row(case: Case, tile: str, l2: str, flush: Tensor | None) -> dict[str, Any]:
    """Our kernel, its dense twin and the libraries' on one shape.

    Args:
        case: The shape.
        tile: What the table chooses for it here.
        l2: ``warm`` or ``flushed``, for the row.
        flush: The buffer of the latter.
    """
    peers = case.peers
    calls = {
        "sparse": case.whole(True),
        "dense_twin": case.whole(False),
        "sparse_s32": case.ours("s32", True),
        "dense_twin_s32": case.ours("s32", False),
        **peers.calls,
    }
    found = timed(calls, flush)
    return {
        **dict(zip("mnk", case.sizes, strict=True)), "l2": l2, "tile": tile,
        "output": case.layer.output, "residual": case.layer.residual,
        "us": found.us, "spread_us": found.spread_us,
        "not_measured": {**peers.not_measured, **found.not_measured},
        "algorithms": peers.algorithms,
    }  # fmt: skip


def tiles_row(case: Case, tile: str) -> dict[str, Any]:
    """Every tile on one shape, to int8 with L2 warm, sparse (``us``) and dense (``dense_us``).

    What choose.h is tuned by; and whether the twin of the chosen tile is our best dense kernel.
    """
    tiles = case.layer.kernels.tiles
    found = timed({each: case.ours("s8", True, each) for each in tiles})
    dense = timed({each: case.ours("s8", False, each) for each in tiles})
    return {
        **dict(zip("mnk", case.sizes, strict=True)), "chosen": tile,
        "us": found.us, "spread_us": found.spread_us, "dense_us": dense.us,
        "dense_spread_us": dense.spread_us,
        "not_measured": {**dense.not_measured, **found.not_measured},
    }  # fmt: skip


def raw_rates(kernels: Kernels) -> dict[str, Any]:
    """Tera multiply-adds a second of both instructions, and r, sparse over dense.

    A GPU that did nothing raises its clock first, and the two take turns at it; each one's best
    counts. ``state`` is the GPU's directly after.
    """
    found, started = {"sparse": 0.0, "dense": 0.0}, time.monotonic()
    while time.monotonic() - started < WARM_SECONDS:
        _raw_rate(kernels, 1)
    for _ in range(RATES_ROUNDS):
        for kind, name in ((0, "sparse"), (1, "dense")):
            found[name] = max(found[name], _raw_rate(kernels, kind) * 1e-12)
    return {**found, "r": found["sparse"] / found["dense"], "state": state()}


def _raw_rate(kernels: Kernels, kind: int) -> float:
    rate = ctypes.c_double()
    if status := kernels.library.edgekd_raw_rate(kind, ctypes.byref(rate)):
        name = ("sparse", "dense")[kind]
        sys.exit(f"the raw rate of the {name} instruction could not be measured: status {status}")
    return rate.value


def bandwidth() -> float:
    """Gigabytes a second that a copy reads and writes, the best of a few."""
    one, two = (torch.empty(COPY_BYTES, dtype=torch.int8, device=cases.DEVICE) for _ in range(2))
    best = 0.0
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        two.copy_(one)
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * one.numel() / start.elapsed_time(end) * 1e-6)
    return best


def state() -> dict[str, str]:
    """Driver, clocks and temperature as nvidia-smi tells them."""
    query = ["nvidia-smi", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return dict(zip(STATE, (each.strip() for each in done.stdout.split(",")), strict=True))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"unavailable": " ".join(str(error).split())[:120]}
