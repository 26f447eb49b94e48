"""Loss curves: what is drawn is what was written."""

from __future__ import annotations

from edgekd.report.collection import Collection
from edgekd.report.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, charts

from .conftest import Maker


def test_arms_share_a_chart_for_each_term(maker: Maker) -> None:
    teacher = maker.teacher()
    students = [maker.student(teacher, arm) for arm in ("dense", "sparse")]
    found = charts(Collection([teacher, *students]))
    assert [chart.title for chart in found] == ["Teacher, labels loss", "Student, logits loss"]
    assert [line.name for line in found[1].lines] == ["2:4 INT8", "dense INT8"]


def test_points_lie_where_the_logarithm_of_the_loss_does(maker: Maker) -> None:
    student = maker.student(maker.teacher(), "dense")
    (chart,) = charts(Collection([student]))
    # Losses 0.5 and 0.25 between the decades 0.1 and 1; steps 0 and 1 at the two ends.
    height = HEIGHT - TOP - BOTTOM
    half, quarter = (HEIGHT - BOTTOM - height * share for share in (0.69897, 0.39794))
    assert chart.lines[0].points == f"{LEFT:.1f},{half:.1f} {WIDTH - RIGHT:.1f},{quarter:.1f}"
    assert [tick.text for tick in chart.y_ticks] == ["0.1", "1"]
    assert chart.table == (("0", "0.500"), ("1", "0.250"))


def test_a_long_curve_is_the_mean_of_runs_of_steps(maker: Maker) -> None:
    (chart,) = charts(Collection([maker.teacher()]))
    assert chart.steps_a_point == 3  # 200 steps in at most 90 points
    assert len(chart.lines[0].points.split()) == 67
    mean = (2 / 1 + 2 / 2 + 2 / 3) / 3
    assert chart.table[0] == ("0 to 2", f"{mean:.2f}")
    assert chart.table[-1] == ("198 to 199", "0.0100")
    assert [tick.text for tick in chart.x_ticks] == ["0", "50", "100", "150"]
