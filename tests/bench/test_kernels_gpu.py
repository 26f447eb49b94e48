"""The GPU's program, from its first line to its result, on the emulator and a stand-in for CUDA.

It shows that the program compares what it says, judges as it says and ends; not one of its times.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kernels.conftest import SOURCES, compile_emulator
from tiny import programs

from edgekd.engine.native import Kernels

RATES = {"sparse": 40.0, "dense": 20.0, "r": 2.0}


class Event:
    """Wall time."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


class Graph:
    def replay(self) -> None:
        pass


@contextlib.contextmanager
def graph(_graph: Graph) -> Iterator[None]:
    yield


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulator")
    compile_emulator(SOURCES, folder)
    return folder / "libedgekd_emulator.so"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = programs.load("bench/kernels/gpu.py")
    device = SimpleNamespace(name="Stand-In (no GPU)", major=8, minor=0, multi_processor_count=108,
                             L2_cache_size=64)  # fmt: skip
    for name, value in {
        "is_available": lambda: True,
        "get_device_properties": lambda _: device,
        "current_stream": lambda: SimpleNamespace(cuda_stream=0),
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "graph": graph,
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(sys.modules["cases"], "DEVICE", "cpu")
    monkeypatch.setattr(sys.modules["results"], "FOLDER", tmp_path)
    for name, small in {
        "LAYERS": ((256, 128), (384, 384)), "TOKENS": (8, 200), "COMPARED_TOKENS": (3,),
        "REPETITIONS": 2, "CALLS": 2, "COPY_BYTES": 1 << 20,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(module, "raw_rates", lambda _: RATES)
    monkeypatch.setattr(module.roofline, "LARGE_M", 200)
    return module


def test_it_runs_to_a_result_and_a_plot(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "LAYERS", ((256, 128),))
    path = gpu.main(["--library", str(emulator)])
    assert path == tmp_path / "kernels-stand-in-no-gpu.json"
    assert "<svg" in path.with_suffix(".svg").read_text()
    found = json.loads(path.read_text())
    # 8 tiles, 2 kinds, 5 epilogues, one shape of 3 x 256.
    assert found["equality"]["launches"] == 80
    assert found["equality"]["outputs"] == 80 * 3 * 256
    assert found["equality"]["differ"] == 0
    assert [(row["m"], row["l2"]) for row in found["rows"]] == [
        (8, "warm"), (8, "flushed"), (200, "warm"), (200, "flushed"),
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row["us"]) == {"sparse", "dense_twin", "sparse_s32", "cublaslt_s32",
                                  "cublaslt_and_epilogue"}  # fmt: skip
        assert "_cslt_compress" in row["refused"]["cusparselt"]
        assert all(times > 0 for times in row["us"].values()) or row["l2"] == "flushed"
        assert row["tile"].startswith("small_" if row["m"] == 8 else ("small_", "large_"))
    assert [aim["shapes"] for aim in found["aims"]] == [2, 0, 2, 0, 0, 0]
    assert found["aims"][4]["met"] is None
    assert set(found["state_before"]) == set(found["state_after"])


def test_a_wrong_kernel_ends_it(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Kernels.gemm

    def wrong(self: Kernels, output: str, *rest: Any, **more: Any) -> None:
        right(self, output, *rest, **{**more, "bias": more["scale"]})  # type: ignore[arg-type]

    monkeypatch.setattr(Kernels, "gemm", wrong)
    with pytest.raises(SystemExit, match=r"sparse small_t8 f16 3 x 256 x 128: \d+ of 768 outputs"):
        gpu.compare(Kernels(emulator))


def test_every_tile_must_take_a_shape(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LAYERS", ((64, 64),))
    with pytest.raises(SystemExit, match="instances took a shape, expected all of 8 tiles"):
        gpu.compare(Kernels(emulator))


def test_every_peer_does_the_same_work(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = 0

    def product(
        weights: torch.Tensor,
        tokens: torch.Tensor,
        *,
        alg_id: int,
        transpose_result: bool,
        **_: Any,
    ) -> torch.Tensor:
        assert (alg_id, transpose_result) == (3, True)
        return (weights.double() @ tokens.double()).int().t().contiguous() + wrong

    monkeypatch.setattr(torch, "_cslt_compress", lambda weights: weights)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, **__: 3)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    case = gpu.Case(gpu.Layer(Kernels(emulator), 384, 384), 8)
    case.ours("gelu_s8", True)()
    sparse = case.y["gelu_s8"].clone()
    case.ours("gelu_s8", False)()
    assert torch.equal(case.y["gelu_s8"], sparse)
    case.ours("s32", True)()
    calls, refused = case.peers()
    assert not refused
    for name in ("cublaslt", "cusparselt"):
        assert torch.equal(calls[f"{name}_s32"]()[:8], case.y["s32"])
        finished = calls[f"{name}_and_epilogue"]()
        assert finished.is_contiguous()
        steps = (finished.int() - sparse.int()).abs()
        assert steps.max() <= 1
        assert steps.double().mean() < 1e-3
    wrong = 1
    calls, refused = case.peers()
    assert refused == {"cusparselt": "3072 sums are not ours"}
    assert set(calls) == {"cublaslt_s32", "cublaslt_and_epilogue"}


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = programs.load("bench/kernels/gpu.py")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here; the emulator's tests are"):
        module.main([])


def row(m: int, n: int, k: int, tile: str, sparse: float, twin: float, peer: float | None) -> Any:
    us = {"sparse": sparse, "dense_twin": twin}
    if peer is not None:
        us |= {"cusparselt_and_epilogue": peer, "cusparselt_s32": 3.0, "sparse_s32": 2.0}
    reached = m * n * k / (sparse * 1e-6) / 40e12
    return {"m": m, "n": n, "k": k, "l2": "warm", "tile": tile, "us": us,
            "sparse": {"of_raw_rate": round(reached, 4)}}  # fmt: skip


def test_what_the_kernels_are_held_to() -> None:
    roofline = programs.load("bench/kernels/roofline.py")
    rows = [
        row(1576, 3072, 768, "large_128x128", 100.0, 160.0, None),  # 1.6 of r = 2: enough
        row(6304, 768, 768, "large_128x128", 150.0, 210.0, None),  # 1.4: not
        row(197, 768, 768, "small_t40", 10.0, 12.0, 20.0),  # a win
        row(8, 1536, 384, "small_t8", 10.0, 12.0, 9.0),  # a loss
        row(8, 1024, 1024, "small_t8", 10.0, 12.0, 9.0),  # ViT-L: not asked
    ]
    twin, busy, raw, busy_raw, peer, bare = roofline.aims(rows, RATES)
    assert (twin["least"], twin["shapes"], twin["share_found"], twin["met"]) == (1.5, 2, 0.5, False)
    assert [(each["m"], each["found"]) for each in twin["short"]] == [(6304, 1.4)]
    # Both take more than 10 us at the raw rate: 93 and 93.
    assert (busy["shapes"], busy_raw["shapes"]) == (2, 2)
    short = row(1576, 192, 192, "large_64x128", 5.0, 5.0, None)
    assert [aim["shapes"] for aim in roofline.aims([short], RATES)] == [1, 0, 1, 0, 0, 0]
    assert (bare["share_found"], bare["share_wanted"], bare["met"]) == (1.0, None, None)
    # 3.718e9 multiply-adds in 100 us are 0.93 of 40e12 a second, 3.718e9 in 150 us 0.62.
    assert [(each["m"], each["found"]) for each in raw["short"]] == [(6304, 0.62)]
    assert (peer["shapes"], peer["share_found"], peer["met"]) == (2, 0.5, False)
    assert [(each["n"], each["found"]) for each in peer["short"]] == [(1536, 0.9)]
    assert np.isclose(peer["least"], 1.0)
