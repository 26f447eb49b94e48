"""What a rewrite asks of an ONNX graph: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd.qdq import PASS_THROUGH, QDQ

if TYPE_CHECKING:
    import onnx

# x @ W is the rule, W @ x exists; a Conv's weight is always its second input.
_SIDES = {"MatMul": (1, 0), "Gemm": (1, 0), "Conv": (1,)}


@dataclass(frozen=True)
class Weight:
    """A product's constant operand: its layer, which operand it is, whether Q/DQ is before it."""

    layer: str
    side: int
    quantized: bool


class Graph:
    """A graph's nodes by the tensors they make and read; a snapshot, which edits do not change.

    Attributes:
        nodes: In the graph's order.
        producer: Tensor -> the node that makes it.
        readers: Tensor -> the nodes that read it, twice where a node reads it twice. What an If or
            a Loop reads inside is read by the If or Loop.
        outputs: The graph's own outputs.
        names: Every name that a new tensor must not have.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in _read(node):
                self.readers[name].append(node)
        self.outputs = {value.name for value in model.graph.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.names = {*self.producer, *self.readers, *self.outputs, *self._initializers}
        self.names |= {value.name for value in model.graph.input}

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

    def weight(self, node: onnx.NodeProto) -> Weight | None:
        """The constant operand of a MatMul, Gemm or Conv, as `edgekd.qdq` finds it."""
        for side in _SIDES.get(node.op_type, ()):
            name, quantized = node.input[side], False
            while (maker := self.producer.get(name)) and maker.op_type in (*QDQ, *PASS_THROUGH):
                name, quantized = maker.input[0], quantized or maker.op_type in QDQ
            constant = maker is not None and maker.op_type == "Constant"
            if constant or name in self._initializers:
                return Weight(name.removesuffix(".weight"), side, quantized)
        return None


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
            needed.update(_read(node))
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


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Every tensor a node reads, also in its subgraphs; of those also what their nodes make."""
    yield from node.input
    inside: set[str] = set()
    for graph in (each.g for each in node.attribute if each.HasField("g")):
        for part in graph.node:
            inside.update(_read(part), part.output)
    yield from inside
