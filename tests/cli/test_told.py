"""The numbers of a measurement, a line a network and a line an engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Question, Work
from edgekd.cli import told

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports

MEASURED: dict[str, Any] = {
    "who": "model",
    "top1": 0.95,
    "top1_interval": [0.91, 0.97],
    "difference": -0.01,
    "difference_interval": [-0.03, 0.005],
    "agreement": 0.985,
    "agreement_interval": [0.957, 0.995],
    "relative": {"logits": 0.02},
}
EQUAL = {
    "compared": True,
    "equal": True,
    "largest_difference": 0.0,
    "largest_recorded": 9.0,
    "argmax_differ": 0.0,
}
NOTHING = {name: None for name in MEASURED}


def accuracy_report(out: Path, **changes: Any) -> Artifact:
    document = {
        "count": 200,
        "metric": "top-1",
        "not_measured": None,
        "model": {"kind": "Engine", "arm": "sparse"},
        "recorded": EQUAL,
        "rows": [{"who": "teacher", "top1": 0.96, "top1_interval": [0.92, 0.98]}, MEASURED],
        **changes,
    }

    def write(work: Work) -> dict[str, Any]:
        (work.scratch / "accuracy.json").write_text(json.dumps(document))
        return {}

    return artifact.make(out, Question(kinds.ACCURACY_REPORT, {}), write)


def test_a_network_has_accuracy_difference_and_agreement(tmp_path: Path) -> None:
    assert told.accuracy(accuracy_report(tmp_path)) == [
        "teacher, recorded: top-1 96.0% (92.0% to 98.0%) of 200 samples",
        "Engine sparse, run live: top-1 95.0% (91.0% to 97.0%) of 200 samples; \u22121.0 points to "
        "the teacher (\u22123.0 to +0.5); agreement 98.5% (95.7% to 99.5%); as at export: bit for "
        "bit",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"argmax_differ": 0.015}, "up to 0.031 apart, 1.5% of answers change"),
        ({"argmax_differ": 0.0}, "up to 0.031 apart, no answer changes"),
        ({"argmax_differ": None}, "up to 0.031 apart"),
        ({"compared": False}, "not compared: other samples than at export"),
    ],
)
def test_answers_that_are_not_those_of_the_export_are_told(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    recorded = {**EQUAL, "equal": False, "largest_difference": 0.0312, **changes}
    teacher, model = told.accuracy(accuracy_report(tmp_path, recorded=recorded))
    assert model.endswith(f"; as at export: {words}")
    assert "export" not in teacher


def test_what_was_not_measured_says_why(tmp_path: Path) -> None:
    row = {**NOTHING, "who": "student", "relative": {"boxes": 0.0123}}
    made = accuracy_report(tmp_path, not_measured="no metric is named", metric="score", rows=[row])
    assert told.accuracy(made) == [
        "student, recorded: score not measured: no metric is named; distance to the teacher's "
        "outputs as a share of their size: boxes 0.012"
    ]


def test_a_score_of_ones_own(tmp_path: Path) -> None:
    made = accuracy_report(tmp_path, metric="python:mine:iou")
    assert told.accuracy(made)[0] == "teacher, recorded: score 96.0% (92.0% to 98.0%), 200 samples"


@pytest.fixture
def engines(tmp_path: Path) -> list[Artifact]:
    return [reports.engine(tmp_path, arm) for arm in ("dense", "sparse")]


def test_an_engine_has_its_percentiles_and_its_ratio(
    tmp_path: Path, engines: list[Artifact]
) -> None:
    times = [reports.draw(seed, median, 0, 0) for seed, median in ((1, 2e6), (2, 1e6))]
    made = reports.latency_report(tmp_path, engines, reports.few(), times)
    dense, sparse = (engine.path.name for engine in engines)
    assert told.latency(made) == [
        f"dense {dense}: p50 2.00 ms (2.00 to 2.00 ms), p90 2.00 ms (2.00 to 2.00 ms); valid",
        f"sparse {sparse}: p50 1.00 ms (1.00 to 1.00 ms), p90 1.00 ms (1.00 to 1.00 ms); "
        "0.50 times the first's p90 (0.50 to 0.50); valid",
    ]


def test_an_uncontrolled_machine_and_a_withheld_bound_are_told(
    tmp_path: Path, engines: list[Artifact]
) -> None:
    rising = reports.draw(1, 2e6, 0, 0)
    rising[:, 32:] *= 2  # each query depends on the one before it
    state = {"cpu_clock_locked": False}
    made = reports.latency_report(tmp_path, engines[:1], reports.few(), [rising], state)
    (line,) = told.latency(made)
    assert "; not valid: upper bounds withheld: the queries of 12 of 12 repetitions" in line
    assert line.endswith("; uncontrolled machine: ratios only")


def test_a_rate_has_no_percentile(tmp_path: Path, engines: list[Artifact]) -> None:
    asked = reports.few(scenario="Offline", percentile=None)
    times = [reports.draw(seed, median, 0, 0) for seed, median in ((1, 2e6), (2, 1e6))]
    lines = told.latency(reports.latency_report(tmp_path, engines, asked, times))
    assert ": 500 samples/s (500 to 500); valid" in lines[0]
    assert ": 1,000 samples/s (1,000 to 1,000); 0.50 times the first's time a sample (" in lines[1]
