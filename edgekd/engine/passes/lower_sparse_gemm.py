"""Lower quantized 2:4 products to ``edgekd::SparseGemmS8``.

Rule: a MatMul or Gemm of DQ(int8) by an INT8 weight that is 2:4 along k, n and k multiples of 64,
becomes one node, together with what follows it alone:

    + bias, QuantizeLinear             s8, when nothing else reads the float values between
    + bias, GELU, QuantizeLinear       gelu_s8, likewise
    + bias                             f16, cast to the graph's own type
    + bias, + a tensor of its shape    f16 with a residual, in a float16 graph

The QuantizeLinear's int8 tensor keeps its name, so whatever dequantizes it reads it as before.
The scale is input scale x weight scale in float32, exact for scales of `quant.scale_from_amax`.

The numbers. The original multiplies dequantized floats and rounds every partial sum; the lowered
one adds integers exactly and rounds once at the scale and once at the bias. So a value near a
rounding boundary may move by one step; where the output is float16 in a float32 graph, it is
rounded to 11 bits besides. Rates measured: see the engine's README.

It must not fire, and says why: weights in float, convolutions, sizes no kernel takes, weights that
are not 2:4, a Gemm that scales or transposes, a product with the weight on the left. A residual
whose shape is not proven equal (it might be broadcast) stays an Add of its own.

Nothing lowers by itself: the default build leaves the graph as exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd import qdq, sparse24, sparse_gemm
from edgekd.engine.passes import gelu, sparse_gemm_op
from edgekd.engine.passes.graph import Graph, attribute, other, prune
from edgekd.qdq import QuantizedWeight

if TYPE_CHECKING:
    import onnx


_Shapes = dict[str, tuple[int, list[int | str | None]]]


@dataclass(frozen=True)
class Product:
    """One lowered product.

    Attributes:
        layer: Its name; of a layer that is split into several products with rows, ``fc@0:64``.
        node: The MatMul or Gemm it was.
        overload: What it writes, and whether it adds a residual.
        n: Output features.
        k: Reduction.
    """

    layer: str
    node: str
    overload: sparse_gemm_op.Overload
    n: int
    k: int


@dataclass(frozen=True)
class Left:
    """One product that was left as it is, and the reason in a sentence."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Lowered:
    """A lowered graph, and what became of every layer with a constant weight."""

    model: onnx.ModelProto
    products: tuple[Product, ...]
    left: tuple[Left, ...]


@dataclass
class _Match:
    """One product and the nodes after it that go into the same kernel."""

    matmul: onnx.NodeProto
    weight: QuantizedWeight
    bias: npt.NDArray[np.float32]
    dtype: np.dtype[Any]  # of the product in the graph, float32 or float16
    overload: sparse_gemm_op.Overload = "f16"
    value: str = ""  # the tensor the nodes so far make
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    extra: npt.NDArray[np.float32] | str | None = None  # a scale, or a residual's name


def lower(model: onnx.ModelProto) -> Lowered:
    """Lower every product that a kernel takes; the model given is not changed.

    Args:
        model: A checked Q/DQ model with its external data loaded, see `qdq.load`.

    Returns:
        A model that any ONNX Runtime from 1.20 runs, and the report. A TensorRT whose parser
        prefers functions to plugins wants ``model.functions`` removed, see `sparse_gemm_op`.

    Raises:
        ContractError: The graph breaks the Q/DQ contract, see `qdq.quantized_weights`.
        UnsupportedError: Its opset is too old.
    """
    import onnx

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = Graph(lowered)
    shapes = _shapes(lowered)
    left = [
        Left(name, f"{name}: its weight is {list(shape)} in float, expected INT8 2:4: plan it")
        for name, shape in qdq.float_weights(model).items()
    ]
    matches: list[_Match] = []
    for weight in qdq.quantized_weights(model):
        for part, matmul in _products(graph, weight):
            reason = _refused(graph, part, matmul)
            if reason:
                left.append(Left(part.layer, f"{part.layer}: {reason}"))
            else:
                match = _follow(graph, part, matmul)
                _take_residual(graph, match, shapes, matches)
                matches.append(match)
    _replace(lowered, graph, matches)
    products = [
        Product(m.weight.layer, m.weight.node, m.overload, *m.weight.integers.shape)
        for m in matches
    ]
    return Lowered(lowered, tuple(products), tuple(left))


