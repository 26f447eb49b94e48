"""The stage: Engines and a Scenario in, a LatencyReport out.

A latency holds for a device in a state at a time, so a report is never answered from cache by
`bench`: the time it began is a part of the question. `newest` finds an earlier report whose
question differs in that time alone, for those who can do with one; its date is then to be shown.

That time also seeds the order of the run: two runs have two orders, so what is peculiar to one is
not repeated by the next, and a run that goes on after a kill has the order it began with.

All samples are stored, every number is derived from them. The protocol's name says what was timed
and how; numbers of different protocols do not belong in one table.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import artifact, kinds, progress, recipe, runner
from edgekd.artifact import Artifact, Question, Work
from edgekd.bench import device_state, inputs, measure, summary
from edgekd.bench.inputs import Inputs
from edgekd.bench.scenario import Scenario
from edgekd.durable import lock
from edgekd.errors import ArtifactError, ConfigError, EdgekdError, UnsupportedError
from edgekd.origin import source_hash, versions
from edgekd.target import Target

SOURCES = ("edgekd.bench", "edgekd.runner", "edgekd.engine", "edgekd.data", "edgekd.io_json")


def bench(
    engines: Sequence[Artifact],
    scenario: Scenario,
    out: Path,
    samples: Artifact | None = None,
) -> Artifact:
    """Measure the latency of engines, interleaved in one run of fresh processes.

    Args:
        engines: Engines for one target; ratios are to the first.
        scenario: What a query is, how many there are, and which number is the result.
        out: Directory of artifacts.
        samples: What the engines are asked; default: the first one's own Samples where they lie
            beside it, else inputs generated within the ranges of its io.json.

    Returns:
        A LatencyReport: ``latency.json`` (derived numbers), ``samples.npz`` (``wall_ns``
        int64[engine, repetition, query], ``null_ns``, on a GPU ``gpu_ns``), ``state.json``.

    Raises:
        ConfigError: No engine, engines of two targets, or a batch an engine does not take.
        ArtifactError: Something given is altered or of the wrong kind.
        UnsupportedError: An engine is evidence, which is never run.
        MeasurementError: The required state does not hold, a clock jumped, an answer is wrong.
    """
    where = common_target(engines)
    engines = [artifact.load(engine.path, kinds.ENGINE) for engine in engines]
    _check_batch(engines, scenario)
    if samples is None:
        samples = inputs.default_samples(engines[0])
    else:
        samples = artifact.load(samples.path, kinds.SAMPLES)
    chosen = inputs.choose(engines, samples)
    state = device_state.read(where)
    required = where.required_state
    device_state.check(
        required, [device_state.during(state, state)], measure.expected_state(engines)
    )
    question = _question(engines, scenario, samples, where, state)
    with lock(out / ".work" / f"{question.name}.bench.lock"):
        return _make(engines, scenario, chosen, out, question)


def common_target(engines: Sequence[Artifact]) -> Target:
    """The one target that all engines are for.

    Args:
        engines: Engines.

    Raises:
        ConfigError: There is none, they are for two, or run with different settings.
        ArtifactError: One is no Engine.
        UnsupportedError: One is evidence, which is never run.
    """
    if not engines:
        raise ConfigError("bench was given 0 engines, expected at least 1")
    for engine in engines:
        if engine.kind != kinds.ENGINE.name:
            raise ArtifactError(f"{engine.path}: is a {engine.kind}, expected an Engine: build it")
        if engine.config["runtime"] not in ("onnxruntime", "tensorrt"):
            raise UnsupportedError(
                f"{engine.path}: is a {engine.config['runtime']} plan kept as evidence, which is "
                "never run: measure an Engine built on the target"
            )
    first = engines[0]
    for other in engines[1:]:
        pair = [each.config["target"]["name"] for each in (first, other)]
        if first.config["target"] != other.config["target"]:
            raise ConfigError(
                f"{other.path}: is for target {pair[1]}, {first.path.name} is for {pair[0]}: "
                "latencies of two targets are no comparison, measure each on its own"
            )
        settings = [runner.fingerprint(each) for each in (first, other)]
        if settings[0] != settings[1]:
            raise ConfigError(
                f"{other.path}: runs with {settings[1]}, {first.path.name} with {settings[0]}: "
                "build both on this machine"
            )
    where: Target = recipe.check(Target, first.config["target"], str(first.path))
    return where


def newest(
    engines: Sequence[Artifact], scenario: Scenario, out: Path, samples: Artifact | None = None
) -> Artifact | None:
    """The latest report that answers what `bench` would be asked now; show its date.

    Only the time may differ: engines, Samples, scenario, device, protocol, the sources that measure
    and the tools are those of the report.

    Args:
        engines: In the order they were measured in.
        scenario: The same in every key.
        out: Directory of artifacts.
        samples: As `bench` takes them.

    Returns:
        The report, verified; its ``config["started"]`` is the date. None where there is none.

    Raises:
        ArtifactError: It was altered, or the Samples were.
    """
    where = common_target(engines)
    samples = samples or inputs.default_samples(engines[0])
    asked = _question(engines, scenario, samples, where, device_state.read(where)).as_json()
    found = []
    for path in out.glob(f"{kinds.LATENCY_REPORT.slug}-*"):
        try:
            manifest = artifact.read_manifest(path)
        except ArtifactError:  # somebody else's directory
            continue
        started = manifest.config.pop("started", "")
        question = manifest.model_dump(by_alias=True, include={*asked, "schema_"})
        if question == asked:
            found.append((started, path))
    return artifact.load(max(found)[1], kinds.LATENCY_REPORT) if found else None


def protocol(engines: Sequence[Artifact], scenario: Scenario) -> str:
    """Name of what is timed and how; only numbers of one protocol are comparable."""
    on_gpu = engines[0].config["runtime"] == "tensorrt"
    transfers = "in+out,gpu_ns:none" if on_gpu else "none"
    warmup = f"{scenario.warmup.queries}q+{scenario.warmup.seconds:g}s"
    return (
        f"edgekd-1 clock=perf_counter_ns around=runner-call transfers={transfers} gc=off "
        f"process=fresh warmup={warmup} order=abba seed=started"
    )


def order_seed(started: str) -> int:
    """Seed of a run's order.

    Args:
        started: When it began, as in its report's configuration.
    """
    return zlib.crc32(started.encode())


def _question(
    engines: Sequence[Artifact],
    scenario: Scenario,
    samples: Artifact | None,
    where: Target,
    state: dict[str, Any],
) -> Question:
    """The question but for its time; the device's fingerprint is a part of it."""
    fingerprint = runner.fingerprint(engines[0])
    if "power_mode" in state:
        fingerprint["power_mode"] = state["power_mode"]
    parents = {f"engine-{number}": engine for number, engine in enumerate(engines)}
    return Question(
        kinds.LATENCY_REPORT,
        config={
            "scenario": scenario.model_dump(mode="json"),
            "target": where.as_json(),
            "where": fingerprint,
            "protocol": protocol(engines, scenario),
        },
        parents=parents | ({"samples": samples} if samples else {}),
        sources={"bench": source_hash(*SOURCES)},
        tools=versions("numpy"),
    )


