"""Which products are lowered, what becomes of what follows them, and the reasons where none is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny import sparse_graphs as graphs
from tiny.sparse_graphs import GELU, LINEAR, K, N, lowered, node, overloads, quantized

from edgekd import sparse24

FLOATS = [np.float32, np.float16]
OUT = node("Identity", ["y"], "out")
Q8 = quantized("y", "out", "so")


def x(graph: onnx.ModelProto, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        port.name: rng.standard_normal((2, 9, port.type.tensor_type.shape.dim[2].dim_value)).astype(
            helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
        )
        for port in graph.graph.input
    }


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


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_values_that_others_read_stay_float(dtype: Any) -> None:
    graph = graphs.model([*LINEAR, *Q8, node("Relu", ["y"], "other")], dtype, ("out", "other"))
    result = lowered(graph)
    assert [(p.overload, p.stopped) for p in result.products] == [
        (
            "f16",
            "its QuantizeLinear stays: 2 read the floats before it, the graph's caller included,"
            " expected 1",
        )
    ]
    as_output = graphs.model([*LINEAR, *Q8], dtype, ("out", "y"))
    assert overloads(lowered(as_output)) == ["f16"]
    feed = x(graph)
    before, after = graphs.run(graph, feed), graphs.run(result.model, feed)
    for name, values in before.items():
        np.testing.assert_allclose(values.astype(float), after[name].astype(float), atol=0.04)


def test_a_scale_that_an_operator_makes_ends_the_product_in_float16() -> None:
    nodes = [*LINEAR, node("Reshape", ["so", "shape"], "so2"), *quantized("y", "out", "so2")]
    result = lowered(graphs.model(nodes, shape=np.empty(0, np.int64)))
    sentence = "its QuantizeLinear stays: an operator makes its scale: fold constants"
    assert [(p.overload, p.stopped) for p in result.products] == [("f16", sentence)]


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
