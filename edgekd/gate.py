"""The stage that decides: an Engine and its budgets, or a baseline, in; a Verdict out.

It takes what the checks of `edgekd.judge` need and no more: accuracy from `evaluate`, latency from
one run of `bench` in which the baseline's engine is interleaved with the candidate. Inconclusive
fails as a regression does, with an exit code of its own: a gate that opens when it cannot see is
none. A measurement that is no evidence (`MeasurementError`) has no verdict at all.

Left out: more rounds until something is significant, which is how noise passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgekd import artifact, evaluate, kinds, progress, runner
from edgekd import baseline as baselines
from edgekd.artifact import Artifact, Question, Work
from edgekd.baseline import Baseline
from edgekd.bench import stats
from edgekd.bench.bench import bench, common_target, protocol
from edgekd.bench.scenario import Scenario
from edgekd.data import IO, inputs_of
from edgekd.errors import ConfigError
from edgekd.judge import (
    Check,
    Overall,
    check_accuracy,
    check_latency,
    check_ratio,
    check_size,
    overall,
)
from edgekd.origin import source_hash, versions
from edgekd.recipe import Gate

SOURCES = (
    "edgekd.gate",
    "edgekd.judge",
    "edgekd.baseline",
    "edgekd.evaluate",
    "edgekd.bench",
    "edgekd.runner",
    "edgekd.engine",
    "edgekd.data",
    "edgekd.io_json",
    "edgekd.metric",
)
EXIT_CODES: Mapping[Overall, int] = {"pass": 0, "accepted": 0, "regress": 1, "inconclusive": 4}
ITSELF = "the candidate is the baseline's own engine (same id): this compares an engine with itself"
REPETITIONS_MIN = 12  # fewer give a ratio no 95% interval, see `edgekd.bench.stats.ratio`


@dataclass(frozen=True)
class _Evidence:
    """What a verdict rests on; None where no check needs it."""

    engine: Artifact
    samples: Artifact | None
    accuracy: Artifact | None
    latency: Artifact | None
    baseline: Baseline | None

    def parents(self) -> dict[str, Artifact]:
        """Role -> artifact, of all there are."""
        other = self.baseline
        roles = {
            "engine": self.engine,
            "samples": self.samples,
            "accuracy": self.accuracy,
            "latency": self.latency,
            "baseline-engine": other.engine if other else None,
            "baseline-accuracy": other.accuracy if other else None,
            "baseline-latency": other.latency if other else None,
        }
        return {role: each for role, each in roles.items() if each is not None}


def gate(
    engine: Artifact,
    out: Path,
    *,
    budgets: Gate,
    scenario: Scenario,
    baseline: Path | None = None,
    samples: Artifact | None = None,
    accept: bool = False,
) -> Artifact:
    """Hold an engine to its budgets and to a baseline.

    Args:
        engine: The candidate; it is run.
        out: Directory of artifacts.
        budgets: The recipe's ``[gate]`` section.
        scenario: How latency is measured.
        baseline: Directory that an earlier `accept` wrote; its engine runs beside the candidate.
        samples: Samples to run on; default: the engine's own, which must then ask what the
            baseline's ask.
        accept: Afterwards write the candidate into `baseline`, whatever the verdict; the directory
            need not exist yet.

    Returns:
        A Verdict: ``verdict.json`` with ``overall``, ``checks`` (see `edgekd.judge.Check`) and the
        ids of all ``evidence``; `EXIT_CODES` has the exit code of ``overall``, which is
        ``accepted`` where a first baseline was written and nothing judged.

    Raises:
        ConfigError: Nothing to check, or a baseline of another target, scenario or protocol.
        ArtifactError: Something given is altered, of another schema or of the wrong kind.
        MeasurementError: What was measured is no evidence.
    """
    target = common_target([engine])
    engine = artifact.load(engine.path, kinds.ENGINE)
    other = _open_baseline(baseline, accept)
    check_asked(budgets, scenario, compares=other is not None, accept=accept)
    if samples is not None:
        samples = artifact.load(samples.path, kinds.SAMPLES)
    if other is not None:
        baselines.check_same(other, target, scenario, protocol([engine], scenario))
        # Samples that are given are run on both, unless only the baseline's numbers are left.
        if samples is None or other.engine is None:
            own = samples or artifact.parent(engine, "samples", kinds.SAMPLES)
            baselines.check_questions(other, own)
    evidence = _measure(engine, out, budgets, scenario, other, samples, accept)
    made = _verdict(evidence, out, budgets, scenario)
    if accept and baseline and evidence.samples and evidence.accuracy and evidence.latency:
        baselines.accept(
            baseline,
            engine=engine,
            samples=evidence.samples,
            accuracy=evidence.accuracy,
            latency=evidence.latency,
        )
        progress.say(f"baseline written to {baseline}: engine {engine.id[:12]}")
    return made


def check_asked(budgets: Gate, scenario: Scenario, *, compares: bool, accept: bool) -> None:
    """Refuse, before anything is measured, what no measurement could answer.

    Args:
        budgets: What the engine is held to.
        scenario: How latency is measured.
        compares: Whether there is a baseline to compare with.
        accept: Whether one is to be written.

    Raises:
        ConfigError: Nothing to check, a percentile the scenario has no bound for, or too few
            repetitions for a ratio.
    """
    given = (budgets.accuracy_drop_points, budgets.latency_ms, budgets.size_bytes)
    if given == (None, None, None) and not compares and not accept:
        raise ConfigError(
            "gate has nothing to check: [gate] gives none of accuracy_drop_points, latency_ms and "
            "size_bytes, and there is no baseline: give --recipe with one of them, or --baseline"
        )
    if budgets.latency_ms is not None:
        percentile = budgets.percentile or scenario.percentile
        if scenario.percentile is None or percentile is None:
            raise ConfigError(
                f"gate.latency_ms is {budgets.latency_ms:g}, but scenario {scenario.name} is "
                "Offline, whose result is samples per second: gate on a SingleStream or "
                "MultiStream scenario, or leave latency_ms out"
            )
        needed = stats.queries_needed(percentile)
        if scenario.queries < needed:
            raise ConfigError(
                f"gate.percentile is {percentile}, for which scenario {scenario.name} asks "
                f"{scenario.queries} queries, expected at least {needed}: set another percentile, "
                "or more queries in the scenario"
            )
    if (compares or accept) and scenario.repetitions < REPETITIONS_MIN:
        raise ConfigError(
            f"scenario {scenario.name} has {scenario.repetitions} repetitions, expected at least "
            f"{REPETITIONS_MIN} for the 95% interval of a ratio to a baseline: set repetitions"
        )


def _open_baseline(directory: Path | None, accept: bool) -> Baseline | None:
    if directory is None:
        if accept:
            raise ConfigError("accept writes a baseline: name its directory with --baseline")
        return None
    if accept and not baselines.exists(directory):
        baselines.check_place(directory)
        return None
    return baselines.read(directory)


def _measure(
    engine: Artifact,
    out: Path,
    budgets: Gate,
    scenario: Scenario,
    other: Baseline | None,
    samples: Artifact | None,
    accept: bool,
) -> _Evidence:
    """Take what the checks need and no more; the baseline's engine runs beside the candidate."""
    accuracy = latency = None
    everything = other is not None or accept
    if everything or budgets.accuracy_drop_points is not None:
        samples = samples or artifact.parent(engine, "samples", kinds.SAMPLES)
        accuracy = evaluate.evaluate(engine, out, samples)
    if everything or budgets.latency_ms is not None:
        beside = [other.engine] if other is not None and other.engine is not None else []
        latency = bench([*beside, engine], scenario, out, samples)
    return _Evidence(engine, samples, accuracy, latency, other)


