"""Cubins as a product: how each kernel is launched, and which target loads which cubin."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekd import target
from edgekd.sparse_gemm import OUTPUTS

BENCH = Path(__file__).parents[2] / "bench" / "kernels"
ORIN = "jetson-agx-orin-64gb-jp6.2"
# Tile: threads of a block, and bytes of shared memory with sparse and with dense weights.
LAUNCHES = {
    "small_t8": (256, 16384, 16384),
    "small_t24": (256, 49152, 49152),  # 8 warps x 3 groups x 4 tiles x 512, above its pipeline's
    "small_t40": (128, 40960, 40960),
    "small_t64": (64, 32768, 32768),
    "large_64x128": (64, 43008, 49152),
    "large_128x64": (64, 36864, 36864),  # 4 stages of (2 slabs of 2560, 64 x 64), or 3 of 4096
    "large_128x128": (128, 79872, 65536),  # 3 stages of (2 x 2 slabs of 2560, 128 x 128), or 2
    "large_256x128": (256, 73728, 98304),
}


@pytest.fixture(scope="module")
def cubins() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    return importlib.import_module("cubins")


def on(cuda: str | None, name: str = ORIN) -> target.Target:
    return target.load(ORIN).model_copy(update={"cuda": cuda, "name": name})


def test_every_kernel_is_launched_as_counted_by_hand(table: dict[str, Any]) -> None:
    kernels = table["kernels"]
    for tile, (threads, sparse, dense) in LAUNCHES.items():
        for kind, shared in (("sparse", sparse), ("dense", dense)):
            for output in OUTPUTS:
                launch = kernels[f"{kind}_{tile}_{output}"]
                assert (launch["kind"], launch["tile"], launch["output"]) == (kind, tile, output)
                assert launch["block_threads"] == threads
                assert launch["dynamic_shared_bytes"] == shared
                assert launch["needs_shared_attribute"] == (shared > 48 * 1024)
    assert len(kernels) == len(LAUNCHES) * 2 * len(OUTPUTS)


def test_the_table_says_the_grid_and_the_arguments(table: dict[str, Any]) -> None:
    launch = table["kernels"]["sparse_large_128x64_s8"]
    assert (launch["features"], launch["tokens"], launch["k_multiple"]) == (128, 64, 64)
    assert table["kernels"]["dense_large_128x128_f16"]["k_multiple"] == 128
    names = [each.split()[-1].lstrip("*") for each in table["arguments"].split(",")]
    assert names == ["x", "weights", "scale", "bias", "extra", "m", "n", "k", "y"]


def test_a_target_loads_what_its_own_cuda_knows(cubins: ModuleType) -> None:
    targets = [target.load(name) for name in target.names()]
    found = {name: build.file for name, build in cubins.lanes(targets, ["13.0", "12.6"]).items()}
    assert found[ORIN] == "kernels.sm_87.cuda12.6.cubin"
    assert found["jetson-agx-orin-64gb-jp7.2.0"] == "kernels.sm_87.cuda13.0.cubin"
    assert found["a100-sxm4-80gb-trt10.13"].startswith("kernels.sm_80.")
    assert set(found) == {each.name for each in targets if each.compute_capability}


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [("12.6", "12.6"), ("12.9", "12.6"), ("13.0", "13.0"), ("13.2", "13.2"), ("13.10", "13.2"),
     (None, "12.6")],
)  # fmt: skip
def test_the_newest_assembler_that_is_no_newer(
    cubins: ModuleType, cuda: str | None, expected: str
) -> None:
    assert cubins.lanes([on(cuda)], ["13.2", "12.6", "13.0"])[ORIN].cuda == expected


def test_a_target_older_than_every_assembler_is_told(cubins: ModuleType) -> None:
    sentence = "has CUDA 12.4, and the oldest ptxas here is of 12.6, whose cubins it does not load"
    with pytest.raises(SystemExit, match=sentence):
        cubins.lanes([on("12.4")], ["13.0", "12.6"])


def test_what_is_no_cubin_is_told(cubins: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "kernels.cubin").write_bytes(b"\x7fELF\x01" + bytes(80))
    with pytest.raises(ValueError, match=r"kernels\.cubin: is no 64-bit ELF file"):
        cubins.elf.kernels(tmp_path / "kernels.cubin")
