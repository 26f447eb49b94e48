"""Engines of the `cpu` target, small, and a scenario with few queries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekd import recipe, target
from edgekd.artifact import Artifact
from edgekd.bench.scenario import Scenario, Warmup

CPU = target.load("cpu")


def engine_fixtures(name: str) -> ModuleType:
    """A file of tests/engine, which makes graphs with onnx or stands in for TensorRT."""
    file = Path(__file__).parents[1] / "engine" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"engine_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_engine(out: Path, arm: str = "sparse", **changes: Any) -> Artifact:
    """An Engine for `cpu`, or for a target that differs from it in some facts."""
    from edgekd.engine.build import build

    model = engine_fixtures("conftest").make_model(out, arm=arm)
    document = {**CPU.as_json(), **changes}
    return build(model, recipe.check(target.Target, document, "test"), out)


@pytest.fixture(scope="session")
def runner_tests() -> ModuleType:
    """tests/engine/test_runner.py, which has a stand-in for TensorRT."""
    return engine_fixtures("test_runner")


@pytest.fixture
def engine(tmp_path: Path) -> Artifact:
    return make_engine(tmp_path / "out")


@pytest.fixture
def new_engine(tmp_path: Path) -> Callable[..., Artifact]:
    return lambda **options: make_engine(tmp_path / "out", **options)


@pytest.fixture(scope="session")
def quick() -> Scenario:
    return Scenario(
        name="quick",
        scenario="SingleStream",
        batch=1,
        percentile=90,
        queries=64,
        warmup=Warmup(queries=1, seconds=0),
        repetitions=9,
    )


@pytest.fixture(scope="module")
def three_engines(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """The arms of the issue, in one directory: float teacher, dense INT8, 2:4 INT8."""
    out = tmp_path_factory.mktemp("bench") / "out"
    return [make_engine(out, arm=arm) for arm in ("fp16", "dense", "sparse")]
