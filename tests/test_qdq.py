"""Quantized weights read out of small graphs, one for every form they come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import qdq, quant, sparse24
from edgekd.errors import ArtifactError, ContractError
from edgekd.export import integers

N, K = 8, 32
HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
Nodes = list[onnx.NodeProto]


def student() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers int8[N, K] exactly 2:4 along k, scales float32[N], snapped weights float32[N, K]."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((N, K)) * rng.uniform(0.1, 2, (N, 1))
    weights = np.where(sparse24.mask(dense), dense, 0).astype(np.float32)
    scale = quant.scale_from_amax(np.abs(weights).max(axis=1))
    q = quant.quantize(weights, scale, axis=0)
    return q, scale, quant.dequantize(q, scale, axis=0)


Q, SCALE, SNAPPED = student()
SNAPPED_HALF = SNAPPED.astype(np.float16)


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"/{output}", **attributes)


def path(words: str, source: str = "fc.weight", scale: str = "sw", zero: str = "zw") -> Nodes:
    """Nodes from the source to tensor ``w``, a word each: Q<axis> DQ<axis> T I R C<bits>."""
    nodes = []
    for i, word in enumerate(words.split()):
        name = word.rstrip("-0123456789")
        number = int(word[len(name) :] or 0)
        output = "w" if i == len(words.split()) - 1 else f"w{i}"
        if name in ("Q", "DQ"):
            op = {"Q": "QuantizeLinear", "DQ": "DequantizeLinear"}[name]
            axis = {"axis": number} if word != name else {}
            nodes.append(node(op, [source, scale, zero], output, **axis))
        elif name == "C":
            nodes.append(node("Cast", [source], output, to={16: HALF, 32: FULL}[number]))
        elif name == "R":
            nodes.append(node("Reshape", [source, "to"], output))
        else:
            nodes.append(node({"T": "Transpose", "I": "Identity"}[name], [source], output))
        source = output
    return nodes


INPUT = [
    node("QuantizeLinear", ["x", "sx", "zx"], "xq"),
    node("DequantizeLinear", ["xq", "sx", "zx"], "xdq"),
]


def model(
    nodes: Nodes, x: Sequence[int | str] = ("b", K), dtype: int = FULL, rank: int = 2, **arrays: Any
) -> onnx.ModelProto:
    """A checked graph from x to y; arrays replace or join the student's constants."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    constants = {
        "fc.weight": arrays.pop("weight", SNAPPED),
        "sx": np.asarray(0.25, kind),
        "zx": np.asarray(0, np.int8),
        "sw": SCALE.astype(kind),
        "zw": np.zeros(N, np.int8),
        **arrays,
    }
    used = {name for item in nodes for name in item.input}
    used -= {name for item in nodes for name in item.output}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, x)],
        [helper.make_tensor_value_info("y", dtype, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    opsets = [helper.make_opsetid("", 21)]
    built = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(built, full_check=True)
    return built


def matmul(words: str = "Q0 DQ0 T", **arrays: Any) -> onnx.ModelProto:
    """Input x through Q/DQ, times the weight at the end of its path."""
    return model([*INPUT, *path(words), node("MatMul", ["xdq", "w"], "y")], **arrays)


def gemm(words: str, a: str = "xdq", b: str = "w", **more: Any) -> onnx.ModelProto:
    flags = {name: more.pop(name) for name in ("transA", "transB") if name in more}
    return model([*INPUT, *path(words), node("Gemm", [a, b], "y", **flags)], **more)


CONSTANTS = [
    node("Constant", [], "fc.weight", value=numpy_helper.from_array(SNAPPED)),
    node("Constant", [], "s", value_floats=SCALE.tolist()),
    node("Identity", ["s"], "sw"),
    *path("Q0 DQ0 T"),
]
FORMS = {
    "float, Q, DQ, Transpose": matmul("Q0 DQ0 T"),
    "float, Q, Transpose, DQ": matmul("Q0 T DQ1"),
    "[k, n] float as dynamo stores it": matmul("Q-1 DQ1", weight=SNAPPED.T),
    "Transpose before Q": matmul("T Q1 DQ-1"),
    "Identity everywhere": matmul("I Q-2 I DQ0 I T I"),
    "Reshape before Q": matmul(
        "R Q0 DQ0 T", weight=SNAPPED.reshape(2, N // 2, K), to=np.array([N, -1])
    ),
    "Reshape that keeps an axis": matmul(
        "R Q0 DQ0 T", weight=SNAPPED.reshape(N, 4, K // 4), to=np.array([0, -1])
    ),
    "int8, DQ, Transpose": matmul("DQ0 T", weight=Q),
    "int8, Transpose, DQ": matmul("T DQ1", weight=Q),
    "Gemm": gemm("Q1 DQ1", weight=SNAPPED.T),
    "Gemm, axis by default": gemm("Q DQ", weight=SNAPPED.T),
    "Gemm transB": gemm("Q0 DQ0", transB=1),
    "W @ x": model([*INPUT, *path("Q0 DQ0"), node("MatMul", ["w", "xdq"], "y")], x=(K, "b")),
    "Gemm transA on W": gemm("Q1 DQ1", "w", "xdq", transA=1, weight=SNAPPED.T, x=(K, "b")),
    "float16": matmul("Q0 DQ0 T", weight=SNAPPED_HALF, dtype=HALF),
    "float16, cast to float32 before Q": matmul("C32 Q0 DQ0 T", weight=SNAPPED_HALF),
    "float32, cast to float16 before Q": matmul("C16 Q0 DQ0 T", dtype=HALF),
    "float32 Q/DQ, cast to float16": matmul("Q0 DQ0 C16 T", sw=SCALE, dtype=HALF),
    "Constant nodes": model([*INPUT, *CONSTANTS, node("MatMul", ["xdq", "w"], "y")]),
}


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


class TestLoad:
    def test_good_model(self, tmp_path: Path) -> None:
        onnx.save(matmul(), tmp_path / "m.onnx")
        (weight,) = qdq.quantized_weights(qdq.load(tmp_path / "m.onnx"))
        assert (weight.integers == Q).all()
        assert qdq.load(str(tmp_path / "m.onnx")) == matmul()

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", "the file is empty, expected an ONNX model: export it again"),
            (
                b"garbage" * 99,
                r"its 693 bytes are not a valid ONNX model, cut short or of .*copy it",
            ),
            (b"\x08\x0a", r"its 2 bytes are not a valid ONNX model"),
        ],
    )
    def test_empty_and_garbage(self, tmp_path: Path, content: bytes, sentence: str) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match=sentence):
            qdq.load(tmp_path / "m.onnx")

    @pytest.mark.parametrize("path", ["absent.onnx", "."])
    def test_no_file(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(ArtifactError, match="no such file, expected an ONNX model"):
            qdq.load(tmp_path / path)

    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        content = matmul().SerializeToString()
        file = tmp_path / "m.onnx"
        for length in (*range(1, len(content), 29), len(content) - 1):
            file.write_bytes(content[:length])
            with pytest.raises(
                ArtifactError, match=f"its {length} bytes are not a valid ONNX model"
            ):
                qdq.load(file)

    def test_checker_and_shape_inference(self, tmp_path: Path) -> None:
        unordered = matmul()
        unordered.graph.node.insert(0, unordered.graph.node.pop())
        mismatched = matmul()
        del mismatched.graph.input[0].type.tensor_type.shape.dim[1:]
        mismatched.graph.input[0].type.tensor_type.shape.dim.add().dim_value = K + 1
        for name, built in (("unordered", unordered), ("mismatched", mismatched)):
            file = tmp_path / f"{name}.onnx"
            file.write_bytes(built.SerializeToString())
            with pytest.raises(
                ArtifactError, match=rf"{name}\.onnx: .*valid ONNX model.*\(.+\): co"
            ):
                qdq.load(file)

    def test_no_nodes(self, tmp_path: Path) -> None:
        info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        empty = helper.make_model(helper.make_graph([], "g", [info], [info]), ir_version=10)
        onnx.save(empty, tmp_path / "m.onnx")
        with pytest.raises(ArtifactError, match="the graph has 0 nodes, expected a network"):
            qdq.load(tmp_path / "m.onnx")


class TestExternalData:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A model whose tensors lie in ``w.bin`` beside it."""
        home = tmp_path / "model"
        home.mkdir()
        onnx.save(
            matmul(),
            home / "m.onnx",
            save_as_external_data=True,
            location="w.bin",
            size_threshold=64,
        )
        return home / "m.onnx"

    def test_beside_the_model(self, file: Path) -> None:
        assert (qdq.quantized_weights(qdq.load(file))[0].integers == Q).all()

    def test_absent(self, file: Path) -> None:
        (file.parent / "w.bin").unlink()
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*w\.bin.*copy it again"):
            qdq.load(file)

    def test_cut_short(self, file: Path) -> None:
        data = file.parent / "w.bin"
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*1024.*100 bytes"):
            qdq.load(file)

    @pytest.mark.parametrize("absolute", [False, True])
    def test_outside_the_directory(self, file: Path, absolute: bool) -> None:
        outside = (file.parent / "w.bin").rename(file.parent.parent / "w.bin")
        built = onnx.load(file, load_external_data=False)
        for tensor in built.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(outside) if absolute else "../w.bin"
        file.write_bytes(built.SerializeToString())
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*w\.bin"):
            qdq.load(file)

    def test_symbolic_link_out_of_the_directory(self, file: Path) -> None:
        outside = (file.parent / "w.bin").rename(file.parent.parent / "w.bin")
        (file.parent / "w.bin").symlink_to(outside)
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*symbolic link"):
            qdq.load(file)
