"""What was measured of two engines, and a baseline of the first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekd import artifact, baseline, evaluate, kinds
from edgekd.artifact import Artifact

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports

SLOW = reports.draw(1, 2e6, between=0.01)


def parts_of(engine: Artifact, out: Path) -> dict[str, Artifact]:
    return {
        "engine": engine,
        "samples": artifact.parent(engine, "samples", kinds.SAMPLES),
        "accuracy": evaluate.evaluate(engine, out),
        "latency": reports.latency_report(out, [engine], reports.few(), [SLOW]),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Artifact]]:
    """All that belongs to two engines, by arm."""
    out = tmp_path_factory.mktemp("made") / "out"
    return {arm: parts_of(reports.engine(out, arm), out) for arm in ("sparse", "dense")}


@pytest.fixture
def written(made: dict[str, dict[str, Artifact]], tmp_path: Path) -> Path:
    baseline.accept(tmp_path / "b", **made["sparse"])
    return tmp_path / "b"
