"""A baseline: an engine that was accepted, with what was measured of it, so that it can run again.

Latencies of two days differ by more than most regressions, so a baseline is no list of numbers: it
is a directory with the engine, the Samples it was asked and the two reports of it, and `gate` runs
that engine beside the candidate.

    DIR/baseline.json       which artifacts: role -> name and id
    DIR/engine-<id>/        may be absent, then only numbers are left: see `stored_ratio`
    DIR/samples-<id>/       DIR/accuracy-<id>/       DIR/latency-<id>/

Artifacts are copied whole, verified, and named after their id, so that a new one never touches an
old one; then ``baseline.json`` is replaced by one rename, and what it no longer names is removed. A
kill at any moment leaves the old baseline or the new one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from edgekd import artifact, kinds, runner
from edgekd.artifact import Artifact, Kind
from edgekd.bench import device_state, stats
from edgekd.bench.scenario import Scenario
from edgekd.data import Arrays, inputs_of
from edgekd.durable import disk_errors, fsync, lock, replace_file, step
from edgekd.errors import ArtifactError, ConfigError
from edgekd.recipe import Section
from edgekd.target import Target

INDEX = "baseline.json"
_KINDS: Mapping[str, Kind] = {
    "engine": kinds.ENGINE,
    "samples": kinds.SAMPLES,
    "accuracy": kinds.ACCURACY_REPORT,
    "latency": kinds.LATENCY_REPORT,
}
_AGAIN = "restore it, or remove the baseline and accept one again"
_WORK = ".accept"
_OURS = re.compile(rf"({'|'.join(kind.slug for kind in _KINDS.values())})-[0-9a-f]{{12}}")
_HELD = ("steal_share", "throttling")  # limits that `device_state.check` has held in each report


class _Entry(Section):
    name: str = Field(pattern=f"^{_OURS.pattern}$")
    id: str


class _Index(Section):
    schema_: Literal[1] = Field(alias="schema")
    engine: _Entry
    samples: _Entry
    accuracy: _Entry
    latency: _Entry


@dataclass(frozen=True)
class Baseline:
    """A baseline, verified.

    Attributes:
        path: Its directory.
        engine_id: Id of the engine that was accepted.
        engine: The engine; None where it is not there any more.
        samples: What it was asked; None where they are not there any more.
        accuracy: The AccuracyReport of the engine.
        latency: The LatencyReport; the engine is its last.
    """

    path: Path
    engine_id: str
    engine: Artifact | None
    samples: Artifact | None
    accuracy: Artifact
    latency: Artifact


def exists(directory: Path) -> bool:
    """Whether a baseline was ever written there, altered or not."""
    return (directory / INDEX).exists()


def read(directory: Path) -> Baseline:
    """Open a baseline and check every byte of it.

    Args:
        directory: As given to `accept`.

    Raises:
        ConfigError: There is no such directory.
        ArtifactError: It is no baseline, or a part of it is altered, missing, of another schema or
            not of its engine.
    """
    index = _read_index(directory)
    accuracy = _load(directory, index.accuracy, kinds.ACCURACY_REPORT)
    latency = _load(directory, index.latency, kinds.LATENCY_REPORT)
    for report, ids in (
        (accuracy, [accuracy.manifest.parents["model"]]),
        (latency, [row["id"] for row in latency.results["engines"]]),
    ):
        if index.engine.id not in ids:
            raise ArtifactError(
                f"{report.path}: is of engine {ids[-1][:12]}..., expected the baseline's "
                f"{index.engine.id[:12]}...: {_AGAIN}"
            )
    engine, samples = (
        _load(directory, entry, kind) if (directory / entry.name).exists() else None
        for entry, kind in ((index.engine, kinds.ENGINE), (index.samples, kinds.SAMPLES))
    )
    return Baseline(directory, index.engine.id, engine, samples, accuracy, latency)


def accept(
    directory: Path, *, engine: Artifact, samples: Artifact, accuracy: Artifact, latency: Artifact
) -> None:
    """Write a baseline, or replace the one that is there.

    Args:
        directory: A new or an empty directory, or that of a baseline.
        engine: The engine that others are to be compared with.
        samples: What it was evaluated on.
        accuracy: The AccuracyReport of it.
        latency: A LatencyReport with the engine as its last.

    Raises:
        ConfigError: The directory holds something else.
        ArtifactError: An artifact is altered, or could not be written.
    """
    check_place(directory)
    chosen = {"engine": engine, "samples": samples, "accuracy": accuracy, "latency": latency}
    entries = {
        role: _Entry(name=f"{_KINDS[role].slug}-{each.id[:12]}", id=each.id)
        for role, each in chosen.items()
    }
    index = _Index.model_validate({"schema": 1, **entries})
    text = index.model_dump_json(by_alias=True, indent=1) + "\n"
    kept = {entry.name for entry in entries.values()}
    with lock(directory / _WORK / "baseline.lock"), disk_errors(directory):
        for role, each in chosen.items():
            _copy(each, directory, entries[role], _KINDS[role])
        replace_file(directory / INDEX, lambda path: path.write_text(text, encoding="utf-8"))
        for old in sorted(directory.iterdir()):
            if _OURS.fullmatch(old.name) and old.name not in kept:
                step(f"remove {old.name}", lambda old=old: shutil.rmtree(old))  # type: ignore[misc]


def check_place(directory: Path) -> None:
    """Refuse to write a baseline into a directory that holds something else.

    Raises:
        ConfigError: It does, or it is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory}: is a file, expected a directory for the baseline")
    if exists(directory) or (directory / _WORK).exists() or not directory.exists():
        return
    others = sorted(entry.name for entry in directory.iterdir())
    if others:
        raise ConfigError(
            f"{directory}: holds {others[0]!r} and no {INDEX}, so it is no baseline and is left "
            "alone: name a new or an empty directory"
        )


