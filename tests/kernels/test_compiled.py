"""The gate on what the compiler made: its reader, its sentences, and the budget it is held to."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgekd.sparse_gemm import OUTPUTS
from kernels.test_cubins import LAUNCHES

BENCH = Path(__file__).parents[2] / "bench" / "kernels"
BUDGET = Path(__file__).parents[2] / "kernels" / "budget.json"
# Blocks that a multiprocessor holds at once, of the sparse kernel and of its dense twin. Where they
# differ it is by registers: two slabs read ahead are 64 of them dense and 40 sparse.
BLOCKS = {
    "small_t8": (2, 2),
    "small_t24": (2, 1),
    "small_t40": (3, 2),
    "small_t64": (4, 4),
    "large_64x128": (3, 3),
    "large_128x64": (4, 4),
    "large_128x128": (2, 2),
    "large_256x128": (1, 1),
}
# The one tile whose shared memory allows more on Hopper, where 6 registers then part the two.
BLOCKS_ON_HOPPER = {"large_64x128": (4, 3)}
LISTING = """
.text.sparse_tiny_s8:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R8, [R2] ;
        /*0020*/                   IMMA.SP.16864.S8.S8 R8, R4.ROW, R8.COL, RZ, R14, 0x0 ;
        /*0030*/                   IMMA.SP.16864.S8.S8 R8, R4.ROW, R8.COL, RZ, R14, 0x0 ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   LDL R1, [R1] ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
"""


@pytest.fixture(scope="module")
def sass() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    return importlib.import_module("sass")


@pytest.fixture(scope="module")
def compiled(sass: ModuleType) -> ModuleType:
    assert sass
    return importlib.import_module("compiled")


def test_the_hot_loop_is_the_one_with_the_mmas(sass: ModuleType) -> None:
    (lines,) = sass.kernels(LISTING).values()
    loop = sass.hot_loop(lines)
    assert sass.count(loop, "") == 4
    assert sass.count(loop, "IMMA.SP") == sass.count(lines, "IMMA") == 2
    assert sass.count(lines, "LDL") == 1
    assert sass.hot_loop(lines[:1]) == []


def test_a_kernel_that_costs_more_is_told(compiled: ModuleType) -> None:
    allowed = {"registers": 100, "shared_bytes": 4096, "spill_bytes": 0, "local_accesses": 0,
               "loop_instructions": 90, "loop_mmas": 32}  # fmt: skip
    budget = {"sm_80": {"a": allowed, "b": allowed}}
    assert compiled.violations({"sm_80": {"a": allowed, "b": allowed}}, budget) == []
    worse = {**allowed, "registers": 101, "shared_bytes": 8192, "spill_bytes": 8, "loop_mmas": 31,
             "loop_instructions": 1}  # fmt: skip
    assert compiled.violations({"sm_80": {"a": worse, "c": allowed}}, budget) == [
        "a on sm_80: spill_bytes 8, expected at most 0",
        "a on sm_80: registers 101, expected at most 100",
        "a on sm_80: shared_bytes 8192, expected at most 4096",
        "a on sm_80: 31 MMAs in the hot loop, expected exactly 32",
        "b on sm_80: not compiled, expected by the budget",
        "c on sm_80: has no budget: --accept gives it one",
    ]


def test_a_cubin_without_a_budget_is_told_and_so_is_one_that_is_missing(
    compiled: ModuleType,
) -> None:
    allowed = {"registers": 100, "shared_bytes": 4096, "spill_bytes": 0, "local_accesses": 0,
               "loop_instructions": 90, "loop_mmas": 32}  # fmt: skip
    assert compiled.violations({"sm_89": {"a": allowed}}, {"sm_80": {"a": allowed}}) == [
        "a on sm_80: not compiled, expected by the budget",
        "a on sm_89: has no budget: --accept gives it one",
    ]


def test_shared_memory_of_fixed_size_counts(compiled: ModuleType) -> None:
    assert compiled.fixed_shared_bytes(", used 1 barriers, 416 bytes cmem[0]") == 0
    assert (
        compiled.fixed_shared_bytes(", used 1 barriers, 2048 bytes smem, 4 bytes cmem[0]") == 2048
    )


def test_the_budget_has_no_spills_and_all_kernels() -> None:
    budget = json.loads(BUDGET.read_text())
    assert set(budget) == {
        "sm_80 by CUDA 12.6", "sm_80 by CUDA 13.0", "sm_87 by CUDA 12.6", "sm_87 by CUDA 13.0",
        "sm_90 by CUDA 13.0",
    }  # fmt: skip
    for kernels in budget.values():
        assert len(kernels) == 8 * 4 * 2  # tiles, outputs, sparse and dense
        for name, allowed in kernels.items():
            assert allowed["spill_bytes"] == allowed["local_accesses"] == 0, name
            # The most a block may have on A100 and Orin; few tokens do without the attribute.
            assert allowed["shared_bytes"] <= (48 if "_small_" in name else 163) * 1024, name
            # 16 x 8 x 64 of an MMA, or half of that: a slab of 64 features is 4 tiles of rows.
            assert allowed["loop_mmas"] % 4 == 0, name
            twin = name.replace("sparse_", "dense_")
            assert kernels[twin]["loop_mmas"] == (1 if twin == name else 2) * allowed["loop_mmas"]


def blocks(sm: str, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks a multiprocessor holds: CUDA's guide, technical specifications by compute capability.

    65,536 registers, given to 4 warps at a time, 8 to a thread; shared memory, of which each block
    takes 1 KiB more than it asks for; warps.
    """
    kib, most_warps = {"sm_80": (164, 64), "sm_87": (164, 48), "sm_90": (228, 64)}[sm]
    warps = threads // 32
    by_registers = 65536 // (-(-registers // 8) * 8 * 32) // 4 * 4 // warps
    return min(by_registers, kib * 1024 // (shared_bytes + 1024), most_warps // warps)


def test_a_multiprocessor_holds_as_many_blocks_of_a_kernel_as_of_its_twin() -> None:
    """Else "sparse against dense" would compare how full a multiprocessor is."""
    for cubin, kernels in json.loads(BUDGET.read_text()).items():
        sm = cubin.split()[0]
        expected = BLOCKS | (BLOCKS_ON_HOPPER if sm == "sm_90" else {})
        for tile, (threads, *_) in LAUNCHES.items():
            for output in OUTPUTS:
                pair = [kernels[f"{kind}_{tile}_{output}"] for kind in ("sparse", "dense")]
                held = tuple(
                    blocks(sm, threads, each["registers"], each["shared_bytes"]) for each in pair
                )
                assert held == expected[tile], f"{tile} {output} on {cubin}"
