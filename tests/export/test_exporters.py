"""Both exporters, whole stage: the same layers and integers, module paths, sizes that change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny import configs
from tiny import data as examples
from tiny.recipes import tiny
from torch import Tensor, nn

from edgekd import qdq, target
from edgekd.artifact import Artifact
from edgekd.data import IO, Data
from edgekd.data import Tensor as Port
from edgekd.distill.student import distill
from edgekd.engine.build import evidence
from edgekd.errors import ConfigError, ContractError
from edgekd.export.model import export
from edgekd.export.parity import at_other_sizes
from edgekd.export.to_onnx import Form, convert_float16, export_float32
from edgekd.recipe import Export, Range

Students = Callable[[str], Artifact]
A100 = target.load("a100-sxm4-80gb-trt11.4")
LENGTHS = Range(min=4, opt=16, max=40)


@pytest.mark.parametrize("name", ["vit", "bert", "resnet"])
def test_dynamo_ships_the_same_integers_under_the_same_names(student: Students, name: str) -> None:
    source = student(name)
    out = source.path.parent
    old, new = export(source, out), export(source, out, Export(exporter="dynamo", weights="int8"))
    for file in ("ort.onnx", "trt.onnx"):
        one, two = (
            {w.layer: w for w in qdq.quantized_weights(qdq.load(each.file(file)))}
            for each in (old, new)
        )
        assert list(one) == list(two)
        for layer, weight in one.items():
            assert np.array_equal(weight.integers, two[layer].integers)
            assert np.array_equal(weight.scale, two[layer].scale)
    rows = {row["layer"]: row["node"] for row in new.read_json("layers.json") if row["int8"]}
    for layer, node in rows.items():
        assert layer.replace(".", "/") in node
    assert new.results["attention_blocks"] == old.results["attention_blocks"]
    assert new.file("ort.onnx").stat().st_size < 0.7 * old.file("ort.onnx").stat().st_size
    engine = evidence(new, A100, out)
    assert engine.results["int8"] == len(rows)
    assert engine.results["fused_attention"] == new.results["attention_blocks"]


def test_nothing_of_this_machine_is_left_in_a_dynamo_graph(student: Students) -> None:
    source = student("resnet")
    graph = export(source, source.path.parent, Export(exporter="dynamo", weights="int8"))
    model = onnx.load(graph.file("ort.onnx"))
    assert not [node.name for node in model.graph.node if node.metadata_props or node.doc_string]
    assert b"site-packages" not in graph.file("ort.onnx").read_bytes()
    assert graph.config["export"]["exporter"] == "dynamo"
    assert model.opset_import[0].version == 18


def test_auto_is_the_safe_way_and_the_artifact_says_so(student: Students) -> None:
    source = student("resnet")
    graph = export(source, source.path.parent)
    assert graph.config["export"]["exporter"] == "torchscript"
    assert graph.config["export"]["weights"] == "float"


def any_length() -> Data:
    """`tiny.data.tokens` whose sequence may have any length."""
    found = examples.tokens()
    inputs = [each.model_copy(update={"shape": ["batch", "sequence"]}) for each in found.io.inputs]
    return Data(found.train, found.evaluation, found.io.model_copy(update={"inputs": inputs}))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A BERT whose sequence changes, 16 long in the samples."""
    base = tmp_path_factory.mktemp("sequence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "any_length", any_length, raising=False)
        config = {**configs.BERT, "max_position_embeddings": 64}
        return distill(tiny(base, config, "any_length"), base / "out")


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_sequence_of_any_length_is_computed_and_fused(bert: Artifact, exporter: str) -> None:
    settings = Export(exporter=exporter, weights="int8", dynamic={"sequence": LENGTHS})  # type: ignore[arg-type]
    graph = export(bert, bert.path.parent, settings)
    sizes = graph.results["parity"]["sizes"]
    halves = graph.results["parity"]["float16_sizes"]
    assert set(sizes) == set(halves) == {"sequence 4", "sequence 16", "sequence 40"}
    assert 0 < max(halves.values()) < 0.1
    assert max(sizes.values()) < 1e-3
    assert graph.read_json("io.json")["inputs"][0]["shape"] == ["batch", "sequence"]
    engine = evidence(graph, A100, bert.path.parent)
    assert engine.config["profiles"]["input_ids"] == [[1, 4], [8, 16], [64, 40]]
    assert (engine.results["int8"], engine.results["fused_attention"]) == (13, 2)


def test_a_changing_size_needs_its_limits(bert: Artifact, student: Students) -> None:
    with pytest.raises(ConfigError) as caught:
        export(bert, bert.path.parent)
    assert "the inputs have the changing size 'sequence'" in str(caught.value)
    assert "add [export.dynamic.sequence] with min, opt and max" in str(caught.value)
    source = student("resnet")
    with pytest.raises(ConfigError, match=r"export.dynamic.sequence: no input has this size"):
        export(source, source.path.parent, Export(dynamic={"sequence": LENGTHS}))


BATCHES = [(1, 1, 1), (4, 4, 8), (2, 2, 2)]


@pytest.mark.parametrize(("low", "opt", "high"), BATCHES)
def test_dynamo_takes_any_range_of_batches(
    student: Students, low: int, opt: int, high: int
) -> None:
    """One size alone, and a range that the example's two rows are not in."""
    source = student("mlp")
    settings = Export(exporter="dynamo", batch_min=low, batch_opt=opt, batch_max=high)
    graph = export(source, source.path.parent, settings)
    assert graph.results["parity"]["samples"] == 24  # in batches of 1, 3 and 20
    for file in ("ort.onnx", "trt.onnx"):
        value = onnx.load(graph.file(file)).graph.input[0]
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    engine = evidence(graph, A100, source.path.parent)
    assert engine.config["profiles"]["x"] == [[low, 32], [opt, 32], [high, 32]]


PORTS = [Port(name=n, dtype="float32", shape=["batch", "sequence", 4]) for n in ("x", "y")]
SEQUENCES = IO(inputs=PORTS[:1], outputs=PORTS[1:], labels=[])


class Keeps(nn.Module):
    """Under the tracer its length becomes a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def length(self, x: Tensor) -> Tensor:
        return torch.arange(int(x.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.length(x).reshape(1, -1, 1)


class Follows(Keeps):
    """The same, with its length from the tensor."""

    def length(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[0, :, 0]).cumsum(0) - 1


class Table(Keeps):
    """A table of six positions: no length above six."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6))

    def length(self, x: Tensor) -> Tensor:
        return self.table[: x.shape[1]]


@pytest.mark.parametrize(
    ("network", "low", "high"),
    [(Follows, 6, 6), (Follows, 8, 12), (Follows, 2, 4), (Table, 6, 6), (Table, 2, 4)],
)
def test_dynamo_takes_any_range_of_another_size(
    tmp_path: Path, network: type[Keeps], low: int, high: int
) -> None:
    """The example is 6 long: the only length, below the range, above it."""
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(2, 6, 4)
    form = Form(18, "dynamo", limits={"batch": (3, 3), "sequence": (low, high)})
    path, half = tmp_path / "ort.onnx", tmp_path / "trt.onnx"
    export_float32(model, {"x": x}, SEQUENCES, form, path)
    convert_float16(path, half)
    sizes = {"sequence": Range(min=low, opt=low, max=high)}
    found = at_other_sizes(model, path, half, {"x": x.numpy()}, SEQUENCES, sizes)
    assert set(found["sizes"]) == {f"sequence {low}", f"sequence {high}"}


@pytest.mark.parametrize("which", ["ort.onnx", "trt.onnx"])
def test_a_graph_that_kept_its_length_is_caught(tmp_path: Path, which: str) -> None:
    torch.manual_seed(0)
    model, keeps, x = Follows().eval(), Keeps().eval(), torch.randn(2, 6, 4)
    keeps.load_state_dict(model.state_dict())
    form = Form(limits={"batch": (1, 8), "sequence": (2, 9)})
    graphs: dict[str, tuple[Path, Path]] = {}
    for name, network in (("follows", model), ("keeps", keeps)):
        (tmp_path / name).mkdir()
        graphs[name] = tmp_path / name / "ort.onnx", tmp_path / name / "trt.onnx"
        export_float32(network, {"x": x}, SEQUENCES, form, graphs[name][0])
        convert_float16(*graphs[name])
    inputs, sizes = {"x": x.numpy()}, {"sequence": Range(min=2, opt=6, max=9)}
    at_other_sizes(model, *graphs["follows"], inputs, SEQUENCES, sizes)
    path = graphs["keeps" if which == "ort.onnx" else "follows"][0]
    half = graphs["keeps" if which == "trt.onnx" else "follows"][1]
    with pytest.raises(ContractError) as caught:
        at_other_sizes(model, path, half, inputs, SEQUENCES, sizes)
    assert f"(export: {which} fails on a batch" in str(caught.value)
    assert "at sequence 2 the graph does not compute the network" in str(caught.value)
    assert "set export.exporter to the other one" in str(caught.value)
