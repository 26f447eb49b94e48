"""Judgements at their boundaries by hand, and over many made-up runs."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.bench import summary
from edgekd.bench.device_state import CONTROLLED, UNCONTROLLED
from edgekd.errors import MeasurementError
from edgekd.evaluate import tango
from edgekd.judge import (
    Check,
    check_accuracy,
    check_latency,
    check_ratio,
    check_size,
    judge,
    overall,
)

sys.path.insert(0, str(Path(__file__).parent))
from tiny import reports

FEW = reports.few()


@pytest.mark.parametrize(
    ("low", "high", "limit", "expected"),
    [
        (1.0, 2.0, 2.0, "pass"),  # the limit itself is allowed
        (1.0, 2.0, 1.9999, "inconclusive"),
        (1.0, 2.0, 1.0, "inconclusive"),
        (1.0, 2.0, 0.9999, "regress"),
        (-3.0, -1.0, 0.0, "pass"),
        (1.0, None, 2.0, "inconclusive"),
        (1.0, None, 0.9999, "regress"),  # what is slow is slow without an upper bound
    ],
)
def test_an_interval_within_beyond_or_across_its_limit(
    low: float, high: float | None, limit: float, expected: str
) -> None:
    assert judge(low, high, limit) == expected


def checks(*verdicts: str) -> list[Check]:
    return [Check("size", each, 1, 1, (1, 1), "bytes", "") for each in verdicts]  # type: ignore[arg-type]


def test_the_worst_check_is_the_verdict() -> None:
    assert overall(checks("pass", "pass")) == "pass"
    assert overall(checks("pass", "inconclusive", "pass")) == "inconclusive"
    assert overall(checks("inconclusive", "regress", "pass")) == "regress"


def test_where_nothing_was_judged_nothing_passed() -> None:
    assert overall([]) == "accepted"


def test_accuracy_is_told_in_points_lost() -> None:
    row = {"difference": -0.01, "difference_interval": (-0.02, 0.005)}
    found = check_accuracy("accuracy_to_teacher", row, 400, 1.5)
    assert (found.name, found.verdict, found.unit) == (
        "accuracy_to_teacher",
        "inconclusive",
        "points",
    )
    assert (found.found, found.interval, found.limit) == (1.0, (-0.5, 2.0), 1.5)
    assert found.sentence == (
        "top-1 lost to the teacher, on 400 samples: 1 points (-0.5 to 2), at most 1.5: "
        "inconclusive: evaluate on more samples"
    )
    assert check_accuracy("accuracy_to_teacher", row, 400, 2.0).verdict == "pass"
    worse = {"difference": -0.04, "difference_interval": (-0.06, -0.02)}
    regress = check_accuracy("accuracy_to_baseline", worse, 400, 1.9)
    assert regress.verdict == "regress"
    assert regress.sentence == (
        "top-1 lost to the baseline, on 400 samples: 4 points (2 to 6), at most 1.9: regress"
    )


def test_equal_answers_on_few_samples_cannot_pass_a_tight_budget() -> None:
    # No answer of 100 differs: the interval still reaches z^2 / (100 + z^2) = 3.7 points.
    row = {"difference": 0.0, "difference_interval": tango(0, 0, 100)}
    assert check_accuracy("accuracy_to_teacher", row, 100, 3.6).verdict == "inconclusive"
    passed = check_accuracy("accuracy_to_teacher", row, 100, 3.7)
    assert passed.verdict == "pass"
    assert passed.sentence.startswith("top-1 lost to the teacher, on 100 samples: 0 points (-3.699")


def latency_row(low_ns: float, bound_ns: int | None) -> dict[str, Any]:
    bound = None if bound_ns is None else {"largest_ns": bound_ns}
    found = {"estimate": low_ns + 1e5, "low": low_ns, "high": low_ns + 2e5, "upper_bound": bound}
    return {"percentiles": {"p90": found}, "reasons": ["upper bounds withheld: dependent"]}


def test_latency_is_held_to_its_upper_bound_and_blamed_by_its_lower_end() -> None:
    def at(limit_ms: float, bound_ns: int | None = 2_500_000) -> Check:
        return check_latency(latency_row(2e6, bound_ns), 90, limit_ms, "single-stream", CONTROLLED)

    assert [at(limit).verdict for limit in (2.5, 2.4999, 2.0, 1.9999)] == [
        "pass",
        "inconclusive",
        "inconclusive",
        "regress",
    ]
    assert at(2.5).sentence == ("p90 of single-stream: 2.1 ms (2 to 2.5), at most 2.5: pass")
    assert at(2.2).sentence.endswith(
        "at most 2.2: inconclusive: more queries a repetition or a quieter machine narrow it"
    )
    withheld = at(9.0, None)
    assert (withheld.verdict, withheld.interval) == ("inconclusive", (2.0, None))
    assert withheld.sentence == (
        "p90 of single-stream: 2.1 ms (2, no upper bound), at most 9: inconclusive: upper bounds "
        "withheld: dependent"
    )
    assert at(1.9, None).verdict == "regress"


@pytest.mark.parametrize("limit_ms", [9.0, 0.1])
def test_an_uncontrolled_machine_says_nothing_about_a_latency_in_ms(limit_ms: float) -> None:
    found = check_latency(latency_row(2e6, 2_500_000), 90, limit_ms, "few", UNCONTROLLED)
    assert found.verdict == "inconclusive"
    assert found.sentence.endswith(
        f"at most {limit_ms:g}: inconclusive: uncontrolled machine: ratios only; gate latency_ms "
        "where clocks are locked, or compare with a baseline"
    )


def test_size_is_exact() -> None:
    at, above = check_size("model.plan", 1000, 1000), check_size("model.plan", 1000, 999)
    assert (at.verdict, above.verdict) == ("pass", "regress")
    assert above.sentence == "size of model.plan: 1000 bytes, at most 999: regress"


def test_a_ratio_has_room_for_the_minimum_effect() -> None:
    assert check_ratio((1.0, 0.98, 1.02), 0.02, "how").verdict == "pass"
    assert check_ratio((1.0, 0.98, 1.021), 0.02, "how").verdict == "inconclusive"
    assert check_ratio((1.1, 1.021, 1.2), 0.02, "how").verdict == "regress"
    blind = check_ratio((1.1, 1.05, 1.2), 0.02, "from two runs", "nobody knows")
    assert blind.verdict == "inconclusive"
    assert blind.sentence == (
        "time of a query over the baseline's, from two runs: 1.1 (1.05 to 1.2), at most 1.02: "
        "inconclusive: nobody knows"
    )


def compare(slower: float, between: float, drift: float = 0.0, runs: int = 100) -> Counter[str]:
    """Verdicts of many made-up runs of a baseline and a candidate, 12 rounds each."""
    found: Counter[str] = Counter()
    # The places of the two in ABBA order: 0 3 4 7 ... and 1 2 5 6 ...
    first, second = np.array([[0, 3], [1, 2]])[:, None, :] + 4 * np.arange(6)[None, :, None]
    for seed in range(runs):
        a, b = (
            reports.draw(2 * seed + i, 1e6 * factor, between).astype(np.float64)
            * np.exp(drift * place.reshape(12, 1))
            for i, (factor, place) in enumerate(((1.0, first), (slower, second)))
        )
        row = summary.ratios(a.astype(np.int64), b.astype(np.int64), FEW)["p90"]
        found[check_ratio((row["estimate"], row["low"], row["high"]), 0.02, "").verdict] += 1
    return found


def test_ten_percent_slower_regresses() -> None:
    assert compare(1.10, between=0.01)["regress"] >= 99


def test_equal_engines_do_not_regress() -> None:
    assert compare(1.0, between=0.003)["pass"] >= 99
    assert compare(1.0, between=0.01)["regress"] == 0


def test_a_faster_engine_passes() -> None:
    assert compare(0.8, between=0.03)["pass"] >= 99


def test_a_drift_of_the_machine_is_no_regression() -> None:
    # 0.5% a place: the last of 24 places is 12% slower than the first.
    assert compare(1.0, between=0.003, drift=0.005)["pass"] >= 99


def test_a_noisy_machine_is_inconclusive_about_a_small_change() -> None:
    found = compare(1.02, between=0.3)
    assert found["inconclusive"] >= 90
    # It fails closed: what is 10% slower hardly ever passes there.
    assert compare(1.10, between=0.3)["pass"] <= 3


def test_a_latency_from_made_up_samples_meets_its_budget() -> None:
    row = summary.engine_row(reports.draw(1, 1e6, between=0.01), FEW)
    verdicts = [
        check_latency(row, 90, limit_ms, "few", CONTROLLED).verdict for limit_ms in (1.2, 1.03, 0.9)
    ]
    assert verdicts == ["pass", "inconclusive", "regress"]


def test_accuracy_that_nobody_measured_is_no_verdict() -> None:
    with pytest.raises(
        MeasurementError, match="accuracy_to_teacher: there is no accuracy to judge"
    ):
        check_accuracy("accuracy_to_teacher", {"difference": None}, 200, 1.0)
