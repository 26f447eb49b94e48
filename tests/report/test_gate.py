"""Verdicts of the gate on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd import kinds
from edgekd.report import report
from edgekd.report.claims import claims
from edgekd.report.collection import Collection
from edgekd.report.gate import gates
from edgekd.report.summary import headline
from edgekd.report.summary import verdict as paragraph

from .conftest import Maker
from .latencies import accepted, verdict


def test_checks_are_told_with_their_numbers_and_units(maker: Maker) -> None:
    (engine,) = maker.engines([maker.model(maker.student(maker.teacher(), "sparse"))])
    (gate,) = gates(Collection([verdict(maker, engine, (1.2, 1.1, 1.3))]))
    assert (gate.about, gate.overall) == ("2:4 INT8, one-by-one, cpu", "regress")
    accuracy, ratio, size = gate.checks
    assert (accuracy.name, accuracy.verdict) == ("accuracy to teacher", "pass")
    assert (accuracy.found, accuracy.interval) == ("0.4 points", "\u22120.2 to 1.1")
    assert (ratio.found, ratio.interval, ratio.limit) == ("1.2", "1.1 to 1.3", "1.03")
    assert ratio.verdict == "regress"
    assert (size.found, size.interval, size.limit) == (
        "1,710,187 bytes",
        "counted",
        "2,000,000 bytes",
    )


def test_a_check_may_lack_its_upper_end_and_its_numbers(maker: Maker) -> None:
    checks = [
        {"name": "latency", "verdict": "inconclusive", "found": 1.5, "interval": [1.25, None]},
        {"name": "other", "verdict": "pass"},
    ]
    document = {"overall": "inconclusive", "checks": checks}
    made = maker.make(kinds.VERDICT, {}, {"verdict.json": document}, document)
    (gate,) = gates(Collection([made]))
    assert gate.checks[0].interval == "1.25 to no upper bound"
    assert (gate.checks[1].found, gate.checks[1].interval, gate.checks[1].limit) == ("", "", "")


@pytest.mark.parametrize(
    ("ratio", "state", "text"),
    [
        ((1.2, 1.1, 1.3), "failed", "1.2 (1.1 to 1.3), at most 1.03: regress."),
        ((1.0, 0.9, 1.1), "evidence", "inconclusive: more repetitions or a quieter machine"),
        ((0.9, 0.8, 1.0), "proven", "at most 2000000: pass."),
    ],
)
def test_the_verdict_in_plain_words_begins_with_the_gates(
    maker: Maker, ratio: tuple[float, float, float], state: str, text: str
) -> None:
    (engine,) = maker.engines([maker.model(maker.teacher())])
    first = paragraph(Collection([engine, verdict(maker, engine, ratio)]), [])[0]
    assert first.lead.startswith("Gate: ")
    assert first.state == state
    assert text in first.text


def test_a_first_baseline_is_accepted_and_not_passed(maker: Maker, tmp_path: Path) -> None:
    (engine,) = maker.engines([maker.model(maker.teacher())])
    artifacts = [engine, accepted(maker, engine)]
    run = Collection(artifacts)
    assert headline(run, claims(run)).lead == "Gate: accepted."
    first = paragraph(run, [])[0]
    assert (first.lead, first.state) == ("Gate: accepted", "not measured")
    assert first.text.startswith("nothing was judged: the engine became the baseline that others")
    page = report(artifacts, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<p>Nothing was judged: the engine became the baseline" in page
    assert "Checks of the gate" not in page
    both = Collection([*artifacts, verdict(maker, engine, (0.9, 0.8, 1.0))])
    assert headline(both, claims(both)).lead == "Gate: pass."  # what was judged comes first


def test_of_several_verdicts_the_worst_is_told_first_and_each_says_of_what(maker: Maker) -> None:
    student, teacher = maker.engines(
        [maker.model(maker.student(maker.teacher(), "sparse")), maker.model(maker.teacher())]
    )
    judged = [verdict(maker, teacher, (0.9, 0.8, 1.0)), verdict(maker, student, (1.2, 1.1, 1.3))]
    run = Collection([student, teacher, accepted(maker, teacher), *judged])
    assert [gate.overall for gate in gates(run)] == ["regress", "pass", "accepted"]
    told = [s.text for s in paragraph(run, []) if s.lead.startswith("Gate: ")]
    assert told[0].startswith("2:4 INT8, one-by-one, cpu: time of a query over the baseline's")
    assert told[1].startswith("float teacher, one-by-one, cpu: top-1 lost to the teacher")
    assert told[2].startswith("float teacher, few, cpu: nothing was judged")


def test_two_runs_of_one_directory_name_an_arm_once(maker: Maker) -> None:
    teacher = maker.teacher()
    models = [maker.model(maker.student(teacher, "sparse", accuracy=a)) for a in (0.8, 0.9)]
    run = Collection([*models, maker.model(teacher), maker.model(teacher, attention_blocks=1)])
    made = next(s.text for s in paragraph(run, []) if s.lead == "Made")
    assert made.startswith(
        "The teacher became a 2:4 INT8 student, with the float teacher beside it to compare. "
    )
