"""Accuracy of teacher, student and a model run live, each with its interval, from Samples alone.

How sure a number is depends on how many samples it was counted on, so none is given without its
95% interval:

* top-1 and agreement are shares: Wilson's score interval (Wilson 1927, JASA 22), which stays
  inside [0, 1] and keeps its coverage at shares near 1, where the usual one fails (Brown, Cai and
  DasGupta 2001, Statistical Science 16).
* the difference to the teacher is paired, the same samples twice: Tango's score interval (Tango
  1998, Statistics in Medicine 17, section 2). It is computed, not resampled, and it does not
  shrink to a point where the two never differ, as a bootstrap does.
* the mean KL(teacher || model), in nats, is a mean of skewed values: percentile bootstrap over
  samples (Efron and Tibshirani 1993, chapter 13) with a fixed seed.

Agreement and KL say more than accuracy on a task that is nearly solved: they see every changed
answer, not only those that cross a label. Whether the live outputs are the recorded ones is told
apart from accuracy, since an engine can be as accurate and still not be the exported network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import artifact, kinds, runner
from edgekd.artifact import Artifact, Question, Work
from edgekd.data import IO, Arrays, inputs_of, recorded
from edgekd.errors import ArtifactError, MeasurementError
from edgekd.origin import source_hash, versions

SOURCES = ("edgekd.evaluate", "edgekd.runner", "edgekd.engine", "edgekd.data")
Z = 1.959963984540054  # 97.5% quantile of the standard normal
RESAMPLES = 2000
SEED = 0

Floats = NDArray[np.float64]
Interval = tuple[float, float]


def evaluate(model: Artifact, out: Path, samples: Artifact | None = None) -> Artifact:
    """Measure accuracy and fidelity.

    Args:
        model: An OnnxModel or an Engine; it is run.
        out: Directory of artifacts.
        samples: Inputs, labels and recorded outputs; default: the model's own, beside it.

    Returns:
        An AccuracyReport; its ``accuracy.json`` is what `measure` returns.

    Raises:
        ArtifactError: The Samples are empty, a label is out of range, or outputs do not fit them.
        MeasurementError: Outputs hold NaN or infinity.
        ToolchainError: The model's runtime is absent or cannot open it here.
    """
    samples = samples or artifact.parent(model, "samples", kinds.SAMPLES)
    if samples.kind != kinds.SAMPLES.name:
        raise ArtifactError(f"{samples.path}: is a {samples.kind}, expected Samples")
    with runner.open(model) as run:
        question = Question(
            kinds.ACCURACY_REPORT,
            config={"resamples": RESAMPLES, "seed": SEED, "where": runner.fingerprint(model)},
            parents={"model": model, "samples": samples},
            sources={"evaluate": source_hash(*SOURCES)},
            tools=versions("numpy"),
        )

        def write(work: Work) -> dict[str, Any]:
            arrays = runner.samples(samples)
            io = IO.model_validate(samples.read_json("io.json"))
            _check_labels(arrays, io, samples)
            live = run(inputs_of(arrays))
            same = model.manifest.parents.get("samples") == samples.id
            expected = runner.outputs(model) if same else None
            report = {
                "model": _describe(model),
                "samples": samples.id,
                **measure(arrays, live, expected, io, str(samples.path)),
            }
            text = json.dumps(report, indent=1) + "\n"
            (work.scratch / "accuracy.json").write_text(text, encoding="utf-8")
            return report

        return artifact.make(out, question, write)


def measure(
    samples: Arrays, live: Arrays, expected: Arrays | None, io: IO, where: str
) -> dict[str, Any]:
    """Everything `evaluate` reports, from arrays.

    Args:
        samples: ``labels`` int64[n], ``teacher.<output>`` and perhaps ``student.<output>``
            float32[n, classes].
        live: The model's outputs, {name: array[n, ...]}.
        expected: What ONNX Runtime was recorded to answer; None where other samples were recorded.
        io: Names the outputs, the first being the logits, and the classes.
        where: What the samples come from, to begin messages with.

    Returns:
        ``count``, ``rows`` (one for teacher, student and model) and ``recorded``.

    Raises:
        ArtifactError: Outputs do not fit the samples.
        MeasurementError: Outputs hold NaN or infinity.
    """
    labels = samples["labels"]
    name = io.outputs[0].name
    logits = {
        who: _logits(outputs, name, len(labels), len(io.labels), f"{where}, {who}")
        for who in ("teacher", "student", "model")
        if (outputs := live if who == "model" else recorded(samples, who))
    }
    if "teacher" not in logits:
        raise ArtifactError(f"{where}: holds no outputs of the teacher; export it again")
    rows = []
    for who, values in logits.items():
        source = "run live" if who == "model" else "recorded"
        row: dict[str, Any] = {"who": who, "source": source, **_top1(values, labels)}
        if who != "teacher":
            row |= _fidelity(values, logits["teacher"], labels)
        rows.append(row)
    return {
        "count": len(labels),
        "classes": len(io.labels),
        "rows": rows,
        "recorded": _compare(live, expected, name),
        "intervals": "95%: Wilson (top-1, agreement), Tango (difference), bootstrap (KL)",
    }


def wilson(hits: int, count: int) -> Interval:
    """95% score interval of a share (Wilson 1927).

    Args:
        hits: Successes, 0 to count.
        count: Trials, at least 1.
    """
    share, z2 = hits / count, Z * Z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def tango(gained: int, lost: int, count: int) -> Interval:
    """95% score interval of a paired difference of shares, (gained - lost) / count (Tango 1998).

    Args:
        gained: Samples only the first of the pair has right.
        lost: Samples only the second has right.
        count: All samples, at least 1.
    """

    def score(delta: float) -> float:
        # Maximum likelihood of the share `lost` under the hypothesis that the difference is delta.
        a = 2 * count
        b = -gained - lost + (2 * count - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = count * (2 * share + delta * (1 - delta))
        distance = gained - lost - count * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    observed = (gained - lost) / count
    return _root(score, -1.0, observed, Z), _root(score, observed, 1.0, -Z)


def mean_kl(teacher: Floats, model: Floats) -> tuple[float, Interval]:
    """Mean KL(teacher || model) of two sets of logits, in nats, with its bootstrap interval.

    Args:
        teacher: float64[n, classes].
        model: float64[n, classes].
    """
    log_p, log_q = _log_softmax(teacher), _log_softmax(model)
    each = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    random = np.random.default_rng(SEED)
    means = [each[random.integers(0, len(each), len(each))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    # A term of the sum may fall below 0 by rounding; KL itself cannot.
    return max(0.0, float(each.mean())), (max(0.0, float(low)), max(0.0, float(high)))


def _root(score: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Where a falling function crosses a level, by bisection to the last bit that matters."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > level else (low, middle)
    return (low + high) / 2


def _top1(logits: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    correct = int((logits.argmax(axis=1) == labels).sum())
    return {
        "correct": correct,
        "top1": correct / len(labels),
        "top1_interval": wilson(correct, len(labels)),
    }


def _fidelity(logits: Floats, teacher: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    answer, wanted = logits.argmax(axis=1), teacher.argmax(axis=1)
    gained = int(((answer == labels) & (wanted != labels)).sum())
    lost = int(((answer != labels) & (wanted == labels)).sum())
    agree, count = int((answer == wanted).sum()), len(labels)
    kl, kl_interval = mean_kl(teacher, logits)
    return {
        "gained": gained,
        "lost": lost,
        "difference": (gained - lost) / count,
        "difference_interval": tango(gained, lost, count),
        "agreement": agree / count,
        "agreement_interval": wilson(agree, count),
        "kl_nats": kl,
        "kl_nats_interval": kl_interval,
    }


def _compare(live: Arrays, expected: Arrays | None, name: str) -> dict[str, Any]:
    """Whether the live outputs are those ONNX Runtime was recorded to give."""
    if expected is None:
        return {
            "compared": False,
            "reason": "other Samples than the model was exported with",
        }
    found, wanted = live[name].astype(np.float64), expected[name].astype(np.float64)
    if found.shape != wanted.shape:
        raise ArtifactError(
            f"outputs.npz: {name!r} is {list(wanted.shape)}, the live output {list(found.shape)}: "
            "export the model again"
        )
    differ = (found.argmax(axis=1) != wanted.argmax(axis=1)).mean()
    return {
        "compared": True,
        "equal": bool((found == wanted).all()),
        "largest_difference": float(np.abs(found - wanted).max()),
        "largest_recorded": float(np.abs(wanted).max()),
        "argmax_differ": float(differ),
    }


def _check_labels(samples: Arrays, io: IO, source: Artifact) -> None:
    labels = samples["labels"]
    if len(labels) == 0:
        raise ArtifactError(f"{source.path}: holds 0 samples, expected at least 1: export it again")
    wrong = (labels < 0) | (labels >= len(io.labels))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ArtifactError(
            f"{source.path}: sample {row} has label {int(labels[row])}, expected 0 to "
            f"{len(io.labels) - 1} ({len(io.labels)} classes): correct the data and export again"
        )


def _logits(outputs: Arrays, name: str, count: int, classes: int, where: str) -> Floats:
    if name not in outputs:
        raise ArtifactError(
            f"{where}: has no output {name!r}, it has {', '.join(sorted(outputs))}: export it again"
        )
    values = outputs[name].astype(np.float64)
    if values.shape != (count, classes):
        raise ArtifactError(
            f"{where}: output {name!r} has shape {list(values.shape)}, expected "
            f"[{count}, {classes}] (samples, classes): evaluate a classifier on its own Samples"
        )
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise MeasurementError(
            f"{where}: {int(bad.sum())} of {count} answers hold NaN or infinity, first sample "
            f"{int(np.flatnonzero(bad)[0])}: an fp16 overflow is the usual cause"
        )
    return values


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _describe(model: Artifact) -> Mapping[str, Any]:
    runtime = model.config.get("runtime", "onnxruntime")
    return {"id": model.id, "kind": model.kind, "arm": model.config["arm"], "runtime": runtime}
