"""Quantized weights read out of small graphs, one for every form they come in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny.qdq_forms import FORMS, INPUT, SCALE, SNAPPED, K, N, Q, matmul, model, node, path

from edgekd import qdq, quant, sparse24
from edgekd.errors import ContractError
from edgekd.export import integers


class TestQuantizedWeights:
    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_gives_the_same_weight(self, form: str) -> None:
        (weight,) = qdq.quantized_weights(FORMS[form])
        assert (weight.layer, weight.node) == ("fc", "/y")
        assert weight.op_type == ("Gemm" if "Gemm" in form else "MatMul")
        assert weight.integers.dtype == np.int8
        assert weight.integers.flags.c_contiguous
        assert (weight.integers == Q).all()
        assert weight.scale.dtype == np.float32
        assert (weight.scale == SCALE).all()
        assert weight.input_scale == 0.25
        assert weight.channels == K
        assert weight.folded == form.startswith("int8")
        assert qdq.float_weights(FORMS[form]) == {}
        integers.prove([weight], ["fc"], ["fc"])

    def test_shape_is_the_one_in_the_file(self) -> None:
        forms = {"Gemm": (K, N), "Reshape before Q": (2, N // 2, K), "Gemm transB": (N, K)}
        for form, shape in forms.items():
            assert qdq.quantized_weights(FORMS[form])[0].shape == shape

    def test_conv(self) -> None:
        q = Q.reshape(N, 4, 2, 4)  # n, c, r, s
        nodes = [*INPUT, *path("Q0 DQ0"), node("Conv", ["xdq", "w"], "y")]
        built = model(nodes, x=(1, 4, 8, 8), rank=4, weight=quant.dequantize(q, SCALE, axis=0))
        (weight,) = qdq.quantized_weights(built)
        assert (weight.integers == q.transpose(0, 2, 3, 1).reshape(N, K)).all()
        assert (weight.op_type, weight.shape, weight.channels) == ("Conv", (N, 4, 2, 4), 4)
        assert (weight.scale == SCALE).all()

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_per_tensor_scale_is_spread(self, shape: tuple[int, ...]) -> None:
        half, zero = np.full(shape, 0.5, np.float32), np.zeros(shape, np.int8)
        (weight,) = qdq.quantized_weights(matmul(weight=Q * np.float32(0.5), sw=half, zw=zero))
        assert (weight.integers == Q).all()
        assert weight.scale.tolist() == [0.5] * N

    @pytest.mark.parametrize(
        ("op", "scale"), [("Identity", 0.25), ("Transpose", 0.25), ("Relu", None)]
    )
    def test_input_scale_is_seen_through_shape_operators_only(
        self, op: str, scale: float | None
    ) -> None:
        nodes = [*INPUT, node(op, ["xdq"], "h"), *path("Q0 DQ0 T"), node("MatMul", ["h", "w"], "y")]
        (weight,) = qdq.quantized_weights(model(nodes, x=(K, K)))
        assert weight.input_scale == scale

    def test_input_scale_is_that_of_the_nearest_pair(self) -> None:
        again = [
            node("QuantizeLinear", ["xdq", "near", "zx"], "xq2"),
            node("DequantizeLinear", ["xq2", "near", "zx"], "xdq2"),
        ]
        nodes = [*INPUT, *again, *path("Q0 DQ0 T"), node("MatMul", ["xdq2", "w"], "y")]
        (weight,) = qdq.quantized_weights(model(nodes, near=np.asarray(0.5, np.float32)))
        assert weight.input_scale == 0.5

    def test_float_weights_and_activations_are_told_apart(self) -> None:
        nodes = [
            *[*INPUT, *path("Q0 DQ0 T"), node("MatMul", ["xdq", "w"], "h")],
            *[node("Transpose", ["head.weight"], "t"), node("MatMul", ["h", "t"], "logits")],
            *[node("Transpose", ["logits"], "u"), node("MatMul", ["logits", "u"], "y")],
        ]
        head: dict[str, Any] = {"head.weight": np.ones((3, N), np.float32)}
        built = model(nodes, **head)
        assert [weight.layer for weight in qdq.quantized_weights(built)] == ["fc"]
        assert qdq.float_weights(built) == {"head": (3, N)}

    def test_unnamed_node_is_called_by_its_output(self) -> None:
        built = matmul()
        built.graph.node[-1].name = ""
        assert qdq.quantized_weights(built)[0].node == "y"

    def test_q_without_zero_point_but_int8_output(self) -> None:
        head = [
            node("QuantizeLinear", ["x", "sx"], "xq", output_dtype=TensorProto.INT8),
            node("DequantizeLinear", ["xq", "sx"], "xdq"),
        ]
        built = model([*head, *path("Q0 DQ0 T"), node("MatMul", ["xdq", "w"], "y")])
        assert qdq.quantized_weights(built)[0].input_scale == 0.25

    def test_int32_bias_is_allowed(self) -> None:
        nodes = [*INPUT, *path("Q1 DQ1"), node("Gemm", ["xdq", "w", "bdq"], "y")]
        nodes.insert(0, node("DequantizeLinear", ["b", "sw", "zb"], "bdq", axis=0))
        b, zb = np.ones(N, np.int32), np.zeros(N, np.int32)
        (weight,) = qdq.quantized_weights(model(nodes, weight=SNAPPED.T, b=b, zb=zb))
        assert (weight.integers == Q).all()

    @pytest.mark.parametrize("form", ["float, Q, DQ, Transpose", "float16", "Gemm transB"])
    def test_agrees_with_onnxruntime(self, form: str) -> None:
        ort = pytest.importorskip("onnxruntime", reason="the oracle needs onnxruntime")
        built = onnx.ModelProto()
        built.CopyFrom(FORMS[form])
        built.graph.output[0].CopyFrom(
            helper.make_tensor_value_info("w0", TensorProto.INT8, (N, K))
        )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        content = built.SerializeToString()
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        dtype = np.float16 if form == "float16" else np.float32
        (found,) = session.run(None, {"x": np.zeros((1, K), dtype)})
        assert (found == qdq.quantized_weights(FORMS[form])[0].integers).all()


def changed(change: float, row: int = 3) -> np.ndarray:
    """The snapped weights with one of them moved by ``change`` scale steps."""
    weights: np.ndarray = SNAPPED.copy()
    weights[row, 5] += np.float32(change) * SCALE[row]
    return weights


def one_ulp() -> np.ndarray:
    weights: np.ndarray = SNAPPED.copy()
    row, column = np.argwhere(Q)[0]
    weights[row, column] = np.nextafter(weights[row, column], np.float32(9))
    return weights


def without_checker(built: onnx.ModelProto, **arrays: np.ndarray) -> onnx.ModelProto:
    """Replace initializers where the checker would not let the model through."""
    for tensor in built.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return built


def two_scales() -> onnx.ModelProto:
    nodes = path("Q0 DQ0 T")
    nodes[1].input[1] = "other"
    other = SCALE.copy()
    other[2] *= 2
    return model([*INPUT, *nodes, node("MatMul", ["xdq", "w"], "y")], other=other)


def only_input(**attributes: Any) -> onnx.ModelProto:
    """Q and DQ of x without zero points."""
    quantize = node("QuantizeLinear", ["x", "sx"], "xq", **attributes)
    return model([quantize, node("DequantizeLinear", ["xq", "sx"], "y")])


RELU = node("Relu", ["xdq"], "y")
ALONG_K = np.array([0.5, 1] * (K // 2), np.float32)
GAP = f"{SCALE[3] / 4:.3f}"
REFUSED = {
    rf"/w0, weight fc: 1 of 256 weights are not snapped, .* by up to {GAP}.*ship quant\.snap": (
        matmul(weight=changed(0.25))
    ),
    "1 of 256 weights are not snapped,": matmul(weight=one_ulp()),
    r"\d+ of 256 weights are not snapped, .*": matmul(weight=SNAPPED * np.float32(2)),
    r"^/xq: its zero point is int8 \[3\], expected int8 0": matmul(zx=np.asarray(3, np.int8)),
    r"^/xq: its zero point is uint8 \[0\], expected": matmul(zx=np.asarray(0, np.uint8)),
    r"^/xq: its zero point is uint8 \[128\], .* signed INT8": matmul(zx=np.asarray(128, np.uint8)),
    r"^/w0: its zero point is int8 \[0, 1, 2, 3\]": matmul(zw=np.arange(N, dtype=np.int8)),
    "/xq: its zero point is absent, which means uint8": only_input(),
    "/xq: its zero point is of type 5, expected": only_input(output_dtype=TensorProto.INT16),
    "/xq: an activation has 32 scales, expected 1: quantize activations per tensor": model(
        [*INPUT, RELU], sx=np.ones(K, np.float32), zx=np.zeros(K, np.int8)
    ),
    "/xq: its scale is computed at run time, expected a constant": model(
        [node("ReduceMax", ["x"], "sx", keepdims=0), *INPUT, RELU]
    ),
    "/w0: its scale is computed at run time, expected a constant": model(
        [
            *[node("DequantizeLinear", ["s", "sx"], "sw"), *INPUT, *path("Q0 DQ0 T")],
            node("MatMul", ["xdq", "w"], "y"),
        ],
        s=np.ones(N, np.int8),
    ),
    "/w1, weight fc: Q and DQ disagree on the scale of 32 of 256 weights": two_scales(),
    "/y: the scales of fc vary along the reduction axis k, .* the 8 outputs": matmul(
        "Q1 DQ1 T", weight=Q * ALONG_K, sw=ALONG_K, zw=np.zeros(K, np.int8)
    ),
    r"/w0, weight fc: scale\[0\] is 0\.0, expected a finite": without_checker(
        matmul(), sw=np.zeros(N, np.float32)
    ),
    "/w0, weight fc: scale has 7 entries, expected 8": without_checker(
        matmul(), sw=np.ones(N - 1, np.float32)
    ),
    "/w0, weight fc: q is int32, expected int8": matmul(
        "DQ0 T", weight=Q.astype(np.int32), zw=np.zeros(N, np.int32)
    ),
    r"/y: weight fc has shape \[2, 32, 8\], expected 2-D": matmul(
        "Q2 DQ2", rank=3, weight=np.stack([SNAPPED.T] * 2)
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refuses(sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        qdq.quantized_weights(REFUSED[sentence])


class TestProve:
    weight = qdq.quantized_weights(matmul())[0]

    def test_missing_layers_are_listed_beside_what_was_found(self) -> None:
        sentence = (
            r"2 of 3 planned .* once for each run as INT8 .*: "
            r"fc2 \(missing\), fc3 \(missing\); found: fc:"
        )
        with pytest.raises(ContractError, match=sentence):
            integers.prove([self.weight], ["fc", "fc2"], ["fc3"])

    def test_nothing_found(self) -> None:
        with pytest.raises(
            ContractError, match=r"1 of 1 .* fc \(missing\); found: none: place Q/DQ"
        ):
            integers.prove([], ["fc"], [])

    def test_twice(self) -> None:
        with pytest.raises(
            ContractError, match=r"1 of 1 planned layers .*: fc \(in 2 nodes, expected 1\);"
        ):
            integers.prove([self.weight, self.weight], ["fc"], [])

    def test_weight_only(self) -> None:
        with pytest.raises(
            ContractError, match=r"fc \(its input is float\); found: fc: place Q/DQ"
        ):
            integers.prove([replace(self.weight, input_scale=None)], ["fc"], [])

    def test_unplanned_weights_may_be_anything(self) -> None:
        integers.prove([replace(self.weight, input_scale=None)], [], [])

    def test_sparse_along_n_only_is_the_wrong_axis(self) -> None:
        dense = np.arange(1, 33 * 8, dtype=np.int64)[: 8 * 8].reshape(8, 8)
        along_n = (dense * sparse24.mask(dense.T).T).astype(np.int8)
        assert sparse24.violations(along_n.T) == 0
        half, zero = np.asarray(0.5, np.float32), np.asarray(0, np.int8)
        arrays: dict[str, Any] = {"weight": along_n * half, "sw": half, "zw": zero, "x": ("b", 8)}
        weights = qdq.quantized_weights(matmul("Q0 DQ0 T", **arrays))
        integers.prove(weights, ["fc"], [])
        with pytest.raises(ContractError, match=r"^fc: row \d, columns 0\.\.3 hold 4 nonzeros"):
            integers.prove(weights, ["fc"], ["fc"])
        # The very same array, multiplied the other way round, is 2:4 along k.
        integers.prove(qdq.quantized_weights(matmul("Q0 DQ0", **arrays)), ["fc"], ["fc"])

    def test_conv_groups_must_not_cross_filter_taps(self) -> None:
        weights = np.zeros((N, 1, 2, 2), np.float32)  # depthwise: k = 4, but one channel
        nodes = [*INPUT, *path("Q0 DQ0"), node("Conv", ["xdq", "w"], "y", group=N)]
        found = qdq.quantized_weights(model(nodes, x=(1, N, 4, 4), rank=4, weight=weights))
        assert found[0].integers.shape == (N, 4)
        with pytest.raises(ContractError, match="fc: k is 1, expected a positive multiple of 4"):
            integers.prove(found, ["fc"], ["fc"])


class TestSameIntegers:
    full = qdq.quantized_weights(FORMS["float, Q, DQ, Transpose"])
    half = qdq.quantized_weights(FORMS["float16"])

    def test_fp16_and_fp32_graphs_agree(self) -> None:
        integers.same_integers(self.full, self.half)
        one = replace(self.full[0], layer="a", input_scale=None)
        integers.same_integers([one, *self.full], [*self.half, one])

    def test_other_layers(self) -> None:
        other = [replace(self.full[0], layer="fc9")]
        with pytest.raises(
            ContractError, match=r"only the first \[.*fc'.* second \[.*fc9'.*export"
        ):
            integers.same_integers(self.full, other)

    def test_other_integers(self) -> None:
        other = Q.copy()
        other[0, :2] = [99, 98]
        sentence = rf"fc: integers differ .* in 2 of 256 values, the first is {Q[0, 0]} and 99,"
        with pytest.raises(ContractError, match=sentence):
            integers.same_integers(self.full, [replace(self.full[0], integers=other)])

    def test_other_scale(self) -> None:
        scale = SCALE.copy()
        scale[7] = 3
        with pytest.raises(
            ContractError, match=r"fc: scale differ .* in 1 of 8 .* and 3\.0, expect"
        ):
            integers.same_integers(self.full, [replace(self.full[0], scale=scale)])

    @pytest.mark.parametrize("input_scale", [None, 0.5])
    def test_other_input_scale(self, input_scale: float | None) -> None:
        with pytest.raises(ContractError, match=f"input_scale differ .* 0.25 and {input_scale}, "):
            integers.same_integers(self.full, [replace(self.full[0], input_scale=input_scale)])
