"""The integer contract against hand-written values, its own promises, and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd import quant
from edgekd.errors import ContractError

ALL_Q = np.arange(quant.INT8_MIN, quant.INT8_MAX + 1, dtype=np.int8)
AMAX_MAX = 511.75 * 127


def every_float16_scale() -> np.ndarray:
    """All 24,575 positive float16 values up to the largest scale the contract allows."""
    values = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    return values[values <= 511.75]


class TestScaleFromAmax:
    @pytest.mark.parametrize(
        ("amax", "scale"),
        [
            (127.0, 1.0),
            (63.5, 0.5),
            (127.0 + 2**-10, 1 + 2**-10),  # rounded up: the next float16 after 1
            (1.0, 1033 * 2**-17),  # 1/127 = 1032.06 * 2**-17, in steps of 2**-17
            (AMAX_MAX, 511.75),
            (127 * 2.0**-24, 2.0**-24),  # the smallest float16, a subnormal
            (128 * 2.0**-24, 2.0**-23),
            (5e-324, 2.0**-24),  # amax / 127 is 0 even in float64
            (0.0, 2.0**-14),
        ],
    )
    def test_golden(self, amax: float, scale: float) -> None:
        found = quant.scale_from_amax(amax)
        assert found.dtype == np.float32
        assert found == scale

    def test_is_the_smallest_float16_at_which_amax_does_not_saturate(self) -> None:
        rng = np.random.default_rng(0)
        amax = np.exp2(rng.uniform(-30, np.log2(AMAX_MAX), 20_000)).astype(np.float32)
        scale = quant.scale_from_amax(amax)
        assert scale.shape == amax.shape
        assert (scale.astype(np.float16).astype(np.float32) == scale).all()
        assert (scale.astype(np.float64) * 127 >= amax).all()
        below = np.nextafter(scale.astype(np.float16), np.float16(0)).astype(np.float64)
        assert (below * 127 < amax).all()
        assert (np.rint(amax / scale) <= 127).all()

    @pytest.mark.parametrize(
        ("amax", "sentence"),
        [
            ([1.0, np.nan], r"amax\[1\] is nan, expected a value in 0\.\.64992\.25"),
            ([[1.0, 2.0], [-0.5, 2.0]], r"amax\[1, 0\] is -0\.5, expected a value in 0\.\."),
            (np.inf, r"amax is inf, .* -128 x scale is finite in float16: calibrate again"),
            (AMAX_MAX + 1, r"amax is 64993\.25, expected a value in 0\.\.64992\.25"),
        ],
    )
    def test_refuses(self, amax: object, sentence: str) -> None:
        with pytest.raises(ContractError, match=sentence):
            quant.scale_from_amax(amax)  # type: ignore[arg-type]


class TestSurvivesFloat16:
    def test_every_q_at_every_float16_scale(self) -> None:
        scales = every_float16_scale()
        assert scales.size == 24_575
        assert scales[0] == np.float32(2**-24)  # subnormal scales are included
        for chunk in np.array_split(scales, 16):
            q = np.broadcast_to(ALL_Q, (chunk.size, ALL_Q.size))
            snapped = quant.dequantize(q, chunk, axis=0)
            half = snapped.astype(np.float16)
            assert np.isfinite(half).all()
            assert (quant.quantize(half, chunk, axis=0) == q).all()
            # The same where a runtime divides in float16 rather than in float32.
            steps = half / chunk.astype(np.float16)[:, None]
            assert (np.rint(steps) == q).all()
            # Dequantizing is exact: float32 and float64 agree.
            assert (snapped == q.astype(np.float64) * chunk.astype(np.float64)[:, None]).all()


class TestQuantize:
    def test_golden_ties_go_to_even_and_ends_saturate(self) -> None:
        x = [0.25, 0.75, 1.25, -0.25, -0.75, 63.5, 63.75, 1e30, -64.0, -64.25, -np.inf, np.inf]
        q = [0, 2, 2, 0, -2, 127, 127, 127, -128, -128, -128, 127]
        found = quant.quantize(x, 0.5)
        assert found.dtype == np.int8
        assert found.tolist() == q

    def test_divides_and_does_not_multiply_by_the_reciprocal(self) -> None:
        x, scale = np.float32(-885.5), np.float32(7)  # -126.5 steps exactly: a tie, -126 is even
        assert np.rint(x * (np.float32(1) / scale)) == -127
        assert quant.quantize(x, scale) == -126

    def test_per_channel_along_any_axis(self) -> None:
        x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        assert quant.quantize(x, [1.0, 2.0], axis=0).tolist() == [[1, 2, 3], [2, 2, 3]]
        assert quant.quantize(x, [1.0, 2.0, 3.0], axis=-1).tolist() == [[1, 1, 1], [4, 2, 2]]
        assert quant.dequantize(np.array([[3], [4]], np.int8), [0.5, 2.0], axis=0).tolist() == [
            [1.5],
            [8.0],
        ]

    @given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 0x5FFF))
    def test_snap_is_idempotent_and_within_half_a_step(self, x: float, bits: int) -> None:
        scale = np.array(bits, np.uint16).view(np.float16).astype(np.float32)
        snapped = quant.snap(x, scale)
        assert quant.snap(snapped, scale) == snapped
        if abs(x) <= 127 * scale:
            assert abs(float(snapped) - x) <= float(scale) / 2 * (1 + 2**-16)

    def test_snap_of_a_zero_channel_is_zero(self) -> None:
        zeros = np.zeros((2, 4), np.float32)
        assert (quant.snap(zeros, quant.scale_from_amax(np.zeros(2)), axis=0) == 0).all()


class TestRefusals:
    def test_nan(self) -> None:
        with pytest.raises(ContractError, match=r"x\[0, 1\] is nan \(2 of 4 values are NaN\)"):
            quant.quantize([[1.0, np.nan], [np.nan, 1.0]], 1.0)

    @pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan, 1e-60, 1e60])
    def test_scale(self, scale: float) -> None:
        with pytest.raises(ContractError, match=r"scale\[1\] is .*, expected a finite positive"):
            quant.quantize([1.0, 2.0], [1.0, scale], axis=0)
        with pytest.raises(ContractError, match=r"scale is .*take scales from quant"):
            quant.dequantize(np.ones(2, np.int8), scale)

    def test_wrong_length(self) -> None:
        with pytest.raises(ContractError, match="scale has 2 entries, expected 3, the length of"):
            quant.quantize(np.ones((2, 3)), [1.0, 1.0], axis=1)

    @pytest.mark.parametrize(
        ("scale", "axis"), [([1.0, 1.0], None), ([1.0, 1.0], 2), ([1.0, 1.0], -3), ([[1.0]], 0)]
    )
    def test_axis(self, scale: object, axis: int | None) -> None:
        with pytest.raises(ContractError, match=r"axis is .* shape \[2, 3\].* give the channel"):
            quant.snap(np.ones((2, 3)), scale, axis)  # type: ignore[arg-type]

    def test_dequantize_takes_int8_only(self) -> None:
        with pytest.raises(ContractError, match="q is int64, expected int8"):
            quant.dequantize(np.array([1]), 1.0)


def onnx_quantize(x: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """ONNX Runtime's QuantizeLinear, all graph rewriting off."""
    onnx = pytest.importorskip("onnx", reason="the oracle needs onnx, which devices lack")
    ort = pytest.importorskip("onnxruntime", reason="the oracle needs onnxruntime")
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.helper.make_tensor_value_info("q", onnx.TensorProto.INT8, x.shape)],
        [
            onnx.numpy_helper.from_array(scale.astype(x.dtype), "s"),
            onnx.numpy_helper.from_array(np.zeros(scale.shape, np.int8), "z"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 19)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


class TestAgainstOnnxRuntime:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_random_per_channel_and_per_tensor(self, dtype: type) -> None:
        rng = np.random.default_rng(2)
        x: np.ndarray = (rng.standard_normal((64, 500)) * rng.uniform(0.01, 9, (64, 1))).astype(
            dtype
        )
        scale = quant.scale_from_amax(np.abs(x).max(axis=1) * 0.7)  # some values saturate
        found = quant.quantize(x, scale, axis=0)
        assert (found == onnx_quantize(x, scale, 0)).all()
        assert {-128, 127} <= set(found.ravel().tolist())
        assert (quant.quantize(x, scale[5]) == onnx_quantize(x, scale[5], 1)).all()

    def test_ties(self) -> None:
        steps = np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)
        scales = np.array([1, 0.1, 0.5, 7, 1033 * 2.0**-17, 2.0**-24, 511.75], np.float32)
        x = steps * scales[:, None]
        assert (quant.quantize(x, scales, axis=0) == onnx_quantize(x, scales, 0)).all()

    def test_snapped_weights_cast_to_float16_give_the_same_integers(self) -> None:
        rng = np.random.default_rng(3)
        weights = rng.standard_normal((32, 64)).astype(np.float32) * np.float32(1e-4)
        scale = quant.scale_from_amax(np.abs(weights).max(axis=1))
        q = quant.quantize(weights, scale, axis=0)
        snapped = quant.snap(weights, scale, axis=0)
        assert (onnx_quantize(snapped, scale, 0) == q).all()
        assert (onnx_quantize(snapped.astype(np.float16), scale, 0) == q).all()
