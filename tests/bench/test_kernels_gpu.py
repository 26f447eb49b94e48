"""The GPU's program, from its first line to its result, on the emulator and a stand-in for CUDA.

It shows that the program compares what it says, judges as it says and ends; not one of its times.
"""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny import programs

from edgekd.engine.native import Kernels
from edgekd.errors import ToolchainError

RATES = {"sparse": 40.0, "dense": 20.0, "r": 2.0}
RIGHT = Kernels.gemm


def run(gpu: ModuleType, emulator: Path, *more: str) -> Path:
    path: Path = gpu.main(["--library", str(emulator), "--emulator", str(emulator), *more])
    return path


def test_it_runs_to_a_result_and_a_plot(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "LAYERS", ((256, 128),))
    path = run(gpu, emulator)
    assert path == tmp_path / "kernels-stand-in-no-gpu.json"
    assert "<svg" in path.with_suffix(".svg").read_text()
    found = json.loads(path.read_text())
    assert found["needs"] == "Stand-In (no GPU)"
    # 8 tiles and the chosen one, 2 kinds, 5 epilogues (4 outputs), one shape of 3 x 256.
    assert found["equality"] == {
        "tokens": [3], "launches": 90, "outputs": 90 * 3 * 256, "instances": 72, "differ": {},
    }  # fmt: skip
    assert [(row["m"], row["l2"]) for row in found["rows"]] == [
        (8, "warm"), (200, "warm"), (8, "flushed"), (200, "flushed"),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["us"] == {
            "sparse": 10.0, "dense_twin": 15.0, "sparse_s32": 10.0, "dense_twin_s32": 15.0,
            "cublaslt_s32": 30.0, "cublaslt_and_epilogue": 30.0,
        }  # fmt: skip
        assert (row["output"], row["residual"]) == ("f16", True)
        assert row["algorithms"] == {"cublaslt": "torch._int_mm's own choice"}
        refusal = row["not_measured"]["cusparselt"]
        assert refusal.startswith("not measured: ")
        assert "_cslt_compress" in refusal
        assert row["tile"].startswith("small_" if row["m"] == 8 else ("small_", "large_"))
    # 256 x 128 is too small for no tile: every one has its time, on both numbers of tokens.
    tiles = Kernels(emulator).tiles
    assert [row["us"] for row in found["tiles"]] == [dict.fromkeys(tiles, 10.0)] * 2
    assert [row["dense_us"] for row in found["tiles"]] == [dict.fromkeys(tiles, 15.0)] * 2
    assert found["choice"] == {"shapes": 2, "slower_than": 1.05, "lost": []}
    assert [aim["shapes"] for aim in found["aims"]] == [2, 0, 2, 1, 2, 0, 0, 0, 0]
    assert found["aims"][6]["met"] is None
    assert (found["not_measured"], found["peers_epilogue"]) == ([], {"f16": "eager"})
    assert set(found["state_before"]) == set(found["state_after"])


def test_it_only_compares_where_that_is_asked(gpu: ModuleType, emulator: Path) -> None:
    found = json.loads(run(gpu, emulator, "--compare-only").read_text())
    assert found["raw_rates"] == RATES
    assert "rows" not in found


@pytest.fixture
def times(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program without its comparison, on two layers smaller still."""
    for owner, name, small in (
        (gpu, "LAYERS", ((64, 64), (128, 64))), (gpu, "TOKENS", (1, 9)),
        (gpu.equality, "compare", lambda *_: {"differ": {}}),
        (gpu.equality, "operators", lambda *_: {}), (gpu.roofline, "LARGE_M", 9),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, small)
    return gpu


def test_l2_is_flushed_with_twice_its_size(
    times: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, flushed = times.timing.shape_row, {}

    def row(case: Any, tile: str, l2: str, flush: Any) -> Any:
        flushed[l2] = None if flush is None else flush.numel() * flush.element_size()
        return right(case, tile, l2, flush)

    monkeypatch.setattr(times.timing, "shape_row", row)
    run(times, emulator)
    assert flushed == {"warm": None, "flushed": 2 * 64}


def test_both_operators_of_torch_are_compared_with_every_epilogue(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, compared = gpu.equality.difference, []

    def difference(got: torch.Tensor, wanted: torch.Tensor) -> str:
        compared.append(got.dtype)
        return "off" if len(compared) % 2 else str(right(got, wanted))

    monkeypatch.setattr(gpu.equality, "difference", difference)
    kernels = Kernels(emulator)
    found = gpu.equality.operators(emulator, kernels, gpu.Layer(kernels, 64, 64))
    assert len(compared) == 10
    # The first of each two is told: they are asked in turns.
    assert set(found) == {f"sparse_gemm_s8 {output}" for output in ("s32", "f16", "s8", "gelu_s8")}
    assert found["sparse_gemm_s8 s8"] == "torch.ops.edgekd.sparse_gemm_s8 s8: off"


def test_when_the_minutes_are_over_no_layer_is_begun(times: ModuleType, emulator: Path) -> None:
    found = json.loads(run(times, emulator, "--minutes", "0").read_text())
    assert (found["rows"], found["tiles"]) == ([], [])
    assert found["not_measured"] == [
        f"{what}, {layer}: not measured: the minutes were over"
        for what in ("every tile", "L2 warm", "L2 flushed")
        for layer in ("64 x 64", "128 x 64")
    ]


def test_a_run_that_is_cut_off_keeps_each_layer(
    times: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = times.timing.shape_row

    def cut_off(case: Any, *rest: Any) -> Any:
        if case.layer.n == 128:
            raise KeyboardInterrupt
        return right(case, *rest)

    monkeypatch.setattr(times.timing, "shape_row", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(times, emulator)
    found = json.loads((tmp_path / "kernels-stand-in-no-gpu.json").read_text())
    assert [(row["n"], row["m"]) for row in found["rows"]] == [(64, 1), (64, 9)]
    assert [aim["shapes"] for aim in found["aims"]] == [1, 0, 1, 2, 1, 0, 0, 0, 0]
    # The quick pass over every shape was first; the other tiles are for more features.
    assert len(found["tiles"]) == found["choice"]["shapes"] == 4
    assert set(found["tiles"][0]["us"]) == {
        "small_t8", "small_t24", "small_t40", "small_t64", "large_64x128",
    }  # fmt: skip
    sentence = "tile large_128x64 takes n in multiples of 128 and k of 64, found n = 64"
    assert sentence in found["tiles"][0]["not_measured"]["large_128x64"]


def test_a_layer_that_fails_ends_no_other(
    times: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = times.timing.tiles_row

    def fails(case: Any, tile: str) -> Any:
        if case.sizes == (9, 64, 64):
            raise RuntimeError("out of\n memory")
        return right(case, tile)

    monkeypatch.setattr(times.timing, "tiles_row", fails)
    found = json.loads(run(times, emulator).read_text())
    assert found["not_measured"] == ["every tile, 64 x 64: not measured: out of memory"]
    assert [row["m"] for row in found["tiles"]] == [1, 1, 9]
    assert len(found["rows"]) == 8


def test_a_wrong_kernel_is_named_and_ends_it(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(self: Kernels, output: str, *rest: Any, **more: Any) -> None:
        if output == "f16" and more.get("sparse", True):
            more["bias"] = more["scale"]
        RIGHT(self, output, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Kernels, "gemm", wrong)
    sentence = r"sparse small_t8 f16 3 x 256 x 128: \d+ of 768 outputs differ, the first at \[0, 0"
    with pytest.raises(SystemExit, match=sentence) as ended:
        run(gpu, emulator)
    # 8 tiles and the chosen one, each once although it differs on every shape; and the operator
    # that runs on the kernels here.
    assert len(str(ended.value).splitlines()) == 10
    assert "torch.ops.edgekd.sparse_gemm_s8_packed f16: " in str(ended.value)
    document = json.loads((tmp_path / "kernels-stand-in-no-gpu.json").read_text())
    assert len(document["equality"]["differ"]) == 10
    assert "raw_rates" not in document


def test_one_step_of_one_gelu_is_seen(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels' own erf is what is met: nothing is allowed to lie a step off."""

    def nearly(self: Kernels, kind: str, sizes: Any, x: int, w: int, y: int, **more: Any) -> None:
        RIGHT(self, kind, sizes, x, w, y, **more)  # type: ignore[arg-type]
        if kind == "gelu_s8" and more["tile"] == "large_64x128":
            ctypes.c_uint8.from_address(y + 1).value ^= 1

    monkeypatch.setattr(Kernels, "gemm", nearly)
    kernels = Kernels(emulator)
    found = gpu.equality.compare(kernels, [gpu.Layer(kernels, 256, 128)], (3,))
    names = [f"{kind} large_64x128 gelu_s8" for kind in ("sparse", "dense")]
    assert list(found["differ"]) == names
    sentence = (
        r"3 x 256 x 128: 1 of 768 outputs differ, the first at \[0, 1\]: -?\d+, expected -?\d+$"
    )
    assert re.search(sentence, found["differ"][names[0]])


def test_float16_is_compared_by_its_bits(gpu: ModuleType) -> None:
    zero = torch.zeros(1, 2, dtype=torch.float16)
    assert gpu.equality.difference(zero, zero.clone()) == ""
    wrong = gpu.equality.difference(-zero, zero)
    assert wrong == "2 of 2 outputs differ, the first at [0, 0]: -32768, expected 0"


def test_what_a_kernel_leaves_unwritten_is_seen(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a kernel before it left the right numbers in the same place."""

    def first(self: Kernels, *rest: Any, **more: Any) -> None:
        if more["tile"] == "small_t8" and more["sparse"]:
            RIGHT(self, *rest, **more)

    kernels = Kernels(emulator)
    layer = gpu.Layer(kernels, 256, 128)
    monkeypatch.setattr(Kernels, "gemm", first)
    found = gpu.equality.compare(kernels, [layer], (3,))
    assert found["instances"] == 72
    assert len(found["differ"]) == 72 - 4


def test_an_error_of_cuda_ends_the_comparison_and_is_named(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gemm(*_: Any, tile: str | None, **__: Any) -> None:
        if tile == "small_t8":
            raise ToolchainError("sparse_gemm_s8: small_t8: too many resources")
        raise RuntimeError("CUDA error: an illegal memory access")

    kernels = Kernels(emulator)
    layer = gpu.Layer(kernels, 256, 128)
    monkeypatch.setattr(Kernels, "gemm", gemm)
    found = gpu.equality.compare(kernels, [layer], (3,))
    # A refused launch is one kernel's; an error of CUDA's own is the last thing it says.
    assert list(found["differ"].values()) == [
        "sparse small_t8 s32 3 x 256 x 128: sparse_gemm_s8: small_t8: too many resources",
        "dense small_t8 s32 3 x 256 x 128: sparse_gemm_s8: small_t8: too many resources",
        "sparse small_t24 s32 3 x 256 x 128: CUDA error: an illegal memory access",
    ]


def test_every_tile_must_take_a_shape(gpu: ModuleType, emulator: Path) -> None:
    kernels = Kernels(emulator)
    found = gpu.equality.compare(kernels, [gpu.Layer(kernels, 64, 64)], (3,))
    assert "sparse large_128x128 s32: took no shape, expected one at least" in (
        found["differ"].values()
    )
    assert not any("small_t8" in name for name in found["differ"])


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
    twin, busy, _, _, raw, busy_raw, peer, bare, _ = roofline.aims(rows, [], RATES)
    assert (twin["least"], twin["shapes"], twin["share_found"], twin["met"]) == (1.5, 2, 0.5, False)
    assert [(each["m"], each["found"]) for each in twin["short"]] == [(6304, 1.4)]
    # Both take more than 10 us at the raw rate: 93 and 93.
    assert (busy["shapes"], busy_raw["shapes"]) == (2, 2)
    short = row(1576, 192, 192, "large_64x128", 5.0, 5.0, None)
    found = [aim["shapes"] for aim in roofline.aims([short], [], RATES)]
    assert found == [1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert (bare["share_found"], bare["share_wanted"], bare["met"]) == (1.0, None, None)
    # 3.718e9 multiply-adds in 100 us are 0.93 of 40e12 a second, 3.718e9 in 150 us 0.62.
    assert [(each["m"], each["found"]) for each in raw["short"]] == [(6304, 0.62)]
    assert (peer["shapes"], peer["share_found"], peer["met"]) == (2, 0.5, False)
    assert [(each["n"], each["found"]) for each in peer["short"]] == [(1536, 0.9)]
    assert np.isclose(peer["least"], 1.0)