def _checks(evidence: _Evidence, budgets: Gate, scenario: Scenario) -> list[Check]:
    checks = []
    accuracy, latency, other = evidence.accuracy, evidence.latency, evidence.baseline
    if accuracy is not None and budgets.accuracy_drop_points is not None:
        report = accuracy.results
        row, limit = report["rows"][-1], budgets.accuracy_drop_points
        checks.append(check_accuracy("accuracy_to_teacher", row, report["count"], limit))
    if latency is not None and budgets.latency_ms is not None:
        document = latency.read_json("latency.json")
        percentile = budgets.percentile or scenario.percentile
        assert percentile is not None  # check_asked
        row, machine = document["engines"][-1], document["machine"]
        checks.append(check_latency(row, percentile, budgets.latency_ms, scenario.name, machine))
    if budgets.size_bytes is not None:
        checks.append(check_size(*size(evidence.engine), budgets.size_bytes))
    if other is not None:
        compared = [
            _latency_to_baseline(evidence, other, scenario, budgets.minimum_effect),
            _accuracy_to_baseline(evidence, other, budgets.minimum_effect_points),
        ]
        if evidence.engine.id == other.engine_id:
            compared = [replace(c, sentence=f"{c.sentence}; {ITSELF}") for c in compared]
        checks += compared
    return checks