def check_same(baseline: Baseline, target: Target, scenario: Scenario, protocol: str) -> None:
    """Refuse a baseline that was measured for another target, scenario or by another protocol.

    Args:
        baseline: The baseline.
        target: Of the candidate.
        scenario: That was asked for.
        protocol: How the candidate will be measured (`edgekd.bench.bench.protocol`).

    Raises:
        ConfigError: It was.
    """
    config = baseline.latency.config
    for what, found, wanted in (
        ("target", config["target"], target.as_json()),
        ("scenario", config["scenario"], scenario.model_dump(mode="json")),
    ):
        if found == wanted:
            continue
        keys = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise ConfigError(
            f"{baseline.path}: its LatencyReport is of {what} {found['name']!r}, the gate is on "
            f"{what} {wanted['name']!r}; they differ in {', '.join(keys)}: gate on the baseline's "
            f"own {what}, or accept a baseline of this one in another directory"
        )
    if config["protocol"] != protocol:
        raise ConfigError(
            f"{baseline.path}: was measured by the protocol {config['protocol']!r}, this edgekd "
            f"measures by {protocol!r}: accept a new baseline in another directory"
        )


def check_questions(baseline: Baseline, samples: Artifact) -> None:
    """Refuse Samples that ask something else than the baseline was asked.

    A student's Samples also record its outputs, so those of two students are two artifacts; what
    must agree are the inputs and the labels.

    Args:
        baseline: The baseline.
        samples: The candidate's.

    Raises:
        ConfigError: They do not, or the baseline's are not there to see.
    """
    theirs = str(baseline.accuracy.manifest.parents["samples"])
    if theirs == samples.id:
        return
    if baseline.samples is None:
        raise ConfigError(
            f"{baseline.path}: its Samples {theirs[:12]}... are not there, and the gate is on "
            f"{samples.id[:12]}...: restore them, or give Samples with --samples that both engines "
            "are to be run on"
        )
    found, wanted = (_questions(each) for each in (baseline.samples, samples))
    differ = sorted(
        name
        for name in {*found, *wanted}
        if name not in found or name not in wanted or not np.array_equal(found[name], wanted[name])
    )
    if differ:
        raise ConfigError(
            f"{samples.path}: {', '.join(differ)} of these {len(wanted['labels'])} samples are not "
            f"those of the baseline's {len(found['labels'])} samples ({baseline.samples.path}): "
            "name with --samples those that both engines are to be run on"
        )


def stored_ratio(baseline: Baseline, latency: Artifact) -> tuple[float, float, float]:
    """Ratio of times candidate / baseline from the samples of two runs: (found, low, high).

    Nothing pairs the rounds of two runs, so the interval goes from the least to the most that the
    two medians' own intervals allow, which is wider than 95%.

    Args:
        baseline: Its report's samples are taken.
        latency: The candidate's report, of the same scenario; the candidate is its last engine.
    """
    reports = (
        (baseline.latency, baseline.engine_id),
        (latency, latency.results["engines"][-1]["id"]),
    )
    theirs, ours = (stats.median_interval(_repetitions_ns(*each)) for each in reports)
    return ours.estimate / theirs.estimate, ours.low / theirs.high, ours.high / theirs.low


