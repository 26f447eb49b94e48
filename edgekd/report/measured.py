"""What was measured of latency, as a claim: on which device, and what it does not stand for.

A latency holds for one device in one state. On the `cpu` target it is evidence at most: machines
that edgekd runs on are shared, and no number of theirs says anything of an A100 or an Orin, whose
latency stays unmeasured until somebody measures it there.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgekd.report.collection import Collection, spoken
from edgekd.report.findings import Finding, State, Where, place, unseen
from edgekd.report.timing import (
    Timing,
    caveats,
    differs,
    main_row,
    own_timings,
    ratio_interval,
    timings,
)
from edgekd.report.words import NO_DIFFERENCE, digits, listed, rate, time, times


def latency(run: Collection) -> Iterable[Finding]:
    """How fast each engine is, as each LatencyReport of this run's graphs says."""
    found = own_timings(run)
    for timing in found:
        yield _measured(run, timing)
    for bundle in run.away:
        yield unseen(bundle.config["reason"], (place(run, bundle),))
    timed = {row["id"] for timing in found for row in timing.engines}
    here = [engine for engine in run.of("Engine") if not engine.results.get("evidence")]
    for engine in here:
        if engine.id not in timed:
            yield unseen("no benchmark was run", (place(run, engine),))
    if not found and not here and not run.away:
        yield unseen("nothing was built that could be timed here")


def sentence(run: Collection) -> str:
    """The first measurement for the verdict in plain words; empty where there is none."""
    found = own_timings(run)
    if not found:
        return ""
    timing = found[0]
    runtime = " with ONNX Runtime, which uses no 2:4" if timing.runtime == "onnxruntime" else ""
    text = (
        f"{_main_result(run, timing)}, measured on {timing.document['target']}{runtime}: that "
        f"stands for no other device.{_unsure(timing)}"
    )
    if away := listed(sorted({run.target(bundle) for bundle in run.away})):
        text += f" Not measured on {away}."
    return text


def beside(run: Collection) -> str:
    """The same of the first network that is not this run's; empty where there is none."""
    for timing in timings(run):
        if timing.other and timing.other.name:
            weights = " (random weights)" if timing.other.random else ""
            where = f"of {timing.other.name}{weights}, measured on {timing.document['target']}"
            return f"{where}: {_main_result(run, timing)}.{_unsure(timing)}"
    return ""


def _main_result(run: Collection, timing: Timing) -> str:
    """``2:4 INT8 takes 0.50 times the float teacher's p90 (0.49 to 0.51)``, where that is shown."""
    name, row = main_row(run, timing)
    ratio = timing.ratio(row)
    if ratio is None:
        return f"{spoken(name)} has a {timing.percentile or 'throughput'} of {_result(timing, row)}"
    what = timing.percentile or "time a sample"
    first, number = spoken(timing.names[0]), f"{ratio['estimate']:.2f}"
    if not differs(ratio):
        between = f"{number}, {ratio_interval(ratio)}"
        return f"{what} of {name} against {first}'s: {NO_DIFFERENCE} ({between})"
    return f"{name} takes {number} times {first}'s {what} ({ratio_interval(ratio)})"


def _unsure(timing: Timing) -> str:
    """Why it may not be quoted, as a sentence."""
    text = "; ".join(caveats(timing))
    return f" {text[0].upper()}{text[1:]}." if text else ""


def _measured(run: Collection, timing: Timing) -> Finding:
    rows = timing.engines
    parts = [
        f"{name} {_result(timing, row)}" + _against(timing, row)
        for name, row in zip(timing.names, rows, strict=True)
    ]
    invalid = [name for name, row in zip(timing.names, rows, strict=True) if not row["valid"]]
    text = f"{timing.scenario['name']}, {_what(timing)}: {'; '.join(parts)}."
    if invalid:
        text += f" Upper bounds withheld for {listed(invalid)}."
    if not timing.controlled:
        text += f" {str(timing.document['machine']).capitalize()}."
    if timing.runtime == "onnxruntime":
        text += " Stands for no GPU: ONNX Runtime uses no 2:4."
    shared = timing.runtime == "onnxruntime"  # the cpu target, whatever its clock
    sure = timing.controlled and not invalid and not shared
    state: State = "proven" if sure else "evidence"
    on = [
        place(run, engine) if (engine := run.find(row["id"])) else Where(name)
        for name, row in zip(timing.names, rows, strict=True)
    ]
    return Finding(state, tuple(on), text)


def _what(timing: Timing) -> str:
    return f"{timing.percentile} of a query" if timing.percentile else "samples a second"


def _result(timing: Timing, row: dict[str, object]) -> str:
    found = timing.result(row)
    if timing.percentile:
        return f"{time(found['estimate'])} ({times(found['low'], found['high'])})"
    return f"{rate(found['estimate'])} ({digits(found['low'])} to {digits(found['high'])})"


def _against(timing: Timing, row: dict[str, object]) -> str:
    ratio = timing.ratio(row)
    if ratio is None:
        return ""
    first, number = spoken(timing.names[0]), f"{ratio['estimate']:.2f}"
    if not differs(ratio):
        return f", {NO_DIFFERENCE} from {first}'s ({number}, {ratio_interval(ratio)})"
    return f", {number} times {first}'s ({ratio_interval(ratio)})"
