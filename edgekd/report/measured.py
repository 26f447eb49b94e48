"""What was measured of latency, as a claim: on which device, and what it does not stand for.

A latency holds for one device in one state. On the `cpu` target it is evidence at most: machines
that edgekd runs on are shared, and no number of theirs says anything of an A100 or an Orin, whose
latency stays unmeasured until somebody measures it there.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgekd.report.collection import Collection
from edgekd.report.findings import Finding, State, Where, place, unseen
from edgekd.report.timing import Timing, main_row, own_timings, ratio_interval
from edgekd.report.words import digits, listed, rate, time, times


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
    name, row = main_row(run, timing)
    what = timing.percentile or "time a sample"
    ratio = timing.ratio(row)
    if ratio is None:
        result = timing.percentile or "throughput"
        text = f"the {name} engine has a {result} of {_result(timing, row)}"
    else:
        text = (
            f"the {name} engine takes {ratio['estimate']:.2f} of {timing.names[0]}'s {what} "
            f"({ratio_interval(ratio)})"
        )
    targets = sorted({str(each.document["target"]) for each in found})
    runtime = " with ONNX Runtime, which uses no 2:4" if timing.runtime == "onnxruntime" else ""
    other = listed(sorted({run.target(bundle) for bundle in run.away}))
    beyond = f" On {other} it is not measured." if other else ""
    return (
        f"measured on {listed(targets)} only{runtime}; that stands for no other device. In "
        f"{timing.scenario['name']} {text}.{beyond}"
    )


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
    sure = timing.controlled and not invalid
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
    return f", {ratio['estimate']:.2f} of {timing.names[0]}'s time ({ratio_interval(ratio)})"
