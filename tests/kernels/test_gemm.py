"""Rung 3: the kernels' own sources, run by the emulator, equal the NumPy contract to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.engine.native import Kernels
from edgekd.sparse_gemm import OUTPUTS, Output
from kernels import gemms

TILES = ("small_t8", "small_t24", "small_t40", "small_t64", "large_64x128", "large_128x64",
         "large_128x128", "large_256x128")  # fmt: skip


def test_these_are_all_tiles(kernels: Kernels) -> None:
    assert kernels.tiles == TILES


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("tile", TILES)
def test_every_instance_gives_the_contracts_numbers(
    kernels: Kernels, tile: str, output: Output, sparse: bool
) -> None:
    gemm = gemms.random(53, 256, 256, output, sparse)
    np.testing.assert_array_equal(gemm.run(kernels, tile), gemm.expected())


@pytest.mark.parametrize("tile", TILES)
def test_every_block_of_a_grid_has_its_own_tokens_and_weights(kernels: Kernels, tile: str) -> None:
    """Two blocks each way and more, for the largest tile too: 256 features x 128 tokens."""
    gemm = gemms.random(197, 512, 128)
    np.testing.assert_array_equal(gemm.run(kernels, tile), gemm.expected())


@pytest.mark.parametrize("late", [True, False], ids=["copies late", "copies early"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("tile", TILES)
def test_no_schedule_changes_the_result(kernels: Kernels, tile: str, seed: int, late: bool) -> None:
    gemm = gemms.random(45, 256, 640, "s32", seed=seed)
    np.testing.assert_array_equal(gemm.run(kernels, tile, seed, late), gemm.expected())


@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 39, 40, 41, 63, 64, 65, 127, 128, 129, 197])
def test_any_number_of_tokens(kernels: Kernels, m: int) -> None:
    for tile in ("small_t8", "small_t40", "small_t64", "large_64x128", "large_128x128"):
        gemm = gemms.random(m, 128, 128, "s8")
        np.testing.assert_array_equal(gemm.run(kernels, tile, seed=m), gemm.expected())


@pytest.mark.parametrize("k", [64, 128, 192, 256, 320, 384, 448, 512, 576])
def test_short_and_odd_k(kernels: Kernels, k: int) -> None:
    """Fewer slabs than warps or stages, and counts that no pipeline depth divides."""
    for tile in TILES:
        if k % 128 and tile == "large_128x128":
            continue
        gemm = gemms.random(17, 256, k, "s32")
        np.testing.assert_array_equal(gemm.run(kernels, tile, seed=k), gemm.expected())


@pytest.mark.parametrize(
    ("n", "k"), [(192, 192), (576, 192), (192, 768), (384, 1536), (768, 768), (1024, 4096)]
)
@pytest.mark.parametrize("m", [1, 197])
def test_layers_of_vit_and_bert(kernels: Kernels, m: int, n: int, k: int) -> None:
    gemm = gemms.random(m, n, k, "gelu_s8")
    off = np.abs(gemm.run(kernels).astype(int) - gemm.expected())
    # Two erfs, one here and one in the kernel, may fall on either side of a rounding boundary.
    assert off.max() <= 1
    assert off.mean() <= 1e-4


def test_a_residual_of_more_than_65536_elements(kernels: Kernels) -> None:
    gemm = gemms.random(197, 384, 64, "f16")
    assert 197 * 384 > 2**16
    np.testing.assert_array_equal(gemm.run(kernels), gemm.expected())


def test_float16_without_a_residual(kernels: Kernels) -> None:
    gemm = gemms.random(9, 64, 64, "f16", residual=False)
    np.testing.assert_array_equal(gemm.run(kernels), gemm.expected())


def test_float16_overflows_to_infinity_as_a_cast_does(kernels: Kernels) -> None:
    gemm = gemms.random(9, 64, 64, "f16")
    gemm.scale[:] = 1e3
    expected = gemm.expected()
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(gemm.run(kernels), expected)


def test_sums_at_the_ends_of_int8(kernels: Kernels) -> None:
    gemm = gemms.random(9, 64, 4096)
    gemm.x[:] = -128
    gemm.weights[gemm.weights != 0] = -128
    assert gemm.expected().max() == 128 * 128 * 2048
    np.testing.assert_array_equal(gemm.run(kernels), gemm.expected())


def test_shared_memory_has_no_bank_conflicts(kernels: Kernels) -> None:
    """16 bytes for 32 lanes take 4 wavefronts at least; without the swizzle they took 16 to 32."""
    for tile in TILES:
        gemms.random(128, 256, 256).run(kernels, tile)
        counted = gemms.counted(kernels)
        assert counted["matrix_wavefronts"] == 4 * counted["matrix_loads"] > 0, tile
        assert counted["shared_wavefronts"] == 4 * counted["shared_loads"] > 0, tile


def test_sparse_needs_half_of_the_multiplications(kernels: Kernels) -> None:
    counts = {}
    for sparse in (True, False):
        gemms.random(40, 64, 256, sparse=sparse).run(kernels, "small_t40")
        counts[sparse] = gemms.counted(kernels)
    # 4 tiles of 16 features, 5 of 8 tokens; 64 of k an instruction, or 32.
    assert counts[True]["mma_sparse"] == 4 * 5 * 4
    assert counts[True]["mma_dense"] == 0
    assert counts[False]["mma_dense"] == 2 * 4 * 5 * 4


def test_the_main_loop_of_few_tokens_has_no_block_barrier(kernels: Kernels) -> None:
    barriers = {}
    for k in (512, 2048):
        gemms.random(40, 64, k).run(kernels, "small_t40")
        barriers[k] = gemms.counted(kernels)["block_barriers"]
    assert barriers == {512: 2, 2048: 2}


@pytest.mark.parametrize("tile", TILES)
def test_every_result_is_stored_once_and_every_operand_read_once(
    kernels: Kernels, tile: str
) -> None:
    """Twice would give the same numbers, later."""
    m, n, k = 256, 256, 512
    gemms.random(m, n, k, "s8").run(kernels, tile)
    counted = gemms.counted(kernels)
    assert counted["global_stores"] == m * n // 8  # 8 features of a token at a time
    tokens, features = {
        "small_t8": (8, 64), "small_t24": (24, 64), "small_t40": (40, 64), "small_t64": (64, 64),
        "large_64x128": (128, 64), "large_128x64": (64, 128), "large_128x128": (128, 128),
        "large_256x128": (128, 256),
    }[tile]  # fmt: skip
    rows, columns = -(-m // tokens), n // features
    weights = rows * n * k * 5 // 8 // 16  # 16 bytes at a time, for each row of blocks
    x = columns * rows * tokens * k // 16
    # To few tokens weights come in registers, to many through shared memory.
    to_registers, copied = (weights, x) if tile.startswith("small") else (0, weights + x)
    assert (counted["global_loads"], counted["copies"]) == (to_registers, copied)
