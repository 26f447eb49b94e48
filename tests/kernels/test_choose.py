"""The table of choose.h: both sides of every limit, the clocks worked out by hand.

Clocks of a block for a slab of k: 560 and 312 of shared memory for 256 x 128 and 128 x 128; 194,
226 and 140 of L2 for 128 x 64, 64 x 128 and small_t64, whose 9216, 10752 and 6656 bytes come at
5120 / 108 a clock.
"""

from __future__ import annotations

import pytest

from edgekd.engine.native import Kernels


@pytest.mark.parametrize(
    ("sizes", "multiprocessors", "tile"),
    [
        ((8, 768, 768), 108, "small_t8"),
        ((9, 768, 768), 108, "small_t24"),
        ((197, 768, 768), 61, "small_t24"),  # 60 blocks of 40 tokens
        ((197, 768, 768), 60, "small_t40"),
        ((400, 3072, 768), 16, "small_t40"),
        ((401, 3072, 768), 16, "large_256x128"),  # 48: 3 x 560; 96: 6 x 312; 168: 11 x 194
        # One block of 256 x 128 each: 560 against 2 x 312, but nothing hides where it begins.
        ((1152, 3072, 768), 108, "large_128x128"),
        ((2304, 3072, 768), 108, "large_256x128"),  # 2 x 560 against 4 x 312
        ((1576, 3072, 768), 108, "large_128x128"),  # 312: 3 x 312; 156: 2 x 560; 600: 6 x 194
        ((1576, 3072, 704), 108, "large_256x128"),  # k is 11 slabs; 2 x 560 against 6 x 194
        ((1576, 768, 768), 108, "large_128x128"),  # 78: 312; 150: 2 x 194; 300: 3 x 140
        ((1576, 768, 768), 16, "large_128x128"),  # 5 x 312; 39: 3 x 560; 150: 10 x 194
        ((6304, 1728, 192), 108, "large_64x128"),  # 1350: 13 x 226; 2673: 25 x 140
        ((788, 768, 768), 108, "large_128x64"),  # 78: 194; 42 of 128 x 128: 312; 156: 2 x 140
        ((1576, 192, 192), 108, "small_t64"),  # 75: 140; 39 of 64 x 128: 226
    ],
)  # fmt: skip
def test_the_table_of_tiles(
    kernels: Kernels, sizes: tuple[int, int, int], multiprocessors: int, tile: str
) -> None:
    choice = kernels.choose(sizes, multiprocessors)
    assert choice is not None
    assert choice[0] == tile
    assert len(choice[1].split()) > 3


def test_it_has_a_tile_for_all_sizes_of_vit_and_bert(kernels: Kernels) -> None:
    for n in range(192, 4097, 64):
        for k in (64, 192, 384, 768, 1024, 3072, 4096):
            for m in (1, 50, 197, 394, 512, 1576, 6304):
                for multiprocessors in (8, 16, 108, 132):
                    assert kernels.choose((m, n, k), multiprocessors) is not None


def test_it_has_none_where_no_kernel_runs(kernels: Kernels) -> None:
    assert kernels.choose((1, 100, 64), 108) is None
    assert kernels.choose((1, 64, 64), 0) is None
    assert kernels.choose((2**25 - 1, 64, 64), 2**31 - 1) is not None


def test_every_tile_is_chosen_somewhere_for_a_reason_of_its_own(kernels: Kernels) -> None:
    found = set()
    for m in (1, 197, 788, 1576, 6304):
        for n, k in ((192, 192), (1728, 192), (3072, 704), (3072, 768)):
            found |= {kernels.choose((m, n, k), count) for count in (16, 108)}
    assert {each[0] for each in found if each} == set(kernels.tiles)
    assert len(found) == len(kernels.tiles)
