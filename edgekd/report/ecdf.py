"""How the latencies of each engine are distributed: the share of queries answered within a time.

A median hides a second mode and a mean hides the tail; the distribution shows both. All repetitions
of an engine are pooled into one curve, and each of them (a fresh process) stays faintly visible,
since how far processes lie apart is what an interval is made of. Curves are drawn through a few
hundred order statistics, more of them in the tail: each is exact, and nothing between is smoothed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekd.bench.stats import nearest_rank
from edgekd.report import plot
from edgekd.report.plot import Plot
from edgekd.report.timing import Timing
from edgekd.report.words import count, round_time, time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POOLED, EACH = 240, 50  # points of a curve
SHARES = (1, 10, 25, 50, 75, 90, 95, 99, 100)
_QUARTERS = (0, 25, 50, 75, 100)

Times = NDArray[np.int64]


def ecdf(timing: Timing, name: str) -> Plot:
    """The figure of one LatencyReport.

    Args:
        timing: The report.
        name: Unique on the page.
    """
    wall_ns = timing.wall_ns()
    looks = plot.series([row["arm"] for row in timing.engines])
    batch = timing.scenario["batch"]
    query = "one sample" if batch == 1 else f"{count(batch)} samples"
    repetitions, queries = wall_ns.shape[1:]
    return Plot(
        id=name,
        title="How latency is distributed",
        note=f"share of queries of {query} answered within a time (logarithmic); bold: all "
        f"{repetitions} processes together, faint: each of them",
        size=plot.WIDE,
        svg=plot.draw(plot.WIDE, lambda axes: _paint(axes, wall_ns, looks, timing)),
        text=_told(timing, wall_ns),
        legend=plot.legend(timing.names, looks),
        caption=f"Time within which a share of all {count(repetitions * queries)} queries of each "
        "engine was answered",
        header=("Engine", *(f"{share}%" for share in SHARES)),
        rows=tuple(
            (who, *(time(nearest_rank(times.ravel(), share)) for share in SHARES))
            for who, times in zip(timing.names, wall_ns, strict=True)
        ),
    )


def points(times: Times, most: int) -> tuple[list[int], list[float]]:
    """Latencies and the share of samples at or below each, beginning at share 0.

    Args:
        times: int64[n], ns, in any order.
        most: About how many points; a fifth of them lie in the slowest tenth.
    """
    ordered = np.sort(times)
    n = len(ordered)
    tail = 1 - np.geomspace(0.1, 1 / n, most // 5)
    shares = np.concatenate([np.linspace(1 / n, 1, most - most // 5), tail])
    ranks = np.unique(np.ceil(shares * n - 1e-9).astype(int).clip(1, n))
    x = [int(ordered[0]), *(int(each) for each in ordered[ranks - 1])]
    return x, [0.0, *(float(rank) / n for rank in ranks)]


def _paint(axes: Axes, wall_ns: NDArray[np.int64], looks: list[int], timing: Timing) -> None:
    low, high = float(wall_ns.min()), float(wall_ns.max())
    axes.set_xscale("log")
    axes.set_xlim(low, max(high, low * 1.01))
    axes.set_ylim(0, 1)
    plot.scale(
        axes,
        [(at, round_time(at)) for at in plot.logarithmic_ticks(low, high)],
        [(share / 100, f"{share}%") for share in _QUARTERS],
        names=("time of a query", ""),
    )
    if timing.percentile:
        share = timing.scenario["percentile"] / 100
        plot.line(axes, [low, high], [share, share], "guide")
        plot.note(axes, 1, share, timing.percentile, at=(0, -14))
    for times, look in zip(wall_ns, looks, strict=True):
        for repetition in times:
            plot.line(axes, *points(repetition, EACH), classes=f"faint s{look}", steps=True)
    for times, look in zip(wall_ns, looks, strict=True):
        plot.line(axes, *points(times.ravel(), POOLED), classes=f"line s{look}", steps=True)


def _told(timing: Timing, wall_ns: NDArray[np.int64]) -> str:
    parts = []
    for who, times in zip(timing.names, wall_ns, strict=True):
        half, most = (time(nearest_rank(times.ravel(), share)) for share in (50, 90))
        parts.append(f"{who}: half within {half}, 90% within {most}, slowest {time(times.max())}.")
    return f"Share of queries answered within a time. {' '.join(parts)}"
