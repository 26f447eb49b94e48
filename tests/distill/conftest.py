"""One small Student, and a way to interrupt its training."""

from __future__ import annotations

from typing import Any

import pytest
from tiny.recipes import StopAt, tiny
from torch import Tensor

from edgekd.artifact import Artifact
from edgekd.distill import loop
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The Student of an MLP with dropout, after two steps."""
    base = tmp_path_factory.mktemp("made")
    return distill(tiny(base), base / "out")


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
