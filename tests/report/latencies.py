"""LatencyReports and Verdicts of engines that the Maker made, from samples that a test made up."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd import judge, kinds
from edgekd.artifact import Artifact
from edgekd.bench import summary
from edgekd.bench.inputs import Inputs
from edgekd.bench.measure import Measured
from edgekd.bench.scenario import Scenario

from .conftest import Maker

Times = npt.NDArray[np.int64]
STARTED = "2026-01-02T03:04:05.678901234Z"
STATE: dict[str, Any] = {"ticks": 100, "steal_ticks": 1, "cpu_clock_locked": False}
LOCKED = {**STATE, "steal_ticks": 0, "cpu_clock_locked": True}


def scenario(**changes: Any) -> Scenario:
    """64 queries of one sample, 12 processes."""
    asked: dict[str, Any] = {
        "name": "one-by-one",
        "scenario": "SingleStream",
        "batch": 1,
        "percentile": 90,
        "queries": 64,
        "repetitions": 12,
    }
    return Scenario(**{**asked, **changes})


def offline() -> Scenario:
    changes = {"scenario": "Offline", "batch": 8, "percentile": None, "queries": 40}
    return scenario(name="all-at-once", **changes)


def samples(medians_us: Sequence[float], asked: Scenario, spread: float = 0.1) -> Times:
    """int64[engine, repetition, query] ns: lognormal, independent, another seed an engine."""
    shape = (asked.repetitions, asked.queries)
    return np.array(
        [
            median * 1000 * np.exp(spread * np.random.default_rng(seed).standard_normal(shape))
            for seed, median in enumerate(medians_us)
        ]
    ).astype(np.int64)


def latency(
    maker: Maker,
    engines: Sequence[Artifact],
    wall_ns: Times,
    asked: Scenario | None = None,
    state: dict[str, Any] = STATE,
    gpu_ns: Times | None = None,
) -> Artifact:
    """What bench publishes of these samples."""
    asked = asked or scenario()
    rounds, queries = wall_ns.shape[1:]
    measured = Measured(
        wall_ns=wall_ns,
        gpu_ns=gpu_ns,
        null_ns=np.full((rounds, queries), 900),
        states=[[state] * (len(engines) + 1)] * rounds,
        seed=0,
        order=[list(range(len(engines) + 1))] * rounds,
        resumed=[],
        references=["what ONNX Runtime was recorded to answer at export"] * len(engines),
    )
    config = {
        "scenario": asked.model_dump(mode="json"),
        "target": {**engines[0].config["target"], "required_state": []},
        "where": {"device": "A processor", "threads": 2},
        "protocol": "edgekd-1 clock=perf_counter_ns",
        "started": STARTED,
    }
    chosen = Inputs({}, "200 rows of Samples 0123456789ab, in turn", (None,) * len(engines))
    document = summary.document(engines, asked, chosen, measured, config)
    arrays = {"wall_ns": wall_ns, "null_ns": measured.null_ns}
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    files = {
        "latency.json": document,
        "state.json": {"order": measured.order, "states": measured.states},
        "samples.npz": packed.getvalue(),
    }
    parents = {f"engine-{number}": engine for number, engine in enumerate(engines)}
    return maker.make(
        kinds.LATENCY_REPORT, config, files, summary.results(document), parents=parents
    )


def foreign(maker: Maker, steps: int = 0) -> Artifact:
    """The LatencyReport of another model, whose teacher was fitted for so many steps."""
    teacher = maker.teacher(name="large", fit={"steps": steps})
    engines = maker.engines([maker.model(teacher, name="large")])
    return latency(maker, engines, samples([9000], scenario()))


def verdict(maker: Maker, engine: Artifact, ratio: tuple[float, float, float]) -> Artifact:
    """What gate publishes of an engine that is this much slower than its baseline."""
    lost = {"difference": -0.004, "difference_interval": (-0.011, 0.002)}
    checks = [
        judge.check_accuracy("accuracy_to_teacher", lost, 200, 1.5),
        judge.check_ratio(ratio, 0.03, "p90 of one-by-one, both in one run"),
        judge.check_size("model.onnx", 1_710_187, 2_000_000),
    ]
    document = {
        "overall": judge.overall(checks),
        "checks": [asdict(check) for check in checks],
        "target": "cpu",
        "scenario": "one-by-one",
    }
    config = {"target": engine.config["target"]}
    return maker.make(
        kinds.VERDICT, config, {"verdict.json": document}, document, parents={"engine": engine}
    )


def accepted(maker: Maker, engine: Artifact) -> Artifact:
    """What gate publishes where a first baseline is written and no budget is given."""
    document = {"overall": judge.overall([]), "checks": [], "target": "cpu", "scenario": "few"}
    config = {"target": engine.config["target"]}
    return maker.make(
        kinds.VERDICT, config, {"verdict.json": document}, document, parents={"engine": engine}
    )
