"""The contract of our GEMMs in NumPy: what every kernel, graph and operator of them must equal.

y[m, n] = epilogue(x[m, k] w[n, k]^T) over int8, the sums exact in int32. Whether w is 2:4 changes
how it is stored and multiplied, never what comes out. The epilogue multiplies by a scale a channel
and adds a bias, each rounded once to float32: ONNX has no fused multiply-add, and equal numbers in
any runtime are worth more than the last half bit. GELU is the exception to "equal": every library
has an erf of its own, so two of them may put a value on either side of a rounding boundary, one
step apart.

The kernels themselves are in ``kernels/``, which knows nothing of Python; `edgekd.engine.native`
binds them.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekd import quant
from edgekd.errors import ContractError

Output = Literal["s32", "f16", "s8", "gelu_s8"]
OUTPUTS: tuple[Output, ...] = ("s32", "f16", "s8", "gelu_s8")
# n and k of every kernel are multiples of it, see kernels/src/layout.h.
SLAB = 64


def sums(x: npt.NDArray[np.int8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """The exact sums x w^T.

    Args:
        x: int8[m, k].
        weights: int8[n, k].

    Returns:
        int32[m, n]; they wrap where they do not fit, which takes k above 131,072.

    Raises:
        ContractError: Types or shapes do not belong together.
    """
    if x.dtype != np.int8 or weights.dtype != np.int8:
        raise ContractError(
            f"sparse_gemm: x is {x.dtype} and weights are {weights.dtype}, expected int8 and int8: "
            "quantize them first"
        )
    if x.ndim != 2 or weights.ndim != 2 or x.shape[1] != weights.shape[1]:
        raise ContractError(
            f"sparse_gemm: x has shape {list(x.shape)} and weights {list(weights.shape)}, expected "
            "[m, k] and [n, k]: give both the same k"
        )
    # BLAS in float64 is exact up to 2**53, far above 2**14 k, and faster than an integer product.
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    wrapped: npt.NDArray[np.int32] = exact.astype(np.int64).astype(np.int32)
    return wrapped


def epilogue(
    acc: npt.NDArray[np.int32],
    output: Output,
    scale: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    extra: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """What a kernel writes.

    Args:
        acc: int32[m, n], see `sums`.
        output: ``s32`` the sums; ``f16`` half(acc * scale + bias), plus the residual; ``s8`` that
            quantized as `quant.quantize` does; ``gelu_s8`` its GELU quantized.
        scale: float32[n], input scale times the row's weight scale.
        bias: float32[n].
        extra: The output's scale, float32[1], of int8 outputs; the residual, float16[m, n], or
            None, of ``f16``.

    Returns:
        int32, float16 or int8 [m, n].
    """
    if output == "s32":
        return acc
    y = acc.astype(np.float32) * scale + bias
    if output == "f16":
        with np.errstate(over="ignore"):
            return (y if extra is None else y + extra.astype(np.float32)).astype(np.float16)
    assert extra is not None, "int8 outputs need the output's scale"
    return quant.quantize(gelu(y) if output == "gelu_s8" else y, extra.reshape(()))


def gelu(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """GELU, x / 2 (1 + erf(x / sqrt(2))), in float64 and rounded to float32 once: slow, and exact.

    Args:
        x: float32[...].
    """
    # Below -40 it is 0 in float64, and at minus infinity 0 times infinity.
    wide = np.maximum(x.astype(np.float64), -40.0)
    erf = np.vectorize(math.erf, otypes=[np.float64])(wide / math.sqrt(2))
    rounded: npt.NDArray[np.float32] = (0.5 * wide * (1.0 + erf)).astype(np.float32)
    return rounded
