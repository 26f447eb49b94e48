"""The verdict: a headline, a few numbers, and plain words composed from the claims.

A person reads this and perhaps nothing else, so failures come first, what was not measured is said
as plainly as what was proven, and a slower 2:4 is a result and not a defect.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgekd.artifact import Artifact
from edgekd.eligible import share_of_macs
from edgekd.report import measured, timing
from edgekd.report.claims import Claim
from edgekd.report.collection import Collection, spoken
from edgekd.report.findings import State
from edgekd.report.gate import STATES, WORST_FIRST, gates
from edgekd.report.layers import float32_bytes, weight_bytes
from edgekd.report.words import (
    NO_DIFFERENCE,
    NOT_MEASURED,
    count,
    listed,
    measure,
    percent,
    plural,
    points,
    rate,
    time,
)

_FORMS: dict[str, Literal["int8", "sparse"]] = {"INT8": "int8", "2:4": "sparse"}


class Sentence(NamedTuple):
    """A line of the verdict: the state it is about (empty: none), what it is on, what it says."""

    state: str
    lead: str
    text: str


class Number(NamedTuple):
    """One number at a glance: what it is, the number, and what it was counted on."""

    name: str
    number: str
    note: str


def headline(run: Collection, found: list[Claim]) -> Sentence:
    """The verdict in one line: what a gate said, and how the claims stand.

    Args:
        run: The artifacts.
        found: What `claims` gave for them.
    """
    failed = sum("failed" in claim.states for claim in found)
    proven = sum(claim.states == {"proven"} for claim in found)
    unseen = sum(claim.states == {"not measured"} for claim in found)
    stands = [f"{proven} of {len(found)} proven"]
    if part := len(found) - failed - proven - unseen:
        stands.append(f"{part} shown in part")
    if unseen:
        stands.append(f"{unseen} not measured")
    overall = [gate.overall for gate in gates(run)]
    worst = next((each for each in WORST_FIRST if each in overall), "")
    gated = f"Gate: {worst}." if worst else ""
    if unseen == len(found):
        return Sentence(STATES.get(worst, ""), gated, "" if gated else "Nothing is shown yet.")
    lost = f"{plural(failed, 'claim')} failed" if failed else "No claim failed"
    broken = any(claim.broken for claim in found)
    if failed and not broken:
        does = "does" if failed == 1 else "do"
        lost = f"{plural(failed, 'claim')} {does} not hold, which is an answer and no defect"
    state = "failed" if broken else STATES.get(worst, "")
    return Sentence(state, gated, f"{lost}: {', '.join(stands)}.")


def verdict(run: Collection, found: list[Claim]) -> list[Sentence]:
    """What the headline rests on, in reading order.

    Args:
        run: The artifacts.
        found: What `claims` gave for them.
    """
    sentences = []
    if failed := [claim.phrase for claim in found if claim.broken]:
        text = f"{listed([f'that {phrase}' for phrase in failed])}. Look there first."
        sentences.append(Sentence("failed", "Failed", text))
    gated = gates(run)
    for gate in gated:
        about = f"{gate.about}: " if gate.about and len(gated) > 1 else ""
        state, text = STATES[gate.overall], f"{about}{gate.decisive}."
        sentences.append(Sentence(state, f"Gate: {gate.overall}", text))
    sentences.append(Sentence("", "Made", _made(run)))
    if proven := [claim.phrase for claim in found if claim.states == {"proven"}]:
        sentences.append(Sentence("proven", "Proven", f"{listed(proven)}."))
    if accuracy := _accuracy(run):
        sentences.append(Sentence("", "Accuracy", accuracy))
    asides = dict.fromkeys(f.aside for claim in found for f in claim.findings if f.aside)
    if asides:
        sentences.append(Sentence("", "Not in full", f"{'; '.join(asides)}."))
    if shown := _on_stand_ins(found):
        sentences.append(Sentence("evidence", "Evidence only", _stand_in(run, shown)))
    unsure = _phrases(
        [c for c in found if c.name == "ONNX Runtime computes the student"], "evidence"
    )
    if unsure:
        text = f"{listed(unsure)}; some integers differ by more than one step."
        sentences.append(Sentence("evidence", "Evidence only", text))
    if timed := measured.sentence(run):
        sentences.append(Sentence("evidence", "Latency", timed))
    if other := measured.beside(run):
        sentences.append(Sentence("evidence", "Latency only", other))
    if unseen := [claim.question for claim in found if claim.states == {"not measured"}]:
        because = f" ({run.away[0].config['reason']})" if run.away else ""
        text = f"{listed(unseen)}{because}." if run.models else "all that a student is judged by."
        sentences.append(Sentence("not measured", "Not measured", text))
    if {"sparse", "dense"} <= {run.arm(model) for model in run.models}:
        text = (
            "The device decides: where 2:4 is not faster there, dense INT8 ships, and that is a "
            "useful answer too."
        )
        sentences.append(Sentence("", "2:4 or dense", text))
    return sentences


def glance(run: Collection) -> list[Number]:
    """The few numbers a person looks for first, of the most compressed graph."""
    if not run.models:
        return []
    main = run.models[0]
    arm, plan = run.name(main), run.plan(main)
    smaller = weight_bytes(plan) / float32_bytes(plan)
    shares = {what: percent(share_of_macs(plan, key), 2) for what, key in _FORMS.items()}
    first, second = sorted(_FORMS, key=lambda what: shares[what] == "0%")  # a student may have none
    numbers = [
        Number(f"Planned in {first}", shares[first], f"of MACs, {shares[second]} in {second}"),
        Number("Weights", f"{smaller:.0%}", f"of float32, computed, {arm}"),
    ]
    if reports := run.of("AccuracyReport"):
        row = next(row for row in reports[0].results["rows"] if row["who"] == "model")
        on = f"{plural(reports[0].results['count'], 'sample')}, {run.name(reports[0])}"
        what = measure(reports[0].results["metric"]).capitalize()
        lost = NOT_MEASURED if row["top1"] is None else f"{points(row['difference'])} points"
        agrees = NOT_MEASURED if row["agreement"] is None else percent(row["agreement"])
        numbers += [
            Number(f"{what} against the teacher", lost, on),
            Number("Agrees with the teacher", agrees, on),
        ]
    return [*numbers, *_latency(run)]


def _latency(run: Collection) -> list[Number]:
    """What was measured, and the devices that nothing was measured on."""
    found = timing.own_timings(run)
    measured_here = [_timed(run, found[0])] if found else []
    if run.away:
        where = listed(sorted({run.target(bundle) for bundle in run.away}))
        return [*measured_here, Number("Latency on the device", NOT_MEASURED, where)]
    return measured_here or [Number("Latency", NOT_MEASURED, "no benchmark was run")]


def _timed(run: Collection, first: timing.Timing) -> Number:
    """A ratio where only ratios may be quoted, and where there is something to compare with."""
    name, row = timing.main_row(run, first)
    what = first.percentile or "Time a sample"
    on = "; ".join(
        [f"{name} on {first.document['target']}, {first.scenario['name']}", *timing.caveats(first)]
    )
    ratio = first.ratio(row)
    if ratio:
        title, number = f"{what}, times {spoken(first.names[0])}'s", f"{ratio['estimate']:.2f}"
        between = timing.ratio_interval(ratio)
        if not timing.differs(ratio):
            return Number(title, NO_DIFFERENCE, f"{number}, {between}; {on}")
        return Number(title, number, f"{between}; {on}")
    result = first.result(row)["estimate"]
    return Number(what, time(result) if first.percentile else rate(result), on)


def _on_stand_ins(found: list[Claim]) -> list[str]:
    """Phrases of the claims that the layer table of another runtime shows in full."""
    on_plans = ("Every planned layer runs in INT8", "Attention is fused")
    return [
        claim.phrase
        for claim in found
        if claim.name in on_plans
        and any(each.state == "evidence" and not each.aside for each in claim.findings)
    ]


def _stand_in(run: Collection, shown: list[str]) -> str:
    """On whose plans it was seen, and for which targets nothing stands in."""
    seen = {run.target(engine) for engine in run.tables}
    blind = sorted({run.target(bundle) for bundle in run.away} - seen)
    text = f"{listed(shown)}, in plans that tensorrt-rtx made for {listed(sorted(seen))}"
    return f"{text}; nothing stands in for {listed(blind)}." if blind else f"{text}."


def _phrases(found: list[Claim], state: State) -> list[str]:
    return [claim.phrase for claim in found if state in claim.states]


def _made(run: Collection) -> str:
    """What there is, the most compressed graph first."""
    if not run.models:
        students = [run.name(student) for student in run.of("Student")]
        if students:
            return f"The {listed(students)} student is trained and no graph is exported yet."
        if teachers := run.of("Teacher"):
            return _teacher(teachers[0])
        return "There is no graph among these artifacts."
    main = run.models[0]
    names = dict.fromkeys(run.name(model) for model in run.models)  # a directory may hold two runs
    others = [spoken(name) for name in names if name != run.name(main)]
    beside = f", with {listed(others)} beside it to compare" if others else ""
    if main not in run.compressed:
        return f"The teacher was exported as {run.name(main)}; nothing was compressed yet."
    results = main.results
    planned = {what: int(results[f"layers_{key}"]) for what, key in _FORMS.items()}
    parts = [
        f"{count(number)} in {what} ({percent(results[f'macs_share_{_FORMS[what]}'], 2)})"
        for what, number in planned.items()
        if number
    ]
    parts += [] if planned["INT8"] else ["none in INT8"]
    return (
        f"The teacher became a {run.name(main)} student{beside}. Planned, of "
        f"{plural(results['layers'], 'layer')} (and of the multiply-accumulates): {listed(parts)}."
        f"{_batchnorm(run, main)}"
    )


def _batchnorm(run: Collection, model: Artifact) -> str:
    """What became of batch norm; empty where the student has none, or is not among these."""
    student = run.find(model.manifest.parents["source"])
    told = student.results if student else {}
    folded, frozen = told.get("batchnorm_folded", 0), told.get("batchnorm_frozen", [])
    parts = [f"{plural(folded, 'batch norm')} folded into the layer before"] if folded else []
    parts += [f"{len(frozen)} frozen where nothing could take it in"] if frozen else []
    return f" Of batch norm: {listed(parts)}." if parts else ""


def _teacher(teacher: Artifact) -> str:
    results = teacher.results
    right = "accuracy not measured"
    if results["accuracy"] is not None:
        right = f"{percent(results['accuracy'])} right"
    return (
        f"Only a teacher is here: {count(results['parameters'])} parameters, {right} on "
        f"{plural(results['samples'], 'sample')}. Nothing was compressed yet."
    )


def _accuracy(run: Collection) -> str:
    """Accuracy and fidelity of the most compressed arm that was run, beside the teacher's."""
    reports = run.of("AccuracyReport")
    if not reports:
        return ""
    row = next(row for row in reports[0].results["rows"] if row["who"] == "model")
    agrees = ""
    if row["agreement"] is not None:
        agrees = f"gives the teacher's answer on {percent(row['agreement'])}."
    if row["top1"] is None:
        reason = f"Accuracy is not measured: {reports[0].results['not_measured']}."
        return f"{reason} The {run.name(reports[0])} graph {agrees}" if agrees else reason
    low, high = row["top1_interval"]
    start, end = row["difference_interval"]
    metric = reports[0].results["metric"]
    top1 = percent(row["top1"])
    right = f"is right {top1} of the time" if metric == "top-1" else f"scores {top1} by {metric}"
    return (
        f"On {plural(reports[0].results['count'], 'sample')} the {run.name(reports[0])} "
        f"graph {right} (95% interval {percent(low)} to "
        f"{percent(high)}), {points(row['difference'])} points from the teacher "
        f"({points(start)} to {points(end)})" + (f", and {agrees}" if agrees else ".")
    )
