"""Where TI-C and TI-M act, what they refuse, and that whole trainings leave no trace of them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configs, packed
from tiny.recipes import StopAt, tiny
from tiny.taught import IMAGES, LOGITS, X, acting, hf, passes, settings, two
from torch import Tensor

from edgekd import models, sources
from edgekd.distill.intervention import intervene, signal
from edgekd.distill.prepare import Prepared
from edgekd.distill.student import distill
from edgekd.errors import ConfigError
from edgekd.export.model import export
from edgekd.models import forward


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
    def test_more_heads_than_the_teacher(self) -> None:
        student = hf({**configs.VIT, "num_attention_heads": 4}, "eager").train()
        teacher = hf(configs.VIT, "eager").eval()
        one = {"pixel_values": IMAGES["pixel_values"][:1]}
        with pytest.raises(ConfigError) as caught:
            intervene(settings("map"), 4, 0, (student, teacher), one, LOGITS)
        told = str(caught.value)
        assert "mode 'map' replaces the map in the student's vit.layers.0.attention" in told
        assert "[1, 4, 17, 17] for one example" in told
        assert "[1, 2, 17, 17]: give both as many heads" in told
        assert 'use mode = "output"' in told

    def test_a_narrower_student_takes_maps_and_no_contexts(self) -> None:
        networks = (hf({**configs.VIT, "hidden_size": 16}, "eager"), hf(configs.VIT, "eager"))
        one = {"pixel_values": IMAGES["pixel_values"][:1]}
        intervene(settings("map"), 4, 0, networks, one, LOGITS)
        with pytest.raises(ConfigError, match=r"replaces the context .* \[1, 2, 17, 8\] for one"):
            intervene(settings("context"), 4, 0, networks, one, LOGITS)

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
MODES = ["context", "map", "gradual", "inverted", "stochastic"]
KINDS: dict[str, tuple[Any, str]] = {
    "vit": (configs.VIT, "images"),
    "bert": (configs.BERT, "tokens"),
    "packed": ("packed:vit", "vectors"),
    "resnet": (configs.RESNET, "images"),
}
# All of them on one network, one of them on the others: no more is new there.
TRAINED = {"packed": MODES, "vit": ["map"], "bert": ["map"], "resnet": ["output"]}


@pytest.mark.parametrize("name", KINDS)
def test_every_mode_trains_and_leaves_nothing_in_the_graph(name: str, tmp_path: Path) -> None:
    model, data = KINDS[name]
    more = {"quantization": {"convolutions": True}} if name == "resnet" else {}
    plain = distill(tiny(tmp_path, model, data, distill=FULL, **more), tmp_path / "out")
    weights, graphs = [plain], [export(plain, tmp_path / "out").results["structure_sha256"]]
    for mode in TRAINED[name]:
        section = {"mode": mode, "share": 0.9, "withdraw": "two-step"}
        recipe = tiny(tmp_path, model, data, distill={**FULL, "intervention": section}, **more)
        taught = distill(recipe, tmp_path / "out")
        assert taught.results["intervention_sites"]
        assert taught.read_json("model.json") == plain.read_json("model.json")
        assert taught.read_json("layers.json") == plain.read_json("layers.json")
        weights.append(taught)
    graphs.append(export(weights[-1], tmp_path / "out").results["structure_sha256"])
    assert graphs[0] == graphs[1]
    hashes = [each.manifest.files["model.safetensors"].sha256 for each in weights]
    assert len(set(hashes)) == len(weights)


def test_after_training_no_module_is_another() -> None:
    """Classes, hooks and configuration of a student are those of one that had no intervention."""
    sections: list[dict[str, Any]] = [{}, {"intervention": {"mode": "gradual", "share": 1.0}}]
    found = []
    for section in sections:
        recipe = tiny(Path(), "packed:vit", distill={**FULL, **section})
        torch.manual_seed(0)
        student = packed.vit()
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        examples = sources.load(recipe)
        description = models.describe(recipe.teacher.model, recipe.base)
        prepared = Prepared(recipe, "sparse", examples, teacher, student, description, Path())
        student.train()
        for step in range(6):
            prepared.begin(step)
            torch.stack(list(prepared.loss(X, torch.zeros(3).long()).values())).sum().backward()
        prepared._objective.remove()
        found.append(
            [
                (n, str(type(m)), len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
                for n, m in student.named_modules()
            ]
        )
        assert not any(m._forward_hooks for m in teacher.modules())
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
