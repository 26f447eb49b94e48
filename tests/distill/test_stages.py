"""GPUSQ's two stages on a ViT, a BERT and a ResNet: masks, who teaches, resume, no trace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from tiny import configs
from tiny import data as tiny_data
from tiny import models as tiny_models
from tiny.recipes import StopAt, stored, tiny
from torch import Tensor, nn

import edgekd
from edgekd import artifact, models, sources, sparse24
from edgekd.artifact import Artifact
from edgekd.distill import loop, losses, quantize, stages
from edgekd.distill.prepare import Prepared
from edgekd.distill.sparsify import as_matrix
from edgekd.distill.student import distill
from edgekd.errors import ConfigError
from edgekd.export.model import export
from edgekd.recipe import Recipe
from edgekd.weights import load_weights, save_weights

FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "vit": (configs.VIT, "images"),
    "bert": (configs.BERT, "tokens"),
    "resnet": (configs.RESNET, "images"),
}
SPARSE = {"steps": 3, "batch_size": 16, "learning_rate": 2e-3}


def settings(**changes: Any) -> dict[str, Any]:
    return {"steps": 2, "batch_size": 16, "sparse": SPARSE, **changes}


def gpusq(base: Path, family: str = "vit", **changes: Any) -> Recipe:
    model, data = FAMILIES[family]
    known = settings(losses={"labels": 1.0, "blocks": 5.0, "logits": 10.0, "agreement": True})
    return tiny(base, model, data, distill={**known, **changes})


@dataclass
class Made:
    """A student at the border between the stages, with its checkpoints."""

    prepared: Prepared
    student: nn.Module
    teacher: nn.Module
    batch: tuple[dict[str, Tensor], Tensor]
    keep: Path

    def float_stage(self) -> dict[str, Tensor]:
        return load_file(self.keep / stages.FOLDER / loop.CHECKPOINT)


def at_the_border(base: Path, recipe: Recipe, arm: Any = "sparse") -> Made:
    torch.manual_seed(0)
    description = models.describe(recipe.teacher.model, recipe.base)
    teacher, student = models.build(description), models.build(description)
    student.load_state_dict(teacher.state_dict())
    teacher.eval().requires_grad_(False)
    examples = sources.load(recipe)
    keep = base / "keep"
    keep.mkdir()
    prepared = Prepared(recipe, arm, examples, teacher, student, description, keep)
    inputs, labels = examples.train.take(np.arange(16))
    batch = models.tensors(inputs, student), torch.from_numpy(labels)
    return Made(prepared, student, teacher, batch, keep)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_masks_are_exact_and_the_same_in_both_stages(self, tmp_path: Path, family: str) -> None:
        made = at_the_border(tmp_path, gpusq(tmp_path, family))
        sparse_teacher = made.prepared._float.teacher
        first, masks = made.float_stage(), 0
        for row in made.prepared.rows:
            if not row.sparse:
                continue
            masks += 1
            mask = first[f"model.{row.layer}.parametrizations.weight.0.mask"]
            now = quantize.mask_of(made.student.get_submodule(row.layer))
            assert now is not None
            assert torch.equal(now, mask)
            taught = sparse_teacher.get_submodule(row.layer).weight
            assert isinstance(taught, Tensor)
            assert not taught[~mask].any()
            sparse24.check(as_matrix(taught), row.layer)
        assert masks >= 5
        made.prepared.check()

    def test_the_sparse_model_teaches_the_quantized_stage(
        self, tmp_path: Path, family: str
    ) -> None:
        made = at_the_border(tmp_path, gpusq(tmp_path, family))
        made.student.eval()
        terms = made.prepared.loss(*made.batch)
        io = made.prepared.io
        inputs = made.batch[0]
        with torch.no_grad():
            ours = models.forward(made.student, inputs, io)["logits"]
            dense = models.forward(made.teacher, inputs, io)["logits"]
            taught = models.forward(made.prepared._float.teacher, inputs, io)["logits"]
        assert not torch.equal(dense, taught)
        assert torch.allclose(terms["logits"], 10 * losses.logits(ours, taught, 2.0))
        assert not torch.allclose(terms["logits"], 10 * losses.logits(ours, dense, 2.0))

    def test_pseudo_labels_are_the_dense_teachers_though_the_sparse_one_teaches(
        self, tmp_path: Path, family: str
    ) -> None:
        made = at_the_border(
            tmp_path, gpusq(tmp_path, family, losses={"labels": 0.5, "labels_from": "teacher"})
        )
        taught, inputs = made.prepared._float.teacher, made.batch[0]
        head = [each for each in taught.modules() if isinstance(each, nn.Linear)][-1]
        with torch.no_grad():
            for parameter in head.parameters():  # now it names what it thinks least of
                parameter.neg_()
            made.student.eval()
            ours, dense, sparse = (
                models.forward(each, inputs, made.prepared.io)["logits"]
                for each in (made.student, made.teacher, taught)
            )
            found = made.prepared.loss(*made.batch)["labels"]
        wanted, wrong = (losses.labels(ours, each.argmax(-1)) for each in (dense, sparse))
        assert torch.allclose(found, 0.5 * wanted)
        assert not torch.allclose(wanted, wrong)

    def test_the_variant_trains_on_data_that_names_nothing(
        self, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, data = FAMILIES[family]
        monkeypatch.setattr(tiny_data, "vectors", getattr(tiny_data, data))
        known = settings(losses={"labels": 1.0, "labels_from": "teacher", "agreement": True})
        random = {"model": "hf:config.json", "fit": {"steps": 0}}
        recipe = tiny(tmp_path, model, "unlabelled", teacher=random, distill=known)
        found = distill(recipe, tmp_path / "out")
        assert [row["stage"] for row in curve_of(found)] == ["float"] * 3 + ["quantized"] * 2
        assert all(row["labels"] > 0 for row in curve_of(found))
        assert found.results["accuracy"] is None

    def test_no_trace_is_left_in_the_graph(self, tmp_path: Path, family: str) -> None:
        model, data = FAMILIES[family]
        plain = distill(tiny(tmp_path / "a", model, data), tmp_path / "a" / "out")
        ours = distill(
            gpusq(
                tmp_path / "b", family,
                losses={"labels": 1.0, "critical": 0.5, "agreement": True,
                        "block_weights": "inverse", "labels_from": "teacher"},
            ),
            tmp_path / "b" / "out",
        )  # fmt: skip
        graphs = [export(each, each.path.parent) for each in (plain, ours)]
        for file in ("ort.onnx", "trt.onnx"):
            one, two = (structure(each, file) for each in graphs)
            assert one == two


def structure(model: Artifact, file: str) -> list[Any]:
    """A graph but for its numbers."""
    graph = onnx.load(model.file(file)).graph
    nodes = [(n.op_type, n.name, list(n.input), list(n.output)) for n in graph.node]
    tensors = [(t.name, t.data_type, list(t.dims)) for t in graph.initializer]
    return [nodes, tensors, [i.name for i in graph.input], [o.name for o in graph.output]]


def test_the_sparse_teacher_is_what_its_checkpoint_holds(tmp_path: Path) -> None:
    recipe = gpusq(tmp_path)
    made = at_the_border(tmp_path, recipe)
    first = made.float_stage()
    assert json.loads(bytes(first["about"].tolist()))["step"] == SPARSE["steps"]
    for name, tensor in made.prepared._float.teacher.state_dict().items():
        layer = name.removesuffix(".weight")
        latent = first.get(f"model.{layer}.parametrizations.weight.original")
        if latent is None:
            assert torch.equal(tensor, first[f"model.{name}"])
        else:
            mask = first[f"model.{layer}.parametrizations.weight.0.mask"]
            assert torch.equal(tensor, latent * mask)
    assert not any(p.requires_grad for p in made.prepared._float.teacher.parameters())


def test_the_dense_teacher_may_go_on(tmp_path: Path) -> None:
    made = at_the_border(tmp_path, gpusq(tmp_path, sparse={**SPARSE, "teaches": False}))
    assert made.prepared._float.teacher is made.teacher


def test_the_dense_arm_has_the_stage_without_masks(tmp_path: Path) -> None:
    made = at_the_border(tmp_path, gpusq(tmp_path), "dense")
    assert not [name for name in made.float_stage() if name.endswith("mask")]
    assert len(made.prepared._float.curve) == SPARSE["steps"]
    assert made.prepared._float.teacher is not made.teacher


@pytest.mark.parametrize("direction", ["inverse", "proportional"])
def test_blocks_count_as_the_float_stage_says(tmp_path: Path, direction: str) -> None:
    known = {"logits": 0.0, "blocks": 2.0, "block_weights": direction}
    made = at_the_border(tmp_path, gpusq(tmp_path, losses=known))
    names = ["vit.layers.0", "vit.layers.1"]
    curve = made.prepared._float.curve
    means = [sum(row[f"blocks.{name}"] for row in curve) / len(curve) for name in names]
    counts = means if direction == "proportional" else [1 / mean for mean in means]
    wanted = [2 * count / sum(counts) for count in counts]
    assert made.prepared._float.weights == pytest.approx(dict(zip(names, wanted, strict=True)))
    assert wanted[0] != pytest.approx(1.0, rel=0.01)
    term = made.prepared.loss(*made.batch)["blocks"]
    each = [made.prepared.observed[f"blocks.{name}"] for name in names]
    mean = sum(count * loss for count, loss in zip(wanted, each, strict=True)) / 2
    assert float(term.detach()) == pytest.approx(2.0 * mean, rel=1e-5)


def curve_of(found: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in found.file("losses.jsonl").read_text().splitlines()]


def test_a_student_of_two_stages(tmp_path: Path) -> None:
    found = distill(gpusq(tmp_path), tmp_path / "out")
    rows = curve_of(found)
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("float", 0), ("float", 1), ("float", 2), ("quantized", 0), ("quantized", 1),
    ]  # fmt: skip
    assert all(0 <= row["agreement"] <= 1 for row in rows)
    compared = [row for row in rows if row["agreement"] > 0]
    assert compared
    assert all({"blocks.vit.layers.0", "blocks.vit.layers.1"} <= set(row) for row in compared)
    stage = found.results["float_stage"]
    assert (stage["steps"], stage["teaches"], stage["block_weights"]) == (3, True, None)
    assert 0 <= stage["accuracy"] <= 1
    # The record is against the teacher that the recipe names, whoever taught the last stage.
    teacher = artifact.parent(found, "teacher")
    with np.load(found.file("samples.npz")) as ours, np.load(teacher.file("samples.npz")) as his:
        assert np.array_equal(ours["teacher.logits"], his["teacher.logits"])


class TestResume:
    def same(self, one: Artifact, two: Artifact) -> None:
        assert one.id == two.id
        for name in ("model", "quantizers"):
            ours, theirs = stored(one, name), stored(two, name)
            assert all(torch.equal(ours[n], theirs[n]) for n in ours)

    @pytest.mark.parametrize("call", [2, 4])
    def test_a_kill_in_either_stage(
        self, tmp_path: Path, stop_at: StopAt, capsys: pytest.CaptureFixture[str], call: int
    ) -> None:
        recipe = tiny(tmp_path, distill=settings(losses={"block_weights": "inverse"}))
        whole = distill(recipe, tmp_path / "whole")
        stop_at(call, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            distill(recipe, tmp_path / "cut")
        capsys.readouterr()
        self.same(distill(recipe, tmp_path / "cut"), whole)
        said = capsys.readouterr().err
        step = {2: 1, 4: 3}[call]
        assert f"distill sparse, float stage: resumed at step {step} of 3" in said
        assert ("distill sparse: resumed at step 0 of 2" in said) == (call == 4)

    def test_a_kill_between_the_stages(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tiny(tmp_path, distill=settings())
        whole = distill(recipe, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(quantize, "attach", _killed)
            with pytest.raises(KeyboardInterrupt):
                distill(recipe, tmp_path / "cut")
        assert list((tmp_path / "cut" / ".work").glob(f"student-*/{stages.FOLDER}/*.safetensors"))
        capsys.readouterr()
        self.same(distill(recipe, tmp_path / "cut"), whole)
        assert "float stage: resumed at step 3 of 3" in capsys.readouterr().err
        assert not list((tmp_path / "cut" / ".work").iterdir())


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """A teacher whose weights are given, so that nobody learns labels."""
    torch.manual_seed(0)
    save_weights(tiny_models.mlp(), tmp_path / "w.safetensors")
    return {"model": "python:tiny.models:mlp", "checkpoint": "w.safetensors"}


class TestWithoutLabels:
    def test_no_label_of_the_data_is_read(self, tmp_path: Path, given: dict[str, Any]) -> None:
        known = settings(losses={"labels": 1.0, "labels_from": "teacher"})
        weights = []
        for data in ("vectors", "mislabelled"):
            recipe = tiny(tmp_path, "mlp", data, teacher=given, distill=known)
            weights.append(stored(distill(recipe, tmp_path / data), "model"))
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_a_loss_that_needs_them_is_told(self, tmp_path: Path, given: dict[str, Any]) -> None:
        known = {"steps": 2, "batch_size": 16, "losses": {"labels": 1.0}}
        recipe = tiny(tmp_path, "mlp", "unlabelled", teacher=given, distill=known)
        with pytest.raises(ConfigError, match=r"no cross-entropy with the labels: .* = 'teacher'"):
            distill(recipe, tmp_path / "out")


class TestRefused:
    def test_a_warm_up_of_nothing(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path, distill={"steps": 2, "batch_size": 16, "batchnorm_warmup": 500})
        with pytest.raises(ConfigError) as caught:
            distill(recipe, tmp_path / "out")
        assert str(caught.value) == (
            f"recipe {recipe.name}: distill.batchnorm_warmup is 500 and the student has no batch "
            "norm: remove it"
        )

    def test_prepare_has_no_such_stage(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path, distill=settings())
        networks = [models.build(models.describe(recipe.teacher.model, tmp_path)) for _ in "ab"]
        with pytest.raises(ConfigError, match=r"\[distill.sparse\] is a stage of edgekd distill's"):
            edgekd.prepare(*networks, recipe)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    found = distill(tiny(tmp_path, "tied", distill=settings()), tmp_path / "out")
    weights = stored(found, "model")
    assert torch.equal(weights["blocks.0.fc1.weight"], weights["blocks.1.fc1.weight"])
    net = models.build(models.describe("python:tiny.models:tied", tmp_path))
    load_weights(net, found.file("model.safetensors"))
