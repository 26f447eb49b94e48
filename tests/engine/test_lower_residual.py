"""The Add of a residual: taken where its shape is certainly the product's, at whatever sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny import sparse_graphs as graphs
from tiny.sparse_graphs import LINEAR, K, N, lowered, node, overloads, quantized

from edgekd import quant, sparse_gemm
from edgekd.engine.passes.lower_sparse_gemm import lower

ADD = node("Add", ["r", "y"], "out")
SUM = [*LINEAR, ADD]


def random(graph: onnx.ModelProto, **shapes: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    types = {each.name: each.type.tensor_type.elem_type for each in graph.graph.input}
    return {
        name: rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(types[name]))
        for name, shape in shapes.items()
    }


def half(nodes: graphs.Nodes = SUM, **arrays: Any) -> onnx.ModelProto:
    return graphs.model(nodes, np.float16, inputs=("x", "r"), **arrays)


def sizes(graph: onnx.ModelProto, port: int) -> Any:
    return graph.graph.input[port].type.tensor_type.shape.dim


def test_a_residual_of_the_same_shape_in_float16() -> None:
    graph = half()
    result = lowered(graph)
    assert [(p.overload, p.stopped) for p in result.products] == [("f16_residual", "")]
    assert graphs.operators(result.model)[0].input[-1] == "r"
    feed = random(graph, x=(2, 9, K), r=(2, 9, N))
    y = graphs.run(result.model, feed)["out"]
    q, scale, _ = graphs.weights()
    acc = sparse_gemm.sums(quant.quantize(feed["x"], graphs.INPUT_SCALE).reshape(18, K), q)
    wanted = sparse_gemm.epilogue(
        acc, "f16", graphs.INPUT_SCALE * scale, graphs.bias(), feed["r"].reshape(18, N)
    )
    np.testing.assert_array_equal(y.reshape(18, N), wanted)


def test_a_float32_graph_keeps_its_add() -> None:
    result = lowered(graphs.model(SUM, inputs=("x", "r")))
    assert overloads(result) == ["f16"]
    sentence = "its Add stays: it is of float32, and kernels add float16"
    assert result.products[0].stopped == sentence


@pytest.mark.parametrize(
    ("axis", "found"),
    [(0, "['other', 't', 64]"), (1, "['b', 'other', 64]"), (2, "['b', 't', 'other']")],
)
def test_a_residual_that_may_be_broadcast_stays_an_add(axis: int, found: str) -> None:
    graph = half()
    sizes(graph, 1)[axis].dim_param = "other"
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    assert "Add" in [each.op_type for each in result.model.graph.node]
    assert result.products[0].stopped == (
        f"its Add stays: r has shape {found}, not certainly ['b', 't', 64] as the product has"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_one_of_a_size_that_a_symbol_may_have_stays_an_add(size: int) -> None:
    graph = half()
    sizes(graph, 1)[0].dim_value = size
    assert overloads(lowered(graph)) == ["f16"]


def test_sizes_without_a_symbol_are_not_equal() -> None:
    graph = half()
    for port in (0, 1):
        sizes(graph, port)[0].Clear()
    sizes_out = graph.graph.output[0].type.tensor_type.shape.dim
    sizes_out[0].Clear()
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    assert "its Add stays: r has shape [None, 't', 64], not certainly" in result.products[0].stopped
    feed = random(graph, x=(4, 9, K), r=(1, 9, N))
    assert graphs.run(result.model, feed)["out"].shape == (4, 9, N)


def test_nothing_known_of_either_is_not_equal() -> None:
    """An operator of elsewhere makes both, so neither has a shape."""
    nodes = [node("Odd", ["x0"], "x", domain="elsewhere"), *LINEAR,
             node("Odd", ["r0"], "r", domain="elsewhere"), ADD]  # fmt: skip
    graph = half()
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    for port, name in enumerate(("x0", "r0")):
        graph.graph.input[port].name = name
    graph.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert overloads(lower(graph)) == ["f16"]


def test_a_size_of_1_counts_where_it_is_always_1() -> None:
    graph = half()
    for port in (0, 1):
        sizes(graph, port)[0].dim_value = 1
    assert overloads(lowered(graph)) == ["f16_residual"]


def test_a_size_of_1_does_not_count_where_a_small_symbol_makes_it() -> None:
    """A pool of 16 makes 1 of the numbers tried, and 4 of 64: there r is broadcast."""
    nodes = [
        node("Unsqueeze", ["x", "zero"], "image"),
        node("MaxPool", ["image"], "pooled", kernel_shape=[16, 1], strides=[16, 1], ceil_mode=1),
        node("Squeeze", ["pooled", "zero"], "x2"),
        *quantized("x2", "xdq"),
        *LINEAR[2:],
        ADD,
    ]
    graph = half(nodes, zero=np.zeros(1, np.int64))
    sizes(graph, 1)[1].dim_value = 1
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    feed = random(graph, x=(2, 64, K), r=(2, 1, N))
    assert graphs.run(result.model, feed)["out"].shape == (2, 4, N)


def test_a_residual_whose_sizes_are_computed() -> None:
    """The sum of r and of a token expanded to x's sizes, as torchscript writes it."""
    one = numpy_helper.from_array(np.ones(1, np.int64))
    nodes = [
        node("Shape", ["x"], "x.shape", end=1),
        node("Concat", ["x.shape", "minus", "minus"], "x.sizes", axis=0),
        node("ConstantOfShape", ["three"], "ones", value=one),
        node("Mul", ["ones", "minus"], "minuses"),
        node("Equal", ["x.sizes", "minuses"], "kept"),
        node("Where", ["kept", "ones", "x.sizes"], "target"),
        node("Expand", ["token", "target"], "tokens"),
        node("Add", ["r", "tokens"], "r2"),
        *LINEAR,
        node("Add", ["y", "r2"], "out"),
    ]
    token = np.ones((1, 1, N), np.float16)
    graph = half(nodes, minus=np.asarray([-1]), three=np.asarray([3]), token=token)
    result = lowered(graph)
    assert overloads(result) == ["f16_residual"]
    for tokens in ((1, 1), (1, 9), (2, 1), (3, 5)):
        feed = random(graph, x=(*tokens, K), r=(*tokens, N))
        before, after = (graphs.run(each, feed)["out"] for each in (graph, result.model))
        np.testing.assert_allclose(before.astype(float), after.astype(float), atol=0.02)


