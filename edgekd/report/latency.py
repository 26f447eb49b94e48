"""The latency section: a table for each LatencyReport, how it was measured, and its figures.

Absolute latencies of an uncontrolled machine are shown, since they are what the ratios are made of,
but the page says there that only ratios may be quoted. A bound that was withheld and a percentile
that had too few queries say so where the number would stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekd.bench.stats import queries_needed
from edgekd.bench.summary import NOT_ACCURACY, PERCENTILES
from edgekd.report import words
from edgekd.report.collection import Collection, anchor
from edgekd.report.ecdf import ecdf
from edgekd.report.plot import Plot
from edgekd.report.timing import Graph, Timing, differs, own_timings, ratio_interval, timings
from edgekd.report.tradeoff import tradeoff
from edgekd.report.words import (
    NO_DIFFERENCE,
    count,
    listed,
    percent,
    plural,
    short,
    time,
    times,
    when,
)

_ASKED = {
    "SingleStream": "one sample a query, the next when the last is answered",
    "MultiStream": "{batch} samples a query, the next when the last is answered",
    "Offline": "everything at once, {batch} samples a query",
}


@dataclass(frozen=True)
class Cell:
    """A number with its interval, what else is to be said of it, and whether it shows anything."""

    number: str
    notes: tuple[str, ...] = ()
    shown: bool = True


@dataclass(frozen=True)
class EngineRow:
    """What was measured of one engine, or of its part on the GPU (no validity of its own).

    Attributes:
        name: The arm.
        about: Runtime, or what part of the time it is.
        anchor: Its place on the page, empty where it has none.
        percentiles: One for each of the table's, empty where there were too few queries.
        throughput: Samples per second.
        ratio: Against the first engine.
        asked: Repetitions and queries.
        valid: Whether its result may be quoted; None for a part.
    """

    name: str
    about: str
    anchor: str
    percentiles: tuple[Cell, ...]
    throughput: Cell
    ratio: Cell
    asked: str
    valid: bool | None


@dataclass(frozen=True)
class Section:
    """One LatencyReport.

    Attributes:
        id: Unique on the page.
        title: Scenario and target.
        other: The graph where it is not one of this run's.
        anchor: The artifact's place on the page.
        asked: How the engines were asked, as a sentence.
        date: When the measurement began.
        machine: What of the machine was controlled.
        controlled: Whether absolute latencies may be quoted.
        percentiles: Columns, the scenario's own first in `result`.
        result: The column that is the scenario's result, empty for a rate.
        first: Name of the engine that ratios are to.
        rows: Engines.
        reasons: Why a bound or a result is withheld, by engine.
        absent: Why a percentile has no column.
        notes: What the report says besides.
        facts: How it was measured.
        plots: Its figures.
    """

    id: str
    title: str
    other: Graph | None
    anchor: str
    asked: str
    date: str
    machine: str
    controlled: bool
    percentiles: tuple[str, ...]
    result: str
    first: str
    rows: tuple[EngineRow, ...]
    reasons: tuple[str, ...]
    absent: str
    notes: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    plots: tuple[Plot, ...]


def sections(run: Collection) -> tuple[list[Section], list[str]]:
    """One for each LatencyReport, and the notes they all have in common."""
    found = timings(run)
    common = [
        note
        for note in (_notes(found[0]) if found else [])
        if all(note in _notes(timing) for timing in found)
    ]
    return [_section(run, t, f"latency-{n}", common) for n, t in enumerate(found)], common


def _notes(timing: Timing) -> list[str]:
    """What a report says besides; that it is not about accuracy, the page's sections say."""
    return [note for note in timing.document["notes"] if note != NOT_ACCURACY]


def untimed(run: Collection) -> str:
    """Why this run's graphs have no latency here; empty where they have one."""
    if own_timings(run):
        return ""
    if run.away:
        return str(run.away[0].config["reason"])
    return "no benchmark was run" if run.of("Engine") else "nothing was built that could be timed"


