"""What the gate refuses to judge, and what it decides by budgets alone.

A machine with locked clocks is not at hand, so where latency counts, bench returns a report of made
up samples; everything else is real.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, gate, kinds
from edgekd.artifact import Artifact, Question
from edgekd.errors import ArtifactError, ConfigError, UnsupportedError
from edgekd.recipe import Gate

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports
from tiny.gates import FEW, ROOMY, Bench, accepted, sentence, verdict_of


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


def test_a_size_counts_the_weights_that_lie_beside_the_graph(out: Path) -> None:
    def holding(**files: int) -> Artifact:
        def write(work: artifact.Work) -> dict[str, Any]:
            for name in kinds.ENGINE.files:
                (work.scratch / name).write_text("{}")
            for name, size in files.items():
                (work.scratch / name.replace("_", ".")).write_bytes(b"0" * size)
            return {}

        return artifact.make(out, Question(kinds.ENGINE, dict(files)), write)

    assert gate.size(holding(model_plan=10)) == ("model.plan", 10)
    assert gate.size(holding(model_onnx=20)) == ("model.onnx", 20)
    both = holding(model_onnx=20, ort_onnx_data=300)
    assert gate.size(both) == ("model.onnx with ort.onnx.data", 320)


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


def test_an_engine_that_was_altered_is_refused_though_it_still_runs(
    engines: dict[str, Artifact], out: Path
) -> None:
    graph = engines["dense"].file("model.onnx")
    content = graph.read_bytes()
    graph.write_bytes(content + b"\x32\x04more")  # ModelProto.doc_string, field 6 of ONNX's IR
    with pytest.raises(ArtifactError, match=rf"model\.onnx was altered: {len(content) + 6} bytes"):
        gate.gate(engines["dense"], out, budgets=Gate(accuracy_drop_points=50.0), scenario=FEW)
    assert not list(out.glob("accuracy-*"))


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
