"""How many attention blocks a graph has: what an engine must fuse, counted on the file that ships.

An attention block is a Softmax fed by a product of two activations (Q K^T) whose result feeds
another product of two activations (P V). Between them only element-wise and shape operators may
stand: scale, mask, relative-position bias, dropout's leftovers, Q/DQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

_THROUGH = {
    "Add", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Expand", "Identity", "IsNaN",
    "Mul", "QuantizeLinear", "Reshape", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_WEIGHT = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"}


def count_attention(model: ir.Model) -> int:
    """Number of attention blocks in a graph."""
    return sum(
        node.op_type == "Softmax" and _reaches(node, _producers) and _reaches(node, _consumers)
        for node in model.graph
    )


def _reaches(start: ir.Node, step: Callable[[ir.Node], Iterable[ir.Node]]) -> bool:
    """Whether a product of two activations is reached through element-wise operators alone."""
    waiting, seen = list(step(start)), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op_type == "MatMul" and not any(_is_weight(value) for value in node.inputs):
            return True
        if node.op_type in _THROUGH:
            waiting += step(node)
    return False


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is an initializer or a constant, seen through Q/DQ and Transpose."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is not None and node.op_type == "Constant":
            return True
        if node is None or node.op_type not in _WEIGHT:
            return False
        value = node.inputs[0]
    return value is not None


def _producers(node: ir.Node) -> list[ir.Node]:
    made = (value.producer() for value in node.inputs if value is not None)
    return [producer for producer in made if producer is not None]


def _consumers(node: ir.Node) -> list[ir.Node]:
    return [user for value in node.outputs for user in value.consumers()]
