"""Lower quantized 2:4 products to ``edgekd::SparseGemmS8``.

Rule: a MatMul or Gemm of DQ(int8) by an INT8 weight that is 2:4 along k, n and k multiples of 64,
becomes one node, together with what follows it alone:

    + bias, QuantizeLinear             s8, when nothing else reads the float values between
    + bias, GELU, QuantizeLinear       gelu_s8, likewise
    + bias                             f16, cast to the graph's own type
    + bias, + a tensor of its shape    f16 with a residual, in a float16 graph

The QuantizeLinear's int8 tensor keeps its name, so whatever dequantizes it reads it as before. The
scale is input scale x weight scale in float32, which is exact for scales of `quant.scale_from_amax`.

The numbers. The original multiplies dequantized floats and rounds every partial sum; the lowered
one adds integers exactly and rounds once at the scale and once at the bias. So a value near a
rounding boundary may move by one step; where the output is float16 in a float32 graph, it is
rounded to 11 bits besides. Rates measured: this folder's tests and the engine's README.

It must not fire, and says why: weights in float, convolutions, sizes no kernel takes, weights that
are not 2:4, a Gemm that scales or transposes, a product with the weight on the left. A residual
whose shape is not proven equal (it might be broadcast) stays an Add of its own.

Nothing lowers by itself: the default build leaves the graph as exported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd import qdq, sparse24, sparse_gemm
from edgekd.engine.passes import sparse_gemm_op
from edgekd.engine.passes.graph import Graph, attribute, prune
from edgekd.qdq import QuantizedWeight

if TYPE_CHECKING:
    import onnx

_FLOAT16_BITS = 1e-3  # constants of GELU, also as float16 holds them


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
    matches = []
    for weight in qdq.quantized_weights(model):
        for part, matmul in _products(graph, weight):
            reason = _refused(graph, part, matmul)
            if reason:
                left.append(Left(part.layer, f"{part.layer}: {reason}"))
            else:
                matches.append(_follow(graph, part, matmul, shapes))
    _replace(lowered, matches)
    products = [
        Product(m.weight.layer, m.weight.node, m.overload, *m.weight.integers.shape)
        for m in matches
    ]
    return Lowered(lowered, tuple(products), tuple(left))


def _products(
    graph: Graph, weight: QuantizedWeight
) -> list[tuple[QuantizedWeight, onnx.NodeProto]]:
    """A layer's products, one by one: of a split layer each has its own rows."""
    from dataclasses import replace

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
    for name, size in (("n", n), ("k", k)):
        if size % sparse_gemm.SLAB:
            return f"{name} is {size}, expected a multiple of {sparse_gemm.SLAB}: pad the layer"
    wrong = sparse24.violations(weight.integers)
    if wrong:
        return f"{wrong} of {weight.integers.size // 4} groups of 4 are not 2:4, expected 0: mask it"
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


def _follow(
    graph: Graph, weight: QuantizedWeight, matmul: onnx.NodeProto, shapes: dict[str, Any]
) -> _Match:
    """Take what follows a product as far as one kernel computes it."""
    n = len(weight.integers)
    match = _Match(matmul, weight, np.zeros(n, np.float32), value=matmul.output[0], nodes=[matmul])
    if matmul.op_type == "Gemm" and len(matmul.input) > 2 and matmul.input[2]:
        bias = _bias(graph, matmul.input[2], n)
        assert bias is not None, "checked by _refused_gemm"
        match.bias = bias
    elif (add := graph.only_reader(match.value)) is not None and add.op_type == "Add":
        bias = _bias(graph, _other(add, match.value), n)
        if bias is not None:
            match.bias = bias
            _take(match, [add])
    gelu = _gelu(graph, match.value)
    for nodes, overload in ((gelu, "gelu_s8"), ([], "s8")):
        end = nodes[-1].output[0] if nodes else match.value
        quantize = graph.only_reader(end)
        if overload == "gelu_s8" and not nodes or quantize is None:
            continue
        scale = _per_tensor(graph, quantize, end)
        if scale is not None:
            match.overload = overload  # type: ignore[assignment]
            match.extra = scale
            _take(match, [*nodes, quantize])
            return match
    _take_residual(graph, match, shapes)
    return match


def _take(match: _Match, nodes: list[onnx.NodeProto]) -> None:
    match.nodes += nodes
    match.value = nodes[-1].output[0]


def _take_residual(graph: Graph, match: _Match, shapes: dict[str, Any]) -> None:
    """The Add of a float16 tensor that certainly has the product's shape."""
    from onnx import TensorProto

    add = graph.only_reader(match.value)
    if add is None or add.op_type != "Add" or _other(add, match.value) == match.value:
        return
    residual = _other(add, match.value)
    own, other = shapes.get(match.value), shapes.get(residual)
    if own is None or own != other or None in own[1] or own[0] != TensorProto.FLOAT16:
        return
    match.overload, match.extra = "f16_residual", residual
    _take(match, [add])


def _per_tensor(
    graph: Graph, node: onnx.NodeProto, value: str
) -> npt.NDArray[np.float32] | None:
    """The scale of a symmetric per-tensor QuantizeLinear of the value; its form qdq checked."""
    if node.op_type != "QuantizeLinear" or node.input[0] != value:
        return None
    scale = graph.constant(node.input[1])
    return None if scale is None or scale.size != 1 else scale.astype(np.float32).reshape(())


def _gelu(graph: Graph, value: str) -> list[onnx.NodeProto]:
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
    rest = [node for node in readers if node is not root][0]
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
    return value in node.input and _close(graph.constant(_other(node, value)), number)


def _close(held: npt.NDArray[Any] | None, number: float) -> bool:
    return held is not None and held.size == 1 and abs(held.item() / number - 1) < _FLOAT16_BITS


def _other(node: onnx.NodeProto, value: str) -> str:
    return str(node.input[1] if node.input[0] == value else node.input[0])
