"""Which tensors of a graph have one shape, whatever the sizes it is run with.

With symbols alone ONNX proves little: a size that is computed might be 1, so the sum of an unknown
and a ``batch`` gets a new symbol. With a number there the answer is known, as a valid sum of an
unknown size and a 3 has size 3. So the free sizes of the inputs are numbered, and inferred, twice.

That two sizes agree at these numbers says that they do at all, for the operands of one Add: sizes
are sums, products, quotients and minima of the free ones, so none falls where those grow; both are
above 1 from there on, and then Add takes equal ones only. A 1 may be a quotient of small numbers,
and counts only where the symbols say 1 too. Two choices of numbers, for one may hit a constant.

What stays unknown has a symbol of its own from ONNX, or no shape, and equals nothing. Left out:
bodies of If and Loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Size = int | str | None  # a symbol, or nothing known


class Shapes:
    """The shapes of a graph's tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        skeleton = _skeleton(model)
        self._named = _infer(skeleton)
        self._numbered = [_infer(_number(skeleton, each)) for each in (count(2), count(5, 3))]

    def sizes(self, name: str) -> list[Size]:
        """A tensor's sizes or their symbols; empty where not even their number is known."""
        return self._named.get(name, [])

    def equal(self, one: str, two: str) -> bool:
        """Whether both operands of an Add certainly have one shape."""
        for shapes in self._numbered:
            found = shapes.get(one)
            if found is None or found != shapes.get(two):
                return False
            ones = [axis for axis, size in enumerate(found) if size == 1]
            if any(
                self.sizes(name)[axis : axis + 1] != [1] for name in (one, two) for axis in ones
            ):
                return False
        return True


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without large initializers, as inference takes at most 2 GiB, or earlier shapes."""
    import onnx
    from onnx import helper

    skeleton = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    skeleton.graph.CopyFrom(
        onnx.GraphProto(name=model.graph.name, node=model.graph.node, input=model.graph.input)
    )
    for output in model.graph.output:
        kind = output.type.tensor_type.elem_type
        skeleton.graph.output.append(helper.make_tensor_value_info(output.name, kind, None))
    for tensor in model.graph.initializer:
        if len(tensor.dims) < 2:  # scales, and the targets of Reshape
            skeleton.graph.initializer.append(tensor)
        else:
            declared = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            skeleton.graph.input.append(declared)
    return skeleton


def _number(skeleton: onnx.ModelProto, numbers: Iterator[int]) -> onnx.ModelProto:
    """The graph with a number in the place of each symbol, and of each size without one."""
    import onnx

    numbered = onnx.ModelProto()
    numbered.CopyFrom(skeleton)
    given: dict[str, int] = {}
    for value in numbered.graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                symbol = size.dim_param or f"{value.name}[{axis}]"
                size.dim_value = given.get(symbol) or given.setdefault(symbol, next(numbers))
    return numbered


def _infer(skeleton: onnx.ModelProto) -> dict[str, list[Size]]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    known: dict[str, list[Size]] = {each.name: list(each.dims) for each in inferred.initializer}
    return known | {
        value.name: [d.dim_value or d.dim_param or None for d in value.type.tensor_type.shape.dim]
        for value in [*inferred.input, *inferred.value_info, *inferred.output]
        if value.type.tensor_type.HasField("shape")
    }
