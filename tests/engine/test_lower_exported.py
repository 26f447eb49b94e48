"""Networks as both exporters write them, lowered: of 64 features, trained two steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto
from tiny import configs
from tiny import data as examples
from tiny import sparse_graphs as graphs
from tiny.recipes import tiny

from edgekd import data, kinds, qdq, sparse24, sparse_gemm
from edgekd.artifact import Artifact, parent
from edgekd.data import Data
from edgekd.distill.student import distill
from edgekd.engine.passes.lower_sparse_gemm import Lowered, lower
from edgekd.export.model import export
from edgekd.recipe import Export, Range

WIDE = {"hidden_size": 64, "intermediate_size": 128}
LONG = {**configs.BERT, "max_position_embeddings": 64}
NETWORKS: dict[str, tuple[dict[str, Any], str, dict[str, Range]]] = {
    "vit": (configs.VIT, "images", {}),
    "bert": (configs.BERT, "tokens", {}),
    "bert of any length": (LONG, "any_length", {"sequence": Range(min=4, opt=16, max=40)}),
}
EXPORTERS = ("torchscript", "dynamo")
FILES = ("ort.onnx", "trt.onnx")
BLOCKS = 2


def any_length() -> Data:
    """`tiny.data.tokens` whose sequence may have any length."""
    found = examples.tokens()
    inputs = [each.model_copy(update={"shape": ["batch", "sequence"]}) for each in found.io.inputs]
    return Data(found.train, found.evaluation, found.io.model_copy(update={"inputs": inputs}))


@pytest.fixture(scope="module", params=NETWORKS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, dict[str, Range]]:
    """A student, and the sizes that change beside the batch."""
    config, kind, sizes = NETWORKS[request.param]
    base = tmp_path_factory.mktemp("network")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "any_length", any_length, raising=False)
        return distill(tiny(base, {**config, **WIDE}, kind), base / "out"), sizes


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(
    request: pytest.FixtureRequest, trained: tuple[Artifact, dict[str, Range]]
) -> Artifact:
    student, sizes = trained
    return export(student, student.path.parent, Export(exporter=request.param, dynamic=sizes))


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


def added(layers: list[str]) -> list[str]:
    """The two of each block whose results are added to what the block was given."""
    ends = ("attention.o_proj", "mlp.fc2", "output.dense")
    found = [layer for layer in layers if layer.endswith(ends)]
    assert len(found) == 2 * BLOCKS
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_planned_layer_is_lowered(exported: Artifact, name: str) -> None:
    _, result = made(exported, name)
    planned = [row["layer"] for row in exported.read_json("layers.json") if row["sparse"]]
    assert sorted(product.layer for product in result.products) == sorted(planned)
    assert len(planned) >= 12
    assert not set(planned) & {left.layer for left in result.left}
    counted = Counter(product.overload for product in result.products)
    assert counted["gelu_s8"] == BLOCKS
    residuals = [p.layer for p in result.products if p.overload == "f16_residual"]
    stopped = {p.layer: p.stopped for p in result.products if p.stopped}
    if name == "trt.onnx":
        assert sorted(residuals) == sorted(added(planned))
        assert stopped == {}
    else:
        assert residuals == []
        reason = "its Add stays: it is of float32, and kernels add float16"
        assert stopped == dict.fromkeys(added(planned), reason)
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
    assert checked == len(nodes) - (2 * BLOCKS if name == "trt.onnx" else 0) >= 8


def integers(graph: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, npt.NDArray[np.int8]]:
    """Every quantized activation."""
    held = {each.name for each in graph.graph.initializer}
    quantizers = [n for n in graph.graph.node if n.op_type == "QuantizeLinear"]
    names = [n.output[0] for n in quantizers if n.input[0] not in held]
    names += [n.output[0] for n in graphs.operators(graph) if n.overload.endswith("s8")]
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
