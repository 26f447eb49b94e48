"""The product's chain over one network of every family, each run once a session."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, kinds, target
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.engine import wheel
from edgekd.engine.build import build
from edgekd.export.model import export
from edgekd.plan import Plan, plan

from .families import FAMILIES, written

sys.path.insert(0, str(Path(__file__).parents[1]))
pytest.register_assert_rewrite(f"{__package__}.promises")

A100 = target.load("a100-sxm4-80gb-trt11.4")
OPT_IN = " int8"  # ends the name of a network whose convolutions are asked for in INT8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A class's tests run for each family it names."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", getattr(metafunc.cls, "names", ()))


@dataclass(frozen=True)
class Made:
    """What the chain made of a network: the plan before it, and the artifact of each stage."""

    name: str
    plan: Plan
    student: Artifact
    model: Artifact
    engine: Artifact
    seconds: float

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The plan as the graphs were proven against it."""
        rows: list[dict[str, Any]] = self.model.read_json("layers.json")
        return rows


Chain = Callable[[str], Made]


class Wheels:
    """What a Bundle carries beside its graphs: no index is asked, and nothing is asked twice."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._asked: dict[str, Any] = {}

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(self._cache))
            patch.setenv("PIP_NO_INDEX", "1")
            patch.setenv("PIP_FIND_LINKS", "")
            for name in ("device_wheels", "contents"):
                patch.setattr(wheel, name, self._once(name, getattr(wheel, name)))
            yield

    def _once(self, name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any) -> Any:
            if name not in self._asked:
                self._asked[name] = ask(*args)
            return self._asked[name]

        return answer


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A family by name, planned, distilled, exported and built as evidence for an A100."""
    wheels = Wheels(tmp_path_factory.mktemp("cache"))
    made: dict[str, Made | Exception] = {}

    def make(name: str) -> Made:
        started = time.perf_counter()
        base = tmp_path_factory.mktemp("zoo")
        family = FAMILIES[name.removesuffix(OPT_IN)]
        quantization = {"calibration_samples": 8, "convolutions": name.endswith(OPT_IN)}
        if name.endswith(OPT_IN):
            quantization["include"] = [*family.include]
        recipe = written(family, base, quantization=quantization)
        planned = plan(recipe, A100)
        student = distill(recipe, base / "out")
        model = export(student, base / "out", recipe.export)
        with wheels.offline():
            bundle = build(model, A100, base / "out")
        engine = artifact.parent(bundle, "evidence", kinds.ENGINE)
        return Made(name, planned, student, model, engine, time.perf_counter() - started)

    def get(name: str) -> Made:
        if name not in made:
            try:
                made[name] = make(name)
            except Exception as error:  # every test of it fails, and it is not made again for each
                made[name] = error
        found = made[name]
        if isinstance(found, Exception):
            raise found
        return found

    return get
