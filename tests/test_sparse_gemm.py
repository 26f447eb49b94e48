"""The contract in NumPy against numbers written out by hand: all else is compared with it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import sparse_gemm
from edgekd.errors import ContractError
from edgekd.sparse_gemm import OUTPUTS

F = np.float32


def test_sums_of_a_few() -> None:
    x = np.array([[1, -2, 3], [127, -128, 0]], np.int8)
    weights = np.array([[4, 5, 6], [-128, 127, 1], [0, 0, 0], [1, 1, 1]], np.int8)
    acc = sparse_gemm.sums(x, weights)
    assert acc.dtype == np.int32
    assert acc.tolist() == [[12, -379, 0, 2], [-132, -32512, 0, -1]]


def test_sums_are_exact_where_float32_is_not() -> None:
    """1024 products of 128 x 128 are 2**24, and an odd one beside them needs 25 bits."""
    x, weights = np.full((1, 1026), -128, np.int8), np.full((1, 1026), -128, np.int8)
    x[0, -2:], weights[0, -2:] = (1, 1), (1, 0)
    assert sparse_gemm.sums(x, weights).item() == 2**24 + 1


def test_sums_wrap_as_the_instructions_do() -> None:
    k = 131_072  # times 2**14 is 2**31, the first sum that an int32 does not hold
    x, weights = np.full((1, k), -128, np.int8), np.full((1, k), -128, np.int8)
    assert sparse_gemm.sums(x, weights).item() == -(2**31)
    assert sparse_gemm.sums(x[:, 1:], weights[:, 1:]).item() == 2**31 - 2**14


def test_no_token_gives_no_sum() -> None:
    acc = sparse_gemm.sums(np.zeros((0, 64), np.int8), np.zeros((3, 64), np.int8))
    assert (acc.shape, acc.dtype) == ((0, 3), np.int32)


@pytest.mark.parametrize(
    ("x", "weights", "found"),
    [
        (np.float32, np.int8, "x is float32 and weights are int8"),
        (np.int8, np.float32, "x is int8 and weights are float32"),
        (np.uint8, np.int8, "x is uint8 and weights are int8"),
        (np.int8, np.int16, "x is int8 and weights are int16"),
    ],
)
def test_types_that_are_not_int8(x: Any, weights: Any, found: str) -> None:
    sentence = f"^sparse_gemm: {found}, expected int8 and int8: quantize them first$"
    with pytest.raises(ContractError, match=sentence):
        sparse_gemm.sums(np.zeros((2, 64), x), np.zeros((3, 64), weights))


@pytest.mark.parametrize(
    ("x", "weights"),
    [
        ((2, 64), (64, 3)),  # weights not transposed
        ((2, 64), (3, 32)),
        ((64,), (3, 64)),
        ((2, 64), (64,)),
        ((1, 2, 64), (3, 64)),
        ((2, 64), (1, 3, 64)),
    ],
)
def test_shapes_that_do_not_belong_together(x: tuple[int, ...], weights: tuple[int, ...]) -> None:
    sentence = (
        f"sparse_gemm: x has shape {list(x)} and weights {list(weights)}, expected [m, k] and "
        "[n, k]: give both the same k"
    )
    with pytest.raises(ContractError, match=f"^{re.escape(sentence)}$"):
        sparse_gemm.sums(np.zeros(x, np.int8), np.zeros(weights, np.int8))


ACC = np.array([[0, 100, -100], [3, 2**24 + 1, 2**31 - 1]], np.int32)
SCALE, BIAS = np.array([0.5, 0.25, 0.125], F), np.array([1.0, -2.5, 0.0], F)
# Y = ACC * SCALE + BIAS: [[1, 22.5, -12.5], [2.5, 4194304 - 2.5, 268435456]]


def test_s32_are_the_sums_themselves() -> None:
    nothing = np.zeros(0, F)
    assert sparse_gemm.epilogue(ACC, "s32", nothing, nothing) is ACC


def test_f16_saturates_to_infinity() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = sparse_gemm.epilogue(ACC, "f16", SCALE, BIAS)
    assert y.dtype == np.float16
    assert y.tolist() == [[1, 22.5, -12.5], [2.5, np.inf, np.inf]]


def test_f16_adds_its_residual_before_it_rounds() -> None:
    """To float16 2048 + 1 is 2048, and 2048 + 1.5 + 1 is 2050."""
    acc, one = np.array([[2048]], np.int32), np.ones(1, F)
    assert sparse_gemm.epilogue(acc, "f16", one, one).item() == 2048
    residual = np.array([[1.0]], np.float16)
    assert sparse_gemm.epilogue(acc, "f16", one, one * F(1.5), residual).item() == 2050


def test_s8_rounds_half_to_even_and_saturates() -> None:
    """By 0.5: 1 is 2 steps, -12.5 is -25; 22.5 is 45; 2.5 is 5."""
    y = sparse_gemm.epilogue(ACC, "s8", SCALE, BIAS, np.array([0.5], F))
    assert y.dtype == np.int8
    assert y.tolist() == [[2, 45, -25], [5, 127, 127]]
    # By 1: 22.5 to 22, -12.5 to -12, 2.5 to 2, each to the even one.
    assert sparse_gemm.epilogue(ACC, "s8", SCALE, BIAS, np.array([1.0], F)).tolist() == [
        [1, 22, -12], [2, 127, 127],
    ]  # fmt: skip
    assert sparse_gemm.epilogue(-ACC, "s8", SCALE, BIAS, np.array([1.0], F)).tolist() == [
        [1, -28, 12], [0, -128, -128],
    ]  # fmt: skip


def test_the_product_and_the_sum_are_each_rounded_once() -> None:
    """(1 + 2**-12)**2 is 1 + 2**-11 + 2**-24, of which float32 drops the last, half a last bit.

    Less 1 + 2**-11 that is 0, where a fused multiply-add gives 2**-24, which float16 still holds.
    """
    acc, scale = np.array([[4097]], np.int32), np.array([4097 * 2.0**-24], F)
    bias = np.array([-(1 + 2.0**-11)], F)
    assert sparse_gemm.epilogue(acc, "f16", scale, bias).item() == 0.0
    assert float(acc.item()) * float(scale[0]) + float(bias[0]) == 2.0**-24


def test_a_sum_is_rounded_to_float32_before_it_is_scaled() -> None:
    """2**24 + 1 becomes 2**24, ties to even, and 2**24 + 3 becomes 2**24 + 4."""
    acc = np.array([[2**24 + 1, 2**24 + 3]], np.int32)
    y = sparse_gemm.epilogue(acc, "f16", np.ones(2, F), np.full(2, -(2.0**24), F))
    assert y.tolist() == [[0.0, 4.0]]


def test_gelu_s8_is_the_gelu_quantized() -> None:
    """GELU of 1, -1, 0.5 and 3 is 0.8413447, -0.1586553, 0.3457312, 2.9959503: tables of Phi."""
    acc = np.array([[2, -2, 1, 6]], np.int32)
    half, none = np.full(4, 0.5, F), np.zeros(4, F)
    y = sparse_gemm.epilogue(acc, "gelu_s8", half, none, np.array([0.015625], F))
    assert (y.dtype, y.tolist()) == (np.int8, [[54, -10, 22, 127]])  # 53.8, -10.2, 22.1, 191.7
    y = sparse_gemm.epilogue(acc, "gelu_s8", half, none, np.array([0.03125], F))
    assert y.tolist() == [[27, -5, 11, 96]]  # 26.9, -5.08, 11.06, 95.87


def test_gelu_ends_in_zero_and_in_x() -> None:
    x = np.array([-np.inf, -3e38, -40.0, 0.0, 9.0, 3e38, np.inf], F)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = sparse_gemm.gelu(x)
    assert y.dtype == np.float32
    assert y.tolist() == [0, 0, 0, 0, 9, x[5], np.inf]
    assert np.isnan(sparse_gemm.gelu(np.array([np.nan], F)))
    np.testing.assert_allclose(
        sparse_gemm.gelu(np.array([1.0, -1.0], F)), [0.84134475, -0.15865525], rtol=1e-7
    )


@pytest.mark.parametrize(
    ("scale", "bias", "out", "sentence"),
    [
        (1.0, np.nan, 1.0, "x[0, 1] is nan (1 of 2 values are NaN), expected numbers"),
        (1.0, 0.0, 0.0, "scale is 0.0, expected a finite positive float32"),
        (1.0, 0.0, -1.0, "scale is -1.0, expected a finite positive float32"),
        (1.0, 0.0, np.nan, "scale is nan, expected a finite positive float32"),
    ],
)
@pytest.mark.parametrize("output", ["s8", "gelu_s8"])
def test_what_no_int8_stands_for(
    output: Any, scale: float, bias: float, out: float, sentence: str
) -> None:
    acc = np.array([[1, 2]], np.int32)
    with pytest.raises(ContractError, match=re.escape(sentence)):
        sparse_gemm.epilogue(
            acc, output, np.full(2, scale, F), np.array([0, bias], F), np.array([out], F)
        )


def test_an_outputs_place_is_its_number_in_the_c_interface() -> None:
    header = Path(__file__).parents[1] / "kernels" / "include" / "edgekd_kernels.h"
    numbers = dict(re.findall(r"EDGEKD_(INT32|FLOAT16|INT8|GELU_INT8) = (\d)", header.read_text()))
    assert [int(numbers[name]) for name in ("INT32", "FLOAT16", "INT8", "GELU_INT8")] == [
        0,
        1,
        2,
        3,
    ]
    assert OUTPUTS == ("s32", "f16", "s8", "gelu_s8")
