"""Split a packed QKV projection into three, so that its integers survive as integers.

Rule: a quantized MatMul (with or without bias) whose result goes nowhere but into three equal parts
(a Split or Slices of the last axis; or a Reshape that makes an axis of 3 first of what the last
axis was, a Transpose perhaps, then Split, Slices or Gathers along that axis) becomes three MatMuls
of the same input, each with its rows of the weight, its scales, its bias: the same integers, the
same products. Rows a to b of ``<layer>.weight`` are called ``<layer>@a:b.weight`` and the node
``<node>@a:b``; `edgekd.qdq` joins them again where it proves a layer.

Why: TensorRT-RTX slices the DequantizeLinear of a packed int8 weight, no longer recognises it, and
runs the product in half precision without a word; the three apart it runs in INT8.

It must not fire where any part has another reader, or where the parts are not thirds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgekd.export.passes.constants import constant, sizes

PARTS = 3


@dataclass
class _Packed:
    """What `_match` found: everything from the weight to where the parts are taken."""

    matmul: ir.Node
    path: list[ir.Node]  # Q, DQ, Transpose of the weight
    add: ir.Node | None
    between: list[ir.Node]  # Reshape and Transpose, or nothing
    three: int  # place of the 3 in the Reshape's target
    taken: dict[int, list[tuple[ir.Value, int | None]]]  # part -> values, axis to squeeze


class SplitQKVPass(ir.passes.InPlacePass):
    """Replaces packed quantized projections by three; see the module's text."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split in place."""
        common.ShapeInferencePass()(model)
        found = [packed for node in model.graph if (packed := _match(node)) is not None]
        for packed in found:
            _split(model.graph, packed)
        if found:
            common.RemoveUnusedNodesPass()(model)
            model.graph.sort()
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No packed projection that could be split is left."""
        left = [node.name for node in model.graph if _match(node) is not None]
        if left:
            raise ir.passes.PostconditionError(f"packed projections are left: {left}")


def _match(node: ir.Node) -> _Packed | None:
    if node.op_type != "MatMul":
        return None
    path = _weight_path(node.inputs[1])
    if path is None:
        return None
    weight, scale = path[0].inputs[0], path[0].inputs[1]
    rows = _array(weight).shape[0]
    if rows % PARTS or _array(scale).size != rows:
        return None
    end, add = node.outputs[0], None
    users = _users(end)
    if len(users) == 1 and users[0].op_type == "Add":
        add = users[0]
        if _array(_other(add, end)).shape != (rows,):
            return None
        end = add.outputs[0]
        users = _users(end)
    between: list[ir.Node] = []
    axis, three, size = -1, -1, rows // PARTS
    if len(users) == 1 and users[0].op_type == "Reshape":
        between.append(users[0])
        three = axis = _place_of_three(users[0].inputs[1], size)
        if three < 0:
            return None
        end, size = users[0].outputs[0], 1
        users = _users(end)
        if len(users) == 1 and users[0].op_type == "Transpose":
            between.append(users[0])
            axis = list(users[0].attributes["perm"].as_ints()).index(three)
            end = users[0].outputs[0]
            users = _users(end)
    taken = _taken(end, users, axis, size)
    return None if taken is None else _Packed(node, path, add, between, three, taken)


def _weight_path(value: ir.Value | None) -> list[ir.Node] | None:
    """Quantize, dequantize and transpose of a 2-D initializer, each read once."""
    path: list[ir.Node] = []
    for operator in ("Transpose", "DequantizeLinear", "QuantizeLinear"):
        node = None if value is None else value.producer()
        if node is None or node.op_type != operator or len(_users(node.outputs[0])) != 1:
            return None
        path.insert(0, node)
        value = node.inputs[0]
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    constants = [each for node in path[:2] for each in node.inputs[1:] if each is not None]
    known = all(constant(each) is not None for each in constants)
    axes = {node.attributes["axis"].as_int() for node in path[:2] if "axis" in node.attributes}
    alone = len(_users(value)) == 1 and len(value.const_value.shape) == 2
    return path if known and alone and axes == {0} else None


def _place_of_three(target: ir.Value | None, size: int) -> int:
    """Where a Reshape's target has a 3 whose following sizes make up one part; -1 if nowhere."""
    found = sizes(target)
    for place, each in enumerate(found):
        after = found[place + 1 :]
        known = math.prod(s for s in after if s is not None and s > 0)
        unknown = sum(s is None or s == -1 for s in after)
        if each != PARTS or not after or 0 in after or unknown > 1:
            continue
        # One size that is not known makes up what is missing, as the product must be the part's.
        if size % known == 0 and (unknown or known == size):
            return place
    return -1


