"""Accuracy and fidelity of every arm side by side, each number with its interval.

Top-1 alone cannot tell two networks apart on a task that is nearly solved: agreement with the
teacher and KL see every changed answer. Intervals are drawn on one axis, because whether two of them
overlap is what a reader wants to know, and six numbers in a table do not show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection, anchor, arm_name
from edgekd.report.words import count, percent, points, significant

MARGIN = 3.0  # percent of the axis kept free at both ends, so that a dot is not cut


@dataclass(frozen=True)
class Whisker:
    """An interval and its middle on the common axis, in percent of its width."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Row:
    """One network on one set of samples; an empty text is a number that does not exist for it."""

    who: str
    how: str
    anchor: str
    correct: str
    top1: str
    top1_interval: str
    whisker: Whisker
    difference: str
    difference_interval: str
    agreement: str
    agreement_interval: str
    kl: str
    kl_interval: str
    recorded: str


@dataclass(frozen=True)
class Accuracy:
    """The table: its rows, how the axis reads, where the teacher lies on it, on what it counts."""

    rows: tuple[Row, ...]
    axis: tuple[str, str]
    teacher: float | None
    samples: str
    intervals: str


def accuracy(run: Collection) -> Accuracy | None:
    """The table of all AccuracyReports; None where there is none."""
    found = _entries(run)
    if not found:
        return None
    low = min(row["top1_interval"][0] for row, _ in found)
    high = max(row["top1_interval"][1] for row, _ in found)
    span = max(high - low, 1e-9)

    def place(share: float) -> float:
        return round(MARGIN + (share - low) / span * (100 - 2 * MARGIN), 2)

    reports = run.of("AccuracyReport")
    teacher = next((place(row["top1"]) for row, _ in found if row["who"] == "teacher"), None)
    counts = sorted({report.results["count"] for report in reports})
    return Accuracy(
        rows=tuple(_row(run, row, report, place) for row, report in found),
        axis=(percent(low), percent(high)),
        teacher=teacher,
        samples=" or ".join(count(number) for number in counts),
        intervals=", ".join(sorted({report.results["intervals"] for report in reports})),
    )


def _entries(run: Collection) -> list[tuple[dict[str, Any], Artifact]]:
    """Rows of every report with the report, each network once: a recorded one is in several."""
    found: list[tuple[dict[str, Any], Artifact]] = []
    seen: set[str] = set()
    for report in run.of("AccuracyReport"):
        for row in report.results["rows"]:
            arm = "" if row["who"] == "teacher" else run.arm(report)
            key = f"{arm} {row}" if row["who"] != "model" else report.id
            if key not in seen:
                seen.add(key)
                found.append((row, report))
    return sorted(found, key=lambda entry: entry[0]["who"] != "teacher")


def _row(run: Collection, row: dict[str, Any], report: Artifact, place: Any) -> Row:
    low, high = row["top1_interval"]
    fidelity = "agreement" in row
    ran = run.find(report.results["model"]["id"])
    live = row["who"] == "model"

    def both(name: str, text: Any) -> str:
        if not fidelity:
            return ""
        start, end = row[f"{name}_interval"]
        return f"{text(start)} to {text(end)}"

    return Row(
        who=_who(run, row["who"], report),
        how=_how(row, report),
        anchor=anchor(ran.id) if ran and live else "",
        correct=f"{count(row['correct'])} of {count(report.results['count'])}",
        top1=percent(row["top1"]),
        top1_interval=f"{percent(low)} to {percent(high)}",
        whisker=Whisker(place(low), place(row["top1"]), place(high)),
        difference=points(row["difference"]) if fidelity else "",
        difference_interval=both("difference", points),
        agreement=percent(row["agreement"]) if fidelity else "",
        agreement_interval=both("agreement", percent),
        kl=significant(row["kl_nats"]) if fidelity else "",
        kl_interval=both("kl_nats", significant),
        recorded=_recorded(report.results["recorded"]) if live else "",
    )


def _who(run: Collection, who: str, report: Artifact) -> str:
    if who == "teacher":
        return "Teacher"
    return arm_name(run.arm(report))


def _how(row: dict[str, Any], report: Artifact) -> str:
    if row["who"] == "teacher":
        return "in torch, recorded"
    if row["who"] == "student":
        return "student in torch, recorded"
    model, where = report.results["model"], report.config["where"]
    file = "ort.onnx" if model["kind"] == "OnnxModel" else "Engine"
    return f"{file}, run live by {model['runtime']} on {where.get('device', 'this machine')}"


def _recorded(found: dict[str, Any]) -> str:
    """Whether the live outputs are those recorded at export."""
    if not found["compared"]:
        return "not compared: other samples than at export"
    if found["equal"]:
        return "bit for bit"
    answers = found["argmax_differ"]
    changed = f"{percent(answers)} of answers change" if answers else "no answer changes"
    return f"up to {significant(found['largest_difference'])} apart, {changed}"
