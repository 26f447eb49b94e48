"""One product and the nodes after it that go into the same kernel.

What stops a chain is said where it is an Add, a GELU or a QuantizeLinear, which a kernel has: in a
graph from elsewhere one of them may stand in a form that is not known, and nothing else shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd.engine.passes import gelu
from edgekd.engine.passes.graph import Graph, other
from edgekd.engine.passes.shapes import Shapes
from edgekd.engine.passes.sparse_gemm_op import Overload
from edgekd.qdq import QuantizedWeight

if TYPE_CHECKING:
    import onnx


@dataclass
class Chain:
    """What one kernel computes.

    Attributes:
        matmul: The MatMul or Gemm.
        weight: Its weight.
        bias: float32[n], zeros where there is none.
        dtype: Of the product in the graph, float32 or float16.
        overload: What the kernel writes.
        value: The tensor that the nodes so far make.
        nodes: The product and what follows it, in order.
        extra: The scale of an int8 output, float32[], or the residual's name.
        stopped: Why an Add, a GELU or a QuantizeLinear behind it is not taken; empty where none is.
    """

    matmul: onnx.NodeProto
    weight: QuantizedWeight
    bias: npt.NDArray[np.float32]
    dtype: np.dtype[Any]
    overload: Overload = "f16"
    value: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    extra: npt.NDArray[np.float32] | str | None = None
    stopped: str = ""

    def take(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Append nodes, the last of which makes the value from now on."""
        self.nodes += nodes
        self.value = nodes[-1].output[0]


def follow(
    graph: Graph,
    shapes: Shapes,
    weight: QuantizedWeight,
    matmul: onnx.NodeProto,
    earlier: Sequence[Chain],
) -> Chain:
    """Take what follows a product as far as one kernel computes it.

    Args:
        graph: The graph.
        shapes: Of its tensors.
        weight: The product's weight.
        matmul: The product, which `refusals.refused` lets pass.
        earlier: Chains whose nodes are taken. Where two products are added, the first of them has
            the Add, and the other is its residual.
    """
    n = len(weight.integers)
    scale = graph.constant(graph.producer[matmul.input[0]].input[1])
    assert scale is not None, "checked by refused"
    chain = Chain(matmul, weight, np.zeros(n, np.float32), scale.dtype)
    chain.take([matmul])
    if matmul.op_type == "Gemm" and len(matmul.input) > 2 and matmul.input[2]:
        bias = bias_of(graph, matmul.input[2], n, rank=2)
        assert bias is not None, "checked by refused"
        chain.bias = bias
    elif (add := graph.only_reader(chain.value)) is not None and add.op_type == "Add":
        rank = len(shapes.sizes(chain.value)) or 1
        bias = bias_of(graph, other(add, chain.value), n, rank)
        if bias is not None:
            chain.bias = bias
            chain.take([add])
    _quantize(graph, chain)
    if chain.overload == "f16":
        _add(graph, shapes, chain, earlier)
    return chain


def bias_of(graph: Graph, name: str, n: int, rank: int) -> npt.NDArray[np.float32] | None:
    """The constant of n values that a tensor is; [1, ..., n] too, up to a product's rank."""
    held = graph.constant(name)
    if held is None or held.ndim > rank or held.shape != (*[1] * (held.ndim - 1), n):
        return None
    return held.astype(np.float32).reshape(n)


def _quantize(graph: Graph, chain: Chain) -> None:
    """Take GELU if there is one, and QuantizeLinear; GELU alone stays."""
    found = gelu.match(graph, chain.value)
    end = found[-1].output[0] if found else chain.value
    quantize = next((n for n in graph.readers[end] if n.op_type == "QuantizeLinear"), None)
    if quantize is None:
        unknown = None if found else gelu.near(graph, chain.value)
        if found:
            chain.stopped = "its GELU stays: no QuantizeLinear follows it, and none writes floats"
        elif unknown is not None:
            chain.stopped = (
                f"its {unknown.op_type} stays: expected a known form of the exact GELU, which alone"
                " reads the product"
            )
        return
    if graph.only_reader(end) is None:
        chain.stopped = f"its QuantizeLinear stays: {_others(graph, end)}"
        return
    scale = graph.constant(quantize.input[1])
    if scale is None:
        chain.stopped = "its QuantizeLinear stays: an operator makes its scale: fold constants"
        return
    chain.overload = "gelu_s8" if found else "s8"
    chain.extra = scale.astype(np.float32).reshape(())  # per tensor, as qdq checks
    chain.take([*found, quantize])


def _add(graph: Graph, shapes: Shapes, chain: Chain, earlier: Sequence[Chain]) -> None:
    """Take the Add of a float16 tensor that certainly has the product's shape."""
    add = next((node for node in graph.readers[chain.value] if node.op_type == "Add"), None)
    if add is None or chain.stopped:
        return
    residual = other(add, chain.value)
    taken = next((e for e in earlier if any(add is node for node in e.nodes)), None)
    if graph.only_reader(chain.value) is None:
        chain.stopped = f"its Add stays: {_others(graph, chain.value)}"
    elif taken is not None:
        chain.stopped = f"its Add is in the kernel of {taken.weight.layer}"
    elif chain.dtype != np.float16:
        chain.stopped = f"its Add stays: it is of {chain.dtype}, and kernels add float16"
    elif not shapes.equal(chain.value, residual):
        sizes = [shapes.sizes(name) for name in (residual, chain.value)]
        chain.stopped = (
            f"its Add stays: {residual} has shape {sizes[0]}, not certainly {sizes[1]} as the"
            " product has"
        )
    else:
        chain.overload, chain.extra = "f16_residual", residual
        chain.take([add])


def _others(graph: Graph, value: str) -> str:
    count = len(graph.readers[value]) + (value in graph.outputs)
    return f"{count} read the floats before it, the graph's caller included, expected 1"
