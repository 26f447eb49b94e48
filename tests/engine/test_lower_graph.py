"""What surrounds a product: subgraphs that read beside it, taken names, the shape of a bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import sparse_graphs as graphs
from tiny.sparse_graphs import GELU, LINEAR, K, N, lowered, node, overloads, quantized

from edgekd.engine.passes.lower_sparse_gemm import Lowered

OUT = node("Identity", ["y"], "out")
Q8 = quantized("y", "out", "so")
GELU8 = [*GELU, *quantized("gelu", "out", "so")]


def same(graph: onnx.ModelProto, result: Lowered) -> None:
    """Both answer the same, but for a step of the output's INT8 or float16."""
    feed = {"x": np.random.default_rng(0).standard_normal((2, 9, K)).astype(np.float32)}
    before, after = graphs.run(graph, feed), graphs.run(result.model, feed)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, atol=1.001 * graphs.OUTPUT_SCALE)


def with_if(nodes: graphs.Nodes, read: str, inside: str = "then", **arrays: Any) -> onnx.ModelProto:
    """A graph whose second output is made by an If that reads a tensor in its branches."""

    def branch(op: str, output: str) -> onnx.GraphProto:
        port = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph([node(op, [read], output)], output, [], [port])

    graph = graphs.model(nodes, **arrays)
    branches = {"then_branch": branch("Relu", inside), "else_branch": branch("Neg", "else")}
    graph.graph.node.append(node("If", ["condition"], "other", **branches))
    graph.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "condition"))
    port = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["b", "t", None])
    graph.graph.output.append(port)
    onnx.checker.check_model(graph, full_check=True)
    return graph


@pytest.mark.parametrize("read", ["y", "y.root", "erf", "erf.one", "y.erf", "gelu"])
def test_a_value_that_an_if_reads_is_kept(read: str) -> None:
    graph = with_if([*LINEAR, *GELU8], read)
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    assert result.products[0].stopped
    same(graph, result)


def test_an_if_that_reads_the_product_before_its_bias() -> None:
    graph = with_if([*LINEAR, *Q8], "fc")
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    sentence = "its Add stays: 2 read the floats before it, the graph's caller included, expected 1"
    assert result.products[0].stopped == sentence
    same(graph, result)


@pytest.mark.parametrize("read", ["far", "far.scale"])
def test_what_an_if_alone_reads_is_not_removed(read: str) -> None:
    """A node, and a constant that it alone reads too."""
    nodes = [node("Mul", ["x", "far.scale"], "far"), *LINEAR, *Q8]
    graph = with_if(nodes, read, far__scale=np.full((1, 1, 1), 0.5, np.float32))
    result = lowered(graph)
    assert overloads(result) == ["s8"]
    assert ("far" in [each.output[0] for each in result.model.graph.node]) == (read == "far")
    same(graph, result)


def test_names_that_anything_has_are_not_given_again() -> None:
    taken = ["fc.gemm.values", "fc.gemm.bias", "y/float16"]
    more = [node("Relu", ["x"], taken[0]), node("Identity", [taken[0]], "more")]
    graph = with_if([*LINEAR, OUT, *more], "x", inside=taken[1])
    for name in ("more", taken[2]):
        port = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", K])
        graph.graph.output.append(port)
    graph.graph.node.append(node("Dropout", ["x"], taken[2]))
    graph.graph.node[-1].output.append("fc.gemm.scale")  # that nobody reads
    result = lowered(graph)
    (operator,) = graphs.operators(result.model)
    assert list(operator.input[1:]) == [
        "fc.gemm.values_1", "fc.gemm.metadata", "fc.gemm.scale_1", "fc.gemm.bias_1"
    ]  # fmt: skip
    assert operator.output[0] == "y/float16_1"
    same(graph, result)


def test_names_of_initializers_and_inputs_are_not_given_again() -> None:
    graph = graphs.model([*LINEAR, *Q8])
    held = numpy_helper.from_array(np.zeros(3, np.float32), "fc.gemm.scale")
    graph.graph.initializer.append(held)
    graph.graph.input.append(helper.make_tensor_value_info("fc.gemm.bias", TensorProto.FLOAT, [2]))
    (operator,) = graphs.operators(lowered(graph).model)
    assert list(operator.input[3:5]) == ["fc.gemm.scale_1", "fc.gemm.bias_1"]


@pytest.mark.parametrize("nodes", [[*LINEAR, OUT], [*LINEAR, *Q8]], ids=["f16", "s8"])
def test_lowering_twice_changes_nothing(nodes: graphs.Nodes) -> None:
    once = lowered(graphs.model(nodes))
    twice = lowered(once.model)
    assert (twice.products, twice.left) == ((), ())
    assert twice.model == once.model


