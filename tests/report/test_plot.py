"""Looks, ticks and the drawing itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from edgekd.report import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def test_an_arm_looks_alike_on_every_plot_and_others_take_what_is_free() -> None:
    assert plot.series(["fp16", "dense", "sparse"]) == [2, 1, 0]
    assert plot.series([""]) == [3]
    assert plot.series(["sparse", "sparse", "", "dense"]) == [0, 3, 4, 1]
    assert len(plot.series(["sparse"] * 9)) == 9


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 900, [0, 200, 400, 600, 800]),
        (0.92, 0.98, [0.92, 0.94, 0.96, 0.98]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 3, [3]),
    ],
)
def test_linear_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert plot.linear_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.5, 60, [2, 5, 10, 20, 50]),
        (0.9, 1500, [1, 3, 10, 30, 100, 300, 1000][::2]),
        (1.0, 1e6, [1, 100, 1e4, 1e6]),
        (1000, 1060, [1000, 1020, 1040, 1060]),
    ],
)
def test_logarithmic_ticks_are_few_and_never_none(
    low: float, high: float, ticks: list[float]
) -> None:
    assert plot.logarithmic_ticks(low, high) == pytest.approx(ticks)


def paint(axes: Axes) -> None:
    axes.set_xlim(0, 2)
    axes.set_ylim(0, 1)
    plot.scale(axes, [(0, "0"), (2, "2")], [(1, "all")], names=("time", "share"))
    plot.line(axes, [0, 1, 2], [0, 0.5, 1], "line s0", steps=True)
    plot.mark(axes, 1, 0.5, 2)
    plot.note(axes, 0, 0.5, "$5 & <up>", at=(6, 5), end=False)


def test_a_drawing_holds_ink_and_text_and_nothing_else() -> None:
    size = plot.Size("test", 100, 100, left=10, right=10, top=10, bottom=10)
    svg = plot.draw(size, paint)
    assert not re.search(r"style=|id=|clip|url|http|metadata|<g|<use|<defs", svg)
    assert 'class="line s0" d="M10 90H50V50H90V10"' in svg
    assert 'class="axis" d="M10 90H90"' in svg
    assert 'class="mark s2" transform="translate(50 50)"' in svg
    assert '<text class="note" x="16" y="45">$5 &amp; &lt;up&gt;</text>' in svg
    assert re.findall(r">([^<]+)</text>", svg) == [
        "0",
        "2",
        "all",
        "time",
        "share",
        "$5 &amp; &lt;up&gt;",
    ]


def test_a_drawing_is_the_same_every_time_and_whatever_the_users_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import matplotlib

    first = plot.draw(plot.WIDE, paint)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.xmargin", 0.4)
    assert plot.draw(plot.WIDE, paint) == first
    assert matplotlib.rcParams["font.size"] == 30.0
