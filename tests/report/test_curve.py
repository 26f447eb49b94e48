"""Loss curves: what is drawn is what was written."""

from __future__ import annotations

import json
import re

from edgekd import kinds
from edgekd.artifact import Artifact
from edgekd.report.collection import Collection
from edgekd.report.curve import means, plots
from edgekd.report.plot import SMALL

from .conftest import IO, Maker


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


def two_stages(maker: Maker) -> Artifact:
    rows = [
        {"step": s, "stage": stage, "lr": 0.1, "logits": loss, "agreement": 0.5, "blocks.net.0": 9}
        for stage, loss in (("float", 0.5), ("quantized", 0.02))
        for s in range(2)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    config = {"name": "tiny", "arm": "sparse", "seed": 0, "sparsity": {}}
    files = {"io.json": IO, "layers.json": [], "losses.jsonl": lines}
    return maker.make(kinds.STUDENT, config, files, {}, {"teacher": maker.teacher()})


def test_each_stage_has_its_own_figure_and_only_terms_are_drawn(maker: Maker) -> None:
    found = plots(Collection([two_stages(maker)]))
    assert [plot.title for plot in found] == [
        "Student, float stage, logits loss",
        "Student, quantized stage, logits loss",
    ]
    assert [plot.rows[0] for plot in found] == [("0", "0.500"), ("0", "0.0200")]


def test_a_student_of_one_stage_stands_beside_them(maker: Maker) -> None:
    dense = maker.student(maker.teacher(), "dense")
    titles = [plot.title for plot in plots(Collection([dense, two_stages(maker)]))]
    assert "Student, logits loss" in titles
    assert "Student, quantized stage, logits loss" in titles
