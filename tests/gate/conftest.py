"""Two engines, and a bench that returns what a test says it measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekd import gate
from edgekd.artifact import Artifact
from edgekd.bench.scenario import Scenario

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports
from tiny.gates import Bench


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def engines(out: Path) -> dict[str, Artifact]:
    return {arm: reports.engine(out, arm) for arm in ("dense", "sparse")}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A function that sets what bench will have measured: {engine id: (median ns, between)}."""

    def arrange(times: dict[str, tuple[float, float]], **state: Any) -> None:
        def bench(
            engines: Sequence[Artifact], scenario: Scenario, out: Path, samples: Artifact | None
        ) -> Artifact:
            del samples
            drawn = [reports.draw(seed, *times[engine.id]) for seed, engine in enumerate(engines)]
            return reports.latency_report(out, engines, scenario, drawn, state)

        monkeypatch.setattr(gate, "bench", bench)

    return arrange
