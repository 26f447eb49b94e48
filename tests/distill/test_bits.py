"""Widths by gradient norm, and what a recipe of few bits ends in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import configs, data, models, taught
from tiny.recipes import UNTRAINED, export_refused, plan, stored, tiny
from torch import Tensor, nn

from edgekd import eligible, runner, target
from edgekd.data import inputs_of, recorded
from edgekd.distill import bits, calibrate, quantize, sparsify
from edgekd.distill.student import distill
from edgekd.errors import ConfigError, ContractError, UnsupportedError
from edgekd.models import forward, run
from edgekd.plan import refusals
from edgekd.run import run as run_chain

from .conftest import Network

CALIBRATION = {"calibration_samples": 32, "convolutions": True}
SENTENCE = (
    "no target multiplies weights of fewer than 8 bits with INT8 activations; `edgekd distill` "
    "trains such a student and measures it in torch, which is where it ends"
)


class TestWidths:
    def test_by_hand(self) -> None:
        sizes = {"a": 100, "b": 100, "c": 100, "d": 100}
        # All but one of 4 bits in each, 400 bits by norm: ideals 3 + 400 * norm / (100 * 8).
        norms = {"a": 6.0, "b": 2.0, "c": 0.0, "d": 0.0}
        # Ideals 6, 4, 3, 3 round down to 4, 4, 2, 2: 1200 of 1600 bits; a is 2 short and takes 8.
        assert bits.widths(sizes, norms, 4.0) == {"a": 8, "b": 4, "c": 2, "d": 2}

    def test_only_one_bit_a_weight_follows_the_norms(self) -> None:
        sizes = {"a": 100, "b": 100, "c": 100, "d": 100}
        norms = {"a": 1.9, "b": 1.9, "c": 0.1, "d": 0.1}
        # Ideals 4.9, 4.9, 3.1, 3.1: c and d are 1.1 short of them, a and b 0.9. Were it half of the
        # bits, a's would be 5.8 and it would take 8.
        assert bits.widths(sizes, norms, 4.0) == dict.fromkeys(sizes, 4)

    def test_a_large_layer_pays_for_its_size(self) -> None:
        sizes = {"small": 10, "large": 1000}
        found = bits.widths(sizes, {"small": 1.0, "large": 1.0}, 4.0)
        assert found == {"small": 4, "large": 4}
        assert bits.widths(sizes, {"small": 1.0, "large": 0.0}, 4.0)["small"] == 8

    @pytest.mark.parametrize(("mean", "width"), [(2.0, 2), (8.0, 8)])
    def test_the_ends_leave_no_choice(self, mean: float, width: int) -> None:
        found = bits.widths({"a": 5, "b": 50, "c": 7}, {"a": 9.0, "b": 1.0, "c": 0.1}, mean)
        assert set(found.values()) == {width}

    @given(
        layers=st.lists(
            st.tuples(st.integers(1, 5000), st.floats(1e-6, 1e3)), min_size=1, max_size=12
        ),
        mean=st.floats(2, 8),
    )
    def test_the_mean_is_never_exceeded_and_nothing_that_fits_is_left(
        self, layers: list[tuple[int, float]], mean: float
    ) -> None:
        sizes = {str(i): n for i, (n, _) in enumerate(layers)}
        norms = {str(i): g for i, (_, g) in enumerate(layers)}
        found = bits.widths(sizes, norms, mean)
        budget = mean * sum(sizes.values())
        spent = sum(found[i] * n for i, n in sizes.items())
        assert spent <= budget
        assert set(found.values()) <= {2, 4, 8}
        for layer, width in found.items():
            assert width == 8 or spent + width * sizes[layer] > budget
        assert found == bits.widths(sizes, norms, mean)


class Squares:
    """A loss whose gradient is easy: the mean square of the logits."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.removed = model, False

    def __call__(self, inputs: dict[str, Tensor], _labels: Tensor, /) -> dict[str, Tensor]:
        return {"squares": self.model(**inputs).square().mean()}

    def remove(self) -> None:
        self.removed = True


def feed(model: nn.Module) -> None:
    examples = data.vectors()
    run(model, examples.train.take(np.arange(32))[0], examples.io)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
def test_norms_are_the_mean_of_five_batches_at_the_affordable_width(sparse: bool) -> None:
    torch.manual_seed(0)
    model, made = models.mlp(), []
    rows = plan(model)
    scales = calibrate.calibrate(model, rows, {}, feed)
    rows = [replace(row, sparse=row.sparse and sparse) for row in rows]
    masks = sparsify.masks(model, rows)
    assert ("stem" in masks) is sparse
    batches = list(bits.batches_of(data.vectors(), 4, model))
    assert [len(labels) for _, labels in batches] == [4] * 5

    def loss(twin: nn.Module) -> Squares:
        made.append(Squares(twin))
        return made[0]

    found = bits.norms(model, rows, masks, scales, 5.0, loss, batches)
    assert made[0].removed
    twin = models.mlp()
    twin.load_state_dict(model.state_dict())
    quantize.attach(twin.eval(), [replace(row, bits=4) for row in rows], masks, scales)
    total = 0.0
    for inputs, _ in batches:
        weight = quantize.original(twin.stem)
        (gradient,) = torch.autograd.grad(twin(inputs["x"]).square().mean(), [weight])
        kept = gradient[masks["stem"]] if sparse else gradient
        total += float(kept.norm()) / 5
    assert found["stem"] == pytest.approx(total, rel=1e-5)
    assert list(found) == [row.layer for row in rows if row.int8]
    assert not any(name.endswith("_quantizer") for name, _ in model.named_modules())


