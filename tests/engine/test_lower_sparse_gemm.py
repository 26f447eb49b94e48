"""Which products are lowered, what becomes of what follows them, and the reasons where none is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny import sparse_graphs as graphs
from tiny.sparse_graphs import GELU, LINEAR, K, N, node, quantized

from edgekd import quant, sparse24, sparse_gemm
from edgekd.engine.passes.lower_sparse_gemm import Lowered, lower

FLOATS = [np.float32, np.float16]
OUT = node("Identity", ["y"], "out")
Q8 = quantized("y", "out", "so")


def lowered(graph: onnx.ModelProto) -> Lowered:
    """Lowered and checked; the graph given is as it was."""
    before = graph.SerializeToString(deterministic=True)
    result = lower(graph)
    assert graph.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result.model, full_check=True)
    return result


def x(graph: onnx.ModelProto, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        port.name: rng.standard_normal((2, 9, port.type.tensor_type.shape.dim[2].dim_value)).astype(
            helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
        )
        for port in graph.graph.input
    }


def overloads(result: Lowered) -> list[str]:
    return [product.overload for product in result.products]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("nodes", "overload", "left"),
    [
        ([*LINEAR, OUT], "f16", {"Identity": 1}),
        ([*LINEAR, *Q8], "s8", {"DequantizeLinear": 1}),
        ([*LINEAR, *GELU, *quantized("gelu", "out", "so")], "gelu_s8", {"DequantizeLinear": 1}),
        ([*LINEAR[:-1], *quantized("fc", "out", "so")], "s8", {"DequantizeLinear": 1}),
    ],
)
def test_a_product_becomes_one_node(
    dtype: Any, nodes: graphs.Nodes, overload: str, left: dict[str, int]
) -> None:
    graph = graphs.model(nodes, dtype)
    result = lowered(graph)
    assert [(p.layer, p.node, p.overload, p.n, p.k) for p in result.products] == [
        ("fc", "/fc", overload, N, K)
    ]
    assert result.left == ()
    found = [each.op_type for each in result.model.graph.node]
    cast = ["Cast"] if overload == "f16" and dtype == np.float32 else []
    assert found == ["QuantizeLinear", "SparseGemmS8", *cast, *left]
    held = {name: array.dtype.name for name, array in graphs.constants(result.model).items()}
    extra = {} if overload == "f16" else {"fc.gemm.output_scale": "float32"}
    kept = {"sx", "z", "so"} if extra else {"sx", "z"}
    assert {name: kind for name, kind in held.items() if name not in kept} == {
        "fc.gemm.values": "int8", "fc.gemm.metadata": "int32", "fc.gemm.scale": "float32",
        "fc.gemm.bias": "float32", **extra,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
def test_it_holds_the_integers_and_scales_of_the_contract(dtype: Any) -> None:
    result = lowered(graphs.model([*LINEAR, *Q8], dtype))
    held = graphs.constants(result.model)
    q, scale, _ = graphs.weights()
    restored = sparse24.decompress(held["fc.gemm.values"], held["fc.gemm.metadata"])
    np.testing.assert_array_equal(restored, q)
    np.testing.assert_array_equal(held["fc.gemm.scale"], graphs.INPUT_SCALE * scale)
    np.testing.assert_array_equal(held["fc.gemm.bias"], graphs.bias())
    assert held["fc.gemm.output_scale"] == graphs.OUTPUT_SCALE
    assert held["fc.gemm.output_scale"].shape == ()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gelu", [False, True], ids=["s8", "gelu_s8"])
def test_against_the_original_integers_differ_by_one_step_where_rounding_does(
    dtype: Any, gelu: bool
) -> None:
    nodes = [*GELU, *quantized("gelu", "out", "so")] if gelu else Q8
    graph = graphs.model([*LINEAR, *nodes], dtype)
    feed = x(graph)
    watched = [("out.q", TensorProto.INT8)]
    original = graphs.run(graph, feed, watched)["out.q"].astype(int)
    step = np.abs(graphs.run(lowered(graph).model, feed, watched)["out.q"] - original)
    assert np.abs(original).max() > 30
    assert step.max() <= 1
    # float16 rounds the product, the bias and GELU on their way; float32 hardly at all.
    assert step.mean() <= (0.03 if dtype == np.float16 else 0.001)


def gelu_forms() -> dict[str, graphs.Nodes]:
    half_first = [
        node("Mul", ["y", "inverse"], "y.root"),
        node("Erf", ["y.root"], "erf"),
        node("Add", ["one", "erf"], "erf.one"),
        node("Mul", ["half", "y"], "y.half"),
        node("Mul", ["y.half", "erf.one"], "gelu"),
    ]
    return {
        "as torchscript writes it": GELU,
        "the half first": half_first,
        "the half last": [*half_first[:3], node("Mul", ["y", "erf.one"], "y.erf"),
                          node("Mul", ["half", "y.erf"], "gelu")],
        "one operator": [node("Gelu", ["y"], "gelu")],
    }  # fmt: skip


@pytest.mark.parametrize("form", gelu_forms())
def test_every_form_of_gelu(form: str) -> None:
    nodes = [*LINEAR, *gelu_forms()[form], *quantized("gelu", "out", "so")]
    result = lowered(graphs.model(nodes, opset=20))
    assert overloads(result) == ["gelu_s8"]
    assert [each.op_type for each in result.model.graph.node][1:] == [
        "SparseGemmS8", "DequantizeLinear"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (GELU[0], node("Div", ["y", "half"], "y.root")),
        (GELU[1], node("Tanh", ["y.root"], "erf")),
        (GELU[2], node("Add", ["erf", "half"], "erf.one")),
        (GELU[4], node("Mul", ["y.erf", "root"], "gelu")),
        (GELU[4], node("Add", ["y.erf", "half"], "gelu")),
    ],
)
def test_what_is_not_gelu_stays_as_it_is(old: onnx.NodeProto, new: onnx.NodeProto) -> None:
    nodes = [new if each is old else each for each in GELU]
    graph = graphs.model([*LINEAR, *nodes, *quantized("gelu", "out", "so")])
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    assert new.op_type in [each.op_type for each in result.model.graph.node]


def test_gelus_approximation_is_another_function() -> None:
    gelu = node("Gelu", ["y"], "gelu", approximate="tanh")
    nodes = [*LINEAR, gelu, *quantized("gelu", "out", "so")]
    assert overloads(lowered(graphs.model(nodes, opset=20))) == ["f16"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_values_that_others_read_stay_float(dtype: Any) -> None:
    graph = graphs.model([*LINEAR, *Q8, node("Relu", ["y"], "other")], dtype, ("out", "other"))
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    as_output = graphs.model([*LINEAR, *Q8], dtype, ("out", "y"))
    assert overloads(lowered(as_output)) == ["f16"]
    feed = x(graph)
    before, after = graphs.run(graph, feed), graphs.run(result.model, feed)
    for name, values in before.items():
        np.testing.assert_allclose(values.astype(float), after[name].astype(float), atol=0.04)


def test_a_residual_of_the_same_shape_in_float16_alone() -> None:
    nodes = [*LINEAR, node("Add", ["r", "y"], "out")]
    half = graphs.model(nodes, np.float16, inputs=("x", "r"))
    result = lowered(half)
    assert overloads(result) == ["f16_residual"]
    assert graphs.operators(result.model)[0].input[-1] == "r"
    feed = x(half)
    y = graphs.run(result.model, feed)["out"]
    q, scale, _ = graphs.weights()
    acc = sparse_gemm.sums(quant.quantize(feed["x"], graphs.INPUT_SCALE).reshape(18, K), q)
    wanted = sparse_gemm.epilogue(
        acc, "f16", graphs.INPUT_SCALE * scale, graphs.bias(), feed["r"].reshape(18, N)
    )
    np.testing.assert_array_equal(y.reshape(18, N), wanted)
    assert overloads(lowered(graphs.model(nodes, inputs=("x", "r")))) == ["f16"]


def test_a_residual_that_may_be_broadcast_stays_an_add() -> None:
    graph = graphs.model([*LINEAR, node("Add", ["r", "y"], "out")], np.float16, inputs=("x", "r"))
    graph.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "other"
    result = lowered(graph)
    assert overloads(result) == ["f16"]
    assert "Add" in [each.op_type for each in result.model.graph.node]


def two_products() -> graphs.Nodes:
    return [
        *LINEAR,
        *quantized("x", "x2", "sx2"),
        node("MatMul", ["x2", "fc.t"], "fc2"),
        node("Add", ["fc2", "fc.bias"], "y2"),
        node("Add", ["y", "y2"], "out"),
    ]


@pytest.mark.parametrize("dtype", FLOATS)
def test_two_products_of_one_weight_share_it_and_one_is_the_others_residual(dtype: Any) -> None:
    graph = graphs.model(two_products(), dtype, sx2=np.asarray(2 * graphs.INPUT_SCALE, dtype))
    result = lowered(graph)
    assert overloads(result) == (["f16_residual", "f16"] if dtype == np.float16 else ["f16"] * 2)
    held = graphs.constants(result.model)
    assert sum(name.startswith("fc.gemm.values") for name in held) == 1
    assert (held["fc.gemm.scale_1"] == 2 * held["fc.gemm.scale"]).all()
    feed = x(graph)
    one, two = (graphs.run(each, feed)["out"].astype(float) for each in (graph, result.model))
    np.testing.assert_allclose(one, two, atol=0.01)


def test_int8_goes_from_one_product_into_the_next() -> None:
    q, scale, snapped = graphs.weights(K, N, seed=1)
    last = [
        *graphs.weight("fc2"),
        node("MatMul", ["h", "fc2.t"], "fc2"),
        node("Add", ["fc2", "fc2.bias"], "out"),
    ]
    last[0].input[2] = last[1].input[2] = "zw2"
    nodes = [*LINEAR, *GELU, *quantized("gelu", "h", "so"), *last]
    graph = graphs.model(
        nodes, fc2__weight=snapped, fc2__scale=scale, fc2__bias=graphs.bias(K),
        zw2=np.zeros(K, np.int8),
    )  # fmt: skip
    result = lowered(graph)
    assert overloads(result) == ["gelu_s8", "f16"]
    found = [each.op_type for each in result.model.graph.node]
    assert found == ["QuantizeLinear", "SparseGemmS8", "SparseGemmS8", "Cast"]
    np.testing.assert_array_equal(
        sparse24.decompress(
            *(graphs.constants(result.model)[f"fc2.gemm.{name}"] for name in ("values", "metadata"))
        ),
        q,
    )


def test_a_split_layer_is_lowered_part_by_part() -> None:
    nodes = []
    arrays: dict[str, Any] = {"zw": np.zeros(N, np.int8)}
    for part in range(3):
        name = f"qkv@{part * N}:{(part + 1) * N}"
        _, scale, snapped = graphs.weights(seed=part)
        arrays |= {f"{name}.weight": snapped, f"{name}.scale": scale}
        product = node("MatMul", ["xdq", f"{name}.t"], f"out{part}")
        nodes += [*graphs.weight(name), product]
    outputs = ("out0", "out1", "out2")
    graph = graphs.model([*quantized("x", "xdq"), *nodes], outputs=outputs, **arrays)
    result = lowered(graph)
    layers = [(product.layer, product.node) for product in result.products]
    assert layers == [("qkv@0:64", "/out0"), ("qkv@64:128", "/out1"), ("qkv@128:192", "/out2")]
    held = graphs.constants(result.model)
    for part, (layer, _) in enumerate(layers):
        restored = sparse24.decompress(held[f"{layer}.gemm.values"], held[f"{layer}.gemm.metadata"])
        np.testing.assert_array_equal(restored, graphs.weights(seed=part)[0])


def test_a_gemm_and_its_bias() -> None:
    nodes = [*LINEAR[:4], node("Gemm", ["xdq", "fc.w", "fc.bias"], "y", transB=1), *Q8]
    graph = graphs.model([e for e in nodes if e.op_type != "Transpose"], tokens=("b",))
    assert overloads(lowered(graph)) == ["s8"]
