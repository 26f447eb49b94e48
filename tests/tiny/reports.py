"""Engines of the cpu target, and LatencyReports of them from samples that a test made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd import artifact, kinds, recipe, runner, target
from edgekd.artifact import Artifact, Question, Work
from edgekd.bench import summary
from edgekd.bench.bench import order_seed, protocol
from edgekd.bench.inputs import RECORDED, Inputs
from edgekd.bench.measure import Measured, order
from edgekd.bench.scenario import Scenario
from edgekd.engine.build import build
from tiny import graphs

Times = npt.NDArray[np.int64]

STATE: dict[str, Any] = {
    "cpu_model": "a processor",
    "threads": 2,
    "cpus": [0, 1],
    "ticks": 100,
    "steal_ticks": 0,
    "load_1min": 0.0,
    "cpu_governor": ["performance"],
    "cpu_clock_hz": [2_000_000_000, 2_000_000_000],
    "cpu_clock_locked": True,
    "cpu_temperature_celsius": 50.0,
    "boot_id": "b",
}


def few(**changes: Any) -> Scenario:
    """The quickest scenario whose ratios have 95% intervals."""
    document: dict[str, Any] = {
        "name": "few",
        "scenario": "SingleStream",
        "batch": 1,
        "percentile": 90,
        "queries": 64,
        "repetitions": 12,
        "warmup": {"queries": 1, "seconds": 0.0},
    }
    return Scenario.model_validate({**document, **changes})


def engine(
    out: Path, arm: str = "sparse", where: dict[str, Any] | None = None, **model: Any
) -> Artifact:
    """An Engine for `cpu`, or for a target that differs from it in some facts."""
    changed = {**target.load("cpu").as_json(), **(where or {})}
    return build(
        graphs.make_model(out, arm=arm, **model), recipe.check(target.Target, changed, "t"), out
    )


def draw(
    seed: int, median_ns: float, between: float, within: float = 0.02, shape: Any = (12, 64)
) -> Times:
    """Latencies int64[repetitions, queries]: lognormal between processes and within each."""
    random = np.random.default_rng(seed)
    of_process = random.normal(0, between, (shape[0], 1))
    logs = of_process + random.normal(0, within, shape)
    return np.rint(median_ns * np.exp(logs)).astype(np.int64)


def latency_report(
    out: Path,
    engines: Sequence[Artifact],
    scenario: Scenario,
    wall_ns: Sequence[Times],
    state: dict[str, Any] | None = None,
    **config: Any,
) -> Artifact:
    """What `bench` would have published of these samples, taken in this state."""
    rounds = len(wall_ns[0])
    seed = order_seed("2026-01-01T00:00:00Z")
    measured = Measured(
        wall_ns=np.array(wall_ns, np.int64),
        gpu_ns=None,
        null_ns=np.full(wall_ns[0].shape, 1000, np.int64),
        states=[[{**STATE, **(state or {})}] * (len(engines) + 1)] * rounds,
        seed=seed,
        order=order(len(engines) + 1, rounds, seed),
        resumed=[],
        references=[RECORDED] * len(engines),
    )
    asked = {
        "scenario": scenario.model_dump(mode="json"),
        "target": engines[0].config["target"],
        "where": runner.fingerprint(engines[0]),
        "protocol": protocol(engines, scenario),
        "started": "2026-01-01T00:00:00Z",
        **config,
    }
    chosen = Inputs({}, "made up", (None,) * len(engines))
    document = summary.document(engines, scenario, chosen, measured, asked)

    def write(work: Work) -> dict[str, Any]:
        np.savez(work.scratch / "samples.npz", wall_ns=measured.wall_ns, null_ns=measured.null_ns)
        (work.scratch / "latency.json").write_text(json.dumps(document))
        states = {"seed": seed, "order": measured.order, "states": measured.states}
        (work.scratch / "state.json").write_text(json.dumps(states))
        return summary.results(document)

    parents = {f"engine-{number}": each for number, each in enumerate(engines)}
    # Two reports of one test differ in their samples, which are no part of a bench's question.
    asked["started"] += str(measured.wall_ns.sum()) + json.dumps(state)
    return artifact.make(out, Question(kinds.LATENCY_REPORT, asked, parents), write)
