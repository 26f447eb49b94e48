"""Verdicts of the gate: each check with what was found, its limit, and its sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection, anchor
from edgekd.report.findings import State
from edgekd.report.words import MINUS, UNJUDGED

STATES: dict[str, State] = {
    "pass": "proven",
    "regress": "failed",
    "inconclusive": "evidence",
    "accepted": "not measured",
}
WORST_FIRST = ("regress", "inconclusive", "pass", "accepted")


@dataclass(frozen=True)
class Check:
    """One row: numbers as text, empty where a check has none."""

    name: str
    verdict: str
    found: str
    interval: str
    limit: str
    sentence: str


@dataclass(frozen=True)
class Gate:
    """One Verdict: its place on the page, what it is about, its outcome and its checks."""

    anchor: str
    about: str
    overall: str
    checks: tuple[Check, ...]

    @property
    def decisive(self) -> str:
        """Sentences of the checks that made the outcome what it is."""
        told = [check.sentence for check in self.checks if check.verdict == self.overall]
        return "; ".join(told) or UNJUDGED


def gates(run: Collection) -> list[Gate]:
    """Every Verdict among the artifacts, the worst first."""
    found = [_gate(run, verdict) for verdict in run.of("Verdict")]
    return sorted(found, key=lambda gate: WORST_FIRST.index(gate.overall))


def _gate(run: Collection, verdict: Artifact) -> Gate:
    document = verdict.read_json("verdict.json")
    engine = run.manifest(verdict.manifest.parents.get("engine", ""), verdict)
    parts = [run.name_of(engine.id, str(engine.config.get("arm", "")), verdict)] if engine else []
    parts += [str(document[key]) for key in ("scenario", "target") if key in document]
    checks = tuple(_check(check) for check in document["checks"])
    return Gate(anchor(verdict.id), ", ".join(parts), str(document["overall"]), checks)


def _check(check: dict[str, Any]) -> Check:
    unit = str(check.get("unit") or "")
    low, high = check.get("interval") or (None, None)
    both = f"{_number(low)} to {_number(high) or 'no upper bound'}" if low is not None else ""
    counted = low is not None and low == high
    return Check(
        name=str(check["name"]).replace("_", " "),
        verdict=str(check["verdict"]),
        found=_number(check.get("found"), unit),
        interval="counted" if counted else both,
        limit=_number(check.get("limit"), unit),
        sentence=str(check.get("sentence") or ""),
    )


def _number(found: Any, unit: str = "") -> str:
    if found is None:
        return ""
    unit = "" if unit == "ratio" else unit
    if isinstance(found, float):
        return f"{found + 0.0:.4g} {unit}".strip().replace("-", MINUS)
    return f"{found:,} {unit}".strip() if isinstance(found, int) else f"{found} {unit}".strip()
