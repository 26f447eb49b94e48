"""Small graphs around one quantized weight, ``fc``: every form that an exporter gives it.

All of them hold the integers `Q`, 2:4 along k, and the scales `SCALE`; `SNAPPED` is their product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd import quant, sparse24

N, K = 8, 32
HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
Nodes = list[onnx.NodeProto]


def integers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers int8[N, K] exactly 2:4 along k, scales float32[N], snapped weights float32[N, K]."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((N, K)) * rng.uniform(0.1, 2, (N, 1))
    weights = np.where(sparse24.mask(dense), dense, 0).astype(np.float32)
    scale = quant.scale_from_amax(np.abs(weights).max(axis=1))
    q = quant.quantize(weights, scale, axis=0)
    return q, scale, quant.dequantize(q, scale, axis=0)


Q, SCALE, SNAPPED = integers()
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
    """A checked graph from x to y; arrays replace or join the constants of one layer."""
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