def _latency_to_baseline(
    evidence: _Evidence, other: Baseline, scenario: Scenario, minimum_effect: float
) -> Check:
    assert evidence.latency is not None
    if other.engine is None:
        reason = baselines.unlike_state(other.latency, evidence.latency)
        blind = f"the baseline's engine is not there to run, and {reason}; restore the engine"
        ratio = baselines.stored_ratio(other, evidence.latency)
        return check_ratio(ratio, minimum_effect, "from two runs", blind if reason else "")
    name = "time_per_sample" if scenario.percentile is None else f"p{scenario.percentile}"
    found = evidence.latency.results["engines"][-1]["ratio_to_first"][name]
    how = f"{name} of {scenario.name}, both in one run"
    return check_ratio((found["estimate"], found["low"], found["high"]), minimum_effect, how)


def _accuracy_to_baseline(evidence: _Evidence, other: Baseline, limit_points: float) -> Check:
    assert evidence.accuracy is not None
    assert evidence.samples is not None
    name, count = "accuracy_to_baseline", evidence.accuracy.results["count"]
    if other.engine is not None:
        row = compare_answers(other.engine, evidence.engine, evidence.samples)
        return check_accuracy(name, row, count, limit_points)
    # From the least to the most that the intervals of both allow: nothing pairs the answers.
    ours, theirs = (each.results["rows"][-1] for each in (evidence.accuracy, other.accuracy))
    span: dict[str, Any] = {"difference": None}
    if ours["top1"] is not None and theirs["top1"] is not None:
        (low, high), (least, most) = ours["top1_interval"], theirs["top1_interval"]
        span = {
            "difference": ours["top1"] - theirs["top1"],
            "difference_interval": (low - most, high - least),
        }
    unsure = "the baseline's engine is not there to pair the answers; restore it"
    return check_accuracy(name, span, count, limit_points, unsure)


def size(engine: Artifact) -> tuple[str, int]:
    """The file that the runtime opens, with the weights that lie beside it, and their bytes.

    Args:
        engine: The engine.
    """
    files = engine.manifest.files
    opened = [name for name in ("model.plan", "model.onnx", kinds.EXTERNAL) if name in files]
    return " with ".join(opened), sum(files[name].bytes for name in opened)


def compare_answers(baseline: Artifact, engine: Artifact, samples: Artifact) -> dict[str, Any]:
    """The paired difference of top-1, engine minus baseline, both run on the same samples.

    Args:
        baseline: An Engine.
        engine: An Engine with the same inputs and outputs.
        samples: What both are asked.

    Returns:
        Evaluate's row of the engine, ``difference`` and ``difference_interval`` among its fields.

    Raises:
        ConfigError: The samples hold other inputs than an engine takes.
        ArtifactError: Outputs do not fit the samples.
        MeasurementError: Outputs hold NaN or infinity.
    """
    arrays = runner.samples(samples)
    answers = []
    for each in (baseline, engine):
        with runner.open(each) as run:
            answers.append(run(inputs_of(arrays)))
    # What evaluate compares with is the teacher: the baseline takes its place.
    in_place = {f"teacher.{name}": array for name, array in answers[0].items()}
    io = IO.model_validate(samples.read_json("io.json"))
    where = f"{engine.path} beside the baseline (as teacher)"
    report = evaluate.measure({"labels": arrays["labels"], **in_place}, answers[1], None, io, where)
    row: dict[str, Any] = report["rows"][-1]
    return row


def _verdict(evidence: _Evidence, out: Path, budgets: Gate, scenario: Scenario) -> Artifact:
    parents = evidence.parents()
    question = Question(
        kinds.VERDICT,
        config={
            "budgets": budgets.model_dump(mode="json"),
            "scenario": scenario.model_dump(mode="json"),
            "target": evidence.engine.config["target"],
        },
        parents=parents,
        sources={"gate": source_hash(*SOURCES)},
        tools=versions("numpy"),
    )

    def write(work: Work) -> dict[str, Any]:
        checks = _checks(evidence, budgets, scenario)
        report = {
            "overall": overall(checks),
            "checks": [asdict(check) for check in checks],
            "evidence": {role: each.id for role, each in parents.items()},
            "target": evidence.engine.config["target"]["name"],
            "scenario": scenario.name,
        }
        text = json.dumps(report, indent=1) + "\n"
        (work.scratch / "verdict.json").write_text(text, encoding="utf-8")
        return report

    return artifact.make(out, question, write)
