"""The kernels on the GPU at hand: equal to the contract, then how fast, against what.

    python bench/kernels/gpu.py

1. Every instance on every shape, compared with NumPy: one difference ends the run.
2. The raw rates of the two instructions, IMMA and IMMA.SP, from registers alone; r is their ratio,
   the most that sparsity can give on this GPU. And what a copy reaches.
3. Per shape: our sparse kernel, its dense twin, cuBLASLt's INT8 (torch._int_mm) and cuSPARSELt's
   (torch._cslt_sparse_mm), each with the same epilogue work, under CUDA graphs, with L2 warm and
   flushed, taking turns; medians of repetitions and their spread.
4. What the kernels are held to (`roofline.aims`), with every shape that falls short.

It writes bench/results/kernels-<gpu>.json and the roofline beside it, ...svg. A GPU that is no
target shows correctness and ratios of one run; it never stands for an A100 or an Orin.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(Path(__file__).parent)]

import cases  # noqa: E402
import compiled  # noqa: E402
import results  # noqa: E402
import roofline  # noqa: E402
from cases import Call, Case, Layer  # noqa: E402

from edgekd import sparse_gemm  # noqa: E402
from edgekd.engine.native import Kernels  # noqa: E402
from edgekd.errors import UnsupportedError  # noqa: E402
from edgekd.sparse_gemm import OUTPUTS, Output  # noqa: E402

# n, k of the linear layers of ViT and BERT: tiny, small, base, large.
LAYERS = tuple(
    layer for d in (192, 384, 768, 1024) for layer in ((3 * d, d), (d, d), (4 * d, d), (d, 4 * d))
)
TOKENS = (1, 8, 50, 197, 394, 788, 1576, 6304)
COMPARED_TOKENS = (1, 7, 53, 197, 394)
EPILOGUES: tuple[tuple[Output, bool], ...] = (
    ("s32", False), ("f16", False), ("f16", True), ("s8", False), ("gelu_s8", False),
)  # fmt: skip
REPETITIONS = 9
CALLS = 20  # in one CUDA graph: a launch of a graph costs microseconds itself
GELU_SHARE = 1e-4  # of the outputs, that may lie one step off; 6 in 2.1 million did on a CPU
COPY_BYTES = 1 << 30
STATE = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu",
         "power.draw", "clocks_throttle_reasons.active")  # fmt: skip


def compare(kernels: Kernels) -> dict[str, int]:
    """Every instance on every shape it takes, against NumPy; ends the run where one differs."""
    found = dict.fromkeys(("launches", "outputs", "differ", "gelu_outputs", "gelu_one_step"), 0)
    ran: set[str] = set()
    for n, k in sorted(set(LAYERS)):
        layer = Layer(kernels, n, k)
        for m in COMPARED_TOKENS:
            case = Case(layer, m)
            acc = sparse_gemm.sums(case.host_x, layer.host_weights)
            for output, residual in EPILOGUES:
                scale = np.array([cases.OUT_SCALE], np.float32)
                extra = case.host_residual if residual else scale if output[-2:] == "s8" else None
                wanted = sparse_gemm.epilogue(acc, output, layer.host_scale, layer.host_bias, extra)
                for tile in kernels.tiles:
                    for sparse in (True, False):
                        instance = f"{'sparse' if sparse else 'dense'} {tile} {output}"
                        y = case.y[output].zero_()
                        try:
                            case.ours(output, sparse, tile, residual)()
                        except UnsupportedError:  # a tile for larger layers
                            continue
                        where = f"{instance} {m} x {n} x {k}"
                        _count(y.cpu().numpy(), wanted, output, where, found)
                        ran.add(instance)
    if found["gelu_one_step"] > GELU_SHARE * found["gelu_outputs"]:
        sys.exit(
            f"gelu_s8: {found['gelu_one_step']} of {found['gelu_outputs']} outputs are a step off"
        )
    if len(ran) != 2 * len(kernels.tiles) * len(OUTPUTS):
        sys.exit(f"{len(ran)} instances took a shape, expected all of {len(kernels.tiles)} tiles")
    return found


def _count(
    got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], output: Output, where: str,
    found: dict[str, int],
) -> None:  # fmt: skip
    wrong = int((got != wanted).sum())
    found["launches"] += 1
    found["outputs"] += got.size
    found["gelu_outputs"] += got.size if output == "gelu_s8" else 0
    if output == "gelu_s8" and wrong:
        if np.abs(got.astype(int) - wanted.astype(int)).max() > 1:
            sys.exit(f"{where}: outputs differ by more than one step")
        found["gelu_one_step"] += wrong
    elif wrong:
        sys.exit(f"{where}: {wrong} of {got.size} outputs differ")


def times_us(calls: dict[str, Call], flush: torch.Tensor | None) -> dict[str, list[float]]:
    """Microseconds of one call, each repetition of every peer in turn, in CUDA graphs.

    With `flush`, a buffer larger than L2 is written before each call, so that weights and tokens
    come from memory, and the time of as many writes alone is taken off again.
    """
    work: dict[str, Sequence[Call]] = {name: [call] for name, call in calls.items()}
    if flush is not None:
        work = {name: [flush.zero_, call] for name, call in calls.items()} | {"": [flush.zero_]}
    graphs = {}
    for name, several in work.items():
        for _ in range(3):
            for call in several:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                for call in several:
                    call()
        graphs[name] = graph
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPETITIONS):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            found[name].append(start.elapsed_time(end) * 1e3 / CALLS)
    alone = statistics.median(found.pop("", [0.0]))
    return {name: [each - alone for each in times] for name, times in found.items()}


def speed(kernels: Kernels, multiprocessors: int, l2_bytes: int) -> list[dict[str, Any]]:
    """A row for each shape and state of L2."""
    flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=cases.DEVICE)
    rows = []
    for n, k in LAYERS:
        layer = Layer(kernels, n, k)
        for m in TOKENS:
            case = Case(layer, m)
            case.ours("s32", True)()
            peers, refused = case.peers()
            calls = {
                "sparse": case.ours("gelu_s8", True),
                "dense_twin": case.ours("gelu_s8", False),
                "sparse_s32": case.ours("s32", True),
                **peers,
            }
            tile = (kernels.choose((m, n, k), multiprocessors) or ("none", ""))[0]
            for state, buffer in (("warm", None), ("flushed", flush)):
                timed = times_us(calls, buffer)
                rows.append(
                    {
                        "m": m, "n": n, "k": k, "l2": state, "tile": tile,
                        "us": {name: round(statistics.median(t), 3) for name, t in timed.items()},
                        "spread_us": {name: round(max(t) - min(t), 3) for name, t in timed.items()},
                        "refused": refused,
                    }
                )  # fmt: skip
        print(f"{n} x {k}: timed", flush=True)
    return rows


def raw_rates(kernels: Kernels) -> dict[str, float]:
    """Tera multiply-adds a second of both instructions, and r, sparse over dense."""
    found = {}
    for kind, name in ((0, "sparse"), (1, "dense")):
        rate = ctypes.c_double()
        if kernels.library.edgekd_raw_rate(kind, ctypes.byref(rate)):
            sys.exit(f"the raw rate of the {name} instruction could not be measured")
        found[name] = rate.value * 1e-12
    return {**found, "r": found["sparse"] / found["dense"]}


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
    except (OSError, subprocess.SubprocessError) as error:
        return {"unavailable": " ".join(str(error).split())[:120]}
    return dict(zip(STATE, (each.strip() for each in done.stdout.split(",")), strict=True))


def library() -> Path:
    """Our kernels compiled for GPUs; made where they are not yet.

    By the machine's own nvcc where it has one: the driver must be as new as the compiler.
    """
    compiled.OUT.mkdir(parents=True, exist_ok=True)
    compiled.make("library", f"NVCC={shutil.which('nvcc') or compiled.tool('nvcc')}")
    return compiled.OUT / "libedgekd_kernels.so"


def main(arguments: Sequence[str] | None = None) -> Path:
    """Compare, time, judge, write; the result's path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="libedgekd_kernels.so  [default: make it]")
    parser.add_argument("--compare-only", action="store_true", help="no times")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(
            "bench/kernels/gpu.py: no CUDA device here; the emulator's tests are tests/kernels"
        )
    kernels = Kernels(asked.library or library())
    properties = torch.cuda.get_device_properties(0)
    name = "kernels-" + re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")

    def keep() -> Path:
        covers = ("kernels/src", "kernels/include")
        return results.write(name, "python bench/kernels/gpu.py", covers, content)

    content: dict[str, Any] = {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "peers_epilogue": cases.EPILOGUE,
        "state_before": state(),
        "equality": compare(kernels),
    }
    print(content["equality"], flush=True)
    rates = content["raw_rates"] = raw_rates(kernels)
    print(rates, flush=True)
    path = keep()  # whatever happens later, this much is known
    if not asked.compare_only:
        copied = content["gigabytes_per_s"] = bandwidth()
        rows = speed(kernels, properties.multi_processor_count, properties.L2_cache_size)
        content["rows"] = [{**row, **roofline.shares(row, rates, copied)} for row in rows]
        content["aims"] = roofline.aims(content["rows"], rates)
        content["state_after"] = state()
        path = keep()
        roofline.draw(content, path.with_suffix(".svg"))
        roofline.tell(content)
    print(path)
    return path


if __name__ == "__main__":
    main()