def unlike_state(baseline: Artifact, candidate: Artifact) -> str:
    """Why the latencies of two runs are no comparison; empty where they are one.

    Args:
        baseline: A LatencyReport.
        candidate: One of the same target.
    """
    reports = {"baseline": baseline, "candidate": candidate}
    for who, report in reports.items():
        if report.results["machine"] != device_state.CONTROLLED:
            return f"the {who}'s machine was not locked ({report.results['machine']})"
    fields = [name for name in baseline.config["target"]["required_state"] if name not in _HELD]
    if baseline.config["target"]["runtime"] == "onnxruntime":
        fields.append("cpu_clock_hz")  # no target requires it, yet it decides a CPU's latency
    for field in ["where", *fields]:
        found, wanted = (_state(report, field) for report in reports.values())
        if not _equal(field, found, wanted):
            return f"{field} was {found} for the baseline and is {wanted} for the candidate"
    return ""


def _read_index(directory: Path) -> _Index:
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such baseline; --accept writes one")
    file = directory / INDEX
    if not file.is_file():
        raise ArtifactError(
            f"{directory}: holds no {INDEX}, so it is no baseline: name a directory that --accept "
            "wrote"
        )
    try:
        return _Index.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ArtifactError(
            f"{file}: is no index that this edgekd reads ({where}: {first['msg']}): {_AGAIN}"
        ) from error


def _load(directory: Path, entry: _Entry, kind: Kind) -> Artifact:
    found = artifact.load(directory / entry.name, kind)
    if found.id != entry.id:
        raise ArtifactError(
            f"{found.path}: is another {kind.name} than was accepted: {found.id[:12]}..., expected "
            f"{entry.id[:12]}...: {_AGAIN}"
        )
    return found


def _copy(source: Artifact, directory: Path, entry: _Entry, kind: Kind) -> None:
    """Bring a whole artifact in under its own name, verified before it gets that name."""
    final, scratch = directory / entry.name, directory / _WORK / entry.name
    if not final.exists():
        shutil.rmtree(scratch, ignore_errors=True)
        step(f"copy {kind.slug}", lambda: shutil.copytree(source.path, scratch))
        for path in [*scratch.rglob("*"), scratch]:
            fsync(path)
        _load(scratch.parent, entry, kind)
        step(f"publish {kind.slug}", lambda: scratch.rename(final))
        fsync(directory)
    _load(directory, entry, kind)


def _questions(samples: Artifact) -> Arrays:
    arrays = runner.samples(samples)
    inputs = {f"input {name}": array for name, array in inputs_of(arrays).items()}
    return {"labels": arrays["labels"], **inputs}


def _repetitions_ns(report: Artifact, engine_id: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One number a repetition: the scenario's percentile, for Offline the mean of a query."""
    number = [row["id"] for row in report.results["engines"]].index(engine_id)
    percentile = report.config["scenario"]["percentile"]
    with np.load(report.file("samples.npz"), allow_pickle=False) as stored:
        rows = stored["wall_ns"][number]
    if percentile is None:
        return np.array([row.mean() for row in rows], np.float64)
    return np.array([stats.nearest_rank(row, percentile) for row in rows], np.float64)


def _state(report: Artifact, field: str) -> Any:
    """A field over a whole run: the mean of numbers, else every value there was."""
    if field == "where":
        return report.config["where"]
    states = [state for row in report.read_json("state.json")["states"] for state in row]
    values = [state.get(field) for state in states]
    if all(isinstance(each, int | float | list) for each in values):
        return float(np.mean(values))
    return sorted({str(value) for value in values})


def _equal(field: str, found: Any, wanted: Any) -> bool:
    if not (isinstance(found, float) and isinstance(wanted, float)):
        return bool(found == wanted)
    if field == "temperature_celsius":
        return abs(found - wanted) <= device_state.TEMPERATURE_CHANGE_CELSIUS
    if field.endswith("clock_hz"):
        return abs(found - wanted) <= device_state.CLOCK_CHANGE * found
    return found == wanted
