"""Accuracy and fidelity of every arm side by side, each number with its interval.

Top-1 alone cannot tell two networks apart on a task that is nearly solved: agreement with the
teacher and KL see every changed answer. Intervals are drawn on one axis, because whether two of
them overlap is what a reader wants to know, and six numbers in a table do not show it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection, anchor
from edgekd.report.words import (
    NOT_MEASURED,
    as_at_export,
    count,
    percent,
    points,
    significant,
    value,
)

MARGIN = 3.0  # percent of the axis kept free at both ends, so that a dot is not cut


@dataclass(frozen=True)
class Whisker:
    """An interval and its middle on the common axis, in percent of its width."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Row:
    """One network on one set of samples; an empty text is a number that does not exist for it.

    `how` says in what form it answered, each with its place on the page: forms of one arm that gave
    the very same numbers share a row.
    """

    who: str
    how: tuple[tuple[str, str], ...]
    correct: str
    top1: str
    top1_interval: str
    whisker: Whisker | None
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
    where: str
    metric: str


def accuracy(run: Collection) -> Accuracy | None:
    """The table of all AccuracyReports; None where there is none."""
    groups = _groups(run)
    if not groups:
        return None
    found = [group[0][0]["top1_interval"] for group in groups]
    intervals: list[tuple[float, float]] = [bounds for bounds in found if bounds] or [(0.0, 1.0)]
    low, high = min(bounds[0] for bounds in intervals), max(bounds[1] for bounds in intervals)
    span = max(high - low, 1e-9)

    def place(share: float) -> float:
        return round(MARGIN + (share - low) / span * (100 - 2 * MARGIN), 2)

    reports = run.of("AccuracyReport")
    teacher = groups[0][0][0]  # every report begins with the teacher, and groups keep that order
    counts = sorted({report.results["count"] for report in reports})
    machines = sorted({value(report.config["where"]) for report in reports})
    return Accuracy(
        rows=tuple(_row(run, group, place) for group in groups),
        axis=(percent(low), percent(high)),
        teacher=place(teacher["top1"])
        if teacher["who"] == "teacher" and teacher["top1"] is not None
        else None,
        samples=" or ".join(count(number) for number in counts),
        intervals=", ".join(sorted({report.results["intervals"] for report in reports})),
        where="; ".join(machines),
        metric=", ".join(sorted({r.results["metric"] for r in reports})).replace("top-1", "Top-1"),
    )


Group = list[tuple[dict[str, Any], Artifact]]


def _groups(run: Collection) -> list[Group]:
    """Rows of every report with the report, those of one network and equal numbers together."""
    groups: dict[str, Group] = {}
    for report in run.of("AccuracyReport"):
        for row in report.results["rows"]:
            live = row["who"] == "model"
            arm = "" if row["who"] == "teacher" else run.arm(report)
            key = json.dumps([arm, row, report.results["recorded"] if live else None])
            groups.setdefault(key, []).append((row, report))
    return sorted(groups.values(), key=lambda group: group[0][0]["who"] != "teacher")


def _row(run: Collection, group: Group, place: Callable[[float], float]) -> Row:
    row, report = group[0]
    fidelity = "agreement" in row
    live = row["who"] == "model"
    reason = f"{NOT_MEASURED}: {report.results['not_measured']}"
    scored = row["top1"] is not None

    def one(name: str, text: Callable[[float], str]) -> str:
        if not fidelity:
            return ""
        return NOT_MEASURED if row[name] is None else text(row[name])

    def both(name: str, text: Callable[[float], str]) -> str:
        if not fidelity or row[name] is None:
            return ""
        start, end = (text(bound) for bound in row[f"{name}_interval"])
        return f"{start} to {end}" if start != end else ""

    return Row(
        who="Teacher" if row["who"] == "teacher" else run.name(report),
        how=_how(run, group),
        correct=f"{count(row['correct'])} of {count(report.results['count'])}"
        if row["correct"] is not None
        else "",
        top1=percent(row["top1"]) if scored else reason,
        top1_interval=" to ".join(percent(end) for end in row["top1_interval"] or ()),
        whisker=Whisker(*map(place, sorted([row["top1"], *row["top1_interval"]])))
        if scored
        else None,
        difference=one("difference", points),
        difference_interval=both("difference", points),
        agreement=one("agreement", percent),
        agreement_interval=both("agreement", percent),
        kl=one("kl_nats", _kl),
        kl_interval=both("kl_nats", _kl),
        recorded=as_at_export(report.results["recorded"]) if live else "",
    )


def _how(run: Collection, group: Group) -> tuple[tuple[str, str], ...]:
    if group[0][0]["who"] == "teacher":
        return (("in torch, recorded", ""),)
    if group[0][0]["who"] == "student":
        return (("student in torch, recorded", ""),)
    return tuple(
        (f"{run.ran(report)}, run live", anchor(report.results["model"]["id"]))
        if run.find(report.results["model"]["id"])
        else (f"{run.ran(report)}, run live", "")
        for _, report in group
    )


def _kl(nats: float) -> str:
    """A divergence; below 10^-9 it is the rounding of float64 and not a number to read."""
    return "< 10⁻⁹" if nats < 1e-9 else significant(nats)
