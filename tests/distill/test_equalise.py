"""Scaling: equation 4, a function that does not change, and sites that are put back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs, data, forms, models, taught
from tiny.recipes import tiny
from torch import Tensor, nn

from edgekd import models as networks
from edgekd import sources, structure
from edgekd.distill import equalise, quantize
from edgekd.distill.calibrate import calibrate
from edgekd.eligible import LayerPlan
from edgekd.recipe import Quantization


class Normed(nn.Module):
    """Two layers behind one LayerNorm, and two with ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.last = nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.norm.weight[3] = 30.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.head(torch.tanh(self.last(torch.relu(self.a(x)))) + self.b(x))


class NoSite(nn.Module):
    """GELU lets no scale pass, and the sum reads the norm's result too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.head(x + self.b(torch.nn.functional.gelu(self.a(x))))


def rows_of(model: nn.Module, examples: Any, convolutions: bool = True) -> list[LayerPlan]:
    one = networks.tensors(examples.train.take(np.array([0]))[0], model)
    section = Quantization(convolutions=convolutions)
    return structure.plan(model, one, examples.io, None, section)


def equalised(model: nn.Module, examples: Any, alpha: float = 0.5) -> list[dict[str, Any]]:
    rows = rows_of(model, examples)
    batches = [examples.train.take(np.arange(start, start + 32))[0] for start in (0, 32)]
    return equalise.equalise(model, rows, batches, examples.io, alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_scales_are_the_papers_and_folded_on_both_sides(alpha: float) -> None:
    torch.manual_seed(0)
    model = Normed()
    before = copy.deepcopy(model)
    told = {row["producer"]: row for row in equalised(model, data.vectors(), alpha)}
    assert told["norm"]["consumers"] == ["a", "b"]
    assert told["norm"]["scaled"]
    x = torch.from_numpy(data.vectors().train.take(np.arange(64))[0]["x"])
    largest = before.norm(x).abs().amax(0)
    weights = torch.maximum(before.a.weight.abs().amax(0), before.b.weight.abs().amax(0))
    s = largest**alpha / weights ** (1 - alpha)
    assert torch.allclose(model.norm.weight, before.norm.weight / s, rtol=1e-5)
    assert torch.allclose(model.norm.bias, before.norm.bias / s, rtol=1e-5)
    assert torch.allclose(model.b.weight, before.b.weight * s, rtol=1e-5)
    assert told["norm"]["largest"] == pytest.approx(float(s.detach().max()), rel=1e-4)
    # ReLU lets a positive scale through: rows of the producer, columns of the consumer.
    assert told["a"]["scaled"]
    hidden = torch.relu(before.a(before.norm(x))).abs().amax(0)
    s2 = (hidden**alpha / before.last.weight.abs().amax(0) ** (1 - alpha)).detach()
    s2 = torch.where(hidden > 0, s2, 1.0)
    assert torch.allclose(model.last.weight, before.last.weight * s2, rtol=1e-5)
    assert torch.allclose(model.a.bias, before.a.bias / s2, rtol=1e-5)
    wanted, found = before(x).detach(), model(x).detach()
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("config", "name", "producers"),
    [
        (configs.VIT, "images", {"layernorm_before", "layernorm_after", "v_proj"}),
        (configs.BERT, "tokens", {"value"}),  # the residual stream reads its LayerNorms too
        (configs.RESNET, "images", {"convolution"}),  # through batch norm and ReLU
    ],
    ids=["vit", "bert", "resnet"],
)
def test_families_compute_what_they_did(
    config: dict[str, Any], name: str, producers: set[str], tmp_path: Path
) -> None:
    recipe = tiny(tmp_path, config, name)
    examples = sources.load(recipe)
    torch.manual_seed(0)
    model = networks.build(networks.describe(recipe.teacher.model, tmp_path))
    batch = examples.train.take(np.arange(64))[0]
    before = networks.run(model, batch, examples.io)
    weights = copy.deepcopy(model.state_dict())
    told = equalised(model, examples)
    after = networks.run(model, batch, examples.io)
    for output, wanted in before.items():
        assert abs(after[output] - wanted).max() / abs(wanted).max() < 1e-5
    assert all(row["scaled"] for row in told)
    assert {row["producer"].rpartition(".")[2] for row in told} == producers
    assert len(told) == 2 * len(producers)
    assert all(row["largest"] > 1.1 * row["smallest"] for row in told)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, weights[n])]
    consumers = {f"{layer}.weight" for row in told for layer in row["consumers"]}
    assert consumers <= set(changed)
    assert all("head" not in n and "classifier" not in n for n in changed)


def test_an_outlier_channel_stops_costing_the_others() -> None:
    """With both scales static, the layer's output is nearer to the float layer's."""
    examples = data.vectors()
    batch = examples.train.take(np.arange(64))[0]

    def error(alpha: float | None) -> float:
        torch.manual_seed(0)
        model = Normed().eval()
        if alpha is not None:
            equalised(model, examples, alpha)
        rows = rows_of(model, examples)
        wanted = networks.run(model, batch, examples.io)["logits"]
        scales = calibrate(model, rows, {}, lambda m: networks.run(m, batch, examples.io))
        quantize.attach(model, rows, {}, scales)
        return float(np.square(networks.run(model, batch, examples.io)["logits"] - wanted).mean())

    assert error(0.5) < 0.5 * error(None)


def test_a_network_without_a_site_says_so_and_stays(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = NoSite()
    before = copy.deepcopy(model.state_dict())
    assert equalised(model, data.vectors()) == []
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    said = capsys.readouterr().err
    assert "equalise: no site: before none of the quantized layers is a LayerNorm" in said
    assert "nothing changed" in said


def test_a_site_that_changes_the_answer_is_put_back_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Normed()
    before = copy.deepcopy(model.state_dict())
    real = equalise._Answers.gap
    gaps: list[float] = []

    def gap(self: equalise._Answers) -> float:
        gaps.append(real(self))
        return gaps[-1] if len(gaps) <= tried else 1e-3

    tried = 2  # norm and a pass the trial by powers of two, last does not: tanh comes after it
    monkeypatch.setattr(equalise._Answers, "gap", gap)
    told = equalised(model, data.vectors())
    assert [row["scaled"] for row in told] == [False] * len(told)
    assert told
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    said = capsys.readouterr().err
    assert "equalise: norm is left as it was: with its channels scaled the network answers" in said
    assert "0.001 of its size away, expected at most 1e-05" in said


def test_values_are_left_alone_where_a_teachers_context_may_take_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(tmp_path, configs.VIT, "images")
    examples = sources.load(recipe)
    model = networks.build(networks.describe(recipe.teacher.model, tmp_path))
    batches = [examples.train.take(np.arange(16))[0]]
    rows = rows_of(model, examples)
    told = equalise.equalise(model, rows, batches, examples.io, 0.5, attention=False)
    made = {row["producer"].rpartition(".")[2] for row in told}
    assert made
    assert not made & {"v_proj", "value"}
    assert "values are left, as a teacher's context is" in capsys.readouterr().err
    told = equalise.equalise(model, rows, batches, examples.io, 0.5)
    assert "values are left" not in capsys.readouterr().err
    assert {row["producer"].rpartition(".")[2] for row in told} & {"v_proj", "value"}


@pytest.mark.parametrize(
    ("mode", "scaled"),
    [
        (None, True),
        ("output", True),
        ("map", True),
        ("context", False),
        ("gradual", False),
        ("inverted", False),
        ("stochastic", False),
    ],
)
def test_which_modes_of_teacher_intervention_leave_values_alone(
    mode: str | None, scaled: bool, tmp_path: Path
) -> None:
    intervention = {} if mode is None else {"intervention": {"mode": mode}}
    settings = {"steps": 1, "losses": {"blocks": 0.0}, **intervention}
    recipe = tiny(tmp_path, configs.VIT, "images", distill=settings, quantization={"smooth": 0.5})
    examples = sources.load(recipe)
    model = networks.build(networks.describe(recipe.teacher.model, tmp_path))
    batches = [examples.train.take(np.arange(16))[0]]
    told = equalise.asked(recipe, model, rows_of(model, examples), batches, examples.io)
    assert told
    assert any(row["producer"].endswith("v_proj") for row in told) is scaled


@pytest.mark.parametrize(("mode", "same"), [("output", True), ("map", True), ("context", False)])
def test_a_teachers_signal_in_a_student_with_scaled_values(mode: str, same: bool) -> None:
    """Only a context has the values' channels: map and output do to scaled values what they did."""
    plain, teacher = taught.two(lambda: taught.hf(configs.VIT, "eager"))
    scaled, io = copy.deepcopy(plain), taught.LOGITS
    rows = structure.plan(scaled, taught.IMAGES, io, None, Quantization())
    batch = {name: tensor.numpy() for name, tensor in taught.IMAGES.items()}
    told = equalise.equalise(scaled, rows, [batch], io, 0.5)
    assert any(row["producer"].endswith("v_proj") and row["scaled"] for row in told)
    wanted, found = (
        taught.passes(taught.acting(mode, pair, taught.IMAGES), pair, taught.IMAGES).detach()
        for pair in ((plain, teacher), (scaled, teacher))
    )
    gap = float((found - wanted).abs().max() / wanted.abs().max())
    assert (gap < 1e-5) is same


def test_a_layer_that_runs_thrice_is_no_site() -> None:
    torch.manual_seed(0)
    model = forms.repeated()
    assert all("blocks" not in row["producer"] for row in equalised(model, data.vectors()))


def test_models_mlp_has_no_positively_homogeneous_pair() -> None:
    """Dropout and GELU between its layers: the trial finds out what the structure allows."""
    torch.manual_seed(0)
    assert equalised(models.mlp(), data.vectors()) == []
