"""Graphs around 2:4 products of sizes the kernels take, in the form export gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgekd import quant, sparse24
from edgekd.engine.passes.lower_sparse_gemm import Lowered, lower

N, K = 64, 128
INPUT_SCALE, OUTPUT_SCALE = quant.scale_from_amax(4.0), quant.scale_from_amax(3.0)
Nodes = list[onnx.NodeProto]


def weights(n: int = N, k: int = K, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers int8[n, k] exactly 2:4, scales float32[n], snapped float32[n, k]."""
    rng = np.random.default_rng([seed, n, k])
    dense = rng.standard_normal((n, k)) * 0.1
    kept = np.where(sparse24.mask(dense), dense, 0).astype(np.float32)
    scale = quant.scale_from_amax(np.abs(kept).max(axis=1))
    q = quant.quantize(kept, scale, axis=0)
    return q, scale, quant.dequantize(q, scale, axis=0)


def bias(n: int = N) -> npt.NDArray[np.float32]:
    # float16 holds these, so that both graphs have the same.
    return np.random.default_rng(n).standard_normal(n).astype(np.float16).astype(np.float32)


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"/{output}", **attributes)


def quantized(source: str, output: str, scale: str = "sx") -> Nodes:
    """Q and DQ of an activation."""
    return [
        node("QuantizeLinear", [source, scale, "z"], f"{output}.q"),
        node("DequantizeLinear", [f"{output}.q", scale, "z"], output),
    ]


def weight(name: str = "fc") -> Nodes:
    """Q, DQ and Transpose of ``<name>.weight``, giving ``<name>.t``."""
    parameters = [f"{name}.scale", "zw"]
    return [
        node("QuantizeLinear", [f"{name}.weight", *parameters], f"{name}.wq", axis=0),
        node("DequantizeLinear", [f"{name}.wq", *parameters], f"{name}.w", axis=0),
        node("Transpose", [f"{name}.w"], f"{name}.t", perm=[1, 0]),
    ]


LINEAR = [
    *quantized("x", "xdq"),
    *weight(),
    node("MatMul", ["xdq", "fc.t"], "fc"),
    node("Add", ["fc.bias", "fc"], "y"),
]
GELU = [
    node("Div", ["y", "root"], "y.root"),
    node("Erf", ["y.root"], "erf"),
    node("Add", ["erf", "one"], "erf.one"),
    node("Mul", ["y", "erf.one"], "y.erf"),
    node("Mul", ["y.erf", "half"], "gelu"),
]


def model(
    nodes: Nodes,
    dtype: type[np.floating[Any]] = np.float32,
    outputs: Sequence[str] = ("out",),
    inputs: Sequence[str] = ("x",),
    opset: int = 17,
    tokens: Sequence[str] = ("b", "t"),
    k: int = K,
    **arrays: Any,
) -> onnx.ModelProto:
    """A checked graph from x [b, t, k] (and others of [b, t, N]); arrays replace constants."""
    if dtype == np.float16:
        opset = max(opset, 19)  # the first in which Q and DQ take float16
    _, scale, snapped = weights()
    floats = {
        "fc.weight": snapped, "fc.scale": scale, "fc.bias": bias(), "sx": INPUT_SCALE,
        "so": OUTPUT_SCALE, "root": np.sqrt(2.0), "inverse": np.sqrt(0.5), "one": 1.0, "half": 0.5,
    }  # fmt: skip
    constants = {name: np.asarray(array, dtype) for name, array in floats.items()}
    constants |= {"z": np.asarray(0, np.int8), "zw": np.zeros(N, np.int8)}
    constants |= {name.replace("__", "."): array for name, array in arrays.items()}
    used = {name for each in nodes for name in each.input}
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ports = [
        helper.make_tensor_value_info(name, element, [*tokens, k if name == "x" else N])
        for name in inputs
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        ports,
        [helper.make_tensor_value_info(name, element, [*tokens, None]) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in constants.items() if name in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(
    graph: onnx.ModelProto, feed: dict[str, Any], more: Sequence[tuple[str, int]] = ()
) -> dict[str, npt.NDArray[Any]]:
    """What ONNX Runtime answers, with further tensors (name, element type) beside the outputs."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    watched.graph.output.extend(helper.make_tensor_value_info(*each, None) for each in more)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def constants(graph: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}


def operators(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The lowered nodes, in graph order."""
    return [each for each in graph.graph.node if each.domain == "edgekd"]


def written(each: onnx.NodeProto) -> int:
    """Element type of a lowered node's output."""
    types = {"s32": TensorProto.INT32, "s8": TensorProto.INT8, "gelu_s8": TensorProto.INT8}
    return types.get(each.overload, TensorProto.FLOAT16)


def lowered(graph: onnx.ModelProto) -> Lowered:
    """Lowered and checked; the graph given is as it was."""
    before = graph.SerializeToString(deterministic=True)
    result = lower(graph)
    assert graph.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result.model, full_check=True)
    return result


def overloads(result: Lowered) -> list[str]:
    return [product.overload for product in result.products]