def _make(
    engines: Sequence[Artifact], scenario: Scenario, chosen: Inputs, out: Path, asked: Question
) -> Artifact:
    """Measure under the time the run began; one that was interrupted goes on under its own."""
    marker = out / ".work" / f"{asked.name}.started"
    question = _begun(marker, out, asked, len(engines) + 1)

    def write(work: Work) -> dict[str, Any]:
        where = common_target(engines)
        total = scenario.repetitions * (len(engines) + 1)
        with progress.bar(f"bench {scenario.name}", total) as show:
            measured = measure.measure(
                engines,
                scenario,
                chosen,
                where,
                rounds=scenario.repetitions,
                seed=order_seed(question.config["started"]),
                keep=work.keep,
                show=show,
            )
        document = summary.document(engines, scenario, chosen, measured, question.config)
        arrays = {"wall_ns": measured.wall_ns, "null_ns": measured.null_ns}
        if measured.gpu_ns is not None:
            arrays["gpu_ns"] = measured.gpu_ns
        np.savez(work.scratch / "samples.npz", **arrays)  # type: ignore[arg-type]
        for name, content in (
            ("latency.json", document),
            (
                "state.json",
                {"seed": measured.seed, "order": measured.order, "states": measured.states},
            ),
        ):
            text = json.dumps(content, indent=1) + "\n"
            (work.scratch / name).write_text(text, encoding="utf-8")
        return summary.results(document)

    try:
        made = artifact.make(out, question, write)
    except EdgekdError:
        # What was measured before the state went wrong, or the engine, is not to be gone on with.
        shutil.rmtree(out / ".work" / question.name, ignore_errors=True)
        marker.unlink(missing_ok=True)
        raise
    marker.unlink(missing_ok=True)
    return made


def _begun(marker: Path, out: Path, asked: Question, runners: int) -> Question:
    """The question with the time its measurement began."""
    if marker.is_file():
        started = marker.read_text(encoding="utf-8")
        question = replace(asked, config={**asked.config, "started": started})
        keep = out / ".work" / question.name
        if not artifact.cached(out, question) and measure.resumable(keep, runners):
            progress.say(f"bench: goes on with what was measured from {started}")
            return question
        shutil.rmtree(keep, ignore_errors=True)
    now_ns = time.time_ns()
    started = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 10**9))
    started += f".{now_ns % 10**9:09d}Z"
    artifact.replace_file(marker, lambda path: path.write_text(started, encoding="utf-8"))
    return replace(asked, config={**asked.config, "started": started})


def _check_batch(engines: Sequence[Artifact], scenario: Scenario) -> None:
    for engine in engines:
        low, high = (int(engine.config["export"][f"batch_{end}"]) for end in ("min", "max"))
        if not low <= scenario.batch <= high:
            raise ConfigError(
                f"scenario {scenario.name} asks {scenario.batch} samples a query, the engine "
                f"{engine.path.name} takes {low} to {high}: change batch, or export with another "
                "batch_max"
            )
