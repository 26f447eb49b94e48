"""Engines of the `cpu` target, small, and a scenario with few queries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.artifact import Artifact
from edgekd.bench.scenario import Scenario

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports


@pytest.fixture
def engine(tmp_path: Path) -> Artifact:
    return reports.engine(tmp_path / "out")


@pytest.fixture
def new_engine(tmp_path: Path) -> Callable[..., Artifact]:
    """A function: an arm, and facts in which its target differs from `cpu`."""
    return lambda arm="sparse", **where: reports.engine(tmp_path / "out", arm, where)


@pytest.fixture(scope="session")
def quick() -> Scenario:
    return reports.few(name="quick", repetitions=9)


@pytest.fixture(scope="module")
def three_engines(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """The arms of the issue, in one directory: float teacher, dense INT8, 2:4 INT8."""
    out = tmp_path_factory.mktemp("bench") / "out"
    return [reports.engine(out, arm) for arm in ("fp16", "dense", "sparse")]
