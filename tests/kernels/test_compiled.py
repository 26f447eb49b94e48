"""The gate on what the compiler made: its reader, its sentences, and the budget it is held to."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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
# The one tile whose shared memory allows more on Hopper.
BLOCKS_ON_HOPPER = {"large_64x128": (4, 4)}
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
# The same in the dense twin, some of it predicated; and what ptxas said of each.
PREDICATED = """
.text.dense_tiny_s8:
.L_x_7:
        /*0000*/               @P0 IMMA.16832.S8.S8 R8, R4.ROW, R8.COL, RZ ;
        /*0010*/             @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0020*/              @UP1 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0030*/             @!UPT UMOV UR5, UR4 ;
        /*0040*/              @!P6 STL.64 [R1+0x8], R2 ;
        /*0050*/                   LDL.LU R2, [R1] ;
        /*0060*/                   STL [R1], R2 ;
        /*0070*/               @P1 BRA `(.L_x_7) ;
"""
LOG = """
ptxas info    : Compiling entry function 'sparse_tiny_s8' for 'sm_87'
ptxas info    : Function properties for sparse_tiny_s8
    24 bytes stack frame, 20 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 24 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Compiling entry function 'dense_tiny_s8' for 'sm_87'
ptxas info    : Function properties for dense_tiny_s8
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 88 registers, used 1 barriers, 400 bytes cmem[0]
"""
TINY = {
    "sparse_tiny_s8": {"dynamic_shared_bytes": 4096},
    "dense_tiny_s8": {"dynamic_shared_bytes": 512},
}


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


def test_an_instruction_counts_whatever_it_depends_on(sass: ModuleType) -> None:
    (lines,) = sass.kernels(PREDICATED).values()
    assert [line.operation for line in lines] == [
        "", "IMMA.16832.S8.S8", "UIADD3", "UIADD3", "UMOV", "STL.64", "LDL.LU", "STL", "BRA"
    ]  # fmt: skip
    assert sass.count(sass.hot_loop(lines), "") == 8


@pytest.fixture
def measured(
    compiled: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    """What the gate finds in a listing and a log; the cubin itself agrees with the table."""

    def of(listing: str, log: str = LOG) -> Any:
        cubin = tmp_path / "kernels.cubin"
        cubin.with_name("kernels.cubin.log").write_text(log)
        monkeypatch.setattr(compiled, "run", lambda *_: listing)
        monkeypatch.setattr(compiled, "tool", str)
        monkeypatch.setattr(compiled.cubins, "disagreements", lambda *_: [])
        return compiled.measured(cubin, TINY)

    return of


def test_everything_that_costs_is_counted(measured: Callable[..., Any]) -> None:
    assert measured(LISTING + PREDICATED) == {
        "sparse_tiny_s8": {
            "registers": 96, "shared_bytes": 4096 + 2048, "spill_bytes": 20 + 4,
            "local_accesses": 1, "loop_instructions": 4, "loop_mmas": 2,
        },
        "dense_tiny_s8": {
            "registers": 88, "shared_bytes": 512, "spill_bytes": 0, "local_accesses": 3,
            "loop_instructions": 8, "loop_mmas": 1,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("was", "becomes", "sentence"),
    [
        ("IMMA.16832", "IMMA.SP.16864", "dense_tiny_s8 in kernels.cubin: 1 MMAs, 1 of them sparse"),
        ("R14, 0x0 ;\n        /*0040", "R14, 0x0 ;\n        /*0038*/ IMMA.16832.S8.S8 R8, R4, R8 ;"
         "\n        /*0040", "sparse_tiny_s8 in kernels.cubin: 3 MMAs, 2 of them sparse, 3 in its"),
        ("IMMA.16832", "IADD3", "dense_tiny_s8 in kernels.cubin: 0 MMAs, 0 of them sparse, 0 in "),
        ("@P1 BRA `(.L_x_7)", "EXIT", "1 MMAs, 0 of them sparse, 0 in its hot loop, expected all "
         "dense and some in the loop"),
        (".text.dense_tiny_s8", ".nv.dense_tiny_s8", "kernels.cubin: ptxas names 2 kernels, nvdi"),
    ],
    ids=["sparse in the twin", "dense in the sparse", "none", "no loop", "no kernel"],
)  # fmt: skip
def test_machine_code_that_is_not_of_the_kernel(
    measured: Callable[..., Any], was: str, becomes: str, sentence: str
) -> None:
    listing = (LISTING + PREDICATED).replace(was, becomes)
    assert listing != LISTING + PREDICATED
    with pytest.raises(SystemExit, match=sentence):
        measured(listing)


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
