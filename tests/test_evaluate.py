from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, evaluate, kinds, runner, target
from edgekd.artifact import Artifact
from edgekd.data import IO
from edgekd.engine.build import build
from edgekd.errors import ArtifactError, MeasurementError

sys.path.insert(0, str(Path(__file__).parent))
from tiny import graphs

Models = Callable[..., Artifact]
TWO = IO.model_validate(
    {
        "inputs": [],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
        "labels": ["no", "yes"],
    }
)


@pytest.fixture
def onnx_model(tmp_path: Path) -> Models:
    return lambda **options: graphs.make_model(tmp_path / "out", **options)


def report_of(made: Artifact) -> dict[str, Any]:
    report: dict[str, Any] = made.read_json("accuracy.json")
    return report


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["who"]: row for row in report["rows"]}


def answers(right: list[int]) -> np.ndarray:
    """Logits [n, 2] that answer 1 where `right` is 1; the label is always 1."""
    return np.array([[0.0, 1.0] if good else [1.0, 0.0] for good in right], np.float32)


def test_wilson_gives_newcombes_published_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3: 81 of 263.
    assert evaluate.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_stays_inside_the_unit_interval() -> None:
    low, high = evaluate.wilson(20, 20)
    # z^2 = 3.8415: the lower limit of n of n is n / (n + z^2).
    assert low == pytest.approx(20 / (20 + 3.841459), abs=1e-6)
    assert high == 1.0
    assert evaluate.wilson(0, 20)[0] == 0.0


def test_tango_without_a_single_difference_is_not_a_point() -> None:
    # With no discordant pair the limit solves n d^2 = z^2 d (1 - d): d = z^2 / (n + z^2).
    limit = 3.841459 / 103.841459
    assert evaluate.tango(0, 0, 100) == pytest.approx((-limit, limit), abs=1e-6)


@pytest.mark.parametrize(("gained", "lost", "count"), [(12, 2, 50), (1, 7, 360), (3, 3, 20)])
def test_tangos_limits_are_where_the_score_is_z(gained: int, lost: int, count: int) -> None:
    for limit, sign in zip(evaluate.tango(gained, lost, count), (1, -1), strict=True):
        # The share under the hypothesis, found here by trying all instead of by the formula.
        share = np.linspace(max(0.0, -limit), (1 - limit) / 2, 2_000_001)[1:-1]
        rest = 1 - 2 * share - limit
        likelihood = (
            gained * np.log(share + limit)
            + lost * np.log(share)
            + (count - gained - lost) * np.log(rest)
        )
        best = share[likelihood.argmax()]
        score = (gained - lost - count * limit) / math.sqrt(
            count * (2 * best + limit * (1 - limit))
        )
        assert score == pytest.approx(sign * 1.959964, abs=1e-3)


def test_tango_changes_sides_with_its_arguments() -> None:
    low, high = evaluate.tango(7, 2, 90)
    assert evaluate.tango(2, 7, 90) == pytest.approx((-high, -low), abs=1e-9)
    assert low < 5 / 90 < high


def test_kl_by_hand() -> None:
    teacher = np.log([[0.5, 0.5]])
    model = np.log([[0.25, 0.75]]) + 3.0  # logits are known up to a constant
    mean, (low, high) = evaluate.mean_kl(teacher, model)
    assert mean == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-12)
    assert (low, high) == (mean, mean)
    assert evaluate.mean_kl(teacher, teacher)[0] == 0.0


def test_kl_interval_is_the_same_every_time_and_holds_the_mean() -> None:
    random = np.random.default_rng(1)
    teacher, model = random.normal(size=(2, 200, 10))
    mean, (low, high) = evaluate.mean_kl(teacher, model)
    assert evaluate.mean_kl(teacher, model) == (mean, (low, high))
    assert low < mean < high
    # The normal approximation to the same interval, wide tolerance: 200 skewed values.
    log_p, log_q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (teacher, model))
    error = (np.exp(log_p) * (log_p - log_q)).sum(1).std() / math.sqrt(200)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_rows_count_what_each_has_right() -> None:
    samples = {
        "labels": np.ones(4, np.int64),
        "teacher.logits": answers([1, 1, 0, 0]),
        "student.logits": answers([1, 1, 1, 0]),
    }
    report = evaluate.measure(samples, {"logits": answers([1, 0, 0, 0])}, None, TWO, "s")
    rows = by_name(report)
    assert [row["who"] for row in report["rows"]] == ["teacher", "student", "model"]
    assert [row["source"] for row in report["rows"]] == ["recorded", "recorded", "run live"]
    assert [row["correct"] for row in report["rows"]] == [2, 3, 1]
    assert (rows["student"]["gained"], rows["student"]["lost"]) == (1, 0)
    assert rows["student"]["difference"] == 0.25
    assert rows["model"]["difference"] == -0.25
    assert rows["model"]["agreement"] == 0.75
    assert "kl_nats" not in rows["teacher"]
    # One of four answers is reversed, at odds of 1 to e: KL is (e - 1) / (e + 1).
    assert rows["model"]["kl_nats"] == pytest.approx((math.e - 1) / (math.e + 1) / 4, abs=1e-7)
    assert report["recorded"]["compared"] is False


