"""GELU behind a product: every form that is known, and what only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tiny import sparse_graphs as graphs
from tiny.sparse_graphs import GELU, LINEAR, K, node, quantized

from edgekd.engine.passes.lower_sparse_gemm import Product, lower

Q8 = quantized("gelu", "out", "so")
HALF_FIRST = [
    node("Mul", ["y", "inverse"], "y.root"),
    node("Erf", ["y.root"], "erf"),
    node("Add", ["one", "erf"], "erf.one"),
    node("Mul", ["half", "y"], "y.half"),
    node("Mul", ["y.half", "erf.one"], "gelu"),
]
FORMS = {
    "as torchscript writes it": GELU,
    "as dynamo writes it": [
        *HALF_FIRST[:3],
        node("Mul", ["half", "erf.one"], "erf.half"),
        node("Mul", ["y", "erf.half"], "gelu"),
    ],
    "the half first": HALF_FIRST,
    "the half last": [
        *HALF_FIRST[:3],
        node("Mul", ["y", "erf.one"], "y.erf"),
        node("Mul", ["half", "y.erf"], "gelu"),
    ],
    "one operator": [node("Gelu", ["y"], "gelu")],
}
WRONG = [("root", 1.5), ("inverse", 2 / 3), ("one", 1.05), ("half", 0.52), ("half", -0.5)]
UNKNOWN = "stays: expected a known form of the exact GELU, which alone reads the product"


def lowered(graph: onnx.ModelProto) -> tuple[Product, onnx.ModelProto]:
    result = lower(graph)
    onnx.checker.check_model(result.model, full_check=True)
    (product,) = result.products
    return product, result.model


def operators(model: onnx.ModelProto) -> list[str]:
    return [each.op_type for each in model.graph.node]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_gelu(form: str) -> None:
    graph = graphs.model([*LINEAR, *FORMS[form], *Q8], opset=20)
    product, model = lowered(graph)
    assert (product.overload, product.stopped) == ("gelu_s8", "")
    assert operators(model)[1:] == ["SparseGemmS8", "DequantizeLinear"]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 9, K)).astype(np.float32)}
    watched = [("out.q", TensorProto.INT8)]
    one, two = (graphs.run(each, feed, watched)["out.q"].astype(int) for each in (graph, model))
    assert np.abs(one - two).max() <= 1
    assert (one != two).mean() <= 0.001


@pytest.mark.parametrize("form", FORMS)
def test_a_product_that_the_caller_reads_too_keeps_its_gelu(form: str) -> None:
    graph = graphs.model([*LINEAR, *FORMS[form], *Q8], outputs=("out", "y"), opset=20)
    product, model = lowered(graph)
    op_type = "Gelu" if form == "one operator" else "Erf"
    assert (product.overload, product.stopped) == ("f16", f"its {op_type} {UNKNOWN}")
    assert op_type in operators(model)


@pytest.mark.parametrize(
    ("form", "inner"),
    [(form, each.output[0]) for form, nodes in FORMS.items() for each in nodes[:-1]],
)
def test_so_does_one_whose_inner_values_the_caller_reads(form: str, inner: str) -> None:
    product, _ = lowered(graphs.model([*LINEAR, *FORMS[form], *Q8], outputs=("out", inner)))
    assert (product.overload, product.stopped) == ("f16", f"its Erf {UNKNOWN}")


@pytest.mark.parametrize(
    ("form", "constant", "wrong"),
    [
        (form, constant, wrong)
        for form, nodes in FORMS.items()
        for constant, wrong in WRONG
        if any(constant in each.input for each in nodes)
    ],
)
def test_a_constant_that_is_a_little_off_is_another_function(
    form: str, constant: str, wrong: float
) -> None:
    nodes, number = FORMS[form], np.asarray(wrong, np.float32)
    product, model = lowered(graphs.model([*LINEAR, *nodes, *Q8], **{constant: number}))
    assert (product.overload, product.stopped) == ("f16", f"its Erf {UNKNOWN}")
    assert "Erf" in operators(model)


def test_a_constant_of_many_axes_is_not_taken() -> None:
    """It would give the result as many."""
    half = np.full((1, 1, 1), 0.5, np.float32)
    assert lowered(graphs.model([*LINEAR, *GELU, *Q8], half=half))[0].overload == "f16"
    one = np.full(1, 0.5, np.float32)
    assert lowered(graphs.model([*LINEAR, *GELU, *Q8], half=one))[0].overload == "gelu_s8"


@pytest.mark.parametrize("form", list(FORMS)[:-1])
def test_constants_as_float16_holds_them_are_right(form: str) -> None:
    graph = graphs.model([*LINEAR, *FORMS[form], *Q8], np.float16)
    assert lowered(graph)[0].overload == "gelu_s8"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (GELU[0], node("Div", ["root", "y"], "y.root")),
        (GELU[1], node("Tanh", ["y.root"], "erf")),
        (GELU[3], node("Mul", ["y", "y.root"], "y.erf")),
        (GELU[4], node("Mul", ["y.erf", "root"], "gelu")),
        (GELU[4], node("Add", ["y.erf", "half"], "gelu")),
    ],
)
def test_what_is_not_gelu_stays_as_it_is(old: onnx.NodeProto, new: onnx.NodeProto) -> None:
    nodes = [new if each is old else each for each in GELU]
    product, model = lowered(graphs.model([*LINEAR, *nodes, *Q8]))
    assert product.overload == "f16"
    assert new.op_type in operators(model)


def test_gelus_approximation_is_another_function() -> None:
    gelu = node("Gelu", ["y"], "gelu", approximate="tanh")
    product, _ = lowered(graphs.model([*LINEAR, gelu, *Q8], opset=20))
    assert (product.overload, product.stopped) == ("f16", f"its Gelu {UNKNOWN}")


@pytest.mark.parametrize("form", FORMS)
def test_a_gelu_that_stays_float_is_no_kernels(form: str) -> None:
    nodes: list[Any] = [*LINEAR, *FORMS[form], node("Identity", ["gelu"], "out")]
    product, _ = lowered(graphs.model(nodes, opset=20))
    sentence = "its GELU stays: no QuantizeLinear follows it, and none writes floats"
    assert (product.overload, product.stopped) == ("f16", sentence)


def test_a_gelu_whose_floats_the_caller_reads_stays() -> None:
    product, _ = lowered(graphs.model([*LINEAR, *GELU, *Q8], outputs=("out", "gelu")))
    sentence = (
        "its QuantizeLinear stays: 2 read the floats before it, the graph's caller included,"
        " expected 1"
    )
    assert (product.overload, product.stopped) == ("f16", sentence)
