"""What every stage is held to while it trains: its masks, and the unit of each of its losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import configs
from tiny.recipes import tiny
from torch import Tensor

from edgekd.distill import loop
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill
from edgekd.errors import ContractError

LAYER = "resnet.encoder.stages.0.layers.0.layer.0.convolution"


@pytest.mark.parametrize(
    ("breaks_in", "stage", "ran"), [(0, "batchnorm warm-up", 2), (5, "float stage", 7)]
)
def test_a_mask_that_breaks_stops_a_stage_at_its_next_check(
    breaks_in: int, stage: str, ran: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the stage's end, where the masks are taken off."""
    monkeypatch.setattr(loop, "CHECK_STEPS", 2)
    real, steps = Objective.__call__, []

    def opens(self: Objective, inputs: Any, target: Tensor) -> Any:
        if len(steps) == breaks_in:
            self._student.get_buffer(f"{LAYER}.parametrizations.weight.0.mask").fill_(True)
        steps.append(len(steps))
        return real(self, inputs, target)

    monkeypatch.setattr(Objective, "__call__", opens)
    settings = {"steps": 1, "batch_size": 16, "batchnorm_warmup": 5, "sparse": {"steps": 5}}
    recipe = tiny(tmp_path, configs.RESNET, "images", distill=settings)
    with pytest.raises(ContractError) as caught:
        distill(recipe, tmp_path / "out")
    assert str(caught.value) == f"{stage}: the 2:4 mask of {LAYER} was lost or changed"
    assert len(steps) == ran


def test_every_stage_holds_a_loss_to_its_own_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, units = loop.train, {}

    def noted(run: loop.Run) -> loop.Curve:
        units[run.label] = run.units
        return real(run)

    monkeypatch.setattr(loop, "train", noted)
    settings = {
        "steps": 1,
        "batch_size": 16,
        "batchnorm_warmup": 1,
        "sparse": {"steps": 1},
        "losses": {"logits": 10.0, "blocks": 5.0, "labels": 1.0},
        "intervention": {"mode": "output", "weight": 3.0},
    }
    distill(tiny(tmp_path, configs.RESNET, "images", distill=settings), tmp_path / "out")
    weights = {"logits": 10.0, "blocks": 5.0, "labels": 1.0}
    assert units == {
        "fit teacher": {},
        "batchnorm warm-up": weights,
        "distill sparse, float stage": weights,
        "distill sparse": {**weights, "intervention": 3.0},
    }
