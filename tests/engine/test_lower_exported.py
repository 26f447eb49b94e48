"""Networks as edgekd exports them, lowered: a ViT and a BERT of 64 features, trained two steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto
from tiny import configs
from tiny import sparse_graphs as graphs
from tiny.recipes import tiny

from edgekd import data, kinds, qdq, sparse24, sparse_gemm
from edgekd.artifact import Artifact, parent
from edgekd.distill.student import distill
from edgekd.engine.passes.lower_sparse_gemm import Lowered, lower
from edgekd.export.model import export

WIDE = {"hidden_size": 64, "intermediate_size": 128}
NETWORKS = {"vit": (configs.VIT, "images"), "bert": (configs.BERT, "tokens")}
FILES = ("ort.onnx", "trt.onnx")


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    config, kind = NETWORKS[request.param]
    base = tmp_path_factory.mktemp(request.param)
    student = distill(tiny(base, {**config, **WIDE}, kind), base / "out")
    return export(student, base / "out")


def feed(exported: Artifact, graph: onnx.ModelProto) -> dict[str, Any]:
    """The Samples, in the types the graph takes."""
    file = parent(exported, "samples", kinds.SAMPLES).file("samples.npz")
    with np.load(file, allow_pickle=False) as arrays:
        inputs = data.inputs_of(arrays)
    types = {each.name: each.type.tensor_type.elem_type for each in graph.graph.input}
    half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    return {n: a.astype(np.float16) if n in half else a for n, a in inputs.items()}


def made(exported: Artifact, name: str) -> tuple[onnx.ModelProto, Lowered]:
    graph = qdq.load(exported.file(name))
    result = lower(graph)
    onnx.checker.check_model(result.model, full_check=True)
    return graph, result


@pytest.mark.parametrize("name", FILES)
def test_every_planned_layer_is_lowered(exported: Artifact, name: str) -> None:
    _, result = made(exported, name)
    planned = [row["layer"] for row in exported.read_json("layers.json") if row["sparse"]]
    assert sorted(product.layer for product in result.products) == sorted(planned)
    assert len(planned) >= 12
    assert not set(planned) & {left.layer for left in result.left}
    counted = Counter(product.overload for product in result.products)
    assert counted["gelu_s8"] == 2
    assert bool(counted["f16_residual"]) == (name == "trt.onnx")
    rest = Counter(each.op_type for each in result.model.graph.node)
    assert rest["SparseGemmS8"] == len(planned)
    assert rest["Erf"] == 0


@pytest.mark.parametrize("name", FILES)
def test_each_node_gives_the_contracts_numbers(exported: Artifact, name: str) -> None:
    """In the whole graph, on the integers that reach it there."""
    _, result = made(exported, name)
    nodes = graphs.operators(result.model)
    held = graphs.constants(result.model)
    watched = {n.input[0]: TensorProto.INT8 for n in nodes}
    watched |= {n.output[0]: graphs.written(n) for n in nodes}
    got = graphs.run(result.model, feed(exported, result.model), list(watched.items()))
    checked = 0
    for node in nodes:
        if node.overload == "f16_residual":
            continue  # ONNX Runtime hands its own residual on in float32 here
        x = got[node.input[0]]
        weights = sparse24.decompress(held[node.input[1]], held[node.input[2]])
        acc = sparse_gemm.sums(x.reshape(-1, x.shape[-1]), weights)
        scale, bias, *extra = (held[each] for each in node.input[3:])
        wanted = sparse_gemm.epilogue(acc, node.overload, scale, bias, *extra)  # type: ignore[arg-type]
        y = got[node.output[0]].reshape(wanted.shape)
        step = y.astype(np.float64) - wanted.astype(np.float64)
        assert np.abs(step).max() <= (1 if node.overload == "gelu_s8" else 0), node.name
        assert (step != 0).mean() <= 1e-4
        checked += 1
    assert checked >= 10


def integers(graph: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, npt.NDArray[np.int8]]:
    """Every quantized activation."""
    names = [n.output[0] for n in graph.graph.node if n.op_type == "QuantizeLinear"]
    names += [n.output[0] for n in graphs.operators(graph) if n.overload.endswith("s8")]
    names = [name for name in names if "weight" not in name]
    got = graphs.run(graph, inputs, [(name, TensorProto.INT8) for name in names])
    return {name: got[name] for name in names}


def apart(one: dict[str, Any], two: dict[str, Any]) -> tuple[float, int]:
    """Share of integers that differ, and the largest step."""
    steps = [np.abs(one[n].astype(int) - two[n]).ravel() for n in sorted(set(one) & set(two))]
    every = np.concatenate(steps)
    return float((every != 0).mean()), int(every.max())


def gap(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Distance of the logits, by their size."""
    pair = [each["logits"].astype(np.float64) for each in (one, two)]
    return float(np.linalg.norm(pair[0] - pair[1]) / np.linalg.norm(pair[0]))


def test_lowering_moves_a_network_no_more_than_float16_does(exported: Artifact) -> None:
    """A step moved by rounding moves others further down, as between the two exported graphs."""
    found, answers = {}, {}
    for name in FILES:
        graph, result = made(exported, name)
        inputs = feed(exported, graph)
        found[name] = integers(graph, inputs), integers(result.model, inputs)
        answers[name] = graphs.run(graph, inputs), graphs.run(result.model, inputs)
    share, step = apart(*(found[name][0] for name in FILES))
    twins = gap(*(answers[name][0] for name in FILES))
    print(f"the exported graphs: {share:.2%} by up to {step}, logits {twins:.2%}")
    for name in FILES:
        one, two = found[name]
        assert set(one) == set(two)
        moved, largest = apart(one, two)
        logits = gap(*answers[name])
        print(f"{name} and lowered: {moved:.2%} by up to {largest}, logits {logits:.2%}")
        assert 0 < moved <= share
        assert logits <= 1.5 * twins
