"""One small Student, and a way to interrupt its training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs, data
from tiny.recipes import StopAt, tiny
from torch import Tensor, nn

from edgekd import models, structure
from edgekd.artifact import Artifact
from edgekd.data import Data
from edgekd.distill import loop
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill
from edgekd.eligible import LayerPlan
from edgekd.recipe import Quantization, Sparsity


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The Student of an MLP with dropout, after two steps."""
    base = tmp_path_factory.mktemp("made")
    return distill(tiny(base), base / "out")


Network = tuple[nn.Module, list[LayerPlan], Data]


@pytest.fixture(scope="module", params=["vit", "bert", "resnet"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A small network, its plan, and data it takes; made anew for every module."""
    config, source = {
        "vit": (configs.VIT, data.images),
        "bert": (configs.BERT, data.tokens),
        "resnet": (configs.RESNET, data.images),
    }[request.param]
    torch.manual_seed(0)
    recipe = tiny(tmp_path_factory.mktemp("net"), config, source.__name__)
    model = models.build(models.describe(recipe.teacher.model, recipe.base)).eval()
    examples = source()
    one = models.tensors(examples.train.take(np.arange(1))[0], model)
    rows = structure.plan(model, one, examples.io, Sparsity(), Quantization(convolutions=True))
    return model, rows, examples


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> StopAt:
    """``stop_at(3, KeyboardInterrupt)``: raised in step 3, with a checkpoint of every step."""

    def interrupt(step: int, error: type[BaseException]) -> None:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        real, count = Objective.__call__, iter(range(100))

        def stops(self: Objective, inputs: Any, target: Tensor) -> Any:
            if next(count) == step:
                raise error("stop")
            return real(self, inputs, target)

        monkeypatch.setattr(Objective, "__call__", stops)

    return interrupt
