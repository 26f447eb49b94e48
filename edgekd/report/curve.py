"""Loss curves from ``losses.jsonl``: one figure for each stage and loss term, networks together.

The vertical axis is logarithmic, since a loss falls through decades and what happens in the last of
them is what a person looks for. A curve is the mean over runs of steps (single steps are noise of
the batch), and says over how many. Where a Student was trained in two stages (rows then have a
``stage``) each has figures of its own: its steps count from 0, and it was held to another teacher.
Left out: learning rate, the loss of every single block, the share of samples that agree, and any
smoothing that reaches across.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgekd.artifact import Artifact
from edgekd.report import plot
from edgekd.report.collection import Collection
from edgekd.report.plot import Plot
from edgekd.report.words import count, decade, listed, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 90
TABLE_ROWS = 12
NO_TERMS = ("step", "lr", "agreement")

Losses = list[tuple[int, float]]  # (step, loss)
Curve = list[tuple[float, float]]  # (mean step, mean loss), both over the same steps


def plots(run: Collection) -> list[Plot]:
    """One figure for each loss term of the teacher, then of the students."""
    found: dict[tuple[str, str, str], dict[str, tuple[str, Losses]]] = {}
    for trained in [*run.of("Teacher"), *run.of("Student")]:
        if "losses.jsonl" not in trained.manifest.files:
            continue
        arm = run.arm(trained)
        name = run.name(trained) or "teacher"
        for (stage, term), losses in _terms(trained).items():
            lines = found.setdefault((trained.kind, stage, term), {})
            # Two of one arm: tell them apart by what their directory is called.
            lines[name if name not in lines else trained.path.name] = (arm, losses)
    return [
        _plot(f"loss-{number}", f"{kind}, {stage and f'{stage} stage, '}{term} loss", lines)
        for number, ((kind, stage, term), lines) in enumerate(found.items())
    ]


def means(losses: Sequence[tuple[int, float]], stride: int) -> Curve:
    """Mean of each run of `stride` steps."""
    bins: dict[int, Losses] = {}
    for step, loss in losses:
        bins.setdefault(step // stride, []).append((step, loss))
    return [
        (sum(step for step, _ in part) / len(part), sum(loss for _, loss in part) / len(part))
        for _, part in sorted(bins.items())
    ]


def _terms(trained: Artifact) -> dict[tuple[str, str], Losses]:
    """(Stage or "", loss term) -> (step, loss), for the steps that have one above 0."""
    terms: dict[tuple[str, str], Losses] = {}
    for text in trained.file("losses.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        stage = row.pop("stage", "")
        for term, loss in row.items():
            drawn = term not in NO_TERMS and not term.startswith("blocks.")
            if drawn and loss > 0 and math.isfinite(loss):
                terms.setdefault((stage, term), []).append((row["step"], loss))
    return terms


def _plot(name: str, title: str, lines: Mapping[str, tuple[str, Losses]]) -> Plot:
    last = max(step for _, losses in lines.values() for step, _ in losses)
    stride = max(1, math.ceil((last + 1) / POINTS))
    curves = {who: means(losses, stride) for who, (_, losses) in lines.items()}
    looks = plot.series([arm for arm, _ in lines.values()])
    values = [loss for curve in curves.values() for _, loss in curve]
    low, high = _decades(min(values), max(values))

    def paint(axes: Axes) -> None:
        axes.set_yscale("log")
        axes.set_xlim(0, max(last, 1))
        axes.set_ylim(10.0**low, 10.0**high)
        steps = [step for step in plot.linear_ticks(0, max(last, 1), 4) if step == int(step)]
        every = math.ceil((high - low) / 5)
        plot.scale(
            axes,
            [(step, count(int(step))) for step in steps],
            [(10.0**exponent, decade(exponent)) for exponent in range(low, high + 1, every)],
        )
        for curve, look in zip(curves.values(), looks, strict=True):
            at, losses = [step for step, _ in curve], [loss for _, loss in curve]
            plot.line(axes, at, losses, f"line s{look}")

    told = listed([f"{who} {_course(curve)}" for who, curve in curves.items()])
    mean = f", a point is the mean of {stride} steps" if stride > 1 else ""
    return Plot(
        id=name,
        title=title,
        note=f"over {count(last + 1)} steps, logarithmic{mean}",
        size=plot.SMALL,
        svg=plot.draw(plot.SMALL, paint),
        text=f"{title} over {count(last + 1)} steps: {told}.",
        legend=plot.legend(list(curves), looks),
        caption=f"{title}, mean over the steps named",
        header=("Steps", *curves),
        rows=_table(list(curves.values()), stride, last),
    )


def _course(curve: Curve) -> str:
    first, last = significant(curve[0][1], 3), significant(curve[-1][1], 3)
    lowest = significant(min(loss for _, loss in curve), 3)
    return f"from {first} to {last}" + (f", lowest {lowest}" if lowest != last else "")


def _decades(low: float, high: float) -> tuple[int, int]:
    """Whole decades around two losses, at least one apart."""
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return bottom, max(top, bottom + 1)


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
