"""LatencyReports as the page reads them: whose they are, what their result is, what it stands for.

A report belongs to this run where its engines were made of this run's graphs. One that does not is
shown for its latency alone, such as that of a graph of ViT-S's size with random weights, which went
through the same export so that the gain of INT8 can be seen where the demo's network is too small
to show it. Nothing of it enters the claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.artifact import Artifact, Manifest
from edgekd.report.collection import Collection, spoken
from edgekd.report.words import listed, percent, plural, size

_SCENARIOS = ("SingleStream", "MultiStream", "Offline")


@dataclass(frozen=True)
class Graph:
    """What is known of a graph that is not this run's.

    Attributes:
        name: Its recipe's name, empty where it is not known.
        size: How large it is, in words.
        random: Whether its weights are known to be random: a teacher fitted for no step.
    """

    name: str = ""
    size: str = ""
    random: bool = False


@dataclass(frozen=True)
class Timing:
    """A LatencyReport.

    Attributes:
        report: The artifact.
        arms: Of each engine the name of its arm.
        other: The graph where it is not one of this run's.
    """

    report: Artifact
    arms: tuple[str, ...]
    other: Graph | None = None

    @property
    def own(self) -> bool:
        """Whether its engines are made of this run's graphs."""
        return self.other is None

    @cached_property
    def document(self) -> dict[str, Any]:
        """What ``latency.json`` says."""
        found: dict[str, Any] = self.report.read_json("latency.json")
        return found

    @property
    def scenario(self) -> dict[str, Any]:
        """The scenario's keys."""
        found: dict[str, Any] = self.document["scenario"]
        return found

    @property
    def engines(self) -> list[dict[str, Any]]:
        """What was measured of each engine; ratios are to the first."""
        found: list[dict[str, Any]] = self.document["engines"]
        return found

    @property
    def names(self) -> list[str]:
        """Of each engine the name of its arm, and of its directory where two have one arm."""
        return [
            arm if self.arms.count(arm) == 1 else f"{arm}, {row['name']}"
            for arm, row in zip(self.arms, self.engines, strict=True)
        ]

    @property
    def percentile(self) -> str:
        """``p90``, or empty where the result is a rate."""
        number = self.scenario["percentile"]
        return "" if number is None else f"p{number}"

    @property
    def controlled(self) -> bool:
        """Whether absolute latencies may be quoted."""
        return not str(self.document["machine"]).startswith("uncontrolled")

    @property
    def runtime(self) -> str:
        """What executed the engines: one run has one target."""
        return str(self.engines[0]["runtime"])

    def result(self, row: dict[str, Any]) -> dict[str, Any]:
        """The scenario's result of one engine: estimate, low, high; ns, or samples per second."""
        key = self.percentile
        found: dict[str, Any] = row["percentiles"][key] if key else row["samples_per_s"]
        return found

    def ratio(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Its time against the first engine's, None for the first itself."""
        found = row.get("ratio_to_first")
        ratio: dict[str, Any] | None = found and found[self.percentile or "time_per_sample"]
        return ratio

    def wall_ns(self) -> NDArray[np.int64]:
        """Every sample: int64[engine, repetition, query]."""
        with np.load(self.report.file("samples.npz"), allow_pickle=False) as arrays:
            found: NDArray[np.int64] = arrays["wall_ns"]
        return found


def ratio_interval(found: dict[str, Any]) -> str:
    """``0.64 to 0.83``, with its coverage where that is not 95%."""
    text = f"{found['low']:.2f} to {found['high']:.2f}"
    less = found["coverage"] < 0.95
    return f"{text}, {percent(found['coverage'])} interval" if less else text


def differs(found: dict[str, Any]) -> bool:
    """Whether a ratio's interval leaves out 1, so that a difference is shown."""
    return not found["low"] <= 1 <= found["high"]


def caveats(timing: Timing) -> list[str]:
    """Why a measurement may not be quoted, in words; empty where it may.

    Args:
        timing: The report; its reasons stand below its table.
    """
    pairs = zip(timing.names, timing.engines, strict=True)
    invalid = [spoken(name) for name, row in pairs if not row["valid"]]
    text = [] if timing.controlled else [str(timing.document["machine"])]
    return [*text, f"not valid: {listed(invalid)}"] if invalid else text


def timings(run: Collection) -> list[Timing]:
    """Every LatencyReport, this run's first, by scenario and date."""
    found = [_timing(run, report) for report in run.of("LatencyReport")]
    return sorted(found, key=_order)


def own_timings(run: Collection) -> list[Timing]:
    """Those of this run's own graphs."""
    return [timing for timing in timings(run) if timing.own]


def main_row(run: Collection, timing: Timing) -> tuple[str, dict[str, Any]]:
    """The engine a page is about, by name: of the most compressed arm that was measured."""
    order = [run.arm(model) for model in run.models]
    rows = list(zip(timing.names, timing.engines, strict=True))
    return min(rows, key=lambda row: (row[1]["arm"] not in order, _place(order, row[1]["arm"])))


def _place(order: Sequence[str], arm: str) -> int:
    return order.index(arm) if arm in order else len(order)


def _order(timing: Timing) -> tuple[bool, str, int, str, str]:
    kind = timing.scenario["scenario"]
    place = _SCENARIOS.index(kind) if kind in _SCENARIOS else len(_SCENARIOS)
    target = str(timing.document["target"])
    return (not timing.own, target, place, str(timing.document["started"]), timing.report.id)


def _timing(run: Collection, report: Artifact) -> Timing:
    """Find whose graph it was through its first engine, given or lying beside it."""
    models = {model.id for model in run.models}

    def up(child: Manifest | None, role: str) -> Manifest | None:
        return run.manifest(child.parents.get(role, ""), report) if child else None

    rows = report.read_json("latency.json")["engines"]
    arms = tuple(run.name_of(row["id"], row["arm"], report) for row in rows)
    engine = up(report.manifest, "engine-0")
    if not models or (engine and engine.parents.get("model") in models):
        return Timing(report, arms)
    graph = up(engine, "model")
    source = up(graph, "source")
    teacher = up(source, "teacher") if source and source.kind == "Student" else source
    return Timing(report, arms, _described(graph, teacher) if graph else Graph())


def _described(graph: Manifest, teacher: Manifest | None) -> Graph:
    found = graph.results
    parts = [plural(found["layers"], "layer")] if "layers" in found else []
    parts.append(f"ort.onnx of {size(graph.files['ort.onnx'].bytes)}")
    fit = (teacher.config.get("teacher") or {}).get("fit") if teacher else None
    random = fit is not None and fit["steps"] == 0
    return Graph(str(graph.config.get("name", "")), ", ".join(parts), random)
