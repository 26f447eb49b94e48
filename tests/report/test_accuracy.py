"""What could not be scored is told as such; what a user's metric scored is called by its name."""

from __future__ import annotations

from edgekd.artifact import Artifact
from edgekd.report import findings, summary
from edgekd.report.accuracy import accuracy
from edgekd.report.collection import Collection
from edgekd.report.page import render

from .conftest import CPU, Maker


def chain(maker: Maker) -> tuple[list[Artifact], Artifact]:
    teacher = maker.teacher()
    student = maker.student(teacher, "sparse")
    model = maker.model(student)
    return [teacher, student, model, maker.engine(model, CPU, "onnxruntime")], model


def test_random_inputs_have_fidelity_and_no_accuracy(maker: Maker) -> None:
    made, model = chain(maker)
    run = Collection([*made, maker.accuracy(model, not_measured="random inputs")])
    table = accuracy(run)
    assert table is not None
    teacher, row = table.rows
    assert (teacher.top1, teacher.whisker, table.teacher) == (
        "not measured: random inputs",
        None,
        None,
    )
    assert (row.top1, row.difference, row.agreement) == (
        "not measured: random inputs",
        "not measured",
        "97.0%",
    )
    (finding,) = findings.accuracy(run)
    assert (finding.state, finding.text) == ("not measured", "Not measured: random inputs.")
    numbers = {number.name: number.number for number in summary.glance(run)}
    assert numbers["Top-1 against the teacher"] == "not measured"
    assert numbers["Agrees with the teacher"] == "97.0%"
    page = render(run)
    assert "Accuracy is not measured: random inputs. The 2:4 INT8 graph gives the teacher" in page


def test_a_users_metric_is_called_by_its_name(maker: Maker) -> None:
    made, model = chain(maker)
    run = Collection([*made, maker.accuracy(model, metric="python:boxes:near")])
    table = accuracy(run)
    assert table is not None
    assert table.metric == "python:boxes:near"
    assert (table.rows[1].top1, table.rows[1].correct) == ("89.0%", "")
    (finding,) = findings.accuracy(run)
    assert "python:boxes:near gives 89.0% on 200 samples; the teacher's answer on" in finding.text
    numbers = {number.name: number.number for number in summary.glance(run)}
    assert "Score against the teacher" in numbers
    assert "graph scores 89.0% by python:boxes:near (95% interval 84.0% to 92.6%)" in render(run)
