"""Latency as a claim: evidence for the device it was measured on, and for no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekd.artifact import Artifact
from edgekd.report import report as write
from edgekd.report.claims import claims
from edgekd.report.collection import Collection
from edgekd.report.findings import Finding
from edgekd.report.measured import beside, sentence
from edgekd.report.summary import glance

from .conftest import A100, ORIN, Maker
from .latencies import LOCKED, foreign, latency, offline, samples, scenario


def arms(maker: Maker) -> tuple[list[Artifact], list[Artifact]]:
    teacher = maker.teacher()
    models = [maker.model(teacher), maker.model(maker.student(teacher, "sparse"))]
    return models, maker.engines(models)


def found(*run: Artifact) -> list[Finding]:
    return list(claims(Collection(run))[-1].findings)


def test_a_cpu_number_is_evidence_and_leaves_the_devices_unmeasured(maker: Maker) -> None:
    models, engines = arms(maker)
    report = latency(maker, engines, samples([400, 200], scenario(), spread=0))
    bundles = [maker.bundle(models[1], target) for target in (A100, ORIN)]
    here, away = found(*models, *engines, report, *bundles)
    assert here.state == "evidence"
    assert here.text == (
        "one-by-one, p90 of a query: "
        "float teacher 400 µs (400 to 400 µs); 2:4 INT8 200 µs (200 to 200 "
        "µs), "
        "0.50 times the float teacher's (0.50 to 0.50). "
        "Uncontrolled machine: ratios only. Stands for "
        "no GPU: ONNX Runtime uses no 2:4."
    )
    assert [where.text for where in here.on] == ["float teacher for cpu", "2:4 INT8 for cpu"]
    assert (away.state, away.text) == ("not measured", "Not measured: no such device here.")
    assert [where.text for where in away.on] == ["a100", "orin"]


def test_a_controlled_device_with_its_bound_is_proof(maker: Maker) -> None:
    models, _ = arms(maker)
    engine = maker.engine(models[1], A100, "tensorrt")
    report = latency(maker, [engine], samples([400], scenario(), spread=0), state=LOCKED)
    (finding,) = found(models[1], engine, report)
    assert finding.state == "proven"
    assert finding.text == "one-by-one, p90 of a query: 2:4 INT8 400 µs (400 to 400 µs)."


def test_a_cpu_number_is_evidence_even_where_its_clock_is_locked(maker: Maker) -> None:
    models, engines = arms(maker)
    times = samples([400, 200], scenario(), spread=0)
    (finding,) = found(*models, *engines, latency(maker, engines, times, state=LOCKED))
    assert finding.state == "evidence"
    assert "ncontrolled" not in finding.text
    assert finding.text.endswith(" Stands for no GPU: ONNX Runtime uses no 2:4.")


def test_a_withheld_bound_is_evidence_on_a_controlled_device(maker: Maker) -> None:
    models, _ = arms(maker)
    engine = maker.engine(models[1], A100, "tensorrt")
    times = samples([400], scenario(), spread=0)
    times = times * np.linspace(1, 3, times.shape[-1])  # queries that depend on one another
    report = latency(maker, [engine], times.astype(np.int64), state=LOCKED)
    (finding,) = found(models[1], engine, report)
    assert finding.state == "evidence"
    assert finding.text.endswith(" Upper bounds withheld for 2:4 INT8.")


def test_a_rate_is_told_in_samples_a_second(maker: Maker) -> None:
    models, engines = arms(maker)
    report = latency(maker, engines, samples([400, 200], offline(), spread=0), offline())
    (finding,) = found(*models, *engines, report)
    assert "float teacher 20,000 samples/s (20,000 to 20,000); 2:4 INT8 40,000" in finding.text


def test_an_engine_that_was_not_timed_says_so_and_anothers_report_does_not_help(
    maker: Maker,
) -> None:
    models, engines = arms(maker)
    (finding,) = found(*models, *engines, foreign(maker))
    assert finding.text == "Not measured: no benchmark was run."
    assert len(finding.on) == 2


def test_the_verdict_tells_the_ratio_and_what_it_does_not_stand_for(maker: Maker) -> None:
    models, engines = arms(maker)
    report = latency(maker, engines, samples([400, 200], scenario(), spread=0))
    run = Collection([*models, *engines, report, maker.bundle(models[1], ORIN)])
    assert sentence(run) == (
        "2:4 INT8 takes 0.50 times the float teacher's p90 (0.50 to 0.50), measured on cpu with "
        "ONNX Runtime, which uses no 2:4: that stands for no other device. Uncontrolled machine: "
        "ratios only. Not measured on orin."
    )
    ratio, away = glance(run)[-2:]
    assert ratio == (
        "p90, times the float teacher's",
        "0.50",
        "0.50 to 0.50; 2:4 INT8 on cpu, one-by-one; uncontrolled machine: ratios only",
    )
    assert away == ("Latency on the device", "not measured", "orin")


def test_a_ratio_that_may_be_1_shows_no_difference(maker: Maker, tmp_path: Path) -> None:
    models, engines = arms(maker)
    times = samples([400, 396], scenario(), spread=0.3)
    report = latency(maker, engines, times, state=LOCKED)
    run = Collection([*models, *engines, report])
    found = report.read_json("latency.json")["engines"][1]["ratio_to_first"]["p90"]
    assert found["low"] < 1 < found["high"]
    numbers = "{estimate:.2f}, {low:.2f} to {high:.2f}".format(**found)
    assert sentence(run) == (
        f"p90 of 2:4 INT8 against the float teacher's: no difference shown ({numbers}), measured "
        "on cpu with ONNX Runtime, which uses no 2:4: that stands for no other device."
    )
    seen = glance(run)[-1]
    assert seen.number == "no difference shown"
    assert seen.note == f"{numbers}; 2:4 INT8 on cpu, one-by-one"
    (finding,) = claims(run)[-1].findings
    assert f", no difference shown from the float teacher's ({numbers})." in finding.text
    page = write([*models, *engines, report], tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<strong>{found['estimate']:.2f}</strong>" not in page
    assert '<span class="note">no difference shown</span>' in page
    assert '<dd class="number unseen">no difference shown</dd>' in page


def test_a_result_that_may_not_be_quoted_says_so_on_the_first_screen(maker: Maker) -> None:
    models, engines = arms(maker)
    times = samples([400, 200], scenario(), spread=0)
    times[1] = times[1] * np.linspace(1, 3, times.shape[-1])  # queries that depend on one another
    report = latency(maker, engines, times.astype(np.int64))
    valid = [row["valid"] for row in report.read_json("latency.json")["engines"]]
    assert valid[1] is False
    run = Collection([*models, *engines, report])
    doubt = "ncontrolled machine: ratios only; not valid: "
    assert f" U{doubt}" in sentence(run)
    assert f"; u{doubt}" in glance(run)[-1].note
    assert glance(run)[-1].note.endswith("2:4 INT8")


def test_the_verdict_tells_another_networks_latency_as_anothers(maker: Maker) -> None:
    models, engines = arms(maker)
    report = latency(maker, engines, samples([400, 200], scenario(), spread=0))
    run = Collection([*models, *engines, report, foreign(maker)])
    assert "large" not in sentence(run)
    assert beside(run).startswith(
        "of large (random weights), measured on cpu: the float teacher has a p90 of "
    )
    fitted = Collection([*models, *engines, report, foreign(maker, steps=5)])
    assert beside(fitted).startswith("of large, measured on cpu: the float teacher has a p90 of ")
    assert beside(Collection([*models, *engines, report])) == ""


def test_one_engine_alone_has_a_time_and_no_ratio(maker: Maker) -> None:
    models, engines = arms(maker)
    report = latency(maker, engines[1:], samples([200], scenario(), spread=0))
    run = Collection([*models, *engines, report])
    assert sentence(run).startswith("2:4 INT8 has a p90 of 200 µs (200 to 200 µs), measured on cpu")
    assert glance(run)[-1].number == "200 µs"
    assert sentence(Collection(models)) == ""
