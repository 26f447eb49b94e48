"""How the exporter was chosen, as the page and a terminal tell it."""

from __future__ import annotations

import pytest

from edgekd.artifact import Artifact
from edgekd.report import tables
from edgekd.report.collection import Collection
from edgekd.report.describe import describe
from edgekd.report.page import render

from .conftest import A100, Maker

Made = tuple[Artifact, Artifact, Artifact, Artifact]


@pytest.fixture
def made(maker: Maker) -> Made:
    """Student, the graph that is kept, the one that is not, the choice."""
    student = maker.student(maker.teacher(), "sparse")
    kept, refused = maker.model(student), maker.model(student, layers=3)
    return student, kept, refused, maker.choice(kept, refused)


def test_every_way_is_a_row_with_its_counts_or_its_reason(made: Made) -> None:
    student, kept, _, choice = made
    (table,) = tables.choices(Collection([student, kept, choice]))
    assert table.title == "2:4 INT8, decided by an engine for a100"
    assert [(row.way, row.size, row.int8, row.fused, row.outcome) for row in table.rows] == [
        ("torchscript, int8 weights", "2.5 kB", "", "", "1 of 12 layers is no INT8 gemm"),
        ("torchscript, float weights", "2.5 kB", "1 of 1", "2 of 2", "kept"),
    ]
    assert [bool(row.anchor) for row in table.rows] == [False, True]


def test_a_block_that_no_kernel_fuses_is_counted_as_a_block(maker: Maker) -> None:
    student = maker.student(maker.teacher(), "sparse")
    kept = maker.model(student, attention_unfused=["not fused: a head has 8 features"])
    (table,) = tables.choices(
        Collection([student, kept, maker.choice(kept, maker.model(student, layers=3))])
    )
    assert [row.fused for row in table.rows] == ["", "2 of 3"]


def test_a_graph_that_was_refused_is_no_model_of_the_run(maker: Maker, made: Made) -> None:
    student, kept, refused, choice = made
    assert {each.id for each in Collection([student, refused, kept]).models} == {
        kept.id,
        refused.id,
    }
    assert Collection([student, refused, kept, choice]).models == [kept]
    # One that somebody built all the same is shown, with what was built.
    engine = maker.engine(refused, A100, "tensorrt-rtx")
    assert refused in Collection([student, refused, kept, choice, engine]).models
    # So is one that another choice kept.
    other = maker.choice(refused, kept)
    assert len(Collection([refused, kept, choice, other]).models) == 2


def test_the_page_and_a_terminal_say_it(made: Made) -> None:
    page = render(Collection(made))
    assert page.count("Exporters tried") == 1
    assert "<td>1 of 12 layers is no INT8 gemm</td>" in page
    assert '<td class="num">–</td>' in page  # noqa: RUF001
    assert "Exporters tried" not in render(Collection(made[:3]))
    text = describe(made[3])
    assert "tried, 1 of 2" in text
    assert "1 of 12 layers is no INT8 gemm" in text