def test_a_graph_that_grew_since_is_lowered_on() -> None:
    """Of its own overload it has the function already; its products keep their tensors."""
    graph = lowered(graphs.model([*LINEAR, OUT])).model
    _, scale, snapped = graphs.weights(seed=1)
    more = graphs.model(
        [*quantized("x", "xdq2"), *graphs.weight("fc2"), node("MatMul", ["xdq2", "fc2.t"], "out2")],
        outputs=("out2",), fc2__weight=snapped, fc2__scale=scale,
    )  # fmt: skip
    graph.graph.node.extend(more.graph.node)
    graph.graph.initializer.extend(
        each for each in more.graph.initializer if each.name not in graphs.constants(graph)
    )
    graph.graph.output.append(more.graph.output[0])
    result = lowered(graph)
    assert [product.layer for product in result.products] == ["fc2"]
    assert [each.overload for each in result.model.functions] == ["f16"]
    assert [each.domain for each in result.model.opset_import] == ["", "edgekd"]
    same(graph, result)


@pytest.mark.parametrize("shape", [(N,), (1, N), (1, 1, N)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_bias_of_any_rank_up_to_the_products(dtype: Any, shape: tuple[int, ...]) -> None:
    held = graphs.bias().astype(dtype).reshape(shape)
    result = lowered(graphs.model([*LINEAR, *Q8], dtype, fc__bias=held))
    assert overloads(result) == ["s8"]
    np.testing.assert_array_equal(graphs.constants(result.model)["fc.gemm.bias"], graphs.bias())


@pytest.mark.parametrize("shape", [(1,), (1, 9, 1), (2, 1, N)])
def test_what_is_no_bias_stays_an_add(shape: tuple[int, ...]) -> None:
    held = np.full(shape, 0.5, np.float32)
    graph = graphs.model([*LINEAR, *Q8], fc__bias=held, tokens=("b", 9))
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    assert "Add" in [each.op_type for each in result.model.graph.node]
    same(graph, result)


def test_nor_is_one_that_adds_an_axis() -> None:
    held = graphs.bias().reshape(1, 1, 1, N)
    squeeze = node("Squeeze", ["y", "axis"], "out")
    graph = graphs.model([*LINEAR, squeeze], fc__bias=held, axis=np.zeros(1, np.int64))
    result = lowered(graph)
    assert "Add" in [each.op_type for each in result.model.graph.node]
    same(graph, result)


@pytest.mark.parametrize("shape", [(N,), (1, N)])
def test_a_gemm_and_its_bias(shape: tuple[int, ...]) -> None:
    product = node("Gemm", ["xdq", "fc.w", "fc.bias"], "y", transB=1)
    nodes = [*(each for each in LINEAR[:4] if each.op_type != "Transpose"), product, *Q8]
    result = lowered(graphs.model(nodes, tokens=("b",), fc__bias=graphs.bias().reshape(shape)))
    assert overloads(result) == ["s8"]
    np.testing.assert_array_equal(graphs.constants(result.model)["fc.gemm.bias"], graphs.bias())


@pytest.mark.parametrize("one_weight", [True, False])
def test_products_of_one_name_are_lowered_each(one_weight: bool) -> None:
    name = "fc" if one_weight else "fc2"
    _, scale, snapped = graphs.weights(seed=1)
    nodes = [
        *LINEAR,
        *quantized("x", "xdq2"),
        *([] if one_weight else graphs.weight("fc2")),
        node("MatMul", ["xdq2", f"{name}.t"], "out2"),
        OUT,
    ]
    graph = graphs.model(nodes, outputs=("out", "out2"), fc2__weight=snapped, fc2__scale=scale)
    named = onnx.ModelProto()
    named.CopyFrom(graph)
    for each in named.graph.node:
        each.name = "/same" if each.op_type == "MatMul" else each.name
    result = lowered(named)
    found = [(product.layer, product.node) for product in result.products]
    assert (found, result.left) == ([("fc", "/same"), (name, "/same")], ())
    assert "MatMul" not in [each.op_type for each in result.model.graph.node]
    same(graph, result)  # ONNX Runtime wants names of their own, and the lowered ones have them


def test_nodes_without_names() -> None:
    graph = graphs.model([*LINEAR, *Q8])
    for each in graph.graph.node:
        each.name = ""
    assert [(p.layer, p.node) for p in lowered(graph).products] == [("fc", "fc")]
