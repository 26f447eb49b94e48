"""A candidate beside a baseline: its engine where it is there, else its numbers alone."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, baseline, evaluate, gate, kinds, runner
from edgekd.artifact import Artifact, Question
from edgekd.bench.scenario import Scenario
from edgekd.errors import ArtifactError, ConfigError
from edgekd.recipe import Gate

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports
from tiny.gates import FEW, ROOMY, Bench, accepted, sentence, verdict_of


@pytest.mark.parametrize(
    ("median_ns", "between", "expected"),
    [(1.0e6, 0.003, "pass"), (1.1e6, 0.003, "regress"), (1.0e6, 0.3, "inconclusive")],
)
def test_a_baselines_engine_runs_beside_the_candidate(
    engines: dict[str, Artifact],
    out: Path,
    tmp_path: Path,
    measured: Bench,
    median_ns: float,
    between: float,
    expected: str,
) -> None:
    old, new = engines["dense"], engines["sparse"]
    measured({old.id: (1e6, 0.003), new.id: (median_ns, between)})
    directory = accepted(old, out, tmp_path / "b")
    samples = artifact.parent(old, "samples", kinds.SAMPLES)
    made = gate.gate(new, out, budgets=ROOMY, scenario=FEW, baseline=directory, samples=samples)
    assert verdict_of(made) == (
        expected,
        {"latency_to_baseline": expected, "accuracy_to_baseline": "pass"},
    )
    assert gate.EXIT_CODES[made.results["overall"]] == {"pass": 0, "regress": 1}.get(expected, 4)
    report = made.read_json("verdict.json")
    assert report["evidence"] == made.manifest.parents
    latency = artifact.parent(made, "latency", kinds.LATENCY_REPORT)
    assert [row["id"] for row in latency.results["engines"]] == [old.id, new.id]
    assert set(report["evidence"]) == {
        "engine",
        "samples",
        "accuracy",
        "latency",
        "baseline-engine",
        "baseline-accuracy",
        "baseline-latency",
    }
    assert "p90 of few, both in one run: " in sentence(made, "latency_to_baseline")
    assert "same id" not in made.file("verdict.json").read_text()


def test_accuracy_to_baseline_is_the_candidates(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    old, new = engines["dense"], engines["sparse"]
    measured({each.id: (1e6, 0.003) for each in engines.values()})
    directory = accepted(old, out, tmp_path / "b")
    samples = artifact.parent(old, "samples", kinds.SAMPLES)
    made = gate.gate(new, out, budgets=ROOMY, scenario=FEW, baseline=directory, samples=samples)
    (check,) = [c for c in made.results["checks"] if c["name"] == "accuracy_to_baseline"]
    row = gate.compare_answers(old, new, samples)
    assert check["found"] == -100 * row["difference"] > 0  # the sparse engine answers worse


def test_a_latency_budget_judges_the_candidate_and_not_the_baseline(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    old, new = engines["dense"], engines["sparse"]
    measured({old.id: (1e6, 0.003), new.id: (2e6, 0.003)})
    directory = accepted(old, out, tmp_path / "b")
    samples = artifact.parent(old, "samples", kinds.SAMPLES)
    budgets = ROOMY.model_copy(update={"latency_ms": 1.5})
    made = gate.gate(new, out, budgets=budgets, scenario=FEW, baseline=directory, samples=samples)
    (check,) = [c for c in made.results["checks"] if c["name"] == "latency"]
    assert check["verdict"] == "regress"
    assert check["found"] == pytest.approx(2.0, rel=0.1)


def test_an_engine_that_is_compared_with_itself_is_told_so(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    old = engines["dense"]
    measured({old.id: (1e6, 0.003)})
    directory = accepted(old, out, tmp_path / "b")
    made = gate.gate(old, out, budgets=ROOMY, scenario=FEW, baseline=directory)
    assert verdict_of(made) == (
        "pass",
        {"latency_to_baseline": "pass", "accuracy_to_baseline": "pass"},
    )
    for name in ("latency_to_baseline", "accuracy_to_baseline"):
        assert sentence(made, name).endswith(
            ": pass; the candidate is the baseline's own engine (same id): this compares an engine "
            "with itself"
        )


def test_all_checks_together_and_the_worst_decides(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    measured({each.id: (1e6, 0.003) for each in engines.values()})
    old = engines["dense"]
    directory = accepted(old, out, tmp_path / "b")
    budgets = Gate(
        accuracy_drop_points=50.0, latency_ms=2.0, size_bytes=10, minimum_effect_points=2.0
    )
    made = gate.gate(old, out, budgets=budgets, scenario=FEW, baseline=directory)
    assert verdict_of(made) == (
        "regress",
        {
            "accuracy_to_teacher": "pass",
            "latency": "pass",
            "size": "regress",
            "latency_to_baseline": "pass",
            "accuracy_to_baseline": "inconclusive",
        },
    )


def test_offline_compares_the_time_of_a_sample(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    offline = reports.few(scenario="Offline", percentile=None)
    engine = engines["dense"]
    measured({engine.id: (1e6, 0.003)})
    directory = accepted(engine, out, tmp_path / "b", offline)
    made = gate.gate(engine, out, budgets=ROOMY, scenario=offline, baseline=directory)
    assert verdict_of(made)[0] == "pass"
    assert "time_per_sample of few, both in one run" in sentence(made, "latency_to_baseline")


def test_accept_replaces_a_baseline_whatever_the_verdict(
    engines: dict[str, Artifact],
    out: Path,
    tmp_path: Path,
    measured: Bench,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = engines["dense"], engines["sparse"]
    measured({old.id: (1e6, 0.003), new.id: (2e6, 0.003)})
    directory = tmp_path / "b"
    first = gate.gate(old, out, budgets=ROOMY, scenario=FEW, baseline=directory, accept=True)
    assert verdict_of(first) == ("accepted", {})  # nothing was judged, which is no pass
    assert gate.EXIT_CODES["accepted"] == 0
    said = f"baseline written to {directory}: engine "
    assert capsys.readouterr().err.splitlines() == [f"{said}{old.id[:12]}"]
    samples = artifact.parent(old, "samples", kinds.SAMPLES)
    made = gate.gate(
        new,
        out,
        budgets=ROOMY,
        scenario=FEW,
        baseline=directory,
        samples=samples,
        accept=True,
    )
    assert verdict_of(made)[0] == "regress"
    assert f"{said}{new.id[:12]}\n" in capsys.readouterr().err
    found = baseline.read(directory)
    assert found.engine_id == new.id
    assert found.latency.id == made.manifest.parents["latency"]
    # A candidate is compared with what was accepted, though an older engine is in its report too.
    again = gate.gate(new, out, budgets=ROOMY, scenario=FEW, baseline=directory, samples=samples)
    assert verdict_of(again)[0] == "pass"
    assert "baseline written" not in capsys.readouterr().err


def test_a_baseline_that_does_not_fit_is_refused_before_a_measurement(
    engines: dict[str, Artifact],
    out: Path,
    tmp_path: Path,
    measured: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = engines["dense"], engines["sparse"]
    measured({old.id: (1e6, 0.01)})
    directory = accepted(old, out, tmp_path / "b")
    before = len(list(out.glob("latency-*")))

    def refused(engine: Artifact, scenario: Scenario = FEW, **given: Any) -> str:
        with pytest.raises((ConfigError, ArtifactError)) as caught:
            gate.gate(
                engine, out, budgets=ROOMY, scenario=scenario, **{"baseline": directory, **given}
            )
        assert len(list(out.glob("latency-*"))) == before
        return str(caught.value)

    elsewhere = reports.engine(out, "dense", where={"name": "cpu-other"})
    assert (
        "its LatencyReport is of target 'cpu', the gate is on target 'cpu-other'; they differ in "
        "name: gate on the baseline's own target"
    ) in refused(elsewhere)
    assert "they differ in queries: gate on" in refused(old, reports.few(queries=100))
    assert "labels of these 20 samples are not those of the baseline's" in refused(new)
    assert "absent: no such baseline" in refused(old, baseline=tmp_path / "absent")
    own = artifact.parent(old, "samples", kinds.SAMPLES)
    copy = artifact.load(shutil.copytree(own.path, tmp_path / "copy"))
    copy.file("samples.npz").write_bytes(b"altered")
    assert "samples.npz was altered: 7 bytes, expected" in refused(old, samples=copy)
    with monkeypatch.context() as later:
        later.setattr(kinds, "LATENCY_REPORT", replace(kinds.LATENCY_REPORT, schema=2))
        assert "LatencyReport has schema 1, this edgekd reads 2; make it again" in refused(old)
    (index,) = directory.glob("latency-*/latency.json")
    index.write_text("{}")
    assert "latency.json was altered: 2 bytes, expected" in refused(old)


@pytest.fixture
def numbers_alone(engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench) -> Path:
    """The baseline of the dense engine, which is measured as it was then, without that engine."""
    old = engines["dense"]
    measured({old.id: (1e6, 0.003)})
    directory = accepted(old, out, tmp_path / "b")
    (engine,) = directory.glob("engine-*")
    shutil.rmtree(engine)
    return directory


def test_numbers_alone_are_compared_on_a_locked_machine_only(
    engines: dict[str, Artifact], out: Path, numbers_alone: Path, measured: Bench
) -> None:
    old = engines["dense"]

    def judged(**state: Any) -> Artifact:
        return gate.gate(
            old,
            out,
            budgets=Gate(minimum_effect=0.05, minimum_effect_points=50.0),
            scenario=FEW,
            baseline=numbers_alone,
            **state,
        )

    same = judged()
    assert verdict_of(same) == (
        "pass",
        {"latency_to_baseline": "pass", "accuracy_to_baseline": "pass"},
    )
    assert "the baseline's, from two runs: 1 (" in sentence(same, "latency_to_baseline")
    assert "baseline-engine" not in same.manifest.parents
    measured({old.id: (2e6, 0.003)})
    assert verdict_of(judged())[0] == "regress"
    measured({old.id: (1e6, 0.003)}, cpu_clock_locked=False)
    free = judged()
    assert verdict_of(free)[1]["latency_to_baseline"] == "inconclusive"
    assert sentence(free, "latency_to_baseline").endswith(
        "inconclusive: the baseline's engine is not there to run, and the candidate's machine was "
        f"not locked (uncontrolled machine: ratios only); restore the engine; {gate.ITSELF}"
    )


def test_numbers_alone_are_not_compared_with_those_of_other_samples(
    engines: dict[str, Artifact], out: Path, numbers_alone: Path
) -> None:
    old = engines["dense"]
    other = artifact.parent(engines["sparse"], "samples", kinds.SAMPLES)
    with pytest.raises(ConfigError, match="labels of these 20 samples are not those of the basel"):
        gate.gate(old, out, budgets=ROOMY, scenario=FEW, baseline=numbers_alone, samples=other)


def test_accuracy_by_numbers_alone_is_not_paired(
    engines: dict[str, Artifact], out: Path, numbers_alone: Path
) -> None:
    old = engines["dense"]
    made = gate.gate(old, out, budgets=Gate(), scenario=FEW, baseline=numbers_alone)
    (check,) = [c for c in made.results["checks"] if c["name"] == "accuracy_to_baseline"]
    low, high = evaluate.wilson(20, 20)
    assert check["interval"] == pytest.approx([-100 * (high - low), 100 * (high - low)])
    assert check["verdict"] == "inconclusive"
    assert "is not there to pair the answers; restore it; " in check["sentence"]


def test_answers_of_two_engines_are_paired(engines: dict[str, Artifact]) -> None:
    old, new = engines["dense"], engines["sparse"]
    samples = artifact.parent(old, "samples", kinds.SAMPLES)
    row = gate.compare_answers(old, new, samples)
    arrays = runner.samples(samples)
    right = []
    for each in (old, new):
        with runner.open(each) as run:
            answer = run({"x": arrays["input.x"]})["logits"].argmax(axis=1)
        right.append(answer == arrays["labels"])
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    assert lost > 0  # the labels are what the dense teacher answers
    assert (row["gained"], row["lost"]) == (gained, lost)
    assert row["difference"] == (gained - lost) / 20
    assert tuple(row["difference_interval"]) == evaluate.tango(gained, lost, 20)


def test_an_engine_with_other_inputs_is_no_comparison(
    engines: dict[str, Artifact], out: Path
) -> None:
    old = engines["dense"]
    samples = artifact.parent(old, "samples", kinds.SAMPLES)
    arrays = {**runner.samples(samples)}
    arrays["input.y"] = arrays.pop("input.x")

    def write(work: artifact.Work) -> dict[str, Any]:
        np.savez(work.scratch / "samples.npz", **arrays)
        shutil.copyfile(samples.file("io.json"), work.scratch / "io.json")
        return {}

    other = artifact.make(out, Question(kinds.SAMPLES, {"input": "y"}), write)
    with pytest.raises(ConfigError, match="input 'x' is missing: given are y"):
        gate.compare_answers(old, engines["sparse"], other)
