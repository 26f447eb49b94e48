"""Networks whose classes are others than the data's: picked by name, all the way to the graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs, data
from tiny.recipes import tiny

import edgekd
from edgekd import artifact, classes, models
from edgekd.data import inputs_of, recorded
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill
from edgekd.distill.teacher import teach
from edgekd.errors import ConfigError
from edgekd.export.model import export
from edgekd.recipe import Losses
from edgekd.weights import save_weights

NAMES = ["ape", "bat", "cat", "elk", "owl", "ox"]
PICKED = [5, 2, 4, 1]  # ox, cat, owl, bat


def vit(names: list[str], **changes: Any) -> dict[str, Any]:
    config = {key: value for key, value in configs.VIT.items() if key != "num_labels"}
    return {**config, "id2label": {str(i): name for i, name in enumerate(names)}, **changes}


def given(base: Path, names: list[str] = NAMES, **changes: Any) -> Any:
    """A recipe whose teacher has weights, and that network."""
    teacher = {"model": "hf:config.json", "checkpoint": "w.safetensors"}
    recipe = tiny(base, vit(names), "named", teacher=teacher, **changes)
    torch.manual_seed(3)
    plain = models.build(models.describe("hf:config.json", base)).eval()
    save_weights(plain, base / "w.safetensors")
    return recipe, plain


def test_a_teacher_of_more_classes_answers_in_the_datas(tmp_path: Path) -> None:
    recipe, plain = given(tmp_path)
    found = teach(recipe, tmp_path / "out")
    assert found.read_json("model.json")["classes"] == PICKED
    with np.load(found.file("samples.npz")) as arrays:
        samples = {name: arrays[name] for name in arrays}
    with torch.no_grad():
        wanted = plain(torch.from_numpy(inputs_of(samples)["pixel_values"])).logits[:, PICKED]
    answers = recorded(samples, "teacher")["logits"]
    assert np.array_equal(answers, wanted.numpy())
    assert found.results["accuracy"] == (answers.argmax(1) == samples["labels"]).mean()


def test_it_is_distilled_and_exported_in_them(tmp_path: Path) -> None:
    recipe, _ = given(tmp_path)
    student = distill(recipe, tmp_path / "out")
    graph = export(student, tmp_path / "out")
    assert graph.results["parity"]["argmax_differs"] == 0
    teacher = artifact.parent(student, "teacher")
    export(teacher, tmp_path / "out")


def test_a_student_of_the_datas_classes_alone(tmp_path: Path) -> None:
    recipe, _ = given(tmp_path, student={"model": "hf:mine.json"})
    names = data.named().io.labels
    (tmp_path / "mine.json").write_text(json.dumps(vit(names)))
    student = distill(recipe, tmp_path / "out")
    assert "classes" not in student.read_json("model.json")
    with np.load(student.file("samples.npz")) as arrays:
        assert arrays["student.logits"].shape == arrays["teacher.logits"].shape == (24, 4)


def test_another_order_is_a_permutation(tmp_path: Path) -> None:
    names = data.named().io.labels
    recipe, _ = given(tmp_path, list(reversed(names)))
    found = teach(recipe, tmp_path / "out")
    assert found.read_json("model.json")["classes"] == [3, 2, 1, 0]


def test_the_same_order_needs_nothing(tmp_path: Path) -> None:
    recipe, _ = given(tmp_path, data.named().io.labels)
    assert "classes" not in teach(recipe, tmp_path / "out").read_json("model.json")


def test_classes_without_common_names_are_refused(tmp_path: Path) -> None:
    recipe, _ = given(tmp_path, ["a", "b", "c", "d", "e"])
    with pytest.raises(ConfigError, match=r"output 'logits' is \[1, 5\] .* the data's io says"):
        teach(recipe, tmp_path / "out")


def test_networks_of_ones_own_are_made_to_answer_so_once(tmp_path: Path) -> None:
    recipe, teacher = given(tmp_path)
    for _ in range(2):
        student = models.build(models.describe("hf:config.json", tmp_path))
        prepared = edgekd.prepare(student, teacher, recipe)
        batch = data.named().train.take(np.arange(8))
        assert prepared.loss(models.tensors(batch[0], student), torch.from_numpy(batch[1]))
    assert teacher(pixel_values=torch.zeros(2, 3, 16, 16)).logits.shape == (2, 4)


def test_networks_that_cut_an_image_otherwise_are_compared_where_they_can(tmp_path: Path) -> None:
    fine = models.build(models.describe(*_written(tmp_path, "fine", patch_size=2)))
    coarse = models.build(models.describe(*_written(tmp_path, "coarse", patch_size=4)))
    inputs = models.tensors(data.images().train.take(np.arange(4))[0], fine)
    for student, teacher in ((fine, coarse), (coarse, fine)):
        teacher.requires_grad_(False)
        student.requires_grad_(True)
        objective = Objective(Losses(), student, teacher, data.images().io)
        terms = objective(inputs, torch.zeros(4, dtype=torch.int64))
        assert 0 < float(terms["blocks"].detach()) < 100
        objective.remove()


def _written(base: Path, name: str, **changes: Any) -> tuple[str, Path]:
    (base / f"{name}.json").write_text(json.dumps({**configs.VIT, **changes}))
    return f"hf:{name}.json", base


def test_a_network_that_answers_a_tuple() -> None:
    class Tupled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
            return x, "more"

    network = Tupled()
    classes.answer_in(network, PICKED)
    logits, more = network(torch.arange(6.0)[None])
    assert (logits.tolist(), more) == ([[5.0, 2.0, 4.0, 1.0]], "more")
