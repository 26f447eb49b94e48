"""What a measurement found, as lines for the person who waits: a line a network, a line an engine.

The same numbers as in the report and on the page, never more of them than a line holds: each with
its interval, and where a number may not be quoted, why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.artifact import Artifact
from edgekd.report.words import (
    NOT_MEASURED,
    as_at_export,
    digits,
    measure,
    percent,
    points,
    rate,
    significant,
    time,
    times,
)

_WHO = {"teacher": "teacher, recorded", "student": "student, recorded"}


def accuracy(report: Artifact) -> list[str]:
    """A line for teacher, student and the model that ran.

    Args:
        report: An AccuracyReport.
    """
    found = report.read_json("accuracy.json")
    model = found["model"]
    live = f"{model['kind']} {model['arm']}, run live"
    return [f"{_WHO.get(row['who'], live)}: {_network(row, found)}" for row in found["rows"]]


def latency(report: Artifact) -> list[str]:
    """A line for each engine; ratios are to the first.

    Args:
        report: A LatencyReport.
    """
    found = report.read_json("latency.json")
    percentile = found["scenario"]["percentile"]
    result = "" if percentile is None else f"p{percentile}"
    return [
        f"{row['arm']} {row['name']}: {_speed(row, result)}{_ratio(row, result)}; "
        f"{_standing(row, found['machine'])}"
        for row in found["engines"]
    ]


def _network(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    name = measure(found["metric"])
    if row["top1"] is None:
        parts = [f"{name} {NOT_MEASURED}: {found['not_measured']}"]
    else:
        low, high = map(percent, row["top1_interval"])
        parts = [
            f"{name} {percent(row['top1'])} ({low} to {high}) of {found['count']} samples"
            if name == "top-1"
            else f"{name} {percent(row['top1'])} ({low} to {high}), {found['count']} samples"
        ]
    if row.get("difference") is not None:
        low, high = map(points, row["difference_interval"])
        parts.append(f"{points(row['difference'])} points to the teacher ({low} to {high})")
    if row.get("agreement") is not None:
        low, high = map(percent, row["agreement_interval"])
        parts.append(f"agreement {percent(row['agreement'])} ({low} to {high})")
    elif "relative" in row:
        apart = ", ".join(f"{name} {significant(x)}" for name, x in row["relative"].items())
        parts.append(f"distance to the teacher's outputs as a share of their size: {apart}")
    if row["who"] == "model":
        parts.append(f"as at export: {as_at_export(found['recorded'])}")
    return "; ".join(parts)


def _speed(row: Mapping[str, Any], result: str) -> str:
    """The scenario's result with its interval, the median before it where that is another."""
    if not result:
        each = row["samples_per_s"]
        return f"{rate(each['estimate'])} ({digits(each['low'])} to {digits(each['high'])})"
    named = [name for name in ("p50", result) if name in row["percentiles"]]
    return ", ".join(
        f"{name} {time(each['estimate'])} ({times(each['low'], each['high'])})"
        for name in dict.fromkeys(named)
        for each in [row["percentiles"][name]]
    )


def _ratio(row: Mapping[str, Any], result: str) -> str:
    if not row.get("ratio_to_first"):
        return ""
    found = row["ratio_to_first"][result or "time_per_sample"]
    less = "" if found["coverage"] >= 0.95 else f", {percent(found['coverage'])} interval"
    return (
        f"; {found['estimate']:.2f} times the first's {result or 'time a sample'} "
        f"({found['low']:.2f} to {found['high']:.2f}{less})"
    )


def _standing(row: Mapping[str, Any], machine: str) -> str:
    valid = "valid" if row["valid"] else f"not valid: {'; '.join(row['reasons'])}"
    return f"{valid}; {machine}" if machine.startswith("uncontrolled") else valid