def _taken(
    value: ir.Value, users: Sequence[ir.Node], axis: int, size: int
) -> dict[int, list[tuple[ir.Value, int | None]]] | None:
    """The values that are one part each, by part; None where anything else reads the whole."""
    taken: dict[int, list[tuple[ir.Value, int | None]]] = {}
    rank = None if value.shape is None else len(value.shape)
    axes = {axis, axis + rank if axis < 0 else axis - rank} if rank else {axis}
    readers: dict[str, Callable[[ir.Node], list[tuple[int, ir.Value, int | None]] | None]] = {
        "Split": lambda node: _of_split(node, axes, size),
        "Slice": lambda node: _of_slice(node, axes, size),
        "Gather": lambda node: _of_gather(node, axes, axis) if size == 1 else None,
    }
    for node in users:
        if node.op_type == "Shape" and _leads_only_to(node, users):
            continue  # it places the Slices, and goes with them
        reader = readers.get(node.op_type)
        found = None if reader is None else reader(node)
        if found is None:
            return None
        for part, output, squeezed in found:
            taken.setdefault(part, []).append((output, squeezed))
    whole = value.is_graph_output() or set(taken) != set(range(PARTS))
    return None if whole else taken


def _leads_only_to(node: ir.Node, ends: Sequence[ir.Node]) -> bool:
    """Whether everything computed from a node is an input of some others."""
    users = [user for value in node.outputs for user in _users(value)]
    return all(user in ends or _leads_only_to(user, ends) for user in users)


def _of_split(
    node: ir.Node, axes: set[int], size: int
) -> list[tuple[int, ir.Value, int | None]] | None:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    parts = sizes(node.inputs[1]) if len(node.inputs) > 1 else [size] * PARTS
    if axis not in axes or len(node.outputs) != PARTS or parts != [size] * PARTS:
        return None
    return [(part, output, None) for part, output in enumerate(node.outputs)]


