"""Judgements, pure: numbers and limits in, checks out. `edgekd.gate` brings the numbers.

Every check has one form. A number that is better when smaller has an interval and a limit it may
reach: an interval wholly within the limit is *pass*, one wholly beyond it is *regress*, and one
that holds the limit is *inconclusive*. So a noisy machine or too few samples never pass what is
slow, and never fail what is not.

| Check | Smaller is better | Interval |
|---|---|---|
| accuracy_to_teacher | points of top-1 lost | Tango's, paired on the same samples (evaluate) |
| latency | a percentile, ms | from its median's lower end to the upper bound (bench) |
| size | bytes of what the runtime opens | a count has none |
| latency_to_baseline | time candidate / baseline | bootstrap over ABBA blocks of one run (bench) |
| accuracy_to_baseline | points of top-1 lost | Tango's, both engines run on the same samples |

A report says of an uncontrolled machine that only ratios may be quoted; there the latency budget is
inconclusive, whatever the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekd.bench import device_state
from edgekd.errors import MeasurementError

Outcome = Literal["pass", "regress", "inconclusive"]
Overall = Literal["pass", "regress", "inconclusive", "accepted"]

_MORE_SAMPLES = "evaluate on more samples"
_MORE_QUERIES = "more queries a repetition or a quieter machine narrow it"
_MORE_REPETITIONS = "more repetitions or a quieter machine narrow it"


@dataclass(frozen=True)
class Check:
    """One number against its limit.

    Attributes:
        name: See the module's table.
        verdict: What follows from interval and limit.
        found: The number.
        limit: Most that it may be.
        interval: Where it is; its upper end is None where no upper bound could be given.
        unit: Of all of them.
        sentence: The same for people.
    """

    name: str
    verdict: Outcome
    found: float
    limit: float
    interval: tuple[float, float | None]
    unit: str
    sentence: str


def judge(low: float, high: float | None, limit: float) -> Outcome:
    """What an interval says about a limit that may be reached but not passed.

    Args:
        low: Lower end.
        high: Upper end, None where there is no upper bound.
        limit: In the same unit.
    """
    if low > limit:
        return "regress"
    return "pass" if high is not None and high <= limit else "inconclusive"


def overall(checks: Sequence[Check]) -> Overall:
    """The verdict of all checks: the worst, inconclusive being better than regress alone.

    Without a check nothing was judged, so it is no pass: a first baseline is *accepted*.
    """
    found = {check.verdict for check in checks}
    if not found:
        return "accepted"
    if "regress" in found:
        return "regress"
    return "inconclusive" if "inconclusive" in found else "pass"


def check_accuracy(
    name: str, row: Mapping[str, Any], count: int, limit_points: float, unsure: str = ""
) -> Check:
    """Points of top-1 lost, to the teacher or to the baseline.

    Args:
        name: ``accuracy_to_teacher`` or ``accuracy_to_baseline``.
        row: ``difference`` and ``difference_interval``, shares, as evaluate gives them.
        count: Samples.
        limit_points: Most percentage points that may be lost.
        unsure: What is said where the interval holds the limit; default: more samples help.

    Raises:
        MeasurementError: Nothing was scored.
    """
    if row["difference"] is None:
        raise MeasurementError(
            f"{name}: there is no accuracy to judge, nothing was scored on {count} samples (see "
            "the AccuracyReport's reason): gate latency and size alone"
        )
    low, high = (0.0 - 100 * share for share in reversed(row["difference_interval"]))
    found = 0.0 - 100 * row["difference"]
    what = f"top-1 lost to the {name.removeprefix('accuracy_to_')}, on {count} samples"
    return _check(name, what, found, (low, high), limit_points, "points", unsure or _MORE_SAMPLES)


def check_latency(
    row: Mapping[str, Any], percentile: int, limit_ms: float, scenario: str, machine: str
) -> Check:
    """A percentile against its budget.

    Args:
        row: The engine's row of ``latency.json``.
        percentile: For example 90.
        limit_ms: Most that it may be.
        scenario: Name, for the sentence.
        machine: What the report says of the machine.
    """
    found = row["percentiles"][f"p{percentile}"]
    bound = found["upper_bound"]
    interval = found["low"] / 1e6, bound and bound["largest_ns"] / 1e6
    blind = ""
    if machine != device_state.CONTROLLED:
        blind = f"{machine}; gate latency_ms where clocks are locked, or compare with a baseline"
    unsure = _MORE_QUERIES if bound else "; ".join(row["reasons"])
    what = f"p{percentile} of {scenario}"
    return _check("latency", what, found["estimate"] / 1e6, interval, limit_ms, "ms", unsure, blind)


def check_ratio(
    ratio: tuple[float, float, float], minimum_effect: float, how: str, blind: str = ""
) -> Check:
    """Time of the candidate over that of the baseline.

    Args:
        ratio: The ratio with the lower and the upper end of its interval.
        minimum_effect: Share above 1 that does not count.
        how: How it was found, in words.
        blind: Why it can be no verdict; empty where it can.
    """
    found, low, high = ratio
    what = f"time of a query over the baseline's, {how}"
    limit = 1 + minimum_effect
    return _check(
        "latency_to_baseline", what, found, (low, high), limit, "ratio", _MORE_REPETITIONS, blind
    )


def check_size(name: str, size_bytes: int, limit_bytes: int) -> Check:
    """Bytes of the file the runtime opens.

    Args:
        name: Of the file.
        size_bytes: What it has.
        limit_bytes: Most that it may have.
    """
    return _check(
        "size", f"size of {name}", size_bytes, (size_bytes, size_bytes), limit_bytes, "bytes"
    )


def _check(
    name: str,
    what: str,
    found: float,
    interval: tuple[float, float | None],
    limit: float,
    unit: str,
    unsure: str = "",
    blind: str = "",
) -> Check:
    """A check with its sentence; `blind` says why it is inconclusive whatever the numbers."""
    low, high = interval
    verdict: Outcome = "inconclusive" if blind else judge(low, high, limit)
    text = [_number(number) for number in (found, low, limit)]
    upper = ", no upper bound" if high is None else f" to {_number(high)}"
    between = "" if low == high else f" ({text[1]}{upper})"
    shown = unit if unit != "ratio" else ""
    why = f": {blind or unsure}" if verdict == "inconclusive" else ""
    sentence = f"{what}: {f'{text[0]} {shown}'.strip()}{between}, at most {text[2]}: {verdict}{why}"
    return Check(name, verdict, found, limit, interval, unit, sentence)


def _number(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.4g}"
