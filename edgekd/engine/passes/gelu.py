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

    Either the operator, or x / sqrt(2) -> Erf -> + 1, and the product of that, x and 1/2 in any
    order.
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
    last = _product(graph, value, one.output[0], rest)
    return [root, erf, one, *last] if last else []


def near(graph: Graph, value: str) -> onnx.NodeProto | None:
    """The Gelu or Erf at most two nodes behind a value, whether it matches or not."""
    after = graph.readers[value]
    after = [*after, *(reader for node in after for reader in graph.readers[node.output[0]])]
    return next((node for node in after if node.op_type in ("Gelu", "Erf")), None)


def _product(graph: Graph, value: str, factor: str, rest: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The two nodes that multiply the value, the factor 1 + erf and 1/2, the last one last.

    Args:
        graph: Of all of them.
        value: What GELU is taken of.
        factor: The tensor 1 + erf.
        rest: The node that reads the value to multiply it.
    """
    first = graph.only_reader(factor)
    if first is None or first.op_type != "Mul" or rest.op_type != "Mul":
        return []
    if _times(graph, rest, value, 0.5):  # (x / 2) (1 + erf)
        return [rest, first] if graph.only_reader(rest.output[0]) is first else []
    last = graph.only_reader(first.output[0])
    if last is None or last.op_type != "Mul":
        return []
    if first is rest:  # (x (1 + erf)) / 2
        return [first, last] if _times(graph, last, first.output[0], 0.5) else []
    if last is rest:  # x ((1 + erf) / 2)
        return [first, last] if _times(graph, first, factor, 0.5) else []
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
    if held is None or held.size != 1 or held.ndim > 1:
        return False  # one of more axes may give the result more than the product has
    return bool(abs(held.item() / number - 1) < _FLOAT16_BITS)
