"""Why a product is left as it is, in a sentence: what no kernel takes, or must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd import sparse24, sparse_gemm
from edgekd.engine.passes.chain import Chain, bias_of
from edgekd.engine.passes.graph import Graph, Weight, attribute
from edgekd.engine.passes.shapes import Shapes, Size
from edgekd.qdq import QuantizedWeight

if TYPE_CHECKING:
    import onnx

_FLOAT16_MAX = float(np.finfo(np.float16).max)


def in_float(
    shapes: Shapes, weight: Weight, product: onnx.NodeProto, shape: tuple[int, ...]
) -> str:
    """Why a product with a float weight is left: first what planning the layer would not change.

    Args:
        shapes: Of the graph's tensors.
        weight: The weight.
        product: The node that multiplies it.
        shape: Of the weight, as the file has it.
    """
    sizes = shapes.sizes(product.input[weight.side])[-2:]
    transposed = attribute(product, ("transA", "transB")[weight.side], 0)
    k, n = sizes[:: -1 if weight.side == transposed else 1] if len(sizes) == 2 else (None, None)
    kept = _kind_and_sizes(product, n, k)
    return kept or f"its weight is {list(shape)} in float, expected INT8 2:4: plan it"


def refused(graph: Graph, weight: QuantizedWeight, product: onnx.NodeProto) -> str:
    """Why no kernel takes a quantized product; empty where one does."""
    n, k = weight.integers.shape
    if kept := _kind_and_sizes(product, n, k):
        return kept
    found = graph.weight(product)
    if found is None or found.side != 1:
        return "its weight is the first operand, expected the second: export it as x W^T"
    maker = graph.producer.get(product.input[0])
    if weight.input_scale is None or maker is None or maker.op_type != "DequantizeLinear":
        made = "float" if maker is None or weight.input_scale is None else f"by {maker.op_type}"
        return f"its input arrives {made}, expected by DequantizeLinear: place Q/DQ directly before"
    if graph.constant(maker.input[1]) is None:
        return "its input's scale is made by an operator, expected a constant: fold constants first"
    wrong = sparse24.violations(weight.integers)
    if wrong:
        groups = weight.integers.size // 4
        return f"{wrong} of {groups} groups of 4 are not 2:4, expected 0: mask it"
    return _refused_gemm(graph, product, n) if product.op_type == "Gemm" else ""


def overflows(chain: Chain) -> str:
    """Why a float16 output would not hold what a float32 graph computes; empty where it does.

    No integer exceeds 128, so no output exceeds 128 scale sum|w| + |bias|. A float16 graph is not
    judged: its own product holds no more.
    """
    if chain.overload != "f16" or chain.dtype == np.float16:
        return ""
    weight = chain.weight
    assert weight.input_scale is not None, "checked by refused"
    sums = np.abs(weight.integers.astype(np.float64)).sum(axis=1)
    largest = 128 * weight.input_scale * weight.scale * sums + np.abs(chain.bias)
    row = int(largest.argmax())  # of a NaN too
    if largest[row] <= _FLOAT16_MAX:
        return ""
    return (
        f"output {row} may reach {largest[row]:.6g}, expected at most {_FLOAT16_MAX:.0f}, which is"
        " float16's largest: leave it to the engine"
    )


def _kind_and_sizes(product: onnx.NodeProto, n: Size, k: Size) -> str:
    if product.op_type == "Conv":
        return "it is a convolution, and the kernels multiply matrices: leave it to the engine"
    for name, size in (("n", n), ("k", k)):
        if isinstance(size, int) and size % sparse_gemm.SLAB:
            return f"{name} is {size}, expected a multiple of {sparse_gemm.SLAB}: pad the layer"
    return ""


def _refused_gemm(graph: Graph, gemm: onnx.NodeProto, n: int) -> str:
    expected = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    found = {name: attribute(gemm, name, value) for name, value in expected.items()}
    if found != expected:
        return f"its Gemm has {found}, expected {expected}: fold them into the weight"
    if len(gemm.input) > 2 and gemm.input[2] and bias_of(graph, gemm.input[2], n, rank=2) is None:
        return f"its Gemm adds a tensor that is no constant of {n} values: add it after the product"
    return ""