def _products(
    graph: Graph, weight: QuantizedWeight
) -> list[tuple[QuantizedWeight, onnx.NodeProto]]:
    """A layer's products, one by one: of a split layer each has its own rows."""
    by_name = {node.name or node.output[0]: node for node in graph.nodes}
    if weight.node in by_name:
        return [(weight, by_name[weight.node])]
    found, start = [], 0
    for name in weight.node.split(" + "):
        source = next(s for s in map(graph.source, by_name[name].input) if s is not None)
        end = start + source.size // weight.integers.shape[1]
        part = replace(
            weight,
            layer=f"{weight.layer}@{start}:{end}",
            node=name,
            integers=weight.integers[start:end],
            scale=weight.scale[start:end],
        )
        found.append((part, by_name[name]))
        start = end
    return found


def _refused(graph: Graph, weight: QuantizedWeight, matmul: onnx.NodeProto) -> str:
    """Why no kernel takes this product; empty where one does."""
    n, k = weight.integers.shape
    if matmul.op_type == "Conv":
        return "it is a convolution, and the kernels multiply matrices: leave it to the engine"
    if graph.source(matmul.input[1]) is None:
        return "its weight is the first operand, expected the second: export it as x W^T"
    maker = graph.producer.get(matmul.input[0])
    if weight.input_scale is None or maker is None or maker.op_type != "DequantizeLinear":
        made = "float" if maker is None or weight.input_scale is None else f"by {maker.op_type}"
        return f"its input arrives {made}, expected by DequantizeLinear: place Q/DQ directly before"
    if graph.constant(maker.input[1]) is None:
        return "its input's scale is made by an operator, expected a constant: fold constants first"
    for name, size in (("n", n), ("k", k)):
        if size % sparse_gemm.SLAB:
            return f"{name} is {size}, expected a multiple of {sparse_gemm.SLAB}: pad the layer"
    wrong = sparse24.violations(weight.integers)
    if wrong:
        return (
            f"{wrong} of {weight.integers.size // 4} groups of 4 are not 2:4, expected 0: mask it"
        )
    if matmul.op_type == "Gemm":
        return _refused_gemm(graph, matmul, n)
    return ""


def _refused_gemm(graph: Graph, gemm: onnx.NodeProto, n: int) -> str:
    expected = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    found = {name: attribute(gemm, name, value) for name, value in expected.items()}
    if found != expected:
        return f"its Gemm has {found}, expected {expected}: fold them into the weight"
    if len(gemm.input) > 2 and gemm.input[2] and _bias(graph, gemm.input[2], n) is None:
        return f"its Gemm adds a tensor that is no constant of {n} values: add it after the product"
    return ""


def _bias(graph: Graph, name: str, n: int) -> npt.NDArray[np.float32] | None:
    held = graph.constant(name)
    return held.astype(np.float32) if held is not None and held.shape == (n,) else None


def _follow(graph: Graph, weight: QuantizedWeight, matmul: onnx.NodeProto) -> _Match:
    """Take what follows a product as far as one kernel computes it."""
    n = len(weight.integers)
    scale = graph.constant(graph.producer[matmul.input[0]].input[1])
    assert scale is not None, "checked by _refused"
    match = _Match(matmul, weight, np.zeros(n, np.float32), scale.dtype)
    _take(match, [matmul])
    if matmul.op_type == "Gemm" and len(matmul.input) > 2 and matmul.input[2]:
        bias = _bias(graph, matmul.input[2], n)
        assert bias is not None, "checked by _refused_gemm"
        match.bias = bias
    elif (add := graph.only_reader(match.value)) is not None and add.op_type == "Add":
        bias = _bias(graph, other(add, match.value), n)
        if bias is not None:
            match.bias = bias
            _take(match, [add])
    found = gelu.match(graph, match.value)
    end = found[-1].output[0] if found else match.value
    quantize = graph.only_reader(end)
    out_scale = None if quantize is None else _per_tensor(graph, quantize, end)
    if quantize is not None and out_scale is not None:
        match.overload, match.extra = "gelu_s8" if found else "s8", out_scale
        _take(match, [*found, quantize])
    return match


def _take(match: _Match, nodes: list[onnx.NodeProto]) -> None:
    match.nodes += nodes
    match.value = nodes[-1].output[0]


def _take_residual(graph: Graph, match: _Match, shapes: _Shapes, earlier: Sequence[_Match]) -> None:
    """The Add of a float16 tensor that certainly has the product's shape.

    Where two products are added, the first takes the Add and the other is its residual.
    """
    add = graph.only_reader(match.value)
    if match.overload != "f16" or match.dtype != np.float16 or add is None or add.op_type != "Add":
        return
    residual, own = other(add, match.value), shapes.get(match.value)
    if own is None or None in own[1] or shapes.get(residual) != own:
        return
    if all(add is not node for each in earlier for node in each.nodes):
        match.overload, match.extra = "f16_residual", residual
        _take(match, [add])


