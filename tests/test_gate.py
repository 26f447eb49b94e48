"""The gate as a stage: what it refuses, what it decides, and one run of all of it.

A machine with locked clocks is not at hand, so most runs get a bench that returns a report of made
up samples; everything else in them is real. The last tests measure.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, baseline, evaluate, gate, kinds, runner
from edgekd.artifact import Artifact, Question
from edgekd.bench.scenario import Scenario
from edgekd.errors import ArtifactError, ConfigError, UnsupportedError
from edgekd.recipe import Gate

sys.path.insert(0, str(Path(__file__).parent))
from tiny import reports

FEW = reports.few()
ROOMY = Gate(minimum_effect_points=100.0)  # the two arms differ, and 20 samples are few

Bench = Callable[..., None]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def engines(out: Path) -> dict[str, Artifact]:
    return {arm: reports.engine(out, arm) for arm in ("dense", "sparse")}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A function that sets what bench will have measured: {engine id: (median ns, between)}."""

    def arrange(times: dict[str, tuple[float, float]], **state: Any) -> None:
        def bench(
            engines: Sequence[Artifact], scenario: Scenario, out: Path, samples: Artifact | None
        ) -> Artifact:
            del samples
            drawn = [reports.draw(seed, *times[engine.id]) for seed, engine in enumerate(engines)]
            return reports.latency_report(out, engines, scenario, drawn, state)

        monkeypatch.setattr(gate, "bench", bench)

    return arrange


def verdict_of(made: Artifact) -> tuple[str, dict[str, str]]:
    report = made.read_json("verdict.json")
    return report["overall"], {check["name"]: check["verdict"] for check in report["checks"]}


def sentence(made: Artifact, name: str) -> str:
    (found,) = [
        c["sentence"] for c in made.read_json("verdict.json")["checks"] if c["name"] == name
    ]
    return str(found)


def accepted(
    engine: Artifact, out: Path, directory: Path, scenario: Scenario = FEW, **given: Any
) -> Path:
    gate.gate(
        engine, out, budgets=ROOMY, scenario=scenario, baseline=directory, accept=True, **given
    )
    return directory


