"""Products that are not lowered, each with its reason in a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tiny import sparse_graphs as graphs
from tiny.sparse_graphs import LINEAR, K, N, node, quantized

from edgekd import quant
from edgekd.engine.passes.lower_sparse_gemm import lower
from edgekd.errors import ContractError, UnsupportedError

OUT = node("Identity", ["y"], "out")
GEMM = [each for each in LINEAR[:4] if each.op_type != "Transpose"]


def reasons(graph: onnx.ModelProto) -> list[str]:
    """Why nothing was lowered: then the graph stays as it is, but for what nobody reads."""
    result = lower(graph)
    assert result.products == ()
    assert [each.name for each in result.model.graph.node] == [n.name for n in graph.graph.node]
    assert not result.model.functions
    assert all(each.reason.startswith(f"{each.layer}: ") for each in result.left)
    return [each.reason for each in result.left]


@pytest.mark.parametrize(
    ("n", "k", "kept", "sentence"),
    [
        (N, 96, True, "k is 96, expected a multiple of 64: pad the layer"),
        (80, K, True, "n is 80, expected a multiple of 64: pad the layer"),
        (N, K, False, "2048 of 2048 groups of 4 are not 2:4, expected 0: mask it"),
    ],
)
def test_weights_that_no_kernel_takes(n: int, k: int, kept: bool, sentence: str) -> None:
    q, scale, _ = graphs.weights(n, k)
    q = q if kept else np.full_like(q, 3)
    graph = graphs.model(
        [*LINEAR, OUT],
        k=k,
        fc__weight=quant.dequantize(q, scale, axis=0),
        fc__scale=scale,
        fc__bias=graphs.bias(n),
        zw=np.zeros(n, np.int8),
    )
    assert reasons(graph) == [f"fc: {sentence}"]


def test_a_weight_in_float() -> None:
    graph = graphs.model([node("MatMul", ["x", "head.weight"], "out")],
                         head__weight=np.ones((K, N), np.float32))  # fmt: skip
    assert reasons(graph) == ["head: its weight is [128, 64] in float, expected INT8 2:4: plan it"]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_classifier_in_float_says_what_planning_would_not_change(transposed: bool) -> None:
    """Its sizes are read where it is multiplied, not where it is stored."""
    shape = (1000, K) if transposed else (K, 1000)
    nodes = [node("Transpose", ["head.weight"], "t", perm=[1, 0])] if transposed else []
    product = node("MatMul", ["x", "t" if transposed else "head.weight"], "out")
    graph = graphs.model([*nodes, product], head__weight=np.ones(shape, np.float32))
    assert reasons(graph) == ["head: n is 1000, expected a multiple of 64: pad the layer"]
    gemm = node("Gemm", ["x", "head.weight"], "out", transB=int(transposed))
    graph = graphs.model([gemm], tokens=("b",), head__weight=np.ones(shape, np.float32))
    assert reasons(graph) == ["head: n is 1000, expected a multiple of 64: pad the layer"]


def test_a_float_weight_of_an_odd_k_and_one_on_the_left() -> None:
    product = node("MatMul", ["x", "head.weight"], "out")
    graph = graphs.model([product], k=7, head__weight=np.ones((7, N), np.float32))
    assert reasons(graph) == ["head: k is 7, expected a multiple of 64: pad the layer"]
    product = node("MatMul", ["head.weight", "x"], "out")
    graph = graphs.model([product], tokens=("b",), head__weight=np.ones((N, 5), np.float32))
    assert reasons(graph) == ["head: k is 5, expected a multiple of 64: pad the layer"]


def test_a_float_weight_of_two_products_is_reported_once() -> None:
    nodes = [node("MatMul", ["x", "head.weight"], "out"), node("MatMul", ["x", "head.weight"], "o")]
    graph = graphs.model(nodes, outputs=("out", "o"), head__weight=np.ones((K, N), np.float32))
    assert reasons(graph) == ["head: its weight is [128, 64] in float, expected INT8 2:4: plan it"]


def test_a_convolution_in_float() -> None:
    graph = graphs.model(
        [node("Conv", ["x", "patch.weight"], "out")], k=7, tokens=("b", K),
        patch__weight=np.ones((K, K, 1), np.float32),
    )  # fmt: skip
    sentence = "it is a convolution, and the kernels multiply matrices: leave it to the engine"
    assert reasons(graph) == [f"patch: {sentence}"]


@pytest.mark.parametrize("wrong", [1e5, -1e5, np.inf, np.nan])
def test_a_float32_product_that_float16_might_not_hold(wrong: float) -> None:
    large = graphs.bias()
    large[3] = wrong
    (sentence,) = reasons(graphs.model([*LINEAR, OUT], fc__bias=large))
    assert sentence.startswith("fc: output 3 may reach ")
    assert sentence.endswith(
        ", expected at most 65504, which is float16's largest: leave it to the engine"
    )


def test_the_bound_is_that_of_the_weights_too() -> None:
    """128 x scale x sum |w|, to the last unit; int8 outputs have no such bound."""
    q = graphs.weights()[0]
    step = np.float32(2.0**-2)  # times 2**-7 a weight
    rows = np.abs(q.astype(int)).sum(axis=1)
    wide = np.full(N, np.float32(2.0**-7))
    reach = 128 * step * 2.0**-7 * rows
    assert 65504 // reach.max() > 1
    arrays = {
        "fc__weight": quant.dequantize(q, wide, axis=0), "fc__scale": wide, "sx": step,
        "fc__bias": (65504 - reach).astype(np.float32),
    }  # fmt: skip
    assert [p.overload for p in lower(graphs.model([*LINEAR, OUT], **arrays)).products] == ["f16"]
    arrays["fc__bias"][7] += 1
    (sentence,) = reasons(graphs.model([*LINEAR, OUT], **arrays))
    assert sentence.startswith("fc: output 7 may reach 65505, expected at most 65504")
    int8 = graphs.model([*LINEAR, *quantized("y", "out", "so")], **arrays)
    assert [p.overload for p in lower(int8).products] == ["s8"]


def test_a_float16_graph_is_not_judged_by_it() -> None:
    half = graphs.model([*LINEAR, OUT], np.float16, fc__bias=np.full(N, 65504, np.float16))
    assert [p.overload for p in lower(half).products] == ["f16"]


def test_an_input_in_float() -> None:
    graph = graphs.model([*graphs.weight(), node("MatMul", ["x", "fc.t"], "out")])
    sentence = (
        "fc: its input arrives float, expected by DequantizeLinear: place Q/DQ directly before"
    )
    assert reasons(graph) == [sentence]


def test_something_between_the_input_and_its_quantization() -> None:
    between = [*quantized("x", "x.dq"), node("Identity", ["x.dq"], "xdq"), *LINEAR[2:], OUT]
    sentence = (
        "fc: its input arrives by Identity, expected by DequantizeLinear: place Q/DQ directly"
    )
    assert reasons(graphs.model(between))[0].startswith(sentence)


def test_an_inputs_scale_that_an_operator_makes() -> None:
    reshape = node("Reshape", ["sx", "shape"], "sx2")
    nodes = [reshape, *quantized("x", "xdq", "sx2"), *LINEAR[2:], OUT]
    sentence = "fc: its input's scale is made by an operator, expected a constant: fold constants"
    assert reasons(graphs.model(nodes, shape=np.empty(0, np.int64)))[0].startswith(sentence)


def test_a_weight_on_the_left() -> None:
    nodes = [*quantized("x", "xdq"), *graphs.weight()[:2], node("MatMul", ["fc.w", "xdq"], "out")]
    graph = graphs.model(nodes, tokens=("b",), k=9, fc__weight=graphs.weights(N, 64)[2],
                         fc__scale=graphs.weights(N, 64)[1])  # fmt: skip
    sentence = "fc: its weight is the first operand, expected the second: export it as x W^T"
    assert reasons(graph) == [sentence]


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"alpha": 2.0}, r"{'alpha': 2.0, 'beta': 1.0, 'transA': 0}"),
        ({"beta": 0.5}, r"{'alpha': 1.0, 'beta': 0.5, 'transA': 0}"),
    ],
)
def test_a_gemm_that_scales(attributes: dict[str, Any], found: str) -> None:
    product = node("Gemm", ["xdq", "fc.w", "fc.bias"], "out", transB=1, **attributes)
    expected = "{'alpha': 1.0, 'beta': 1.0, 'transA': 0}"
    assert reasons(graphs.model([*GEMM, product], tokens=("b",))) == [
        f"fc: its Gemm has {found}, expected {expected}: fold them into the weight"
    ]


@pytest.mark.parametrize("shape", [(), (1,), (5, N), (5, 1)])
def test_a_gemm_that_adds_no_bias_of_its_rows(shape: tuple[int, ...]) -> None:
    product = node("Gemm", ["xdq", "fc.w", "one"], "out", transB=1)
    ones = np.ones(shape, np.float32)
    assert reasons(graphs.model([*GEMM, product], tokens=(5,), one=ones)) == [
        "fc: its Gemm adds a tensor that is no constant of 64 values: add it after the product"
    ]


def test_a_convolution() -> None:
    nodes = [
        *quantized("x", "xdq"),
        *graphs.weight()[:2],
        node("Conv", ["xdq", "fc.w"], "out"),
    ]
    graph = graphs.model(nodes, k=7, fc__weight=graphs.weights()[2][..., None])
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = K
    sentence = "fc: it is a convolution, and the kernels multiply matrices: leave it to the engine"
    assert reasons(graph) == [sentence]


def test_a_graph_that_breaks_the_contract_is_refused() -> None:
    graph = graphs.model([*LINEAR, OUT], fc__weight=graphs.weights()[2] + np.float32(0.001))
    with pytest.raises(ContractError, match="weights are not snapped"):
        lower(graph)


def test_an_old_opset() -> None:
    graph = graphs.model([*LINEAR, OUT])
    graph.opset_import[0].version = 12
    with pytest.raises(UnsupportedError, match="the graph has opset 12, expected at least 13"):
        lower(graph)
