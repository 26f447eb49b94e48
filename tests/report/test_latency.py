"""The latency section: every number with its interval, and why one is missing."""

from __future__ import annotations

import numpy as np

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection
from edgekd.report.latency import Section, sections, untimed

from .conftest import A100, Maker
from .latencies import LOCKED, foreign, latency, offline, samples, scenario


def two_arms(maker: Maker) -> list[Artifact]:
    teacher = maker.teacher()
    return [maker.model(teacher), maker.model(maker.student(teacher, "sparse"))]


def only(run: list[Artifact]) -> Section:
    (section,), _ = sections(Collection(run))
    return section


def test_a_row_holds_median_interval_bound_and_ratio(maker: Maker) -> None:
    models = two_arms(maker)
    engines = maker.engines(models)
    times = samples([400, 200], scenario(), spread=0)
    section = only([*models, *engines, latency(maker, engines, times, state=LOCKED)])
    assert section.title == "one-by-one on cpu"
    assert section.asked == "one sample a query, the next when the last is answered"
    assert section.date == "2026-01-02 03:04:05 UTC"
    assert (section.percentiles, section.result) == (("p50", "p90"), "p90")
    first, second = section.rows
    assert (first.name, first.about, first.asked) == ("float teacher", "onnxruntime", "12 × 64")  # noqa: RUF001
    assert first.percentiles[1].number == "400 µs"
    assert first.percentiles[1].notes == ("400 to 400 µs", "≤ 400 µs, 99.0%")
    assert (first.ratio.number, first.ratio.notes) == ("1", ("the reference",))
    assert second.throughput.number == "5,000"
    assert second.ratio.number == "0.50"
    assert second.ratio.notes == ("0.50 to 0.50", "p50: 0.50 (0.50 to 0.50)")
    assert first.valid
    assert section.absent == (
        "p95 and p99 have no column: they need 130 and 662 queries a process for an upper bound, "
        "and there were 64"
    )


def test_a_withheld_bound_says_why(maker: Maker) -> None:
    models = two_arms(maker)[:1]
    engines = maker.engines(models)
    slow = np.tile(np.repeat([300_000, 900_000], 32), (1, 12, 1))  # the second half is slower
    section = only([*models, *engines, latency(maker, engines, slow)])
    assert section.rows[0].valid is False
    assert section.rows[0].percentiles[1].notes[1] == "median ≤ 900 µs, 99.7%"
    (reason,) = section.reasons
    assert reason.startswith(
        "float teacher: upper bounds withheld: the queries of 12 of 12 repetitions"
    )
    assert not section.controlled
    assert section.machine == "uncontrolled machine: ratios only"


def test_notes_of_all_reports_are_told_once_and_accuracys_not_at_all(maker: Maker) -> None:
    models = two_arms(maker)
    engines = maker.engines(models)
    reports = [
        latency(maker, engines, samples([median, 200], asked, spread=0), asked)
        for median, asked in ((400, scenario()), (5, offline()))
    ]
    found, common = sections(Collection([*models, *engines, *reports]))
    assert len(common) == 1
    assert common[0].startswith("ONNX Runtime uses no 2:4: dense and 2:4 INT8 are expected")
    assert found[0].notes == ()
    assert found[1].notes[0].startswith("the harness itself takes up to 18% of a query's time")
    assert found[1].rows[0].percentiles[0].number == "5.00 µs"
    assert dict(found[1].facts)["Harness alone"].startswith("900 ns a query (900 to 900 ns)")


def test_the_part_on_the_gpu_has_a_row_of_its_own(maker: Maker) -> None:
    model = two_arms(maker)[1]
    engine = maker.engine(model, A100, "tensorrt")
    times = samples([400], scenario(), spread=0)
    report = latency(maker, [engine], times, gpu_ns=times // 2, state=LOCKED)
    section = only([model, engine, report])
    whole, part = section.rows
    assert whole.percentiles[1].number == "400 µs"
    assert (part.about, part.valid) == ("of which on the GPU, without transfers", None)
    assert part.percentiles[1].number == "200 µs"
    assert section.notes == ()


def test_another_models_report_has_no_accuracy_and_no_place_in_the_claims(maker: Maker) -> None:
    run = Collection([*two_arms(maker), foreign(maker)])
    (section,), _ = sections(run)
    assert section.other is not None
    assert [plot.title for plot in section.plots] == ["How latency is distributed"]
    assert untimed(run) == "nothing was built that could be timed"


def test_why_nothing_was_timed(maker: Maker) -> None:
    models = two_arms(maker)
    assert untimed(Collection([*models, *maker.engines(models)])) == "no benchmark was run"
    bundle = maker.bundle(models[1], A100)
    assert untimed(Collection([*models, bundle])) == "no such device here"