@pytest.mark.parametrize(
    ("budgets", "changes", "words"),
    [
        (
            Gate(),
            {},
            "gate has nothing to check: [gate] gives none of accuracy_drop_points, latency_ms and "
            "size_bytes, and there is no baseline: give --recipe with one of them, or --baseline",
        ),
        (
            Gate(latency_ms=2.0),
            {"scenario": "Offline", "percentile": None},
            "gate.latency_ms is 2, but scenario few is Offline, whose result is samples per second",
        ),
        (
            Gate(latency_ms=2.0, percentile=99),
            {},
            "gate.percentile is 99, for which scenario few asks 64 queries, expected at least 662",
        ),
    ],
)
def test_what_no_measurement_could_answer_is_refused_before_one(
    engines: dict[str, Artifact], out: Path, budgets: Gate, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        gate.gate(engines["dense"], out, budgets=budgets, scenario=reports.few(**changes))
    assert str(caught.value).startswith(words)
    assert not list(out.glob("latency-*"))


def test_a_percentile_of_its_own_may_be_one_the_scenario_has_queries_for() -> None:
    budgets = Gate(latency_ms=2.0, percentile=50)
    gate.check_asked(budgets, FEW, compares=False, accept=False)
    gate.check_asked(budgets, reports.few(repetitions=9), compares=False, accept=False)


@pytest.mark.parametrize(("compares", "accept"), [(True, False), (False, True)])
def test_too_few_repetitions_for_a_ratio_now_or_later(compares: bool, accept: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        gate.check_asked(Gate(), reports.few(repetitions=11), compares=compares, accept=accept)
    assert str(caught.value) == (
        "scenario few has 11 repetitions, expected at least 12 for the 95% interval of a ratio to "
        "a baseline: set repetitions"
    )


def test_the_repetitions_of_a_ratio_are_those_its_interval_needs() -> None:
    def coverage(repetitions: int) -> float:
        values = np.linspace(1, 2, repetitions)
        return gate.stats.ratio(values, values).coverage

    assert coverage(gate.REPETITIONS_MIN) == 0.95
    assert coverage(gate.REPETITIONS_MIN - 1) < 0.95


def test_accept_needs_a_place(engines: dict[str, Artifact], out: Path) -> None:
    with pytest.raises(ConfigError, match="accept writes a baseline: name its directory with --ba"):
        gate.gate(engines["dense"], out, budgets=ROOMY, scenario=FEW, accept=True)
    with pytest.raises(ConfigError, match=r"and no baseline\.json, so it is no baseline and is le"):
        accepted(engines["dense"], out, out)


def test_what_is_no_engine_or_never_run(engines: dict[str, Artifact], out: Path) -> None:
    budgets = Gate(size_bytes=1)
    model = artifact.parent(engines["dense"], "model", kinds.ONNX_MODEL)
    with pytest.raises(ArtifactError, match="is a OnnxModel, expected an Engine: build it"):
        gate.gate(model, out, budgets=budgets, scenario=FEW)
    config = {**engines["dense"].config, "runtime": "tensorrt-rtx"}

    def write(work: artifact.Work) -> dict[str, Any]:
        for name in kinds.ENGINE.files:
            (work.scratch / name).write_text("{}")
        return {}

    evidence = artifact.make(out, Question(kinds.ENGINE, config), write)
    with pytest.raises(UnsupportedError, match="is a tensorrt-rtx plan kept as evidence"):
        gate.gate(evidence, out, budgets=budgets, scenario=FEW)


def test_a_size_needs_no_measurement(engines: dict[str, Artifact], out: Path) -> None:
    size = engines["dense"].file("model.onnx").stat().st_size
    for limit, expected in ((size, "pass"), (size - 1, "regress")):
        made = gate.gate(engines["dense"], out, budgets=Gate(size_bytes=limit), scenario=FEW)
        assert verdict_of(made) == (expected, {"size": expected})
        assert made.manifest.parents == {"engine": engines["dense"].id}
    assert (
        sentence(made, "size") == f"size of model.onnx: {size} bytes, at most {size - 1}: regress"
    )
    assert not list(out.glob("latency-*"))


def test_an_accuracy_budget_needs_no_latency(engines: dict[str, Artifact], out: Path) -> None:
    made = gate.gate(engines["dense"], out, budgets=Gate(accuracy_drop_points=50.0), scenario=FEW)
    assert verdict_of(made) == ("pass", {"accuracy_to_teacher": "pass"})
    assert set(made.manifest.parents) == {"engine", "samples", "accuracy"}
    # No answer differs, and 20 samples cannot tell more than z^2 / (20 + z^2) = 16.1 points.
    tight = gate.gate(engines["dense"], out, budgets=Gate(accuracy_drop_points=1.0), scenario=FEW)
    assert verdict_of(tight)[0] == "inconclusive"
    assert tight.read_json("verdict.json")["checks"][0]["interval"][1] == pytest.approx(
        16.1, abs=0.1
    )


def test_a_model_that_answers_wrong_regresses(out: Path) -> None:
    labels = np.arange(20) % 10
    right = {"teacher.logits": np.eye(10, dtype=np.float32)[labels]}
    engine = reports.engine(out, "dense", labels=labels, arrays=right)
    made = gate.gate(engine, out, budgets=Gate(accuracy_drop_points=5.0), scenario=FEW)
    assert verdict_of(made) == ("regress", {"accuracy_to_teacher": "regress"})
    assert sentence(made, "accuracy_to_teacher").endswith("at most 5: regress")


def test_a_latency_budget_alone(engines: dict[str, Artifact], out: Path, measured: Bench) -> None:
    measured({engines["dense"].id: (1e6, 0.01)})
    for limit_ms, expected in ((1.2, "pass"), (1.03, "inconclusive"), (0.9, "regress")):
        made = gate.gate(engines["dense"], out, budgets=Gate(latency_ms=limit_ms), scenario=FEW)
        assert verdict_of(made) == (expected, {"latency": expected})
        assert set(made.manifest.parents) == {"engine", "latency"}
    measured({engines["dense"].id: (1e6, 0.01)}, cpu_clock_locked=False)
    free = gate.gate(engines["dense"], out, budgets=Gate(latency_ms=9.0), scenario=FEW)
    assert verdict_of(free) == ("inconclusive", {"latency": "inconclusive"})
    assert "uncontrolled machine: ratios only" in sentence(free, "latency")


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
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    old, new = engines["dense"], engines["sparse"]
    measured({old.id: (1e6, 0.003), new.id: (2e6, 0.003)})
    directory = tmp_path / "b"
    first = gate.gate(old, out, budgets=ROOMY, scenario=FEW, baseline=directory, accept=True)
    assert verdict_of(first) == ("pass", {})
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
    found = baseline.read(directory)
    assert found.engine_id == new.id
    assert found.latency.id == made.manifest.parents["latency"]
    # A candidate is compared with what was accepted, though an older engine is in its report too.
    again = gate.gate(new, out, budgets=ROOMY, scenario=FEW, baseline=directory, samples=samples)
    assert verdict_of(again)[0] == "pass"


def test_a_baseline_that_does_not_fit_is_refused_before_a_measurement(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
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
    (index,) = directory.glob("latency-*/latency.json")
    index.write_text("{}")
    assert "latency.json was altered: 2 bytes, expected" in refused(old)


def numbers_alone(directory: Path) -> Path:
    (engine,) = directory.glob("engine-*")
    shutil.rmtree(engine)
    return directory


def test_numbers_alone_are_compared_on_a_locked_machine_only(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    old = engines["dense"]
    measured({old.id: (1e6, 0.003)})
    directory = numbers_alone(accepted(old, out, tmp_path / "b"))

    def judged(**state: Any) -> Artifact:
        return gate.gate(
            old,
            out,
            budgets=Gate(minimum_effect=0.05, minimum_effect_points=50.0),
            scenario=FEW,
            baseline=directory,
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
        "not locked (uncontrolled machine: ratios only); restore the engine"
    )


def test_numbers_alone_are_not_compared_with_those_of_other_samples(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    old = engines["dense"]
    measured({old.id: (1e6, 0.003)})
    directory = numbers_alone(accepted(old, out, tmp_path / "b"))
    other = artifact.parent(engines["sparse"], "samples", kinds.SAMPLES)
    with pytest.raises(ConfigError, match="labels of these 20 samples are not those of the basel"):
        gate.gate(old, out, budgets=ROOMY, scenario=FEW, baseline=directory, samples=other)


def test_accuracy_by_numbers_alone_is_not_paired(
    engines: dict[str, Artifact], out: Path, tmp_path: Path, measured: Bench
) -> None:
    old = engines["dense"]
    measured({old.id: (1e6, 0.003)})
    directory = numbers_alone(accepted(old, out, tmp_path / "b"))
    made = gate.gate(old, out, budgets=Gate(), scenario=FEW, baseline=directory)
    (check,) = [c for c in made.results["checks"] if c["name"] == "accuracy_to_baseline"]
    low, high = evaluate.wilson(20, 20)
    assert check["interval"] == pytest.approx([-100 * (high - low), 100 * (high - low)])
    assert check["verdict"] == "inconclusive"
    assert check["sentence"].endswith("is not there to pair the answers; restore it")


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


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One real gate: the sparse engine is accepted after it ran beside the dense one."""
    root = tmp_path_factory.mktemp("real")
    out, directory = root / "out", root / "b"
    # A shared machine may lose more than 5% to its neighbours; that is bench's to test.
    where = {"required_state": ["cpu_model", "threads"]}
    old, new = (reports.engine(out, arm, where=where) for arm in ("dense", "sparse"))
    samples = artifact.parent(old, "samples", kinds.SAMPLES)
    first = reports.latency_report(out, [old], FEW, [reports.draw(1, 1e6, 0.01)])
    baseline.accept(
        directory,
        engine=old,
        samples=samples,
        accuracy=evaluate.evaluate(old, out, samples),
        latency=first,
    )
    budgets = Gate(
        accuracy_drop_points=100.0,
        latency_ms=1000.0,
        size_bytes=10,
        minimum_effect=100.0,
        minimum_effect_points=100.0,
    )
    made = gate.gate(
        new,
        out,
        budgets=budgets,
        scenario=FEW,
        baseline=directory,
        samples=samples,
        accept=True,
    )
    return {"made": made, "directory": directory, "old": old, "new": new}


def test_a_real_run_judges_what_it_measured(real: dict[str, Any]) -> None:
    made = real["made"]
    overall, checks = verdict_of(made)
    assert (overall, gate.EXIT_CODES[overall]) == ("regress", 1)  # by its size alone
    assert checks["size"] == "regress"
    assert checks["accuracy_to_teacher"] == checks["accuracy_to_baseline"] == "pass"
    assert checks["latency_to_baseline"] == "pass"  # not a hundred times slower
    latency = artifact.parent(made, "latency", kinds.LATENCY_REPORT)
    document = latency.read_json("latency.json")
    assert [row["id"] for row in document["engines"]] == [real["old"].id, real["new"].id]
    ratio = document["engines"][1]["ratio_to_first"]["p90"]
    (found,) = [c for c in made.results["checks"] if c["name"] == "latency_to_baseline"]
    assert (found["found"], found["interval"]) == (ratio["estimate"], [ratio["low"], ratio["high"]])
    controlled = document["machine"].startswith("controlled")
    assert checks["latency"] == "inconclusive" or controlled


def test_a_real_run_is_accepted_and_verified(real: dict[str, Any]) -> None:
    found = baseline.read(real["directory"])
    assert found.engine_id == real["new"].id
    assert found.latency.id == real["made"].manifest.parents["latency"]
    with np.load(found.latency.file("samples.npz")) as stored:
        assert stored["wall_ns"].shape == (2, 12, 64)
        assert (stored["wall_ns"] > 0).all()


def test_a_verdict_is_plain_json(real: dict[str, Any]) -> None:
    made = artifact.load(real["made"].path, kinds.VERDICT)
    report = json.loads(made.file("verdict.json").read_text(encoding="utf-8"))
    assert report == made.results
    for check in report["checks"]:
        assert set(check) == {
            "name",
            "verdict",
            "found",
            "limit",
            "interval",
            "unit",
            "sentence",
        }
        assert check["sentence"].split("at most ")[1].split(": ")[1] == check["verdict"]
