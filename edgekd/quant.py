"""The integer contract: standard symmetric INT8, as ONNX QuantizeLinear defines it.

A real number x is stored as the integer q = saturate(round(x / scale)) and read back as q * scale.
Rounding is half to even, the range is -128..127, zero_point is 0, scale is one float per tensor or
one per channel (ONNX operators, QuantizeLinear and DequantizeLinear, opset 13 and later). Every
other place in edgekd that quantizes is tested against these few NumPy lines with ``==``.

Two graphs ship from one student, fp16 and fp32 elsewhere, and both must hold the same integers. So
scales are rounded up to values float16 represents exactly, and float weights are *snapped* to
q * scale. Casting a snapped weight to float16 moves it by at most 2**-11 of itself, that is by
127 * 2**-11 = 0.062 of a scale step, far from the half step at which q would change. (Below 2**-14
the product is a multiple of 2**-24, hence exact.) Rounding up, never down, keeps amax / scale at
127 or less: nothing that calibration saw saturates. The price is at most one part in 1024 of the
resolution for a normal scale, and more only for subnormal ones (amax below 127 * 2**-14 = 0.0078).

Left out: zero points and uint8 (TensorRT takes symmetric int8 only), power-of-two scales (they cost
up to half the range), blocked scales and widths other than 8.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekd.errors import ContractError

INT8_MIN = -128
INT8_MAX = 127

# The smallest normal float16. Any positive scale stores an all-zero channel as zeros; this one also
# survives hardware that flushes float16 subnormals, where a smaller one would turn into 0 / 0.
SCALE_OF_ZERO = 2.0**-14

# The largest scale for which even q = -128, which an activation may reach, is finite in float16.
_SCALE_MAX = 511.75
_AMAX_MAX = INT8_MAX * _SCALE_MAX


def scale_from_amax(amax: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Smallest float16-representable scale at which no magnitude up to amax saturates.

    Args:
        amax: float[...], largest magnitude of a tensor or of each channel, in 0..64992.25.

    Returns:
        float32[...] of the same shape: amax / 127 rounded up to a float16 value, at least 2**-24
        (the smallest float16) for a positive amax and 2**-14 for an amax of 0.

    Raises:
        ContractError: An amax is NaN, infinite, negative, or so large that -128 * scale overflows
            float16.
    """
    wide = np.asarray(amax, dtype=np.float64)
    bad = ~((wide >= 0) & (wide <= _AMAX_MAX))
    if bad.any():
        raise ContractError(
            f"{_first('amax', wide, bad)}, expected a value in 0..{_AMAX_MAX} so that"
            f" {INT8_MIN} x scale is finite in float16: calibrate again on finite data or leave the"
            " layer out of the INT8 plan"
        )
    nearest = (wide / INT8_MAX).astype(np.float16)
    above = np.nextafter(nearest, np.float16(np.inf))
    # scale * 127 has at most 18 significant bits, so this comparison is exact in float64.
    rounded_down = nearest.astype(np.float64) * INT8_MAX < wide
    scale = np.where(rounded_down, above, nearest)
    return np.where(wide == 0, SCALE_OF_ZERO, scale).astype(np.float32)


