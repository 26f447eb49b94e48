"""Loss curves: what is drawn is what was written."""

from __future__ import annotations

import re

from edgekd.report.collection import Collection
from edgekd.report.curve import means, plots
from edgekd.report.plot import SMALL

from .conftest import Maker


def test_arms_share_a_figure_for_each_term_in_their_own_looks(maker: Maker) -> None:
    teacher = maker.teacher()
    students = [maker.student(teacher, arm) for arm in ("dense", "sparse")]
    found = plots(Collection([teacher, *students]))
    assert [plot.title for plot in found] == ["Teacher, labels loss", "Student, logits loss"]
    assert [(key.name, key.series) for key in found[1].legend] == [
        ("2:4 INT8", 0),
        ("dense INT8", 1),
    ]
    assert [key.series for key in found[0].legend] == [3]
    assert found[0].id != found[1].id


def test_points_lie_where_the_logarithm_of_the_loss_does(maker: Maker) -> None:
    (plot,) = plots(Collection([maker.student(maker.teacher(), "dense")]))
    # Losses 0.5 and 0.25 between the decades 0.1 and 1; steps 0 and 1 at the two ends.
    bottom = SMALL.height - SMALL.bottom
    half, quarter = (bottom - (bottom - SMALL.top) * share for share in (0.69897, 0.39794))
    path = re.search(r'class="line s1" d="M(\S+) (\S+)L(\S+) ([\d.]+)"', plot.svg)
    assert path is not None
    assert [float(number) for number in path.groups()] == [
        SMALL.left,
        round(half, 1),
        SMALL.width - SMALL.right,
        round(quarter, 1),
    ]
    assert re.findall(r">([^<]+)</text>", plot.svg) == ["0", "1", "0.1", "1"]
    assert plot.rows == (("0", "0.500"), ("1", "0.250"))
    assert plot.text == "Student, logits loss over 2 steps: dense INT8 from 0.500 to 0.250."


def test_a_long_curve_is_the_mean_of_runs_of_steps(maker: Maker) -> None:
    (plot,) = plots(Collection([maker.teacher()]))
    assert plot.note.endswith("a point is the mean of 3 steps")  # 200 steps in at most 90 points
    mean = (2 / 1 + 2 / 2 + 2 / 3) / 3
    assert plot.rows[0] == ("0 to 2", f"{mean:.2f}")
    assert plot.rows[-1] == ("198 to 199", "0.0100")
    assert re.findall(r'middle"[^>]*>(\d+)</text>', plot.svg) == ["0", "50", "100", "150"]


def test_means_are_of_the_steps_that_are_there() -> None:
    assert means([(0, 1.0), (1, 3.0), (5, 8.0)], 2) == [(0.5, 2.0), (5.0, 8.0)]
