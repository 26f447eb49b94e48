"""Whose a LatencyReport is, and what its result is."""

from __future__ import annotations

import shutil

from edgekd.report.collection import Collection
from edgekd.report.timing import main_row, own_timings, ratio_interval, timings

from .conftest import Maker
from .latencies import LOCKED, foreign, latency, offline, samples, scenario


def test_a_report_is_of_the_run_whose_graphs_its_engines_were_made_of(maker: Maker) -> None:
    model = maker.model(maker.teacher())
    engines = maker.engines([model])
    report = latency(maker, engines, samples([400], scenario()))
    # The Engine is not given, but lies beside the report.
    run = Collection([foreign(maker), report, model])
    own, other = timings(run)
    assert (own.report.id, own.other) == (report.id, None)
    assert own_timings(run) == [own]
    assert other.other is not None
    assert (other.other.name, other.other.random) == ("large", True)
    assert other.other.size == "2 layers, ort.onnx of 9 B"


def test_weights_that_were_fitted_are_not_called_random(maker: Maker) -> None:
    (timing,) = timings(Collection([maker.model(maker.teacher()), foreign(maker, steps=5)]))
    assert timing.other is not None
    assert not timing.other.random


def test_a_report_far_from_its_engines_says_nothing_of_them(maker: Maker) -> None:
    report = foreign(maker)
    model = maker.model(maker.teacher())
    for engine in maker.out.glob("engine-*"):
        shutil.rmtree(engine)
    (timing,) = timings(Collection([model, report]))
    assert timing.other is not None
    assert (timing.other.name, timing.other.random) == ("", False)


def test_without_a_graph_a_report_is_the_run(maker: Maker) -> None:
    (timing,) = timings(Collection([foreign(maker)]))
    assert timing.own


def test_the_result_is_the_scenarios(maker: Maker) -> None:
    teacher = maker.teacher()
    models = [maker.model(teacher), maker.model(maker.student(teacher, "sparse"))]
    engines = maker.engines(models)
    reports = [
        latency(maker, engines, samples([400, 200], asked, spread=0), asked, state=LOCKED)
        for asked in (offline(), scenario())
    ]
    run = Collection([*models, *engines, *reports])
    stream, rate = timings(run)
    assert (stream.percentile, rate.percentile) == ("p90", "")
    assert stream.controlled
    name, row = main_row(run, stream)
    assert name == "2:4 INT8"
    assert stream.result(row)["estimate"] == 200_000
    assert round(rate.result(rate.engines[1])["estimate"]) == 40_000  # 8 in 200 µs
    ratios = [timing.ratio(row) for timing in (stream, rate) for row in timing.engines]
    assert [ratio and ratio["estimate"] for ratio in ratios] == [None, 0.5, None, 0.5]


def test_two_engines_of_one_arm_are_told_apart(maker: Maker) -> None:
    model = maker.model(maker.teacher())
    engines = [maker.engine(model, {"name": "cpu", "runtime": "onnxruntime", "n": n}, "onnxruntime")
               for n in (1, 2)]  # fmt: skip
    report = latency(maker, engines, samples([400, 200], scenario()))
    (timing,) = timings(Collection([report]))
    assert timing.names == [f"float teacher, {engine.path.name}" for engine in engines]


def test_an_interval_that_covers_less_says_so() -> None:
    interval = {"low": 0.9, "high": 1.12, "coverage": 0.95}
    assert ratio_interval(interval) == "0.90 to 1.12"
    assert ratio_interval({**interval, "coverage": 0.875}) == "0.90 to 1.12, 87.5% interval"