def two_products() -> graphs.Nodes:
    return [
        *LINEAR,
        *quantized("x", "x2", "sx2"),
        node("MatMul", ["x2", "fc.t"], "fc2"),
        node("Add", ["fc2", "fc.bias"], "y2"),
        node("Add", ["y", "y2"], "out"),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_two_products_of_one_weight_share_it_and_one_is_the_others_residual(dtype: Any) -> None:
    graph = graphs.model(two_products(), dtype, sx2=np.asarray(2 * graphs.INPUT_SCALE, dtype))
    result = lowered(graph)
    stopped = [product.stopped for product in result.products]
    if dtype == np.float16:
        assert overloads(result) == ["f16_residual", "f16"]
        assert stopped == ["", "its Add is in the kernel of fc"]
    else:
        assert overloads(result) == ["f16", "f16"]
        assert stopped == ["its Add stays: it is of float32, and kernels add float16"] * 2
    held = graphs.constants(result.model)
    assert sum(name.startswith("fc.gemm.values") for name in held) == 1
    assert (held["fc.gemm.scale_1"] == 2 * held["fc.gemm.scale"]).all()
    feed = random(graph, x=(2, 9, K))
    one, two = (graphs.run(each, feed)["out"].astype(float) for each in (graph, result.model))
    np.testing.assert_allclose(one, two, atol=0.01)


def test_a_sum_whose_floats_others_read_stays() -> None:
    graph = graphs.model(SUM, np.float16, ("out", "y"), ("x", "r"))
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    sentence = "its Add stays: 2 read the floats before it, the graph's caller included, expected 1"
    assert result.products[0].stopped == sentence
