"""What is known before anything runs: constants, static dims, and arithmetic on them.

The TorchScript exporter writes sizes as code (Shape, Gather, Div, Concat) where the other writes
numbers. Only what rewrites here need is followed; all else is unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import onnx_ir as ir

Sizes = list[int | None]  # one entry an element; None where it is known only at run time

_THROUGH = {"Cast", "Identity", "Squeeze", "Unsqueeze"}
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,  # of sizes, which are not negative
}


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Content of an initializer or Constant, also where Identity shares one; None if computed."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type != "Identity":
            return ir.convenience.get_const_tensor(value)
        value = node.inputs[0]
    return None


def sizes(value: ir.Value | None) -> Sizes:
    """Elements of an integer tensor of at most one axis; none where their number is unknown."""
    tensor = constant(value)
    if tensor is not None:
        return [int(size) for size in tensor.numpy().ravel()] if tensor.size <= 16 else []
    node = None if value is None else value.producer()
    if node is None:
        return []
    if node.op_type == "Shape":
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return [] if shape is None else [d if isinstance(d, int) else None for d in shape]
    if node.op_type in _THROUGH:
        return sizes(node.inputs[0])
    given = [sizes(each) for each in node.inputs]
    if node.op_type == "Concat":
        return [size for each in given for size in (each or [None])]
    if node.op_type == "Gather" and len(given[1]) == 1 and given[1][0] is not None:
        index = given[1][0]
        return [given[0][index]] if -len(given[0]) <= index < len(given[0]) else [None]
    if node.op_type in _ARITHMETIC and [len(each) for each in given] == [1, 1]:
        return [_computed(node.op_type, given[0][0], given[1][0])]
    return []


def _computed(name: str, a: int | None, b: int | None) -> int | None:
    if a is None or b is None or (name == "Div" and b == 0):
        return None
    return _ARITHMETIC[name](a, b)
