"""A score for each sample, or the reason why there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgekd import metric
from edgekd.errors import ConfigError
from edgekd.io_json import IO, Tensor

OUT = Tensor(name="logits", dtype="float32", shape=["batch", 2])
IO_TWO = IO(inputs=[], outputs=[OUT], labels=["no", "yes"])
ANSWERS = {"logits": np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0]])}
LABELS = np.array([0, 0, 0])


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module, imported afresh."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_metric", raising=False)
    return tmp_path / "users_metric.py"


def asking(code: str, users: Path) -> IO:
    users.write_text(f"import numpy as np\ndef score(outputs, labels):\n    return {code}\n")
    return IO_TWO.model_copy(update={"metric": "python:users_metric:score"})


def test_top_1_is_right_or_wrong() -> None:
    scores = metric.scores(ANSWERS, LABELS, IO_TWO)
    assert scores is not None
    assert scores.tolist() == [1.0, 0.0, 1.0]
    assert metric.mean(ANSWERS, LABELS, IO_TWO) == pytest.approx(2 / 3)
    assert metric.told(2 / 3, IO_TWO) == "66.67%"
    assert metric.told_beside("{ours} (was {theirs})", 0.5, 1.0, IO_TWO) == "50.00% (was 100.00%)"
    assert metric.name(IO_TWO) == "top-1"


def test_a_users_metric_is_asked_with_all_outputs_and_labels(users: Path) -> None:
    io = asking("1 / (1 + np.abs(outputs['logits'][:, 0] - labels))", users)
    scores = metric.scores(ANSWERS, LABELS, io)
    assert scores is not None
    assert scores.tolist() == [0.5, 1.0, 0.25]
    assert metric.name(io) == "python:users_metric:score"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("outputs['boxes']", "failed: KeyError: 'boxes'"),
        ("0.5", r"returned \[\] scores, expected \[3\], one a sample"),
        ("np.ones((3, 2))", r"returned \[3, 2\] scores, expected \[3\]"),
        ("[0, 1.5, 0]", "gave sample 1 the score 1.5, expected 0 to 1"),
        ("[0, 1, float('nan')]", "gave sample 2 the score nan, expected 0 to 1"),
    ],
)
def test_a_metric_that_does_not_score_is_told(code: str, words: str, users: Path) -> None:
    with pytest.raises(ConfigError, match=f"data.metric 'python:users_metric:score' {words}"):
        metric.scores(ANSWERS, LABELS, asking(code, users))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"random": True}, "random inputs"),
        ({"labels": []}, "the network names no classes, and data.metric is not given"),
        ({"metric": "python:absent_module:f"}, "module 'absent_module' of data.metric is not ins"),
        ({"metric": "python:absent.module:f"}, "module 'absent.module' of data.metric is not ins"),
    ],
)
def test_what_cannot_be_scored_has_a_reason_and_no_number(
    changes: dict[str, object], reason: str
) -> None:
    io = IO_TWO.model_copy(update=changes)
    assert metric.mean(ANSWERS, LABELS, io) is None
    assert (metric.not_measured(io) or "").startswith(reason)
    assert metric.told(None, io).startswith(f"not measured: {reason}")
    assert metric.told_beside("{ours} {theirs}", None, None, io) == metric.told(None, io)
