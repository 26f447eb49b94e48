"""What a rewrite asks of an ONNX graph: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd.qdq import PASS_THROUGH, QDQ

if TYPE_CHECKING:
    import onnx


class Graph:
    """A graph's nodes by the tensors they make and read; a snapshot, which edits do not change.

    Attributes:
        nodes: In the graph's order.
        producer: Tensor -> the node that makes it.
        readers: Tensor -> the nodes that read it, twice where a node reads it twice.
        outputs: The graph's own outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in model.graph.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor; None where several do, or the caller of the graph."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """What a tensor always holds, through Identity and Cast; None where it is computed."""
        from onnx import helper, numpy_helper

        if name in self._initializers:
            return numpy_helper.to_array(self._initializers[name])
        node = self.producer.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return _value(node)
        if node.op_type not in ("Identity", "Cast"):
            return None
        held = self.constant(node.input[0])
        if held is None or node.op_type == "Identity":
            return held
        cast: npt.NDArray[Any] = held.astype(
            helper.tensor_dtype_to_np_dtype(attribute(node, "to", 0))
        )
        return cast

    def source(self, name: str) -> npt.NDArray[Any] | None:
        """The initializer a weight comes from, through Q/DQ and what only moves it."""
        while (node := self.producer.get(name)) and node.op_type in (*QDQ, *PASS_THROUGH):
            name = node.input[0]
        return self.constant(name)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """A node's attribute, or a default."""
    from onnx import helper

    values = (helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return next(values, default)


def other(node: onnx.NodeProto, value: str) -> str:
    """A node's operand that is not this one."""
    return str(node.input[1] if node.input[0] == value else node.input[0])


def prune(model: onnx.ModelProto) -> None:
    """Remove nodes that lead to no output, and what nobody reads any more."""
    needed = {value.name for value in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(name for part in _subgraphs(node) for name in _outer(part))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    made = {name for node in kept for name in node.output}
    for field, names in (
        (model.graph.initializer, needed),
        (model.graph.value_info, made | needed),
    ):
        left = [each for each in field if each.name in names]
        del field[:]
        field.extend(left)


def _value(node: onnx.NodeProto) -> npt.NDArray[Any]:
    from onnx import helper, numpy_helper

    given = node.attribute[0]
    if given.name == "value":
        return numpy_helper.to_array(given.t)
    dtype = np.float32 if "float" in given.name else np.int64
    return np.asarray(helper.get_attribute_value(given), dtype)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [each.g for each in node.attribute if each.HasField("g")]


def _outer(graph: onnx.GraphProto) -> set[str]:
    """Every name a subgraph mentions: what it takes from outside is among them."""
    names = {name for node in graph.node for name in node.input}
    names |= {value.name for value in graph.output}
    return names.union(*(_outer(part) for node in graph.node for part in _subgraphs(node)))
