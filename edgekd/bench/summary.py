"""The numbers of a LatencyReport, derived from its samples and nothing else.

Percentiles are those the number of queries gives an upper bound for. The headline of each is the
median over repetitions; the bound is of each repetition, and the largest of them is quoted: within
every process that was measured, the percentile lies below it with 99% each. That one needs
independent queries. The bound of the median over repetitions needs independent processes instead,
as the median's interval does, so it stays where the other is withheld: half of all processes have
their percentile below it, with 99%. It says nothing of the slower half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.artifact import Artifact
from edgekd.bench import device_state, stats
from edgekd.bench.inputs import Inputs
from edgekd.bench.measure import Measured
from edgekd.bench.scenario import Scenario

PERCENTILES = (50, 90, 95, 99)

Times = NDArray[np.int64]

NO_SPARSITY = (
    "ONNX Runtime uses no 2:4: {these} are expected to be equally fast here, and a ratio of 1 says "
    "nothing about a device with sparse kernels"
)
HARNESS_SHARE = 0.1  # of a query; above it a note says what that does to ratios
NOT_ACCURACY = "latency only: whether the answers are good is the AccuracyReport's to say"


def document(
    engines: Sequence[Artifact],
    scenario: Scenario,
    chosen: Inputs,
    measured: Measured,
    config: Any,
) -> dict[str, Any]:
    """Everything ``latency.json`` says.

    Args:
        engines: In the order of `measured`.
        scenario: How they were asked.
        chosen: What they were asked.
        measured: What was taken.
        config: The report's configuration.
    """
    target = config["target"]
    null = null_row(measured.null_ns)
    states = [state for row in measured.states for state in row]
    rows = []
    for number, engine in enumerate(engines):
        times = measured.wall_ns[number]
        row = {
            "id": engine.id,
            "name": engine.path.name,
            "arm": engine.config["arm"],
            "runtime": engine.config["runtime"],
            "answers": measured.references[number],
            **engine_row(times, scenario),
        }
        row["harness_share"] = null["estimate"] / row["percentiles"]["p50"]["estimate"]
        if number:
            row["ratio_to_first"] = ratios(measured.wall_ns[0], times, scenario)
        if measured.gpu_ns is not None:
            row["gpu"] = engine_row(measured.gpu_ns[number], scenario)
        rows.append(row)
    notes = no_sparsity(engines) if target["runtime"] == "onnxruntime" else []
    notes += same_engines([engine.id for engine in engines])
    share = max(row["harness_share"] for row in rows)
    if share > HARNESS_SHARE:
        notes.append(
            f"the harness itself takes up to {share:.0%} of a query's time: ratios of the engines "
            "alone are farther from 1 than those given here"
        )
    return {
        "protocol": config["protocol"],
        "scenario": config["scenario"],
        "target": target["name"],
        "where": config["where"],
        "started": config["started"],
        "machine": device_state.control(target["required_state"], states),
        "steal_share": device_state.steal_share(states),
        "inputs": chosen.source,
        "order_seed": measured.seed,
        "resumed_before_rounds": measured.resumed,
        "null": null,
        "engines": rows,
        "notes": [*notes, NOT_ACCURACY],
    }


def no_sparsity(engines: Sequence[Artifact]) -> list[str]:
    """A note where one of ONNX Runtime's engines holds 2:4 weights, of which it makes no use.

    Args:
        engines: What was measured.
    """
    planned = [engine.read_json("layers.json")["planned"] for engine in engines]
    sparse = [rows for rows in planned if any(row["sparse"] for row in rows)]
    if not sparse:
        return []
    int8 = any(row["int8"] and row["sparse"] for rows in sparse for row in rows)
    these = "dense and 2:4 INT8" if int8 else "dense and 2:4 weights in float"
    return [NO_SPARSITY.format(these=these)]


def same_engines(ids: Sequence[str]) -> list[str]:
    """A note for every engine that was measured beside itself.

    Args:
        ids: Of the engines, in their order.
    """
    firsts = {each: ids.index(each) for each in ids}
    return [
        f"engines {firsts[each] + 1} and {number + 1} are the same (same id {each[:12]}): their "
        "ratio compares an engine with itself"
        for number, each in enumerate(ids)
        if firsts[each] != number
    ]


def results(latency: dict[str, Any]) -> dict[str, Any]:
    """What the manifest holds: the result of each engine, without the repetitions.

    Args:
        latency: What `document` returned.
    """
    percentile = latency["scenario"]["percentile"]
    rows = []
    for row in latency["engines"]:
        kept = {name: row[name] for name in ("id", "arm", "valid", "reasons")}
        if percentile is None:
            kept["samples_per_s"] = row["samples_per_s"]
        else:
            found = {**row["percentiles"][f"p{percentile}"]}
            del found["per_repetition_ns"]
            kept[f"p{percentile}"] = found
        rows.append({**kept, "ratio_to_first": row.get("ratio_to_first")})
    names = ("protocol", "machine", "started", "target", "null", "notes")
    return {**{name: latency[name] for name in names}, "engines": rows}


def engine_row(times: Times, scenario: Scenario) -> dict[str, Any]:
    """What may be said of one engine.

    Args:
        times: int64[repetitions, queries], ns, in the order of measurement.
        scenario: What a query is, and the result.

    Returns:
        ``percentiles``, ``samples_per_s``, ``autocorrelation``, ``valid`` with its ``reasons``.
    """
    check = stats.autocorrelation(times)
    reasons = []
    if check.failed:
        reasons.append(
            f"upper bounds withheld: the queries of {len(check.failed)} of {len(times)} "
            f"repetitions depend on those before them (rank autocorrelation {check.largest:+.2f} "
            f"at lag {check.lag}, at most {check.limit:.2f} if they did not)"
        )
    allowed = [p for p in PERCENTILES if stats.queries_needed(p) <= times.shape[1]]
    return {
        "repetitions": times.shape[0],
        "queries": times.shape[1],
        "percentiles": {f"p{p}": _percentile(times, p, not check.failed) for p in allowed},
        "samples_per_s": asdict(stats.median_interval(_samples_per_s(times, scenario))),
        "autocorrelation": asdict(check),
        # Offline's result is a rate; no bound belongs to it.
        "valid": scenario.percentile is None or not reasons,
        "reasons": reasons,
    }


def ratios(first: Times, other: Times, scenario: Scenario) -> dict[str, Any]:
    """Ratios of times other / first, each from repetitions of the same rounds; below 1 is faster.

    Args:
        first: int64[repetitions, queries], ns.
        other: The same of the other engine.
        scenario: What the result is.

    Returns:
        ``p50`` and the scenario's own percentile, or for Offline ``time_per_sample``.
    """
    if scenario.percentile is None:
        a, b = (1 / _samples_per_s(times, scenario) for times in (first, other))
        return {"time_per_sample": asdict(stats.ratio(a, b))}
    found = {}
    for p in sorted({50, scenario.percentile}):
        a, b = (_each(times, p).astype(np.float64) for times in (first, other))
        found[f"p{p}"] = asdict(stats.ratio(a, b))
    return found


def null_row(null_ns: Times) -> dict[str, Any]:
    """What the harness itself costs a query: the median of a runner that does nothing, in ns.

    Args:
        null_ns: int64[repetitions, queries].
    """
    return asdict(stats.median_interval(_each(null_ns, 50).astype(np.float64)))


def _percentile(times: Times, percentile: int, independent: bool) -> dict[str, Any]:
    values = _each(times, percentile)
    row: dict[str, Any] = {
        **asdict(stats.median_interval(values.astype(np.float64))),
        "per_repetition_ns": values.tolist(),
        "upper_bound": None,
        "median_upper_bound": None,
    }
    if len(values) >= stats.queries_needed(50):  # the repetitions stand for the queries
        row["median_upper_bound"] = asdict(stats.upper_bound(values, 50))
    if independent:
        bounds = [stats.upper_bound(repetition, percentile) for repetition in times]
        row["upper_bound"] = {
            "largest_ns": max(bound.value_ns for bound in bounds),
            "per_repetition_ns": [bound.value_ns for bound in bounds],
            "coverage": bounds[0].coverage,
            "discarded": bounds[0].discarded,
        }
    return row


def _each(times: Times, percentile: int) -> Times:
    """The percentile of every repetition."""
    return np.array([stats.nearest_rank(row, percentile) for row in times], np.int64)


def _samples_per_s(times: Times, scenario: Scenario) -> NDArray[np.float64]:
    """Samples answered in a second of asking, of every repetition."""
    rate: NDArray[np.float64] = scenario.batch * times.shape[1] / (times.sum(axis=1) / 1e9)
    return rate
