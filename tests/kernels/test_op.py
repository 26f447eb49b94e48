"""Closing the chain: a lowered graph in ONNX Runtime equals the kernels' own sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tiny import sparse_graphs as graphs
from tiny.sparse_graphs import GELU, LINEAR, K, N, node, quantized

from edgekd import sparse24
from edgekd.engine.native import Kernels, aligned
from edgekd.engine.passes import sparse_gemm_op
from edgekd.engine.passes.lower_sparse_gemm import lower
from kernels import gemms

TOKENS = (3, 19)
M = TOKENS[0] * TOKENS[1]
GRAPHS = {
    "f16": [*LINEAR, node("Identity", ["y"], "out")],
    "f16_residual": [*LINEAR, node("Add", ["r", "y"], "out")],
    "s8": [*LINEAR, *quantized("y", "out", "so")],
    "gelu_s8": [*LINEAR, *GELU, *quantized("gelu", "out", "so")],
}


def lowered(overload: str, ports: tuple[str, ...]) -> onnx.ModelProto:
    model = lower(graphs.model(GRAPHS[overload], np.float16, inputs=ports)).model
    assert [each.overload for each in graphs.operators(model)] == [overload]
    return model


def on_kernel(
    kernels: Kernels, op: onnx.NodeProto, tensors: dict[str, Any], expected: np.ndarray
) -> np.ndarray:
    """The node, its weights packed, run by the emulator."""
    x, values, metadata, *floats = (gemms.at_16(tensors[name]) for name in op.input)
    packed = kernels.pack(sparse24.decompress(values, metadata), sparse=True)
    y = aligned(expected.shape, expected.dtype)
    names = ("scale", "bias", "extra")
    addresses = {n: a.ctypes.data for n, a in zip(names, floats, strict=False)}
    output = op.attribute[0].s.decode()
    kernels.gemm(
        output,  # type: ignore[arg-type]
        (M, N, K),
        x.ctypes.data,
        packed.ctypes.data,
        y.ctypes.data,
        **addresses,
    )
    return y


@pytest.mark.parametrize("overload", GRAPHS)
def test_the_lowered_graph_is_the_kernel(kernels: Kernels, overload: str) -> None:
    ports = ("x", "r") if overload == "f16_residual" else ("x",)
    model = lowered(overload, ports)
    (op,) = graphs.operators(model)
    rng = np.random.default_rng(3)
    feed = {
        name: rng.standard_normal((*TOKENS, K if name == "x" else N)).astype(np.float16)
        for name in ports
    }
    watched = [(op.input[0], TensorProto.INT8), (op.output[0], graphs.written(op))]
    got = graphs.run(model, feed, [each for each in watched if each[0] != "out"])
    expected = got[op.output[0]]
    y = on_kernel(kernels, op, {**graphs.constants(model), **got, **feed}, expected)
    step = np.abs(y.astype(float) - expected.astype(float))
    if overload == "gelu_s8":  # two erfs
        assert step.max() <= 1
        assert step.mean() <= 1e-3
    else:
        assert step.max() == 0
    assert len(np.unique(expected)) > 100


def test_the_sums_are_the_kernels(kernels: Kernels) -> None:
    model = lowered("s8", ("x",))
    (op,) = graphs.operators(model)
    sums = sparse_gemm_op.node("s32", list(op.input[:3]), "sums", "sums")
    model.graph.node.append(sums)
    del model.functions[:]
    sparse_gemm_op.add_functions(model)
    x = np.random.default_rng(4).standard_normal((*TOKENS, K)).astype(np.float16)
    watched = [(op.input[0], TensorProto.INT8), ("sums", TensorProto.INT32)]
    got = graphs.run(model, {"x": 40 * x}, watched)
    assert (np.abs(got[op.input[0]].astype(int)) == 127).any()
    y = on_kernel(kernels, sums, {**graphs.constants(model), **got}, got["sums"])
    np.testing.assert_array_equal(y, got["sums"])