def _per_tensor(graph: Graph, node: onnx.NodeProto, value: str) -> npt.NDArray[np.float32] | None:
    """The scale of a symmetric per-tensor QuantizeLinear of the value; its form qdq checked."""
    if node.op_type != "QuantizeLinear" or node.input[0] != value:
        return None
    scale = graph.constant(node.input[1])
    return None if scale is None or scale.size != 1 else scale.astype(np.float32).reshape(())


def _shapes(model: onnx.ModelProto) -> _Shapes:
    """Each tensor's type, and its sizes or their symbols, None where nothing is known.

    Large initializers are declared and not copied: inference takes at most 2 GiB.
    """
    import onnx
    from onnx import helper

    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    skeleton.graph.CopyFrom(
        onnx.GraphProto(
            name=model.graph.name,
            node=model.graph.node,
            input=model.graph.input,
            output=model.graph.output,
            value_info=model.graph.value_info,
        )
    )
    for tensor in model.graph.initializer:
        if len(tensor.dims) < 2:  # scales, and the targets of Reshape
            skeleton.graph.initializer.append(tensor)
        else:
            declared = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            skeleton.graph.input.append(declared)
    inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_value or d.dim_param or None for d in value.type.tensor_type.shape.dim],
        )
        for value in [*inferred.input, *inferred.value_info, *inferred.output]
        if value.type.tensor_type.HasField("shape")
    }


def _replace(model: onnx.ModelProto, graph: Graph, matches: list[_Match]) -> None:
    """Put one operator in the place of each match's last node, and drop what leads nowhere then."""
    store = _Store(model)
    places = {id(node): place for place, node in enumerate(graph.nodes)}
    dropped = {places[id(node)] for match in matches for node in match.nodes}
    added = {places[id(match.nodes[-1])]: _operator(graph, match, store) for match in matches}
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.nodes):
        nodes += added.get(place, [] if place in dropped else [node])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    prune(model)
    sparse_gemm_op.add_functions(model)


def _operator(graph: Graph, match: _Match, store: _Store) -> list[onnx.NodeProto]:
    """The operator's node, and where it writes float16 into a float32 graph, the Cast back."""
    from onnx import TensorProto, helper

    weight, prefix = match.weight, f"{match.weight.layer}.gemm"
    assert weight.input_scale is not None, "checked by _refused"
    values, metadata = sparse24.compress(weight.integers)
    inputs = [
        graph.producer[match.matmul.input[0]].input[0],
        store.add(f"{prefix}.values", values),
        store.add(f"{prefix}.metadata", metadata),
        store.add(f"{prefix}.scale", np.float32(weight.input_scale) * weight.scale),
        store.add(f"{prefix}.bias", match.bias),
    ]
    if match.extra is not None:
        given = match.extra
        named = isinstance(given, str)
        inputs.append(given if named else store.add(f"{prefix}.output_scale", np.asarray(given)))
    name = f"{weight.node}/{sparse_gemm_op.OP_TYPE}"
    if match.overload != "f16" or match.dtype == np.float16:
        return [sparse_gemm_op.node(match.overload, inputs, match.value, name)]
    half = f"{match.value}/float16"
    cast = helper.make_node("Cast", [half], [match.value], f"{name}/Cast", to=TensorProto.FLOAT)
    return [sparse_gemm_op.node(match.overload, inputs, half, name), cast]


class _Store:
    """Adds initializers to a model under names that are free; equal content is stored once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._taken = {tensor.name for tensor in model.graph.initializer}
        self._taken |= {value.name for value in model.graph.input}
        self._taken |= {name for node in model.graph.node for name in node.output}
        self._added: dict[str, npt.NDArray[Any]] = {}

    def add(self, name: str, array: npt.NDArray[Any]) -> str:
        """Store an array; returns the name it got, with a number where another one has it."""
        from onnx import numpy_helper

        for number in range(len(self._taken) + 1):
            free = f"{name}_{number}" if number else name
            if free in self._added and np.array_equal(self._added[free], array):
                return free
            if free not in self._taken:
                break
        self._taken.add(free)
        self._added[free] = array
        stored = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), free)
        self._model.graph.initializer.append(stored)
        return free
