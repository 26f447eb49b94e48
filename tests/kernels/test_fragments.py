"""Rung 2: register fragments of one MMA, laid out here by hand, against the product they mean."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import pytest

from edgekd import sparse24
from edgekd.engine.native import Kernels


def mma(kernels: Kernels, kind: int, *registers: npt.NDArray[np.generic]) -> int:
    pointers = [ctypes.c_void_p(each.ctypes.data) for each in registers]
    return int(kernels.library.edgekd_emulator_mma(kind, *pointers))


def accumulators(c: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """int32[16, 8] as 32 lanes hold it: PTX ISA, accumulators of m16n8."""
    d = np.zeros((32, 4), np.int32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        d[lane] = [c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1]]
    return d


@pytest.mark.parametrize("seed", range(40))
def test_a_sparse_mma(kernels: Kernels, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (16, 64), dtype=np.int8)
    w = w * sparse24.mask(w)
    x = rng.integers(-128, 128, (8, 64), dtype=np.int8)
    c = rng.integers(-(2**31), 2**31, (16, 8), dtype=np.int32)  # sums wrap
    values, metadata = sparse24.compress(w)
    stored = np.ascontiguousarray(values).view(np.uint32)  # [16, 8]
    tokens = x.view(np.uint32)  # [8, 16]
    a, b, e = (np.zeros(shape, np.uint32) for shape in ((32, 4), (32, 4), 32))
    for lane in range(32):
        g, t = divmod(lane, 4)
        a[lane] = [stored[g, t], stored[g + 8, t], stored[g, 4 + t], stored[g + 8, 4 + t]]
        b[lane] = [tokens[g, t], tokens[g, 4 + t], tokens[g, 8 + t], tokens[g, 12 + t]]
        e[lane] = metadata.view(np.uint32)[g + 8 * (t % 2), t // 2]
    d = accumulators(c)
    assert mma(kernels, 0, a, b, e, d) == 0
    exact = w.astype(np.int64) @ x.T.astype(np.int64) + c
    np.testing.assert_array_equal(d, accumulators(exact.astype(np.int32)))


@pytest.mark.parametrize("seed", range(10))
def test_a_dense_mma(kernels: Kernels, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (16, 32), dtype=np.int8)
    x = rng.integers(-128, 128, (8, 32), dtype=np.int8)
    c = rng.integers(-(2**31), 2**31, (16, 8), dtype=np.int32)
    weights, tokens = w.view(np.uint32), x.view(np.uint32)
    a, b = np.zeros((32, 4), np.uint32), np.zeros((32, 4), np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        a[lane] = [weights[g, t], weights[g + 8, t], weights[g, 4 + t], weights[g + 8, 4 + t]]
        b[lane, :2] = [tokens[g, t], tokens[g, 4 + t]]
    d = accumulators(c)
    assert mma(kernels, 1, a, b, np.zeros(32, np.uint32), d) == 0
    exact = w.astype(np.int64) @ x.T.astype(np.int64) + c
    np.testing.assert_array_equal(d, accumulators(exact.astype(np.int32)))


def test_metadata_lies_in_the_lanes_that_cutlass_gives_it(kernels: Kernels) -> None:
    """A second source for what the PTX ISA shows in a picture only.

    CUTLASS orders 32-bit metadata in tools/util, host_reorder.h: rows r and r + 8 become
    neighbours, of each 2 x 2 words the two off the diagonal are exchanged, and two columns lie
    together in memory (ColumnMajorInterleaved<2>).
    """
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (64, 64), dtype=np.int8)
    w = w * sparse24.mask(w)
    words = sparse24.compress(w)[1].view(np.uint32)  # [64, 2]
    packed = kernels.pack(w, True)[2048:].view(np.uint32).reshape(32, 4)  # lane, tile
    for tile in range(4):
        of_row = [8 * (r % 8) + 2 * tile + r // 8 for r in range(16)]  # feature of the MMA's row
        reordered = np.zeros((16, 2), np.uint32)
        for r, feature in enumerate(of_row):
            reordered[2 * (r % 8) + r // 8] = words[feature]
        odd, even = reordered[1::2, 0].copy(), reordered[0::2, 1].copy()
        reordered[1::2, 0], reordered[0::2, 1] = even, odd
        np.testing.assert_array_equal(packed[:, tile], reordered.ravel())


def test_metadata_that_does_not_increase_is_a_fault(kernels: Kernels) -> None:
    a, b, d = (
        np.zeros((32, 4), np.uint32),
        np.zeros((32, 4), np.uint32),
        np.zeros((32, 4), np.int32),
    )
    good = np.full(32, 0x44444444, np.uint32)  # positions 0 and 1 of each group
    assert mma(kernels, 0, a, b, good, d) == 0
    bad = good.copy()
    bad[31] = 0x44144444  # positions 1 and 0
    assert mma(kernels, 0, a, b, bad, d) != 0