def broadcast_scale(
    scale: npt.ArrayLike, shape: tuple[int, ...], axis: int | None = None
) -> npt.NDArray[np.float32]:
    """Check a scale and shape it so that it broadcasts against a tensor of the given shape.

    Args:
        scale: float scalar, or float[n] with n = shape[axis].
        shape: Shape of the tensor to be quantized or dequantized.
        axis: The channel axis, negative counts from the end; None where scale is a scalar.

    Returns:
        float32 scalar, or float32[1, .., n, .., 1] with n at axis.

    Raises:
        ContractError: A scale is not finite or not positive, or its length is not that of the axis.
    """
    with np.errstate(over="ignore"):  # becomes inf and is refused below
        scales = np.asarray(scale, dtype=np.float32)
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        raise ContractError(
            f"{_first('scale', scales, bad)}, expected a finite positive float32:"
            " take scales from quant.scale_from_amax"
        )
    if scales.ndim == 0:
        return scales
    if scales.ndim != 1 or axis is None or not -len(shape) <= axis < len(shape):
        raise ContractError(
            f"scale has shape {list(scales.shape)} and axis is {axis} for a tensor of shape"
            f" {list(shape)}, expected one scalar or one scale per channel along an axis it has:"
            " give the channel axis"
        )
    if scales.shape[0] != shape[axis]:
        raise ContractError(
            f"scale has {scales.shape[0]} entries, expected {shape[axis]}, the length of axis"
            f" {axis} of a tensor of shape {list(shape)}: give the axis the scales were made for"
        )
    aligned = [1] * len(shape)
    aligned[axis] = shape[axis]
    return scales.reshape(aligned)


def quantize(
    x: npt.ArrayLike, scale: npt.ArrayLike, axis: int | None = None
) -> npt.NDArray[np.int8]:
    """Quantize as ONNX QuantizeLinear does with zero_point 0: saturate(round_half_even(x / scale)).

    The division is a float32 division. x * (1 / scale) would differ on ties. Infinities saturate.

    Args:
        x: float[...], rounded to float32 first if wider.
        scale: float scalar, or float[n] along axis.
        axis: The channel axis of a per-channel scale.

    Returns:
        int8[...] of x's shape.

    Raises:
        ContractError: x holds a NaN, or the scale is refused by `broadcast_scale`.
    """
    with np.errstate(over="ignore"):  # an overflow saturates, as it does in ONNX
        values = np.asarray(x, dtype=np.float32)
        bad = np.isnan(values)
        if bad.any():
            raise ContractError(
                f"{_first('x', values, bad)} ({int(bad.sum())} of {values.size} values are NaN),"
                " expected numbers: no integer stands for NaN, look for the step that diverged"
            )
        steps = np.rint(values / broadcast_scale(scale, values.shape, axis))
    return np.asarray(np.clip(steps, INT8_MIN, INT8_MAX), dtype=np.int8)


def dequantize(
    q: npt.NDArray[np.int8], scale: npt.ArrayLike, axis: int | None = None
) -> npt.NDArray[np.float32]:
    """Dequantize as ONNX DequantizeLinear does with zero_point 0: q * scale in float32.

    Exact, without rounding, where scale is float16-representable.

    Args:
        q: int8[...].
        scale: float scalar, or float[n] along axis.
        axis: The channel axis of a per-channel scale.

    Returns:
        float32[...] of q's shape.

    Raises:
        ContractError: q is not int8, or the scale is refused by `broadcast_scale`.
    """
    if np.asarray(q).dtype != np.int8:
        raise ContractError(
            f"q is {np.asarray(q).dtype}, expected int8: quantize it first with quant.quantize"
        )
    integers = np.asarray(q, dtype=np.float32)
    with np.errstate(over="ignore"):
        return np.asarray(integers * broadcast_scale(scale, integers.shape, axis))


def snap(
    x: npt.ArrayLike, scale: npt.ArrayLike, axis: int | None = None
) -> npt.NDArray[np.float32]:
    """Move each value to the number its integer stands for: dequantize(quantize(x)).

    Args:
        x: float[...].
        scale: float scalar, or float[n] along axis.
        axis: The channel axis of a per-channel scale.

    Returns:
        float32[...] of x's shape; snapping it again changes nothing.

    Raises:
        ContractError: As `quantize`.
    """
    return dequantize(quantize(x, scale, axis), scale, axis)


def _first(name: str, values: npt.NDArray[np.floating], bad: npt.NDArray[np.bool_]) -> str:
    """Subject of a sentence about the first bad value, for example ``amax[3] is nan``."""
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f"[{', '.join(map(str, index))}]" if index else ""
    return f"{name}{place} is {values[index]}"
