"""The program behind bench/results/false-alarms.json: its intervals, and what it counts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekd.errors import MeasurementError


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    folder = str(Path(__file__).parents[2] / "bench")
    sys.path.insert(0, folder)
    import false_alarms

    yield false_alarms
    sys.path.remove(folder)


@pytest.mark.parametrize(
    ("hits", "trials", "interval"),
    [
        (0, 100, [0.0, 0.0362]),  # 1 - 0.025^(1/100)
        (100, 100, [0.9638, 1.0]),
        (5, 100, [0.0164, 0.1128]),  # the tables' value
        (10, 20, [0.272, 0.728]),
    ],
)
def test_intervals_are_clopper_and_pearsons(
    program: ModuleType, hits: int, trials: int, interval: list[float]
) -> None:
    assert program.share(hits, trials) == {"count": hits, "of": trials, "interval": interval}


def test_refused_runs_are_counted_and_replaced_until_time_is_up(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [
        ("inconclusive", 1.01, (0.9, 1.1)),
        MeasurementError("required state steal_share"),
        ("regress", 1.2, (1.1, 1.3)),
        ("pass", 0.99, (0.97, 1.01)),
    ]

    class Made:
        def __init__(self, verdict: str, found: float, interval: tuple[float, float]) -> None:
            row = {"name": "latency_to_baseline", "verdict": verdict, "sentence": ""}
            self.results = {"checks": [{**row, "found": found, "interval": interval}]}

    def gate(*_: object, **__: object) -> Made:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Made(*answer)

    monkeypatch.setattr(program, "gate", gate)
    found = program.judge(None, tmp_path, tmp_path, 3, float("inf"))
    assert {name: each["count"] for name, each in found["verdicts"].items()} == {
        "pass": 1,
        "regress": 1,
        "inconclusive": 1,
    }
    assert found["interval_holds_1"]["count"] == 2
    assert found["refused"] == ["required state steal_share"]
    assert (found["ratio_median"], found["ratio_range"]) == (1.01, [0.99, 1.2])
    answers[:] = [("pass", 1.0, (0.99, 1.01))] * 3
    late = program.judge(None, tmp_path, tmp_path, 3, float("-inf"))
    assert (late["asked"], late["verdicts"]["pass"]["of"]) == (3, 1)
