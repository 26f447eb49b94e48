"""The examples that travel: an even choice, and both networks' answers beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import data

from edgekd.data import inputs_of, recorded
from edgekd.distill import samples


@pytest.mark.parametrize(
    ("total", "count", "rows"),
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 9, [0, 1, 2, 3, 4]),
        (9, 3, [0, 4, 8]),
        (7, 1, [0]),
        (1, 1, [0]),
    ],
)
def test_rows_are_spread_evenly(total: int, count: int, rows: list[int]) -> None:
    found = samples.spread(total, count)
    assert found.dtype == np.int64
    assert found.tolist() == rows


@pytest.mark.parametrize("total", [10, 97, 360, 1000])
def test_no_row_is_lost_or_taken_twice(total: int) -> None:
    for count in range(1, total + 1, 7):
        found = samples.spread(total, count)
        assert len(found) == count == len(set(found.tolist()))
        assert found[0] >= 0
        assert found[-1] < total


def test_inputs_labels_and_ids_belong_together() -> None:
    examples = data.tokens()
    chosen = samples.choose(examples, 5)
    assert sorted(chosen) == ["ids", "input.attention_mask", "input.input_ids", "labels"]
    inputs, labels = examples.evaluation.take(chosen["ids"])
    assert np.array_equal(chosen["input.input_ids"], inputs["input_ids"])
    assert np.array_equal(chosen["labels"], labels)
    assert chosen["labels"].dtype == np.int64


def test_accuracy_is_top_1_of_the_first_output() -> None:
    logits = np.array([[2.0, 1, 0, 0], [0, 0, 3, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    found = samples.accuracy({"logits": logits}, np.array([0, 2, 2, 3]), data.vectors().io)
    assert found == 0.75


def test_what_is_saved_is_read_back_by_name(tmp_path: Path) -> None:
    chosen = samples.choose(data.vectors(), 4)
    answers = {"logits": np.ones((4, 4), np.float32)}
    samples.save(tmp_path / "s.npz", chosen, teacher=answers, student={"logits": np.zeros((4, 4))})
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert np.array_equal(inputs_of(arrays)["x"], chosen["input.x"])
        assert np.array_equal(recorded(arrays, "teacher")["logits"], answers["logits"])
        assert not recorded(arrays, "student")["logits"].any()


def test_labels_keep_their_kind() -> None:
    assert samples.as_stored(np.array([1, 2], np.uint8)).dtype == np.int64
    assert samples.as_stored(np.zeros((2, 5, 4))).dtype == np.float32