class Dominated(Squares):
    """Squares, and a far steeper term of one layer's weights."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__(model)
        self.weight = quantize.original(model.get_submodule(layer))

    def __call__(self, inputs: dict[str, Tensor], _labels: Tensor, /) -> dict[str, Tensor]:
        squares = forward(self.model, inputs, taught.LOGITS)["logits"].square().mean()
        return {"squares": squares, "one layer": 1e3 * self.weight.square().sum()}


def test_the_layer_whose_gradient_dominates_is_the_wide_one(network: Network) -> None:
    model, rows, examples = network
    batches = list(bits.batches_of(examples, 4, model))
    masks = sparsify.masks(model, rows)
    scales = calibrate.calibrate(
        model, rows, masks, lambda net: forward(net, batches[0][0], examples.io)
    )
    sizes = {row.layer: row.n * row.k for row in rows if row.int8}
    # 8 bits of one and 2 of the others are an average of 4 at most where it holds a third.
    able = [layer for layer, size in sizes.items() if size <= sum(sizes.values()) / 3]
    largest = sorted(able, key=lambda layer: sizes[layer])[-3:]
    for dominant in largest:
        steep = partial(Dominated, layer=dominant)
        allocated = bits.allocate(model, rows, masks, scales, 4.0, steep, batches)
        found = {row.layer: row.bits for row in allocated if row.int8}
        assert {layer: found[layer] == 8 for layer in largest} == {
            layer: layer == dominant for layer in largest
        }


@pytest.mark.parametrize(
    ("factor", "words"), [(0.0, "is 0 in all 5"), (float("nan"), "of stem is nan")]
)
def test_a_gradient_that_says_nothing(factor: float, words: str) -> None:
    class Bad(Squares):
        def __call__(self, inputs: dict[str, Tensor], labels: Tensor, /) -> dict[str, Tensor]:
            return {"bad": super().__call__(inputs, labels)["squares"] * factor}

    model = models.mlp()
    rows = plan(model)
    scales = calibrate.calibrate(model, rows, {}, feed)
    rows = [replace(row, sparse=False) for row in rows]
    batches = bits.batches_of(data.vectors(), 4, model)
    with pytest.raises(ContractError) as caught:
        bits.norms(model, rows, {}, scales, 4.0, Bad, batches)
    assert f"bits: the norm of the loss's gradient {words}" in str(caught.value)
    assert "give quantization.weights instead" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "source"),
    [(configs.VIT, "images"), (configs.BERT, "tokens"), (configs.RESNET, "images")],
    ids=["vit", "bert", "resnet"],
)
def test_a_student_of_mixed_widths(
    config: dict[str, Any], source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantization = {**CALIBRATION, "mean_bits": 5.0}
    student = distill(tiny(tmp_path, config, source, quantization=quantization), tmp_path / "out")
    rows = [row for row in student.read_json("layers.json") if row["int8"]]
    weights = stored(student, "model")
    sizes = [weights[f"{row['layer']}.weight"].numel() for row in rows]
    mean = sum(row["bits"] * n for row, n in zip(rows, sizes, strict=True)) / sum(sizes)
    assert 2 < mean <= 5.0
    assert len({row["bits"] for row in rows}) > 1
    said = capsys.readouterr().err
    assert f"{mean:.2f} a weight, 5 allowed" in said
    below = sum(row["bits"] < 8 for row in rows)
    assert sum(student.results["layers_by_bits"].values()) == below
    assert student.results["layers_int8"] == len(rows) - below
    scales = stored(student, "quantizers")
    for row in rows:
        q = weights[f"{row['layer']}.weight"].flatten(1)
        q = q / scales[f"{row['layer']}.weight_scale"][:, None]
        limit = {8: 127, 4: 7, 2: 1}[row["bits"]]
        assert float(q.abs().max()) <= limit + 0.01
        assert row["bits"] == 8 or torch.equal(q, q.round())
    with runner.open(student) as network:
        samples = dict(np.load(student.file("samples.npz")))
        answers = network(inputs_of(samples))
    for name, answer in recorded(samples, "student").items():
        assert np.allclose(answers[name], answer, atol=1e-5)
    refused = export_refused(student, tmp_path / "out", UnsupportedError)
    assert f"weights of {below} layers have" in refused
    assert next(row["layer"] for row in rows if row["bits"] < 8) in refused
    assert SENTENCE in refused


class TestRefused:
    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("weights", "int4", 'quantization.weights = "int4"'),
            ("weights", "ternary", 'quantization.weights = "ternary"'),
            ("mean_bits", 4.0, "quantization.mean_bits = 4"),
        ],
    )
    def test_before_anything_is_trained(
        self, key: str, value: Any, words: str, tmp_path: Path
    ) -> None:
        asked = tiny(tmp_path, quantization={**CALIBRATION, key: value})
        for targets in ([], [target.load("cpu")]):
            with pytest.raises(UnsupportedError) as caught:
                run_chain(asked, targets, tmp_path / "out")
            assert f"{words}: {SENTENCE}" in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert refusals(asked, target.load("cpu")) == [f"{words}: {SENTENCE}"]

    def test_a_mean_of_8_bits_is_int8(self, tmp_path: Path) -> None:
        asked = tiny(tmp_path, quantization={**CALIBRATION, "mean_bits": 8.0}, distill=UNTRAINED)
        assert refusals(asked, target.load("cpu")) == []
        student = distill(asked, tmp_path / "out")
        assert student.results["layers_by_bits"] == {}
        rows = [eligible.LayerPlan(**row) for row in student.read_json("layers.json")]
        assert eligible.below_int8(rows) == ""

    def test_two_ways_to_say_how_many_bits(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            tiny(tmp_path, quantization={"weights": "int4", "mean_bits": 4.0})
        assert "weights is 'int4' and mean_bits is 4" in str(caught.value)
        assert "keep one of them" in str(caught.value)
