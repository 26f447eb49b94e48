"""What tests of the gate ask it, and how they read its Verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd import gate
from edgekd.artifact import Artifact
from edgekd.bench.scenario import Scenario
from edgekd.recipe import Gate
from tiny import reports

Bench = Callable[..., None]  # sets what bench will have measured

FEW = reports.few()
ROOMY = Gate(minimum_effect_points=100.0)  # the two arms differ, and 20 samples are few


def verdict_of(made: Artifact) -> tuple[str, dict[str, str]]:
    report = made.read_json("verdict.json")
    return report["overall"], {check["name"]: check["verdict"] for check in report["checks"]}


def sentence(made: Artifact, name: str) -> str:
    (found,) = [
        c["sentence"] for c in made.read_json("verdict.json")["checks"] if c["name"] == name
    ]
    return str(found)


def accepted(
    engine: Artifact, out: Path, directory: Path, scenario: Scenario = FEW, **given: Any
) -> Path:
    gate.gate(
        engine, out, budgets=ROOMY, scenario=scenario, baseline=directory, accept=True, **given
    )
    return directory
