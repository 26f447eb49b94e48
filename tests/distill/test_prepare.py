"""A training loop of one's own: four calls, and the Student is proven like ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs
from tiny import models as tiny_models
from tiny.recipes import tiny
from torch import Tensor, nn

import edgekd
from edgekd import artifact, kinds, models, sources
from edgekd.artifact import Artifact
from edgekd.distill import stages
from edgekd.distill.intervention import signal
from edgekd.distill.prepare import Prepared
from edgekd.errors import ConfigError, ContractError
from edgekd.export.model import export
from edgekd.recipe import Recipe, TeacherIntervention


def networks(recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """Student and teacher of one recipe with equal weights."""
    torch.manual_seed(0)
    teacher = models.build(models.describe(recipe.teacher.model, recipe.base))
    student = models.build(models.describe(recipe.teacher.model, recipe.base))
    student.load_state_dict(teacher.state_dict())
    return student, teacher


def by_hand(prepared: Prepared, recipe: Recipe, steps: int = 4) -> list[dict[str, float]]:
    """The shortest training loop there is."""
    split = sources.load(recipe).train
    optimizer = torch.optim.SGD(prepared.student.parameters(), lr=1e-2)
    curve = []
    for step in range(steps):
        inputs, labels = split.take(np.arange(16) + step)
        prepared.begin(step)
        terms = prepared.loss(models.tensors(inputs, prepared.student), torch.from_numpy(labels))
        optimizer.zero_grad()
        sum(terms.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        curve.append({"step": step, **{name: float(term.detach()) for name, term in terms.items()}})
    return curve


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, nn.Module]:
    base = tmp_path_factory.mktemp("own")
    recipe = tiny(base)
    student, teacher = networks(recipe)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    prepared = edgekd.prepare(student, teacher, recipe)
    assert prepared.student.training
    curve = by_hand(prepared, recipe)
    made = prepared.finish(base / "out", curve)
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
    return made, student


class TestABareLoop:
    def test_it_ends_in_a_student_that_exports_as_any_other(
        self, done: tuple[Artifact, nn.Module]
    ) -> None:
        made, _ = done
        graph = export(made, made.path.parent)
        assert (graph.results["layers_int8"], graph.results["layers_sparse"]) == (5, 5)
        assert graph.results["parity"]["integers_largest_step"] <= 1

    def test_the_teacher_lies_beside_it_and_the_loop_is_named(
        self, done: tuple[Artifact, nn.Module]
    ) -> None:
        made, _ = done
        teacher = artifact.parent(made, "teacher", kinds.TEACHER)
        assert made.config["loop"] == teacher.config["loop"] == "the user's own"

    def test_the_curve_is_kept(self, done: tuple[Artifact, nn.Module]) -> None:
        lines = done[0].file("losses.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        assert {"logits", "blocks"} <= set(rows[0])

    def test_no_hook_is_left(self, done: tuple[Artifact, nn.Module]) -> None:
        _, student = done
        assert not [n for n, module in student.named_modules() if module._forward_hooks]


def test_other_weights_are_another_student(tmp_path: Path) -> None:
    ids = []
    for steps in (0, 2):
        recipe = tiny(tmp_path)
        prepared = edgekd.prepare(*networks(recipe), recipe)
        by_hand(prepared, recipe, steps)
        ids.append(prepared.finish(tmp_path / "out").id)
    assert ids[0] != ids[1]


def test_the_dense_arm(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    made = edgekd.prepare(*networks(recipe), recipe, "dense").finish(tmp_path / "out")
    assert (made.results["layers_int8"], made.results["layers_sparse"]) == (5, 0)


def test_intervention_follows_begin(tmp_path: Path) -> None:
    distill = {"steps": 4, "batch_size": 16, "intervention": {"share": 1.0}}
    recipe = tiny(tmp_path, configs.VIT, "images", distill=distill)
    prepared = edgekd.prepare(*networks(recipe), recipe)
    curve = by_hand(prepared, recipe)
    assert all("intervention" in row for row in curve)
    assert prepared.finish(tmp_path / "out").results["intervention_sites"]


def test_what_a_stochastic_step_draws_follows_the_recipes_seed(tmp_path: Path) -> None:
    chosen = TeacherIntervention(mode="stochastic", share=1.0)
    distill = {"steps": 8, "batch_size": 16, "intervention": chosen.model_dump()}
    recipe = tiny(tmp_path, "packed:vit", seed=3, distill=distill)
    prepared = edgekd.prepare(*networks(recipe), recipe)
    acting = prepared._intervention
    assert acting is not None
    drawn = []
    for step in range(8):
        prepared.begin(step)
        drawn.append(acting._signal)
    assert drawn == [signal(chosen, 8, step, seed=3) for step in range(8)]
    assert drawn != [signal(chosen, 8, step, seed=0) for step in range(8)]


def test_a_mode_that_a_network_cannot_take_is_refused_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    distill = {"steps": 4, "batch_size": 16, "intervention": {"mode": "map"}}
    recipe = tiny(tmp_path, configs.RESNET, "images", distill=distill, sparsity={"permute": True})
    student, teacher = networks(recipe)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(ConfigError, match="intervention: mode 'map' needs attention"):
        edgekd.prepare(student, teacher, recipe)
    after = student.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_outputs_of_another_width_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "narrow").mkdir()
    narrow = json.dumps({**configs.VIT, "hidden_size": 16})
    (tmp_path / "narrow" / "config.json").write_text(narrow)
    distill = {"steps": 4, "batch_size": 16, "intervention": {"mode": "output"}}
    recipe = tiny(
        tmp_path, configs.VIT, "images", distill=distill, student={"model": "hf:narrow/config.json"}
    )
    _, teacher = networks(recipe)
    student = models.build(models.describe("hf:narrow/config.json", recipe.base))
    monkeypatch.setattr(stages, "float_stage", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        ConfigError, match=r"o_proj gives \[1, 17, 16\], the teacher's \[1, 17, 32\]"
    ):
        edgekd.prepare(student, teacher, recipe)
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())


def test_transformers_trainer_is_such_a_loop(tmp_path: Path) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    recipe = tiny(tmp_path, configs.VIT, "images")
    prepared = edgekd.prepare(*networks(recipe), recipe)
    split = sources.load(recipe).train
    inputs, labels = split.take(np.arange(len(split)))
    rows = [
        {"pixel_values": torch.from_numpy(image), "labels": int(label)}
        for image, label in zip(inputs["pixel_values"], labels, strict=True)
    ]

    class Schedule(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            prepared.begin(state.global_step)

    class Distiller(Trainer):  # type: ignore[misc]
        def compute_loss(
            self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
        ) -> Tensor:
            assert model is prepared.student
            labels = inputs.pop("labels")
            return torch.stack([*prepared.loss(inputs, labels).values()]).sum()

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=3,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    latent = prepared.student.get_parameter(
        "vit.layers.0.mlp.fc1.parametrizations.weight.original"
    ).clone()
    Distiller(prepared.student, arguments, train_dataset=rows, callbacks=[Schedule()]).train()
    changed = prepared.student.get_parameter(
        "vit.layers.0.mlp.fc1.parametrizations.weight.original"
    )
    assert not torch.equal(latent, changed)
    made = prepared.finish(tmp_path / "out")
    assert export(made, tmp_path / "out").results["layers_sparse"] == 12


def test_torchs_packed_attention_is_unpacked_in_place(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "attention")
    teacher, student = tiny_models.attention(), tiny_models.attention()
    student.load_state_dict(teacher.state_dict())
    made = edgekd.prepare(student, teacher, recipe).finish(tmp_path / "out")
    assert made.results["layers_int8"] == 12


class TestRefused:
    def test_another_network_than_the_recipe_s(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path)
        _, teacher = networks(recipe)
        with pytest.raises(ConfigError) as caught:
            edgekd.prepare(tiny_models.wide(), teacher, recipe)
        for word in (
            "the student is not the network",
            "tiny.models:mlp",
            "found [96], expected [64]",
        ):
            assert word in str(caught.value)

    def test_networks_on_two_devices(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path)
        student, teacher = networks(recipe)
        with pytest.raises(ConfigError) as caught:
            edgekd.prepare(student.to("meta"), teacher, recipe)
        assert "the student is on meta, the teacher on cpu, expected one device" in str(
            caught.value
        )

    def test_a_mask_that_the_loop_destroyed(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path)
        prepared = edgekd.prepare(*networks(recipe), recipe)
        prepared.student.get_buffer("stem.parametrizations.weight.0.mask").fill_(True)
        with pytest.raises(ContractError, match="mask of stem was lost or changed"):
            prepared.finish(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_importing_edgekd_imports_no_torch() -> None:
    code = "import sys, edgekd; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'compile'"):
        edgekd.compile  # noqa: B018
