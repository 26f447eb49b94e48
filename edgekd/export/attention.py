"""How many attention blocks a graph has: what an engine must fuse, counted on the file that ships.

Attention is written in many ways, so no operator stands for it; its shape does. A *product* is a
MatMul, Gemm or Einsum that contracts two activations (a linear contracts an activation with a
weight, and an element-wise Mul, such as a squeeze-and-excite gate, contracts nothing). An
*attention block* is a product that the result of an earlier one, the *opening* product, reaches
through element-wise, normalising and shape operators alone::

    softmax(Q K^T + mask) V      opened by Q K^T, closed by the product with V
    relu(Q K^T) V / n            the same: which function shapes the scores does not matter
    phi(Q) (phi(K)^T V)          linear attention: opened by phi(K)^T V, closed by the one with Q

A block is known by its closing product, so it counts once however many paths lead there (Exp and
ReduceSum of a decomposed softmax) and whatever opens it beside the scores (a mask that is itself
a product, shared by all layers). What closes a block does not open the next: in a chain of
products without weights between, every second one closes. A node that is a whole attention by its
name (ONNX ``Attention`` and ``LinearAttention``, ``MultiHeadAttention`` and its kin of
com.microsoft) is one block.

All other products are *loose*: a bilinear head, a spatial transformer, the normaliser that linear
attention divides by, and attention written in a way not recognised here. Where there are none, a
model without a block has no attention; where there are some, it may have. Left out: products
written as Mul and ReduceSum, and attention whose scores meet a weight before V (talking heads),
which is two loose products. A chain A B C of plain matrices counts as the linear attention it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import onnx_ir as ir

_ELEMENTWISE = {
    "Abs", "Add", "And", "BiasGelu", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos",
    "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "QuickGelu", "Reciprocal", "Relu", "Round",
    "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh",
    "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
_NORMALISING = {
    "BatchNormalization", "CumSum", "GroupNormalization", "Hardmax", "InstanceNormalization",
    "LayerNormalization", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
    "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "Softmax",
}  # fmt: skip
_SHAPE = {
    "Concat", "DepthToSpace", "Flatten", "Gather", "GatherElements", "GatherND", "ScatterElements",
    "ScatterND", "SpaceToDepth", "Transpose",
}  # fmt: skip
# Their further inputs are sizes and places, often read off an activation's shape.
_SHAPE_OF_FIRST = {
    "Expand", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Trilu", "Unsqueeze",
}  # fmt: skip
_CONSTANT = {"Constant", "ConstantOfShape"}
_THROUGH = _ELEMENTWISE | _NORMALISING | _SHAPE | _SHAPE_OF_FIRST


@dataclass(frozen=True)
class Attention:
    """What was counted.

    Attributes:
        attention_blocks: Attention blocks, each to be one fused kernel of an engine.
        loose_products: Products of two activations that belong to no block.
    """

    attention_blocks: int
    loose_products: int

    def as_json(self) -> dict[str, int]:
        """The counts by name, as an OnnxModel's results hold them."""
        return asdict(self)


def count_attention(model: ir.Model) -> Attention:
    """Count a graph's attention blocks, and its products of two activations outside them."""
    products: list[ir.Node] = []
    opened_by: dict[ir.Node, set[ir.Node]] = {}  # closing product: its opening ones
    weights: set[ir.Value] = set()  # made of initializers alone, without any product
    reaching: dict[ir.Value, set[ir.Node]] = {}  # products whose result is still in a value
    whole = 0
    for node in model.graph.all_nodes():
        inputs = _data(node)
        activations = [not (value.is_initializer() or value in weights) for value in inputs]
        found = {product for value in inputs for product in reaching.get(value, ())}
        if node.op_type.endswith("Attention"):
            whole += 1
        elif _contracts(node, activations):
            products.append(node)
            if opening := _opening(found, opened_by):
                opened_by[node] = opening
            reaching[node.outputs[0]] = {node}
        elif node.op_type in _CONSTANT or (_passes(node) and not any(activations)):
            weights.update(node.outputs)
        elif _passes(node) and found:
            reaching.update(dict.fromkeys(node.outputs, found))
    used = set(opened_by).union(*opened_by.values())
    return Attention(whole + len(opened_by), len(products) - len(used))


def _opening(found: set[ir.Node], opened_by: dict[ir.Node, set[ir.Node]]) -> set[ir.Node]:
    """Which of the products that reach a product open the block that it would close.

    Not those that closed a block themselves, nor those whose block was closed on the way here.
    """
    closed = found & opened_by.keys()
    return found - closed.union(*(opened_by[product] for product in closed))


def _data(node: ir.Node) -> list[ir.Value]:
    """Inputs that hold data, without sizes and places."""
    inputs = [value for value in node.inputs if value is not None]
    return inputs[:1] if node.op_type in _SHAPE_OF_FIRST else inputs


def _contracts(node: ir.Node, activations: Sequence[bool]) -> bool:
    """Whether a node sums over an axis that two activations share."""
    if node.op_type == "Einsum":
        return _shares_summed_axis(node, activations)
    return node.op_type in ("MatMul", "Gemm") and all(activations[:2])


def _passes(node: ir.Node) -> bool:
    """Whether a node is element-wise, normalising or of shapes only.

    An Einsum may be any of them: a scale for each head, a transposition, a sum.
    """
    if node.op_type == "Einsum":
        return not _shares_summed_axis(node, [True] * len(node.inputs))
    return node.op_type in _THROUGH


def _shares_summed_axis(node: ir.Node, chosen: Sequence[bool]) -> bool:
    """Whether two of an Einsum's chosen operands share an axis that its output lacks.

    Without an arrow the output has every axis named once (ONNX, Einsum), so a shared one is summed.
    """
    equation = node.attributes["equation"].as_string().replace(" ", "").replace("...", "")
    operands, _, output = equation.partition("->")
    axes = [set(o) for o, take in zip(operands.split(","), chosen, strict=True) if take]
    shared = {axis for axis in set().union(*axes) if sum(axis in each for each in axes) > 1}
    return bool(shared - set(output))
