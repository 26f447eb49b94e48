"""Loss curves from ``losses.jsonl``, as the points of an inline SVG and as a table behind it.

The vertical axis is logarithmic, since a loss falls through decades and what happens in the last of
them is what a person looks for. A curve is the mean over runs of steps (single steps are noise of
the batch), and says over how many. Left out: learning rate, and any smoothing that reaches across.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection, arm_name
from edgekd.report.words import count, decade, significant

POINTS = 90
TABLE_ROWS = 12
WIDTH, HEIGHT = 460, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28


@dataclass(frozen=True)
class Line:
    """One curve: whose it is, and its points in the drawing, ``x,y x,y ...``."""

    name: str
    points: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where in the drawing, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One loss term over the steps, one line for each network that was trained with it.

    Attributes:
        title: The term, and what was trained.
        lines: In the page's order.
        x_ticks: Steps.
        y_ticks: Decades of the loss.
        steps_a_point: Over how many steps a point is the mean.
        header: Names of the table's columns, the step first.
        table: The same curves as text, one row for every few points.
    """

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    steps_a_point: int
    header: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


Curve = list[tuple[float, float]]  # (mean step, mean loss), both over the same steps


def charts(run: Collection) -> list[Chart]:
    """One chart for each loss term of the teacher, then of the students."""
    found: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for trained in [*run.of("Teacher"), *run.of("Student")]:
        if "losses.jsonl" not in trained.manifest.files:
            continue
        name = arm_name(run.arm(trained)) or "teacher"
        for term, losses in _terms(trained).items():
            lines = found.setdefault((trained.kind, term), {})
            # Two of one arm: tell them apart by what their directory is called.
            lines[name if name not in lines else trained.path.name] = losses
    return [_chart(kind, term, lines) for (kind, term), lines in found.items()]


def _terms(trained: Artifact) -> dict[str, list[tuple[int, float]]]:
    """Loss term -> (step, loss), for the steps that have one above 0."""
    terms: dict[str, list[tuple[int, float]]] = {}
    for text in trained.file("losses.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        for term, loss in row.items():
            if term not in ("step", "lr") and loss > 0 and math.isfinite(loss):
                terms.setdefault(term, []).append((row["step"], loss))
    return terms


def _chart(kind: str, term: str, lines: dict[str, list[tuple[int, float]]]) -> Chart:
    last = max(step for losses in lines.values() for step, _ in losses)
    stride = max(1, math.ceil((last + 1) / POINTS))
    curves = {name: _means(losses, stride) for name, losses in lines.items()}
    values = [loss for curve in curves.values() for _, loss in curve]
    low, high = _decades(min(values), max(values))

    def x(step: float) -> float:
        return LEFT + step / max(last, 1) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        height = (math.log10(loss) - low) / (high - low)
        return HEIGHT - BOTTOM - height * (HEIGHT - TOP - BOTTOM)

    return Chart(
        title=f"{'Teacher' if kind == 'Teacher' else 'Student'}, {term} loss",
        lines=tuple(
            Line(name, " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve))
            for name, curve in curves.items()
        ),
        x_ticks=tuple(Tick(x(step), count(step)) for step in _steps(last)),
        y_ticks=tuple(
            Tick(y(10.0**exponent), decade(exponent)) for exponent in range(low, high + 1)
        ),
        steps_a_point=stride,
        header=("Steps", *curves),
        table=_table(list(curves.values()), stride, last),
    )


def _means(losses: Sequence[tuple[int, float]], stride: int) -> Curve:
    """Mean of each run of `stride` steps."""
    bins: dict[int, list[tuple[int, float]]] = {}
    for step, loss in losses:
        bins.setdefault(step // stride, []).append((step, loss))
    return [
        (sum(step for step, _ in part) / len(part), sum(loss for _, loss in part) / len(part))
        for _, part in sorted(bins.items())
    ]


def _decades(low: float, high: float) -> tuple[int, int]:
    """Whole decades around two losses, at least one apart."""
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return bottom, max(top, bottom + 1)


def _steps(last: int) -> list[int]:
    """A few round steps from 0 to the last."""
    raw = max(last, 1) / 4
    unit = 10 ** math.floor(math.log10(raw)) if raw >= 1 else 1
    spacing = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    spacing = max(1, int(spacing))
    return list(range(0, last + 1, spacing))


def _table(curves: Sequence[Curve], stride: int, last: int) -> tuple[tuple[str, ...], ...]:
    """Every few points, and the last, as text."""
    longest = max(len(curve) for curve in curves)
    every = max(1, math.ceil(longest / TABLE_ROWS))
    rows = []
    for index in sorted({*range(0, longest, every), longest - 1}):
        first, end = index * stride, min((index + 1) * stride - 1, last)
        steps = count(first) if first == end else f"{count(first)} to {count(end)}"
        cells = [significant(curve[index][1], 3) if index < len(curve) else "" for curve in curves]
        rows.append((steps, *cells))
    return tuple(rows)