def _section(run: Collection, timing: Timing, name: str, common: list[str]) -> Section:
    document, scenario = timing.document, timing.scenario
    measured = {key for row in timing.engines for key in row["percentiles"]}
    columns = tuple(key for key in (f"p{each}" for each in PERCENTILES) if key in measured)
    figures = [tradeoff(run, timing, f"{name}-accuracy")] if timing.own else []
    asked = _ASKED.get(scenario["scenario"], "{batch} samples a query")
    return Section(
        id=name,
        title=f"{scenario['name']} on {document['target']}",
        other=timing.other,
        anchor=anchor(timing.report.id),
        asked=asked.format(batch=count(scenario["batch"])),
        date=when(document["started"].partition(".")[0] + "Z"),
        machine=document["machine"],
        controlled=timing.controlled,
        percentiles=columns,
        result=timing.percentile,
        first=timing.names[0],
        rows=tuple(
            row for n in range(len(timing.engines)) for row in _rows(run, timing, n, columns)
        ),
        reasons=tuple(
            f"{who}: {reason}"
            for who, row in zip(timing.names, timing.engines, strict=True)
            for reason in row["reasons"]
        ),
        absent=_absent(timing, columns),
        notes=tuple(note for note in _notes(timing) if note not in common),
        facts=_facts(timing),
        plots=tuple(filter(None, [*figures, ecdf(timing, f"{name}-ecdf")])),
    )


def _rows(
    run: Collection, timing: Timing, number: int, columns: tuple[str, ...]
) -> list[EngineRow]:
    found, name = timing.engines[number], timing.names[number]
    engine = run.find(found["id"])
    rows = [
        EngineRow(
            name=name,
            about=found["runtime"],
            anchor=anchor(engine.id) if engine else "",
            percentiles=tuple(_percentile(found, key) for key in columns),
            throughput=_throughput(found),
            ratio=_ratio(timing, found),
            asked=f"{count(found['repetitions'])} × {count(found['queries'])}",  # noqa: RUF001
            valid=found["valid"],
        )
    ]
    if part := found.get("gpu"):
        cells = tuple(_percentile(part, key) for key in columns)
        about = "of which on the GPU, without transfers"
        rows.append(EngineRow(name, about, "", cells, _throughput(part), Cell(""), "", None))
    return rows


def _percentile(row: dict[str, Any], key: str) -> Cell:
    found = row["percentiles"].get(key)
    if found is None:
        return Cell("")
    return Cell(time(found["estimate"]), (times(found["low"], found["high"]), _bound(found)))


def _bound(found: dict[str, Any]) -> str:
    """Of each process where its queries are independent, else of the median process."""
    if each := found["upper_bound"]:
        return f"≤ {time(each['largest_ns'])}, {percent(each['coverage'])}"
    if median := found.get("median_upper_bound"):
        return f"median ≤ {time(median['value_ns'])}, {percent(median['coverage'])}"
    return "no bound"


def _throughput(row: dict[str, Any]) -> Cell:
    found = row["samples_per_s"]
    low, high = (words.digits(found[end]) for end in ("low", "high"))
    return Cell(words.digits(found["estimate"]), (f"{low} to {high}",))


def _ratio(timing: Timing, row: dict[str, Any]) -> Cell:
    found = timing.ratio(row)
    if found is None:
        return Cell("1", ("the reference",))
    notes = [ratio_interval(found)]
    if timing.percentile not in ("", "p50"):
        median = row["ratio_to_first"]["p50"]
        notes.append(f"p50: {median['estimate']:.2f} ({ratio_interval(median)})")
    if not differs(found):
        notes.insert(1, NO_DIFFERENCE)
    return Cell(f"{found['estimate']:.2f}", tuple(notes), differs(found))


def _absent(timing: Timing, columns: tuple[str, ...]) -> str:
    needed = {f"p{each}": queries_needed(each) for each in PERCENTILES}
    missing = [key for key in needed if key not in columns]
    if not missing:
        return ""
    has = "has no column: it needs" if len(missing) == 1 else "have no column: they need"
    queries = listed([count(needed[key]) for key in missing])
    return (
        f"{listed(missing)} {has} {queries} queries a process for an upper bound, and there were "
        f"{count(timing.scenario['queries'])}"
    )


def _facts(timing: Timing) -> tuple[tuple[str, str], ...]:
    document = timing.document
    null, steal = document["null"], document["steal_share"]
    share = max(row["harness_share"] for row in timing.engines)
    answers = dict.fromkeys(row["answers"] for row in timing.engines)
    resumed = document["resumed_before_rounds"]
    each = zip(timing.arms, timing.engines, strict=True)
    engines = [f"{arm} {short(row['id'])}" for arm, row in each]
    return (
        ("Device", words.value(document["where"])),
        ("Asked", document["inputs"]),
        ("Answers held against", "; ".join(answers)),
        (
            "Harness alone",
            f"{time(null['estimate'])} a query ({times(null['low'], null['high'])}), measured with "
            f"a runner that does nothing: at most {percent(share)} of an engine's p50",
        ),
        ("Time stolen by other machines", steal if isinstance(steal, str) else percent(steal, 2)),
        ("Interrupted", f"before {plural(len(resumed), 'round')}" if resumed else "no"),
        ("Protocol", document["protocol"]),
        ("Engines", listed(engines)),
    )
