"""Store quantized weights as the integers they are: float -> Q -> DQ becomes int8 -> DQ.

Rule: where QuantizeLinear reads an initializer, its result (the contract's own `quant.quantize`)
becomes an int8 initializer of the same name, and the node goes. A file a quarter the size, the same
numbers to the last bit. It must not fire where the float initializer is also read by anything but
equal QuantizeLinears (an embedding tied to an output layer), for then both would have to ship.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgekd import quant
from edgekd.export.passes.constants import constant


class FoldWeightsPass(ir.passes.InPlacePass):
    """Replaces float weights behind Q/DQ by int8 weights behind DQ."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in place."""
        weights = [value for value in model.graph.initializers.values() if _foldable(value)]
        for value in weights:
            _fold(model.graph, value)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(weights))

    def ensures(self, model: ir.Model) -> None:
        """No weight that could be folded is left."""
        left = [name for name, value in model.graph.initializers.items() if _foldable(value)]
        if left:
            raise ir.passes.PostconditionError(f"float weights behind Q/DQ are left: {left}")


def _foldable(value: ir.Value) -> bool:
    users = [node for node, _ in value.uses()]
    if not users or value.is_graph_output() or value.const_value is None:
        return False
    if any(node.op_type != "QuantizeLinear" or node.inputs[0] is not value for node in users):
        return False
    found = {_parameters(node) for node in users}
    return len(found) == 1 and None not in found


def _parameters(node: ir.Node) -> tuple[bytes, int] | None:
    """What two quantizers of one weight must share: the scale and the axis; None if computed."""
    tensor = constant(node.inputs[1])
    axis = node.attributes.get("axis")
    return None if tensor is None else (tensor.tobytes(), axis.as_int() if axis else 1)


def _fold(graph: ir.Graph, value: ir.Value) -> None:
    users = [node for node, _ in value.uses()]
    scale, name, weight = users[0].inputs[1], value.name, value.const_value
    parameters = _parameters(users[0])
    assert name is not None
    assert weight is not None
    assert parameters is not None
    known = constant(scale)
    assert known is not None
    scales, axis = known.numpy(), parameters[1]
    if scales.size == 1:
        scales = scales.reshape(())

    def make() -> ir.Tensor[Any]:
        array = quant.quantize(weight.numpy(), scales, axis=axis)
        return ir.Tensor(np.ascontiguousarray(array), name=name)

    del graph.initializers[name]
    tensor = ir.LazyTensor(
        make, dtype=ir.DataType.INT8, shape=ir.Shape(weight.shape.numpy()), name=name
    )
    folded = ir.Value(
        name=name,
        shape=ir.Shape(weight.shape.numpy()),
        type=ir.TensorType(ir.DataType.INT8),
        const_value=tensor,
    )
    value.name = f"{name}_float"
    graph.register_initializer(folded)
    for node in users:
        ir.convenience.replace_all_uses_with(node.outputs[0], folded)
        graph.remove(node, safe=True)