def _of_slice(
    node: ir.Node, axes: set[int], size: int
) -> list[tuple[int, ir.Value, int | None]] | None:
    given = [sizes(value) for value in node.inputs[1:]]
    if len(given) < 3 or any(len(each) != 1 or each[0] is None for each in given):
        return None
    start, end, axis = (int(each[0] or 0) for each in given[:3])
    start, end = (min(i + PARTS * size if i < 0 else i, PARTS * size) for i in (start, end))
    step = given[3][0] if len(given) > 3 else 1
    if axis not in axes or step != 1 or start % size or end - start != size:
        return None
    return [(start // size, node.outputs[0], None)]


def _of_gather(
    node: ir.Node, axes: set[int], axis: int
) -> list[tuple[int, ir.Value, int | None]] | None:
    index = _array(node.inputs[1])
    along = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if along not in axes or index.size != 1:
        return None
    return [(int(index.item()) % PARTS, node.outputs[0], None if index.ndim else axis)]


def _split(graph: ir.Graph, packed: _Packed) -> None:
    rows = _array(packed.path[0].inputs[0]).shape[0] // PARTS
    for part in range(PARTS):
        name = f"@{part * rows}:{(part + 1) * rows}"
        value = _part(graph, packed, slice(part * rows, (part + 1) * rows), name)
        for output, axis in packed.taken[part]:
            end = value
            if axis is not None:
                axes = _constant(graph, np.asarray([axis]), f"{output.name}{name}.axes")
                end = _node(graph, "Squeeze", [value, axes], f"{output.name}{name}")
            producer = output.producer()
            assert producer is not None
            ir.convenience.replace_all_uses_with(output, end)


def _part(graph: ir.Graph, packed: _Packed, rows: slice, name: str) -> ir.Value:
    """One of the three: its weight, product, bias, and the shape the parts were taken in."""
    weight = packed.path[0].inputs[0]
    assert weight is not None
    assert weight.name is not None
    layer = weight.name.removesuffix(".weight")
    value = _rows(graph, weight, rows, f"{layer}{name}.weight")
    for number, old in enumerate(packed.path[:2]):
        parameters = [
            _rows(graph, each, rows, f"{layer}{name}.{what}{number}")
            for each, what in zip(old.inputs[1:], ("weight_scale", "zero_point"), strict=False)
        ]
        value = _node(graph, old.op_type, [value, *parameters], f"{old.name}{name}", old)
    value = _node(graph, "Transpose", [value], f"{packed.path[2].name}{name}", packed.path[2])
    matmul = packed.matmul
    value = _node(graph, "MatMul", [matmul.inputs[0], value], f"{matmul.name}{name}")
    if packed.add is not None:
        bias = _other(packed.add, matmul.outputs[0])
        parts = [value, _rows(graph, bias, rows, f"{layer}{name}.bias")]
        value = _node(graph, "Add", parts, f"{packed.add.name}{name}")
    for old in packed.between:
        inputs = [value]
        if old.op_type == "Reshape":
            inputs.append(_one_for_three(graph, old.inputs[1], packed.three, f"{old.name}{name}"))
        value = _node(graph, old.op_type, inputs, f"{old.name}{name}", old)
    return value


def _one_for_three(graph: ir.Graph, target: ir.Value | None, place: int, name: str) -> ir.Value:
    """A Reshape's target with 1 where the 3 stood."""
    assert target is not None
    known = constant(target)
    if known is not None:
        changed = known.numpy().copy()
        changed[place] = 1
        return _constant(graph, changed, f"{name}.shape")
    concat = target.producer()
    assert concat is not None
    inputs: list[ir.Value | None] = []
    start = 0
    for each in concat.inputs:
        part = sizes(each)
        if start <= place < start + len(part):
            # Its elements are one by one in every graph seen; the pass is refused by its `ensures`
            # where they are not.
            assert len(part) == 1
            inputs.append(_constant(graph, np.asarray([1]), f"{name}.one"))
        else:
            inputs.append(each)
        start += len(part)
    return _node(graph, "Concat", inputs, f"{name}.shape", concat)


def _node(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    like: ir.Node | None = None,
) -> ir.Value:
    attributes = () if like is None else like.attributes.values()
    node = ir.Node(
        "", operator, inputs, [ir.Attr(a.name, a.type, a.value) for a in attributes], name=name
    )
    node.outputs[0].name = f"{name}.out"
    graph.append(node)
    return node.outputs[0]


def _rows(graph: ir.Graph, value: ir.Value | None, rows: slice, name: str) -> ir.Value:
    """Some rows of a constant, as an initializer; read where they are needed."""
    assert value is not None
    tensor = constant(value)
    assert tensor is not None
    shape = ir.Shape([rows.stop - rows.start, *tensor.shape.numpy()[1:]])

    def make() -> ir.Tensor[Any]:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy()[rows]), name=name)

    lazy = ir.LazyTensor(make, dtype=tensor.dtype, shape=shape, name=name)
    return _registered(graph, lazy, name)


def _constant(
    graph: ir.Graph, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]], name: str
) -> ir.Value:
    return _registered(graph, ir.Tensor(array.astype(np.int64), name=name), name)


def _registered(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _users(value: ir.Value) -> list[ir.Node]:
    return [node for node, _ in value.uses()]


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _array(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """A constant's content; an empty array where the value is none."""
    tensor = constant(value)
    return np.empty(0) if tensor is None else tensor.numpy()
