"""Accuracy against the scenario's result, one mark for each engine, each with both intervals.

The time axis begins at 0, so that a distance twice as long is twice the time; the accuracy axis
does not, or no interval could be seen. Marks whose intervals overlap are not told apart by this
measurement, which is what the crosses are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Artifact
from edgekd.report import plot
from edgekd.report.collection import Collection
from edgekd.report.plot import Plot
from edgekd.report.timing import Timing
from edgekd.report.words import (
    count,
    listed,
    measure,
    percent,
    plural,
    rate,
    rates,
    round_time,
    time,
    times,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One engine: name and look, result, its row of an AccuracyReport, of what and by what."""

    name: str
    look: int
    result: dict[str, Any]
    accuracy: dict[str, Any]
    judged: str
    scored: str


def tradeoff(run: Collection, timing: Timing, name: str) -> Plot | None:
    """The figure of one LatencyReport; None where no engine's accuracy is known.

    Args:
        run: The artifacts.
        timing: A report of this run's engines.
        name: Unique on the page.
    """
    looks = plot.series([row["arm"] for row in timing.engines])
    points, without = [], []
    for who, row, look in zip(timing.names, timing.engines, looks, strict=True):
        report, judged = _judged(run, timing, row["id"])
        if report is None or _row(report, "model")["top1"] is None:
            without.append(who)
        else:
            found = _row(report, "model")
            scored = measure(report.results["metric"])
            points.append(Point(who, look, timing.result(row), found, judged, scored))
    if not points:
        return None
    teacher = next((_row(r, "teacher")["top1"] for r in run.of("AccuracyReport")), None)
    what, scored = timing.percentile or "throughput", points[0].scored
    missing = f" Not drawn, since not evaluated: {listed(without)}." if without else ""
    return Plot(
        id=name,
        title=f"Accuracy against {what}",
        note=f"{what}, median over processes, and {scored} with its 95% interval; better is "
        f"{'left' if timing.percentile else 'right'} and up{missing}",
        size=plot.WIDE,
        svg=plot.draw(plot.WIDE, lambda axes: _paint(axes, points, teacher, timing)),
        text=_told(points, timing, teacher) + missing,
        legend=plot.legend([p.name for p in points], [p.look for p in points], marks=True),
        caption=f"{scored.capitalize()} and {what} of each engine, with their intervals",
        header=("Engine", what, "Interval", scored.capitalize(), "95% interval", "Counted on"),
        rows=tuple(_cells(point, timing) for point in points),
    )


def _judged(run: Collection, timing: Timing, engine_id: str) -> tuple[Artifact | None, str]:
    """The AccuracyReport of an engine, else of the file that ONNX Runtime's engine is made of."""
    reports = {report.results["model"]["id"]: report for report in run.of("AccuracyReport")}
    if engine_id in reports:
        return reports[engine_id], "the engine"
    engine = run.manifest(engine_id, timing.report)
    model = engine.parents.get("model", "") if engine else ""
    if engine and engine.config["runtime"] == "onnxruntime" and model in reports:
        return reports[model], "its ort.onnx"
    return None, ""


def _row(report: Artifact, who: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in report.results["rows"] if row["who"] == who)
    return found


def _paint(axes: Axes, points: Sequence[Point], teacher: float | None, timing: Timing) -> None:
    ends = [end for point in points for end in point.accuracy["top1_interval"]]
    ends += [] if teacher is None else [teacher]
    room = 0.12 * (max(ends) - min(ends)) or 0.01
    low, high = max(0.0, min(ends) - room), min(1.0, max(ends) + room)
    right = max(point.result["high"] for point in points) * 1.06
    axes.set_xlim(0, right)
    axes.set_ylim(low, high)
    text = round_time if timing.percentile else lambda at: count(round(at))
    plot.scale(
        axes,
        [(at, text(at)) for at in plot.linear_ticks(0, right)],
        [(at, percent(at, 0 if room > 0.005 else 1)) for at in plot.linear_ticks(low, high)],
        names=(
            f"{timing.percentile} of a query" if timing.percentile else "samples a second",
            points[0].scored,
        ),
    )
    if teacher is not None:
        plot.line(axes, [0, right], [teacher, teacher], "guide")
        plot.note(axes, 0, teacher, f"teacher {percent(teacher)}", at=(6, 5), end=False)
    # Thick below thin: of intervals that lie on one another each stays visible.
    for point in sorted(points, key=lambda point: -point.look):
        middle, top1 = point.result["estimate"], point.accuracy["top1"]
        across, along = [point.result["low"], point.result["high"]], point.accuracy["top1_interval"]
        plot.line(axes, across, [top1, top1], f"bar s{point.look}")
        plot.line(axes, [middle, middle], along, f"bar s{point.look}")
    for point in points:
        plot.mark(axes, point.result["estimate"], point.accuracy["top1"], point.look)


def _cells(point: Point, timing: Timing) -> tuple[str, ...]:
    found, (low, high) = point.result, point.accuracy["top1_interval"]
    one, both = (time, times) if timing.percentile else (rate, rates)
    return (
        point.name,
        one(found["estimate"]),
        both(found["low"], found["high"]),
        percent(point.accuracy["top1"]),
        f"{percent(low)} to {percent(high)}",
        point.judged,
    )


def _told(points: Sequence[Point], timing: Timing, teacher: float | None) -> str:
    what = timing.percentile or "throughput"
    parts, scored = [], points[0].scored
    for point in points:
        name, middle, interval, top1, top1_interval, _ = _cells(point, timing)
        parts.append(f"{name}: {what} {middle} ({interval}), {scored} {top1} ({top1_interval}).")
    beside = "" if teacher is None else f" The teacher's {scored} is {percent(teacher)}."
    engines = plural(len(points), "engine")
    return f"{scored.capitalize()} against {what} of {engines}. {' '.join(parts)}{beside}"