def test_live_outputs_are_held_against_the_recorded_ones() -> None:
    samples = {"labels": np.ones(4, np.int64), "teacher.logits": answers([1, 1, 1, 1])}
    live, expected = answers([1, 1, 1, 0]), answers([1, 1, 1, 1])
    found = evaluate.measure(samples, {"logits": live}, {"logits": expected}, TWO, "s")["recorded"]
    assert found == {
        "compared": True,
        "equal": False,
        "largest_difference": 1.0,
        "largest_recorded": 1.0,
        "argmax_differ": 0.25,
    }


def test_an_onnx_model_is_evaluated_on_its_own_samples(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model()
    made = evaluate.evaluate(model, tmp_path / "out")
    report = report_of(made)
    assert made.kind == "AccuracyReport"
    assert made.manifest.parents == {
        "model": model.id,
        "samples": model.manifest.parents["samples"],
    }
    assert report["count"] == 20
    assert by_name(report)["teacher"]["top1"] == 1.0
    assert by_name(report)["model"]["agreement"] >= 0.9
    assert 0 < by_name(report)["model"]["kl_nats"] < 0.01
    assert report["recorded"]["largest_difference"] < 1e-6
    assert report["model"]["arm"] == "sparse"
    assert made.results == report


def test_what_is_scored_was_run_and_not_read(
    onnx_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the recorded answers are not the model's, the score stays and the difference shows."""
    recorded = {"logits": np.zeros((20, 10), np.float32)}
    monkeypatch.setattr(runner, "outputs", lambda _: recorded)
    report = report_of(evaluate.evaluate(onnx_model(), tmp_path / "out"))
    assert by_name(report)["model"]["agreement"] >= 0.9
    assert report["recorded"]["compared"] is True
    assert report["recorded"]["equal"] is False
    assert report["recorded"]["largest_difference"] > 1
    assert report["recorded"]["largest_recorded"] == 0


def test_an_engine_is_evaluated_with_samples_that_lie_elsewhere(
    onnx_model: Models, tmp_path: Path
) -> None:
    model = onnx_model()
    engine = build(model, target.load("cpu"), tmp_path / "device")
    samples = artifact.parent(model, "samples", kinds.SAMPLES)
    with pytest.raises(ArtifactError, match=r"its samples .* is not in"):
        evaluate.evaluate(engine, tmp_path / "device")
    report = report_of(evaluate.evaluate(engine, tmp_path / "device", samples))
    assert report["model"]["runtime"] == "onnxruntime"
    assert report["recorded"]["compared"] is True


def test_other_samples_have_nothing_recorded_to_compare_with(
    onnx_model: Models, tmp_path: Path
) -> None:
    other = artifact.parent(onnx_model(arm="dense"), "samples", kinds.SAMPLES)
    report = report_of(evaluate.evaluate(onnx_model(), tmp_path / "out", other))
    assert report["recorded"] == {
        "compared": False,
        "reason": "other Samples than the model was exported with",
    }


def test_a_teacher_without_student_has_no_student_row() -> None:
    samples = {"labels": np.ones(1, np.int64), "teacher.logits": answers([1])}
    report = evaluate.measure(samples, {"logits": answers([1])}, None, TWO, "s")
    assert [row["who"] for row in report["rows"]] == ["teacher", "model"]


def test_a_label_out_of_range(onnx_model: Models, tmp_path: Path) -> None:
    labels = np.zeros(20, np.int64)
    labels[4] = 10
    with pytest.raises(ArtifactError, match=r"sample 4 has label 10, expected 0 to 9 \(10 classes"):
        evaluate.evaluate(onnx_model(labels=labels), tmp_path / "out")


def test_samples_that_are_empty(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model(labels=np.zeros(0, np.int64))
    with pytest.raises(ArtifactError, match="holds 0 samples, expected at least 1"):
        evaluate.evaluate(model, tmp_path / "out")


def test_recorded_outputs_of_another_shape(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model(arrays={"student.logits": np.zeros((20, 7), np.float32)})
    with pytest.raises(ArtifactError) as caught:
        evaluate.evaluate(model, tmp_path / "out")
    assert "student: output 'logits' has shape [20, 7], expected [20, 10]" in str(caught.value)


def test_a_model_with_another_output() -> None:
    samples = {"labels": np.ones(1, np.int64), "teacher.logits": answers([1])}
    with pytest.raises(ArtifactError, match="s, model: has no output 'logits', it has boxes"):
        evaluate.measure(samples, {"boxes": answers([1])}, None, TWO, "s")


def test_recorded_and_live_outputs_of_different_shape() -> None:
    samples = {"labels": np.ones(2, np.int64), "teacher.logits": answers([1, 1])}
    expected = {"logits": answers([1])}
    with pytest.raises(ArtifactError, match=r"'logits' is \[1, 2\], the live output \[2, 2\]"):
        evaluate.measure(samples, {"logits": answers([1, 1])}, expected, TWO, "s")


def test_samples_without_a_teacher() -> None:
    with pytest.raises(ArtifactError, match="holds no outputs of the teacher"):
        evaluate.measure({"labels": np.ones(1)}, {"logits": answers([1])}, None, TWO, "s")


def test_answers_that_are_not_numbers() -> None:
    samples = {"labels": np.ones(2, np.int64), "teacher.logits": answers([1, 1])}
    live = answers([1, 1])
    live[1, 0] = np.nan
    with pytest.raises(
        MeasurementError, match="1 of 2 answers hold NaN or infinity, first sample 1"
    ):
        evaluate.measure(samples, {"logits": live}, None, TWO, "s")


def test_something_else_in_place_of_samples(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model()
    with pytest.raises(ArtifactError, match="is a OnnxModel, expected Samples"):
        evaluate.evaluate(model, tmp_path / "out", model)


def test_a_report_is_plain_json(onnx_model: Models, tmp_path: Path) -> None:
    made = evaluate.evaluate(onnx_model(), tmp_path / "out")
    text = made.file("accuracy.json").read_text(encoding="utf-8")
    assert json.loads(text)["intervals"].startswith("95%: Wilson")


BOXES = IO.model_validate(
    {
        "inputs": [],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", 2]},
            {"name": "boxes", "dtype": "float32", "shape": ["batch", 2]},
        ],
        "labels": [],
        "metric": "python:users_score:near",
    }
)
NEAR = """
import numpy as np

def near(outputs, labels):
    return np.exp(-np.abs(outputs["boxes"] - labels).mean(axis=1))
"""


@pytest.fixture
def users_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module of a user's metric, which can be taken away."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_score", raising=False)
    (tmp_path / "users_score.py").write_text(NEAR)
    return tmp_path / "users_score.py"


def measured() -> dict[str, Any]:
    """Teacher 0.1 off in every box, model 0.2 off, in 50 samples."""
    labels = np.random.default_rng(0).standard_normal((50, 2))
    logits = np.tile([1.0, 0.0], (50, 1))
    samples = {"labels": labels, "teacher.logits": logits, "teacher.boxes": labels + 0.1}
    live = {"logits": logits, "boxes": labels + 0.2}
    return evaluate.measure(samples, live, live, BOXES, "a test")


@pytest.mark.usefixtures("users_score")
def test_a_users_metric_takes_the_place_of_top_1() -> None:
    report = measured()
    assert report["metric"] == "python:users_score:near"
    assert report["not_measured"] is None
    rows = by_name(report)
    assert rows["teacher"]["top1"] == pytest.approx(math.exp(-0.1))
    assert rows["model"]["top1"] == pytest.approx(math.exp(-0.2))
    assert rows["model"]["top1_interval"] == pytest.approx((math.exp(-0.2),) * 2)
    assert rows["model"]["difference"] == pytest.approx(math.exp(-0.2) - math.exp(-0.1))
    assert (rows["model"]["correct"], rows["model"]["gained"]) == (None, None)
    assert rows["model"]["relative"]["logits"] == 0
    assert rows["model"]["relative"]["boxes"] == pytest.approx(
        0.1 * 10 / np.linalg.norm(np.random.default_rng(0).standard_normal((50, 2)) + 0.1)
    )
    assert report["recorded"]["equal"] is True


def test_scores_that_differ_have_an_interval_around_their_mean() -> None:
    scores = np.linspace(0, 1, 101)
    low, high = evaluate._bootstrap(scores)
    # The standard error of a uniform's mean: sqrt(1 / 12 / 101) = 0.0287.
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.0287, 0.5 + 1.96 * 0.0287), abs=0.004)


def test_without_the_users_module_fidelity_is_still_measured(users_score: Path) -> None:
    users_score.unlink()
    importlib.invalidate_caches()
    report = measured()
    assert report["not_measured"] == "module 'users_score' of data.metric is not installed here"
    row = by_name(report)["model"]
    assert [row[key] for key in ("top1", "top1_interval", "difference")] == [None] * 3
    assert row["agreement"] == 1.0
    assert row["relative"]["boxes"] > 0


def test_of_random_inputs_fidelity_alone_is_measured() -> None:
    io = TWO.model_copy(update={"random": True})
    right = answers([1] * 9 + [0])
    samples = {"labels": np.zeros(10, np.int64), "teacher.logits": answers([1] * 10)}
    report = evaluate.measure(samples, {"logits": right}, None, io, "a test")
    assert report["not_measured"] == "random inputs"
    row = by_name(report)["model"]
    assert (row["top1"], row["agreement"]) == (None, 0.9)
    assert row["kl_nats"] > 0


def test_an_output_of_another_number_of_rows_is_told() -> None:
    labels = np.zeros((3, 2))
    samples = {"labels": labels, "teacher.logits": labels, "teacher.boxes": labels}
    live = {"logits": labels, "boxes": labels[:2]}
    with pytest.raises(
        ArtifactError, match=r"model: output 'boxes' has shape \[2, 2\], expected 3"
    ):
        evaluate.measure(samples, live, None, BOXES, "a test")
    with pytest.raises(ArtifactError, match="model: has no output 'boxes', it has logits"):
        evaluate.measure(samples, {"logits": labels}, None, BOXES, "a test")
