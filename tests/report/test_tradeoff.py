"""Accuracy against latency: each engine where its own numbers put it."""

from __future__ import annotations

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection
from edgekd.report.plot import Plot
from edgekd.report.timing import timings
from edgekd.report.tradeoff import tradeoff

from .conftest import Maker
from .latencies import latency, offline, samples, scenario


def drawn(run: list[Artifact]) -> Plot | None:
    collection = Collection(run)
    return tradeoff(collection, timings(collection)[0], "here")


def test_an_engine_is_judged_by_its_own_report_else_by_that_of_its_file(maker: Maker) -> None:
    teacher = maker.teacher()
    models = [maker.model(teacher), maker.model(maker.student(teacher, "dense"))]
    engines = maker.engines(models)
    report = latency(maker, engines, samples([400, 200], scenario()))
    judged = [maker.accuracy(engines[0]), maker.accuracy(models[1])]
    plot = drawn([*models, *engines, report, *judged])
    assert plot is not None
    assert plot.title == "Accuracy against p90"
    assert [row[0] for row in plot.rows] == ["float teacher", "dense INT8"]
    assert [row[-1] for row in plot.rows] == ["the engine", "its ort.onnx"]
    assert plot.rows[0][3:5] == ("89.0%", "84.0% to 92.6%")
    assert plot.text.startswith("Top-1 against p90 of 2 engines. float teacher: p90 4")
    assert plot.text.endswith("The teacher's top-1 is 90.0%.")
    assert [plot.svg.count(f'class="mark s{look}"') for look in (1, 2)] == [1, 1]


def test_what_was_not_evaluated_is_named_and_not_drawn(maker: Maker) -> None:
    teacher = maker.teacher()
    models = [maker.model(teacher), maker.model(maker.student(teacher, "sparse"))]
    engines = maker.engines(models)
    report = latency(maker, engines, samples([400, 200], scenario()))
    plot = drawn([*models, *engines, report, maker.accuracy(models[0])])
    assert plot is not None
    assert plot.note.endswith("Not drawn, since not evaluated: 2:4 INT8.")
    assert len(plot.rows) == 1
    assert drawn([*models, *engines, report]) is None


def test_offline_is_drawn_by_its_rate(maker: Maker) -> None:
    model = maker.model(maker.teacher())
    engines = maker.engines([model])
    report = latency(maker, engines, samples([400], offline(), spread=0), offline())
    plot = drawn([model, *engines, report, maker.accuracy(engines[0])])
    assert plot is not None
    assert plot.title == "Accuracy against throughput"
    # 8 samples in 400 µs, with no spread.
    assert plot.rows[0][1:3] == ("20,000 samples/s", "20,000 to 20,000 samples/s")
    assert "better is right and up" in plot.note
