"""The distribution that is drawn is the one that was measured."""

from __future__ import annotations

import numpy as np

from edgekd.report.collection import Collection
from edgekd.report.ecdf import points
from edgekd.report.timing import timings

from .conftest import Maker
from .latencies import latency, scenario
from .latencies import samples as draw


def test_every_point_is_on_the_empirical_distribution() -> None:
    times = np.random.default_rng(0).integers(1000, 100_000, 5000)
    x, y = points(times, 240)
    assert 180 < len(x) < 260
    assert (x[0], y[0]) == (times.min(), 0)
    assert (x[-1], y[-1]) == (times.max(), 1)
    for at, share in zip(x[1:], y[1:], strict=True):
        assert np.sum(np.sort(times)[: round(share * 5000)] <= at) == round(share * 5000)
    assert sum(share > 0.9 for share in y) > len(y) / 5  # the tail has its own points


def test_few_samples_are_all_drawn() -> None:
    x, y = points(np.array([30, 10, 20]), 50)
    assert x == [10, 10, 20, 30]
    assert y == [0.0, 1 / 3, 2 / 3, 1.0]


def test_the_text_and_the_table_tell_what_is_drawn(maker: Maker) -> None:
    from edgekd.report.ecdf import ecdf

    asked = scenario()
    engines = maker.engines([maker.model(maker.teacher())])
    times = draw([300], asked)
    times[0, 0, 0] = 12_345_678  # one hiccup
    (timing,) = timings(Collection([latency(maker, engines, times, asked)]))
    plot = ecdf(timing, "here")
    ordered = np.sort(times.ravel())
    half, most = ordered[383] / 1000, ordered[691] / 1000  # 384th and 692nd of 768
    assert plot.text == (
        "Share of queries answered within a time. "
        f"float teacher: half within {half:.0f} µs, 90% within "
        f"{most:.0f} µs, slowest 12.3 ms."
    )
    assert plot.header == ("Engine", "1%", "10%", "25%", "50%", "75%", "90%", "95%", "99%", "100%")
    assert plot.rows[0][0] == "float teacher"
    assert plot.rows[0][4] == f"{half:.0f} µs"
    assert plot.rows[0][-1] == "12.3 ms"
    assert "all 768 queries" in plot.caption
    assert plot.svg.count('class="faint s2"') == 12


def test_equal_latencies_are_drawn_too(maker: Maker) -> None:
    from edgekd.report.ecdf import ecdf

    engines = maker.engines([maker.model(maker.teacher())])
    (timing,) = timings(Collection([latency(maker, engines, np.full((1, 12, 64), 5000))]))
    assert 'class="line s2"' in ecdf(timing, "here").svg
