"""Where TI-C and TI-M act, what they refuse, and that whole trainings leave no trace of them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs, packed
from tiny.recipes import StopAt, tiny
from tiny.taught import IMAGES, LOGITS, X, acting, hf, passes, settings, two
from torch import Tensor, nn

from edgekd import models, sources
from edgekd.distill.intervention import intervene, signal
from edgekd.distill.prepare import Prepared
from edgekd.distill.student import distill
from edgekd.errors import ConfigError
from edgekd.export.model import export
from edgekd.models import forward

IMAGE = {"pixel_values": IMAGES["pixel_values"][:1]}


class TestSites:
    @pytest.mark.parametrize("mode", ["gradual", "inverted", "stochastic"])
    def test_of_all_three_signals(self, mode: str) -> None:
        found = acting(mode, two(packed.vit), X)
        outputs = [f"blocks.{block}.attn.proj" for block in (0, 1)]
        assert found.sites == [*outputs, "blocks.0.attn", "blocks.1.attn"]

    def test_of_maps_alone_hook_nothing(self) -> None:
        networks = two(packed.vit)
        assert acting("map", networks, X).sites == ["blocks.0.attn", "blocks.1.attn"]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in networks[0].modules())


class TestRefused:
    """Each sentence says what else works, and that does work."""

    def test_more_heads_than_the_teacher(self) -> None:
        student = hf({**configs.VIT, "num_attention_heads": 4}, "eager").train()
        networks = (student, hf(configs.VIT, "eager").eval())
        with pytest.raises(ConfigError) as caught:
            intervene(settings("map"), 4, 0, networks, IMAGE, LOGITS)
        told = str(caught.value)
        assert "mode 'map' replaces the map in the student's vit.layers.0.attention" in told
        assert "[1, 4, 17, 17] for one example" in told
        assert '[1, 2, 17, 17]: give both as many heads, or use mode = "output", which' in told
        intervene(settings("output"), 4, 0, networks, IMAGE, LOGITS).attempt(IMAGE, LOGITS)

    def test_a_narrower_student_takes_maps_alone(self) -> None:
        networks = (hf({**configs.VIT, "hidden_size": 16}, "eager"), hf(configs.VIT, "eager"))
        with pytest.raises(
            ConfigError, match=r"replaces the context .* \[1, 2, 17, 8\] for"
        ) as said:
            intervene(settings("context"), 4, 0, networks, IMAGE, LOGITS)
        assert str(said.value).endswith(
            '[1, 2, 17, 16]: give both as many features a head, or use mode = "map"'
        )
        found = intervene(settings("output"), 4, 0, networks, IMAGE, LOGITS)
        with pytest.raises(ConfigError, match=r'17, 16\], .* 17, 32\]: .* use mode = "map" where'):
            found.attempt(IMAGE, LOGITS)
        intervene(settings("map"), 4, 0, networks, IMAGE, LOGITS).attempt(IMAGE, LOGITS)

    @pytest.mark.parametrize(
        ("mode", "found"),
        [
            ("map", r"\[1, 2, 5, 5\] for one example, .* \[1, 2, 17, 17\]: give both as many tok"),
            ("context", r"\[1, 2, 5, 16\] for one ex.* \[1, 2, 17, 16\]: give both as many tok"),
            ("output", r"o_proj gives \[1, 5, 32\], .* \[1, 17, 32\]: .*: give both as many tok"),
        ],
    )
    def test_no_mode_takes_other_tokens_than_the_teachers(self, mode: str, found: str) -> None:
        """Patches of 8 and of 4 pixels, and the class token."""
        networks = (hf({**configs.VIT, "patch_size": 8}, "eager"), hf(configs.VIT, "eager"))
        with pytest.raises(ConfigError, match=found) as caught:
            intervene(settings(mode), 4, 0, networks, IMAGE, LOGITS).attempt(IMAGE, LOGITS)
        assert str(caught.value).endswith("or remove [distill.intervention]")

    @pytest.mark.parametrize("mode", ["context", "map", "gradual", "inverted", "stochastic"])
    def test_a_resnet_takes_output_alone(self, mode: str) -> None:
        networks = two(lambda: hf(configs.RESNET, "eager"))
        assert acting("output", networks, IMAGES).sites
        with pytest.raises(ConfigError, match=f"mode '{mode}' needs attention.*use mode = \"outp"):
            acting(mode, networks, IMAGES)

    def test_a_block_that_does_not_run(self) -> None:
        class Dropped(packed.ViT):
            def forward(self, x: Tensor) -> Tensor:
                self.blocks = self.blocks[:1] if self.training else self.blocks
                return super().forward(x)

        networks = (Dropped().train(), packed.vit().eval())
        found = acting("map", networks, X)
        with pytest.raises(ConfigError, match="3 softmaxes and products ran in this step, 6 when"):
            passes(found, networks, X)

    def test_a_student_without_its_teacher(self) -> None:
        networks = two(packed.vit)
        found = acting("map", networks, X)
        wanted = r"the student's map in blocks.0.attn gives \[3, 2, 4, 4\], the teacher's None"
        with pytest.raises(ConfigError, match=wanted), found.acting():
            forward(networks[0], X, LOGITS)


FULL = {"steps": 6, "batch_size": 16}
MODES = ["output", "context", "map", "gradual", "inverted", "stochastic"]
KINDS: dict[str, tuple[Any, str]] = {
    "vit": (configs.VIT, "images"),
    "bert": (configs.BERT, "tokens"),
    "packed": ("packed:vit", "vectors"),
    "resnet": (configs.RESNET, "images"),
}
# All of them on one network. Of others the last is exported: it has all three signals.
TRAINED = {
    "packed": MODES,
    "vit": ["output", "context", "map", "gradual"],
    "bert": ["output", "context", "map", "gradual"],
    "resnet": ["output"],
}


@pytest.mark.parametrize("name", KINDS)
def test_every_mode_trains_and_leaves_nothing_in_the_graph(name: str, tmp_path: Path) -> None:
    model, data = KINDS[name]
    plain = distill(tiny(tmp_path, model, data, distill=FULL), tmp_path / "out")
    assert plain.results["intervention_sites"] == []
    weights, graphs = [plain], [export(plain, tmp_path / "out").results["structure_sha256"]]
    for mode in TRAINED[name]:
        section = {"mode": mode, "share": 0.9, "withdraw": "two-step"}
        recipe = tiny(tmp_path, model, data, distill={**FULL, "intervention": section})
        taught = distill(recipe, tmp_path / "out")
        assert taught.results["intervention_sites"]
        assert '"intervention"' in taught.file("losses.jsonl").read_text()
        assert taught.read_json("model.json") == plain.read_json("model.json")
        assert taught.read_json("layers.json") == plain.read_json("layers.json")
        weights.append(taught)
    graphs.append(export(weights[-1], tmp_path / "out").results["structure_sha256"])
    assert graphs[0] == graphs[1]
    hashes = [each.manifest.files["model.safetensors"].sha256 for each in weights]
    assert len(set(hashes)) == len(weights)


def anatomy(net: nn.Module) -> list[Any]:
    """Classes, hooks and attributes of every module, and how attention is computed."""
    modules = [
        (n, str(type(m)), len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
        for n, m in net.named_modules()
    ]
    return [*modules, str(getattr(net, "config", ""))]


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, modes in TRAINED.items() for mode in modes]
)
def test_after_training_no_module_is_another(name: str, mode: str, tmp_path: Path) -> None:
    """Student and teacher are what they are after a training that had no intervention."""
    model, data = KINDS[name]
    found = []
    for section in ({}, {"intervention": {"mode": mode, "share": 1.0}}):
        recipe = tiny(tmp_path, model, data, distill={**FULL, **section})
        examples = sources.load(recipe)
        description = models.describe(recipe.teacher.model, recipe.base)
        torch.manual_seed(0)
        student = models.build(description)
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        prepared = Prepared(recipe, "sparse", examples, teacher, student, description, tmp_path)
        student.train()
        inputs, labels = examples.train.take(np.arange(3))
        batch = models.tensors(inputs, student), torch.from_numpy(labels)
        for step in range(6):
            prepared.begin(step)
            terms = prepared.loss(*batch)
            assert ("intervention" in terms) is bool(section)
            torch.stack(list(terms.values())).sum().backward()
        prepared._objective.remove()
        found.append([anatomy(student), anatomy(teacher)])
    assert found[0] == found[1]


def test_a_stochastic_run_that_is_cut_ends_in_the_same_bytes(
    tmp_path: Path, stop_at: StopAt
) -> None:
    section = {"mode": "stochastic", "share": 1.0}
    recipe = tiny(tmp_path, "packed:vit", distill={**FULL, "intervention": section})
    names = [signal(settings("stochastic"), 6, step, recipe.seed) for step in range(6)]
    assert len(set(names[3:])) > 1  # what is drawn after the cut matters
    whole = distill(recipe, tmp_path / "whole")
    stop_at(3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        distill(recipe, tmp_path / "cut")
    again = distill(recipe, tmp_path / "cut")
    assert again.file("losses.jsonl").read_text() == whole.file("losses.jsonl").read_text()
    assert again.id == whole.id
    rows = [float(line.split('"intervention": ')[1].split(",")[0].rstrip("}"))
            for line in whole.file("losses.jsonl").read_text().splitlines()]  # fmt: skip
    assert all(math.isfinite(row) and row > 0 for row in rows)
