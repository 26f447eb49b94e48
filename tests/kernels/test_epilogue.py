"""The epilogue's arithmetic against NumPy's: equal where it must be, near where it may."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import numpy.typing as npt
import pytest

from edgekd import quant
from edgekd.engine.native import Kernels


def quantized(kernels: Kernels, y: npt.NDArray[np.float32], scale: float) -> npt.NDArray[np.int8]:
    y = np.ascontiguousarray(y)
    q = np.zeros(len(y), np.int8)
    kernels.library.edgekd_emulator_quantize(
        ctypes.c_void_p(y.ctypes.data),
        ctypes.c_float(scale),
        ctypes.c_int64(len(y)),
        ctypes.c_void_p(q.ctypes.data),
    )
    return q


@pytest.mark.parametrize("seed", range(60))
def test_the_division_is_correctly_rounded_next_to_every_tie(kernels: Kernels, seed: int) -> None:
    """Half a step is where one wrong last bit would change the integer."""
    rng = np.random.default_rng(seed)
    scale = np.float32(rng.random() * 2.0 ** rng.integers(-20, 9) + 2.0**-24)
    if seed % 2:
        scale = np.float32(np.float16(scale))  # what our own scales are
    ties = ((np.arange(-130, 130) + 0.5) * np.float64(scale)).astype(np.float32)
    near = [ties]
    for _ in range(3):
        near.append(np.nextafter(near[-1], np.float32(np.inf)))
    for _ in range(3):
        near.append(np.nextafter(near[-1] if len(near) > 4 else ties, np.float32(-np.inf)))
    y = np.concatenate([*near, rng.standard_normal(2000).astype(np.float32) * scale * 60])
    np.testing.assert_array_equal(quantized(kernels, y, float(scale)), quant.quantize(y, scale))


def test_the_least_scale(kernels: Kernels) -> None:
    """A smaller one is refused by the operator: from 2**-128 on its reciprocal is infinite."""
    scale = 2.0**-126
    y = (np.arange(-260, 261) * np.float64(scale) / 2).astype(np.float32)
    np.testing.assert_array_equal(
        quantized(kernels, y, scale), quant.quantize(y, np.float32(scale))
    )


@pytest.mark.parametrize("scale", [2.0**-24, 2.0**-14, 0.0371, 1.0, 511.75])
def test_the_ends_of_the_range_saturate(kernels: Kernels, scale: float) -> None:
    y = np.array(
        [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, np.inf, -np.inf, 127.5 * scale,
         -128.5 * scale, 256 * scale, -256 * scale, 257.0 * scale], np.float32,
    )  # fmt: skip
    np.testing.assert_array_equal(quantized(kernels, y, scale), quant.quantize(y, scale))


def gelu(kernels: Kernels, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    y = np.zeros_like(x)
    kernels.library.edgekd_emulator_gelu(
        ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(len(x)), ctypes.c_void_p(y.ctypes.data)
    )
    return y


def test_gelu_is_within_half_a_millionth(kernels: Kernels) -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_001), np.linspace(-1e-3, 1e-3, 1001), [-40, 40]])
    x = x.astype(np.float32)
    exact = x * 0.5 * np.array([math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    assert np.abs(gelu(kernels, x) - exact).max() < 5e-7


def test_gelu_of_small_values_keeps_their_digits(kernels: Kernels) -> None:
    """Where all of a layer is small, so is its scale: the error has to shrink with x."""
    x = np.concatenate([np.geomspace(1e-30, 1e-2, 1000), -np.geomspace(1e-30, 1e-2, 1000)])
    x = x.astype(np.float32)
    exact = x * 0.5 * np.array([math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    assert np.abs(gelu(kernels, x) / exact - 1).max() < 1e-6


def test_gelu_far_out(kernels: Kernels) -> None:
    y = gelu(kernels, np.array([-1e30, 1e30, 0.0, 100.0, -np.inf, np.inf], np.float32))
    assert y[[1, 2, 3, 5]].tolist() == [np.float32(1e30), 0.0, 100.0, np.inf]
    assert np.abs(y[[0, 4]]).max() < 5e-7


def test_what_is_no_number_is_zero(kernels: Kernels) -> None:
    y = np.array([np.nan, 1.0], np.float32)
    assert quantized(kernels, y, 0.5).tolist() == [0, 2]
    assert quantized(kernels, gelu(kernels, y), 0.5).tolist()[0] == 0
