"""Figures of the page: a drawing by matplotlib, its text alternative, and the table behind it.

matplotlib computes where things lie: scales, steps, markers, the baselines of texts. Colours, line
widths and fonts are the page's (`edgekd.report.ink`). A drawing has one of two natural sizes, for
half of a desk's width or a third; both fill a phone's, where the page sets larger texts into the
wide one. What a model calls itself stands in the legend, in HTML, and never in a drawing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.ink import INK, inked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib's marker of each series, and the same shape for the legend, within 5 of the origin.
_MARKERS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "D": "M0-5L5 0L0 5L-5 0Z",
    "s": "M-4-4H4V4H-4Z",
    "^": "M0-5L5 4H-5Z",
    "v": "M0 5L5-4H-5Z",
    "P": "M-1.5-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
}
_OWN = {"sparse": 0, "dense": 1, "fp16": 2}


@dataclass(frozen=True)
class Size:
    """A drawing's size and its margins, in CSS pixels at its natural scale."""

    name: str
    width: int
    height: int
    left: int = 52
    right: int = 14
    top: int = 27
    bottom: int = 44


WIDE = Size("wide", 480, 300)
SMALL = Size("small", 360, 200, top=10, bottom=26)


@dataclass(frozen=True)
class Key:
    """A line of the legend: how a series looks (an empty shape is a line), and its name."""

    series: int
    name: str
    shape: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        id: Unique on the page.
        title: What it is.
        note: How to read it.
        size: Its size.
        svg: Content of an svg element.
        text: What it shows, in words and numbers, for who cannot see it.
        legend: Its series.
        caption: Of the table behind it.
        header: The table's columns.
        rows: The same numbers as text.
    """

    id: str
    title: str
    note: str
    size: Size
    svg: str
    text: str
    legend: tuple[Key, ...]
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def series(arms: Sequence[str]) -> list[int]:
    """A look for each arm: its own on every plot of the page, and for all else the next free one.

    Args:
        arms: Such as ``sparse``; one that comes a second time counts as something else.
    """
    found: list[int] = []
    for arm in arms:
        own = _OWN.get(arm)
        free = (number for number in range(len(_OWN), len(arms) + 4) if number not in found)
        found.append(next(free) if own is None or own in found else own)
    return [number % len(_MARKERS) for number in found]


def legend(names: Sequence[str], looks: Sequence[int], marks: bool = False) -> tuple[Key, ...]:
    """A legend of lines or of marks."""
    shapes = list(_MARKERS.values())
    return tuple(
        Key(look, name, shapes[look] if marks else "")
        for name, look in zip(names, looks, strict=True)
    )


def draw(size: Size, paint: Callable[[Axes], None]) -> str:
    """Content of the svg element of a drawing.

    Args:
        size: Of the whole.
        paint: Draws into the axes it is given, with the functions below.
    """
    with _defaults():
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
        FigureCanvasSVG(figure)
        inner = (size.width - size.left - size.right, size.height - size.top - size.bottom)
        axes = figure.add_axes(
            (
                size.left / size.width,
                size.bottom / size.height,
                inner[0] / size.width,
                inner[1] / size.height,
            )
        )
        paint(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return inked(text.getvalue())


@contextmanager
def _defaults() -> Iterator[None]:
    """The library as it is shipped, whatever the user's own configuration says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "edgekd",
                "font.size": 12,
                "text.parse_math": False,
            }
        )
        yield


def line(
    axes: Axes, x: Sequence[float], y: Sequence[float], classes: str, steps: bool = False
) -> None:
    """A line through points, or its steps, each value holding until the next point."""
    axes.plot(x, y, drawstyle="steps-post" if steps else "default", gid=INK + classes)


def mark(axes: Axes, x: float, y: float, look: int) -> None:
    """The marker of a series."""
    marker = list(_MARKERS)[look]
    axes.plot([x], [y], marker=marker, markersize=9, linestyle="none", gid=f"{INK}mark s{look}")


def note(axes: Axes, x: float, y: float, text: str, at: tuple[int, int], end: bool = True) -> None:
    """A text inside the drawing.

    Args:
        axes: The drawing.
        x: Share of the axes' width.
        y: In data.
        text: The text.
        at: How far from there, in pixels to the right and up.
        end: Whether it ends there or begins there.
    """
    axes.annotate(
        text,
        (x, y),
        xycoords=axes.get_yaxis_transform(),
        xytext=at,
        textcoords="offset pixels",
        ha="right" if end else "left",
        gid=f"{INK}note",
        annotation_clip=False,
    )


def scale(
    axes: Axes,
    x: Sequence[tuple[float, str]],
    y: Sequence[tuple[float, str]],
    names: tuple[str, str] = ("", ""),
) -> None:
    """Ticks with their texts, a grid line for each tick of y, and the names of both axes.

    Limits have to be set before.
    """
    axes.set_xticks([at for at, _ in x], [text for _, text in x])
    axes.set_yticks([at for at, _ in y], [text for _, text in y])
    axes.tick_params(length=0, pad=6, which="both")
    axes.minorticks_off()
    (left, right), bottom = axes.get_xlim(), axes.get_ylim()[0]
    for at, _ in y:
        line(axes, [left, right], [at, at], "grid")
    line(axes, [left, right], [bottom, bottom], "axis")
    for name, where, text_at, side in (
        (names[0], (1, 0), (0, -36), "right"),
        (names[1], (0, 1), (-46, 10), "left"),
    ):
        axes.annotate(
            name,
            where,
            xycoords="axes fraction",
            xytext=text_at,
            textcoords="offset pixels",
            ha=side,
            gid=f"{INK}name",
        )


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, ends included where they are round."""
    raw = (high - low) / most
    if raw <= 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten between two, with their doubles and fives where there is room.

    Where they would be fewer than 3, round numbers as on a linear axis.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [10.0**decade * factor for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return ticks[:: math.ceil(len(ticks) / most)] if len(ticks) > 2 else linear_ticks(low, high)
