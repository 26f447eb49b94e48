"""A loss that explodes stops the run at its last good checkpoint; one that grows does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgekd.data import ArraySplit
from edgekd.distill import loop, lsq
from edgekd.errors import ConfigError, ContractError
from edgekd.recipe import Training

SPLIT = ArraySplit({"x": np.zeros((8, 2), np.float32)}, np.zeros(8, np.int64))


def run(keep: Path, values: Sequence[float], **changes: Any) -> loop.Run:
    """A run whose only term has these values, one a step."""
    keep.mkdir(parents=True, exist_ok=True)
    model = nn.Linear(2, 2)
    latest = iter(values)

    def loss(inputs: dict[str, Tensor], _: Tensor) -> dict[str, Tensor]:
        return {"blocks": model(inputs["x"]).sum() * 0 + next(latest)}

    settings = Training(steps=len(values), batch_size=4, learning_rate=1e-3)
    return loop.Run(
        **{
            "label": "fit", "model": model, "loss": loss, "split": SPLIT, "settings": settings,
            "seed": 0, "keep": keep, **changes,
        }
    )  # fmt: skip


def step_of(keep: Path) -> int:
    about = load_file(keep / loop.CHECKPOINT)["about"]
    return int(json.loads(bytes(about.tolist()))["step"])


class TestExploding:
    def test_it_names_the_term_the_step_and_the_checkpoint_it_keeps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        values = [0.5, 0.4, 0.3, *[500.0] * loop.EXPLODED_STEPS, 0.1]
        with pytest.raises(ConfigError) as caught:
            loop.train(run(tmp_path, values))
        rate = loop.learning_rate(Training(steps=len(values)), 22)
        assert str(caught.value) == (
            "fit: loss term 'blocks' has exploded: 500, above 10 for 20 steps, which is 10 times "
            f"what it began at (0.5) or its unit, at step 22 of 24 (learning rate {rate:.2g}): "
            f"lower the learning_rate of 0.001; the last good checkpoint is "
            f"{tmp_path / loop.CHECKPOINT}"
        )
        # Of weights after two updates: their loss, of step 2, was the last in range.
        assert step_of(tmp_path) == 2

    def test_without_a_checkpoint_none_is_promised(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            loop.train(run(tmp_path, [0.5] + [500.0] * loop.EXPLODED_STEPS))
        assert "checkpoint" not in str(caught.value)
        assert not (tmp_path / loop.CHECKPOINT).exists()

    def test_a_run_that_ends_above_its_limit_is_not_kept(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has exploded: 13, above 10 for 3 of the last 4, "):
            loop.train(run(tmp_path / "a", [0.5, 11.0, 12.0, 13.0]))
        values = [0.5] * 50 + [500.0] * 5 + [0.5] + [500.0] * 6
        with pytest.raises(ConfigError) as caught:
            loop.train(run(tmp_path / "b", values))
        assert (
            "has exploded: 500, above 10 for 11 of the last 20, which is 10 times what it began at "
            "(0.5) or its unit, at step 61 of 62 (learning rate "
        ) in str(caught.value)
        assert not list(tmp_path.glob(f"*/{loop.CHECKPOINT}"))


class TestGrowing:
    def test_a_kl_that_grows_forty_times_is_training(self, tmp_path: Path) -> None:
        curve = loop.train(run(tmp_path, [0.0, 1e-4, *np.linspace(1e-4, 4e-3, 60)]))
        assert len(curve) == 62

    def test_so_is_one_that_comes_back_in_time(self, tmp_path: Path) -> None:
        spike = [500.0] * (loop.EXPLODED_STEPS - 1)
        assert len(loop.train(run(tmp_path, [0.5, *spike, 0.5, *spike, 0.5]))) == 41

    def test_so_is_one_that_ends_on_a_noisy_batch(self, tmp_path: Path) -> None:
        # One batch, or the less than half of the last steps that a median does not see.
        for name, noisy in (("one", [500.0]), ("half", [500.0, 0.5] * 9 + [0.5, 500.0])):
            values = [0.5] * 30 + noisy
            assert len(loop.train(run(tmp_path / name, values))) == len(values)
            assert step_of(tmp_path / name) == len(values)

    def test_a_run_that_has_ended_is_judged_as_it_was(self, tmp_path: Path) -> None:
        ended = run(tmp_path, [0.5, 0.5, 500.0])
        curve = loop.train(ended)
        assert loop.train(run(tmp_path, [], settings=ended.settings)) == curve

    def test_a_loss_in_large_units_is_held_to_where_it_began(self, tmp_path: Path) -> None:
        assert loop.train(run(tmp_path / "a", [5e3] + [4e4] * 30))
        with pytest.raises(ConfigError, match="above 5e\\+04 for 20 steps"):
            loop.train(run(tmp_path / "b", [5e3] + [6e4] * 30))

    def test_a_weight_is_the_terms_unit(self, tmp_path: Path) -> None:
        values = [0.1] + [40.0] * 30
        assert loop.train(run(tmp_path / "a", values, units={"blocks": 5.0}))
        with pytest.raises(ConfigError, match="above 10 for 20 steps"):
            loop.train(run(tmp_path / "b", values))

    def test_a_resumed_run_judges_by_the_first_row_of_the_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        values = [0.5, 0.5, 0.5, 9.0, 9.0, *[40.0] * 30]
        cut = run(tmp_path, values)
        cut.loss = _stops(cut.loss, 4)
        with pytest.raises(KeyboardInterrupt):
            loop.train(cut)
        assert step_of(tmp_path) == 3
        # Held to the 9 it goes on with it would pass.
        again = run(tmp_path, values[3:], settings=cut.settings)
        with pytest.raises(ConfigError, match=r"what it began at \(0.5\)"):
            loop.train(again)


def _stops(loss: loop.Loss, at: int) -> loop.Loss:
    count = iter(range(100))

    def stops(inputs: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        if next(count) == at:
            raise KeyboardInterrupt
        return loss(inputs, target)

    return stops


class TestCheck:
    def test_it_runs_between_checkpoints_too(self, tmp_path: Path) -> None:
        calls: list[int] = []
        loop.train(run(tmp_path, [0.5] * 250, check=lambda: calls.append(1)))
        assert len(calls) == 2 + 1

    def test_a_mask_that_breaks_stops_the_run_soon(self, tmp_path: Path) -> None:
        def broken() -> None:
            raise ContractError("the mask was lost")

        steps: list[int] = []
        training = run(tmp_path, [0.5] * 250, check=broken, begin=steps.append)
        with pytest.raises(ContractError, match="the mask was lost"):
            loop.train(training)
        assert steps[-1] == loop.CHECK_STEPS - 1


def test_what_is_observed_stands_in_the_row_and_is_no_loss(tmp_path: Path) -> None:
    training = run(tmp_path, [0.5, 0.5], observed=lambda: {"agreement": 1e6})
    curve = loop.train(training)
    assert [row["agreement"] for row in curve] == [1e6, 1e6]
    assert [row["blocks"] for row in curve] == [0.5, 0.5]


def test_weight_decay_leaves_learned_scales_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("scale", lsq.LearnedScale(torch.tensor(0.5)))
    with torch.no_grad():
        model.scale.log_scale.fill_(0.7)
    before = model[0].weight.clone()

    def loss(_: dict[str, Tensor], __: Tensor) -> dict[str, Tensor]:
        nothing = sum((p * 0).sum() for p in model.parameters())
        return {"blocks": nothing + torch.tensor(0.5)}

    settings = Training(steps=3, learning_rate=0.1, weight_decay=0.5)
    loop.train(run(tmp_path, [0.0] * 3, model=model, loss=loss, settings=settings))
    assert float(model.scale.log_scale.detach()) == pytest.approx(0.7)
    assert (model[0].weight.abs() < before.abs()).all()
