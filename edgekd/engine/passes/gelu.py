"""GELU as exporters write it: one operator, or a handful around Erf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd.engine.passes.graph import Graph, attribute, other

if TYPE_CHECKING:
    import onnx

_FLOAT16_BITS = 1e-3  # how far a constant may be off: float16 holds it too


def match(graph: Graph, value: str) -> list[onnx.NodeProto]:
    """The nodes of the exact GELU of a value, the last one its result; empty where there is none.

    Either the operator, or x / sqrt(2) -> Erf -> + 1 -> times x and 1/2 in any order.
    """
    readers = graph.readers[value]
    if len(readers) == 1 and readers[0].op_type == "Gelu" and value not in graph.outputs:
        exact = attribute(readers[0], "approximate", b"none") == b"none"
        return readers if exact else []
    if len(readers) != 2 or value in graph.outputs:
        return []
    root = next((node for node in readers if _divides_by_root_two(graph, node)), None)
    erf = None if root is None else graph.only_reader(root.output[0])
    if root is None or erf is None or erf.op_type != "Erf":
        return []
    one = graph.only_reader(erf.output[0])
    if one is None or one.op_type != "Add" or not _times(graph, one, erf.output[0], 1.0):
        return []
    rest = next(node for node in readers if node is not root)
    return _halved_product(graph, value, [root, erf, one], rest)


def _halved_product(
    graph: Graph, value: str, nodes: list[onnx.NodeProto], rest: onnx.NodeProto
) -> list[onnx.NodeProto]:
    """GELU's last two nodes: the value times 1 + erf times a half, the half first or last."""
    factor = nodes[-1].output[0]  # 1 + erf
    product = graph.only_reader(factor)
    if product is None or product.op_type != "Mul" or rest.op_type != "Mul":
        return []
    if product is rest:  # x (1 + erf), then times 1/2
        last = graph.only_reader(product.output[0])
        good = last is not None and last.op_type == "Mul"
        if last is None or not good or not _times(graph, last, product.output[0], 0.5):
            return []
        return [*nodes, product, last]
    half = rest.output[0]  # x / 2, then times 1 + erf
    if _times(graph, rest, value, 0.5) and graph.only_reader(half) is product:
        return [*nodes, rest, product]
    return []


def _divides_by_root_two(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type == "Div":
        return _close(graph.constant(node.input[1]), np.sqrt(2.0))
    return node.op_type == "Mul" and any(
        _close(graph.constant(name), np.sqrt(0.5)) for name in node.input
    )


def _times(graph: Graph, node: onnx.NodeProto, value: str, number: float) -> bool:
    """Whether a node's other operand is that number."""
    return value in node.input and _close(graph.constant(other(node, value)), number)


def _close(held: npt.NDArray[Any] | None, number: float) -> bool:
    return held is not None and held.size == 1 and abs(held.item() / number - 1) < _FLOAT16_BITS
