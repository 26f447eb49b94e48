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
are not 2:4, a Gemm that scales or transposes, a product with the weight on the left, one of a
float32 graph that float16 might not hold. A residual whose shape is not certainly the product's (it
might be broadcast) stays an Add of its own, and the Product says so, as of every other end.

Nothing lowers by itself: the default build leaves the graph as exported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd import qdq, sparse24
from edgekd.engine.passes import refusals, sparse_gemm_op
from edgekd.engine.passes.chain import Chain, follow
from edgekd.engine.passes.graph import Graph, prune
from edgekd.engine.passes.shapes import Shapes
from edgekd.qdq import QuantizedWeight

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Product:
    """One lowered product.

    Attributes:
        layer: Its name; of a layer that is split into several products with rows, ``fc@0:64``.
        node: The MatMul or Gemm it was.
        overload: What it writes, and whether it adds a residual.
        n: Output features.
        k: Reduction.
        stopped: Why an Add, a GELU or a QuantizeLinear that follows is not in its kernel; empty
            where none does or all are.
    """

    layer: str
    node: str
    overload: sparse_gemm_op.Overload
    n: int
    k: int
    stopped: str


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
    graph, shapes = Graph(lowered), Shapes(lowered)
    left = _in_float(graph, shapes, qdq.float_weights(model))
    chains: list[Chain] = []
    for weight, product in _products(graph, qdq.quantized_weights(model)):
        reason = refusals.refused(graph, weight, product)
        if not reason:
            chain = follow(graph, shapes, weight, product, chains)
            reason = refusals.overflows(chain)
        if reason:
            left.append(Left(weight.layer, f"{weight.layer}: {reason}"))
        else:
            chains.append(chain)
    _replace(lowered, graph, chains)
    return Lowered(lowered, tuple(map(_product, chains)), tuple(left))


def _product(chain: Chain) -> Product:
    n, k = chain.weight.integers.shape
    return Product(chain.weight.layer, chain.weight.node, chain.overload, n, k, chain.stopped)


def _in_float(graph: Graph, shapes: Shapes, layers: dict[str, tuple[int, ...]]) -> list[Left]:
    """The layers whose weights are not quantized, each once."""
    left: dict[str, Left] = {}
    for node in graph.nodes:
        found = graph.weight(node)
        if found and not found.quantized and found.layer in layers:
            reason = refusals.in_float(shapes, found, node, layers[found.layer])
            left[found.layer] = Left(found.layer, f"{found.layer}: {reason}")
    return list(left.values())


def _products(
    graph: Graph, weights: Sequence[QuantizedWeight]
) -> Iterator[tuple[QuantizedWeight, onnx.NodeProto]]:
    """Each quantized product with its weight; of a split layer each has its own rows."""
    places: dict[str, list[onnx.NodeProto]] = {}  # in graph order, as the weights are
    for node in graph.nodes:
        if (found := graph.weight(node)) and found.quantized:
            places.setdefault(found.layer, []).append(node)
    for weight in weights:
        if weight.layer in places:
            yield weight, places[weight.layer].pop(0)
            continue
        parts = [name for name in places if qdq.layer_of(name) == weight.layer]
        rows = {name: [int(end) for end in name.rpartition("@")[2].split(":")] for name in parts}
        for name in sorted(parts, key=rows.__getitem__):
            start, end = rows[name]
            node = places[name].pop(0)
            yield (
                replace(
                    weight,
                    layer=name,
                    node=node.name or node.output[0],
                    integers=weight.integers[start:end],
                    scale=weight.scale[start:end],
                ),
                node,
            )


def _replace(model: onnx.ModelProto, graph: Graph, chains: Sequence[Chain]) -> None:
    """Put one operator in the place of each chain's last node, and drop what leads nowhere then."""
    store = _Store(model, graph.names)
    places = {id(node): place for place, node in enumerate(graph.nodes)}
    dropped = {places[id(node)] for chain in chains for node in chain.nodes}
    added = {places[id(chain.nodes[-1])]: _operator(graph, chain, store) for chain in chains}
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.nodes):
        nodes += added.get(place, [] if place in dropped else [node])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    prune(model)
    sparse_gemm_op.add_functions(model)


def _operator(graph: Graph, chain: Chain, store: _Store) -> list[onnx.NodeProto]:
    """The operator's node, and where it writes float16 into a float32 graph, the Cast back."""
    from onnx import TensorProto, helper

    weight, prefix = chain.weight, f"{chain.weight.layer}.gemm"
    assert weight.input_scale is not None, "checked by refused"
    values, metadata = sparse24.compress(weight.integers)
    inputs = [
        graph.producer[chain.matmul.input[0]].input[0],
        store.add(f"{prefix}.values", values),
        store.add(f"{prefix}.metadata", metadata),
        store.add(f"{prefix}.scale", np.float32(weight.input_scale) * weight.scale),
        store.add(f"{prefix}.bias", chain.bias),
    ]
    if chain.extra is not None:
        given = chain.extra
        named = isinstance(given, str)
        inputs.append(given if named else store.add(f"{prefix}.output_scale", np.asarray(given)))
    name = store.free(f"{weight.node}/{sparse_gemm_op.OP_TYPE}")  # two products may share theirs
    if chain.overload != "f16" or chain.dtype == np.float16:
        return [sparse_gemm_op.node(chain.overload, inputs, chain.value, name)]
    half = store.free(f"{chain.value}/float16")
    cast = helper.make_node("Cast", [half], [chain.value], f"{name}/Cast", to=TensorProto.FLOAT)
    return [sparse_gemm_op.node(chain.overload, inputs, half, name), cast]


class _Store:
    """Adds initializers to a model under names that are free; equal content is stored once."""

    def __init__(self, model: onnx.ModelProto, taken: Iterable[str]) -> None:
        self._model = model
        self._taken = set(taken)
        self._added: dict[str, npt.NDArray[Any]] = {}

    def add(self, name: str, array: npt.NDArray[Any]) -> str:
        """Store an array; returns the name it got, with a number where another one has it."""
        from onnx import numpy_helper

        for each in _numbered(name):
            if each in self._added and np.array_equal(self._added[each], array):
                return each
            if each not in self._taken:
                break
        free = self.free(name)
        self._added[free] = array
        stored = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), free)
        self._model.graph.initializer.append(stored)
        return free

    def free(self, name: str) -> str:
        """A name that nothing has, from now on taken."""
        free = next(each for each in _numbered(name) if each not in self._taken)
        self._taken.add(free)
        return free


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(1))
