"""The float16 twin of a float32 graph, strongly typed, for TensorRT.

Model Optimizer's autocast decides the types: of the ways tried it is the one whose graph both
checkers and both runtimes take (`.half()` before the export breaks LayerNorm's types). It sees the
graph without its weights, which stand there as inputs of the same name and are rounded here: so
it works on a few hundred kilobytes, and on graphs beyond what one protobuf holds.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgekd.errors import ContractError, ToolchainError, install
from edgekd.export import storage

# Smaller initializers stay: shapes, axes and exponents are constants to autocast.
WEIGHT_ELEMENTS = 1024


def convert(source: Path, path: Path) -> None:
    """Write the float16 twin of a float32 graph, inputs and outputs included.

    Raises:
        ToolchainError: Autocast failed.
        ContractError: It kept float32 at an input, an output, a product or a softmax, where
            TensorRT would then not fuse attention, in silence.
    """
    model = ir.load(source)
    weights = _take_weights(model)
    half = ir.from_proto(_autocast(ir.to_proto(model), source.name))
    del model
    _give_weights(half, weights)
    kept = sorted(_float32_values(half))
    if kept:
        raise ContractError(
            f"export: {path.name} kept float32 at {len(kept)} values, expected float16 at every "
            f"input, output, product and softmax: {', '.join(kept[:5])}"
        )
    storage.save(half, path)


def _autocast(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        from modelopt.onnx import autocast
    except ImportError as error:
        raise ToolchainError(
            f"export: Model Optimizer's autocast cannot be imported "
            f"({str(error).splitlines()[0]}): {install('train')}"
        ) from error
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        converted: onnx.ModelProto = autocast.convert_to_f16(model, keep_io_types=False)
        return converted
    except Exception as error:  # it raises plain exceptions among others
        reason = " ".join(str(error).split())[:300]
        raise ToolchainError(
            f"export: Model Optimizer could not convert {name} to float16: {reason}"
        ) from error
    finally:
        logging.disable(level)


def _take_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn every large initializer into an input; returns what they hold."""
    taken = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size >= WEIGHT_ELEMENTS:
            taken[name] = tensor
            del model.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            model.graph.inputs.append(value)
    return taken


def _give_weights(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    """Turn those inputs into initializers again, of the type they were given."""
    for value in [each for each in model.graph.inputs if each.name in weights]:
        assert value.name is not None
        assert value.dtype is not None
        model.graph.inputs.remove(value)
        tensor = weights[value.name]
        value.const_value = tensor if value.dtype == tensor.dtype else _rounded(tensor, value.name)
        model.graph.register_initializer(value)


def _rounded(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    """A tensor in float16, rounded where it is read: two copies are never held."""

    def make() -> ir.Tensor[Any]:
        limit = float(np.finfo(np.float16).max)
        array: NDArray[np.float32] = tensor.numpy()
        return ir.Tensor(np.clip(array, -limit, limit).astype(np.float16), name=name)

    return ir.LazyTensor(
        make, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=name
    )


def _float32_values(model: ir.Model) -> set[str]:
    """Inputs, outputs and results of products and softmaxes that are float32."""
    skeleton = model.clone()
    _take_weights(skeleton)
    taken = {value.name for value in skeleton.graph.inputs} - {
        value.name for value in model.graph.inputs
    }
    graph = onnx.shape_inference.infer_shapes(ir.to_proto(skeleton)).graph
    full = {
        value.name
        for value in [*graph.input, *graph.output, *graph.value_info]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    ends = {value.name for value in [*graph.input, *graph.output]} - taken
    products = {"MatMul", "Gemm", "Conv", "Einsum", "Softmax"}
    results = {name for node in graph.node if node.op_type in products for name in node.output}
    return full & (ends | results)
