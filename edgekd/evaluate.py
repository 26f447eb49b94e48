"""Accuracy of teacher, student and a model run live, each with its interval, from Samples alone.

Accuracy is the mean of one score a sample: right or wrong by top-1, or what the recipe's own metric
gives. Where nothing can be scored (see `edgekd.metric`) fidelity to the teacher is still measured,
and the accuracy reads "not measured" with its reason.

How sure a number is depends on how many samples it was counted on, so none is given without its
95% interval:

* top-1 and agreement are shares: Wilson's score interval (Wilson 1927, JASA 22), which stays
  inside [0, 1] and keeps its coverage at shares near 1, where the usual one fails (Brown, Cai and
  DasGupta 2001, Statistical Science 16).
* the difference to the teacher is paired, the same samples twice: Tango's score interval (Tango
  1998, Statistics in Medicine 17, section 2). It is computed, not resampled, and it does not
  shrink to a point where the two never differ, as a bootstrap does.
* scores between 0 and 1, their paired difference, and the mean KL(teacher || model) in nats are
  means of skewed values: percentile bootstrap over samples (Efron and Tibshirani 1993, chapter 13)
  with a fixed seed.

Agreement and KL say more than accuracy on a task that is nearly solved: they see every changed
answer, not only those that cross a label. Of outputs that are no distribution over classes, such as
a detector's boxes, the distance to the teacher's is given as a share of their size. Whether the
live outputs are the recorded ones is told apart from accuracy, since an engine can be as accurate
and still not be the exported network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import artifact, kinds, metric, runner
from edgekd.artifact import Artifact, Question, Work
from edgekd.data import IO, Arrays, inputs_of, python_module, recorded
from edgekd.errors import ArtifactError, MeasurementError
from edgekd.origin import source_hash, versions

Z = 1.959963984540054  # 97.5% quantile of the standard normal
RESAMPLES = 2000
SEED = 0
SOURCES = ("edgekd.evaluate", "edgekd.metric", "edgekd.runner", "edgekd.engine", "edgekd.data",
           "edgekd.io_json")  # fmt: skip

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
            sources={"evaluate": source_hash(*SOURCES), **_users_metric(samples)},
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
        samples: ``labels`` (int64[n] of a classifier), ``teacher.<output>`` and perhaps
            ``student.<output>`` float32[n, ...].
        live: The model's outputs, {name: array[n, ...]}.
        expected: What ONNX Runtime was recorded to answer; None where other samples were recorded.
        io: Names the outputs, the first being the logits, and the classes.
        where: What the samples come from, to begin messages with.

    Returns:
        ``count``, ``metric``, ``not_measured`` (the reason where nothing could be scored, and every
        field of accuracy is then None), ``rows`` (one for teacher, student and model; ``top1`` is
        the mean score, whichever metric gave it) and ``recorded``.

    Raises:
        ArtifactError: Outputs do not fit the samples.
        MeasurementError: Outputs hold NaN or infinity.
    """
    labels = samples["labels"]
    answers = {
        who: _checked(outputs, io, len(labels), f"{where}, {who}")
        for who in ("teacher", "student", "model")
        if (outputs := live if who == "model" else recorded(samples, who))
    }
    if "teacher" not in answers:
        raise ArtifactError(f"{where}: holds no outputs of the teacher; export it again")
    scores = {who: metric.scores(outputs, labels, io) for who, outputs in answers.items()}
    rows = []
    for who, outputs in answers.items():
        source = "run live" if who == "model" else "recorded"
        row: dict[str, Any] = {"who": who, "source": source, **_accuracy(scores[who])}
        if who != "teacher":
            row |= _difference(scores[who], scores["teacher"])
            row |= _fidelity(outputs, answers["teacher"], io)
        rows.append(row)
    return {
        "count": len(labels),
        "classes": len(io.labels),
        "metric": metric.name(io),
        "not_measured": metric.not_measured(io),
        "rows": rows,
        "recorded": _compare(live, expected, io),
        "intervals": "95%: Wilson (top-1, agreement), Tango (difference), bootstrap (KL)"
        if io.metric is None
        else "95%: Wilson (agreement), bootstrap (scores, difference, KL)",
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
    low, high = _bootstrap(each)
    # A term of the sum may fall below 0 by rounding; KL itself cannot.
    return max(0.0, float(each.mean())), (max(0.0, low), max(0.0, high))


def _bootstrap(each: Floats) -> Interval:
    """95% percentile interval of a mean over samples."""
    random = np.random.default_rng(SEED)
    means = [each[random.integers(0, len(each), len(each))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _root(score: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Where a falling function crosses a level, by bisection to the last bit that matters."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > level else (low, middle)
    return (low + high) / 2


def _binary(*scores: Floats) -> bool:
    return all(bool(np.isin(each, (0.0, 1.0)).all()) for each in scores)


def _accuracy(scores: Floats | None) -> dict[str, Any]:
    """The mean score with its interval; nothing where nothing could be scored."""
    if scores is None:
        return {"correct": None, "top1": None, "top1_interval": None}
    if _binary(scores):
        correct = int(scores.sum())
        interval = wilson(correct, len(scores))
        return {"correct": correct, "top1": correct / len(scores), "top1_interval": interval}
    low, high = _bootstrap(scores)
    return {"correct": None, "top1": float(scores.mean()), "top1_interval": (low, high)}


def _difference(scores: Floats | None, teacher: Floats | None) -> dict[str, Any]:
    """Mean score minus the teacher's, paired."""
    found: dict[str, Any] = dict.fromkeys(("gained", "lost", "difference", "difference_interval"))
    if scores is None or teacher is None:
        return found
    if not _binary(scores, teacher):
        difference = scores - teacher
        interval = _bootstrap(difference)
        return found | {"difference": float(difference.mean()), "difference_interval": interval}
    gained, lost = int((scores > teacher).sum()), int((scores < teacher).sum())
    return {
        "gained": gained,
        "lost": lost,
        "difference": (gained - lost) / len(scores),
        "difference_interval": tango(gained, lost, len(scores)),
    }


def _fidelity(outputs: Arrays, teacher: Arrays, io: IO) -> dict[str, Any]:
    """Agreement and KL of a classifier's answers; of every output the distance to the teacher's."""
    names = ("agreement", "agreement_interval", "kl_nats", "kl_nats_interval")
    found: dict[str, Any] = dict.fromkeys(names)
    first = io.outputs[0].name
    if _classifies(io, outputs[first]):
        answer, wanted = (each[first].argmax(axis=1) for each in (outputs, teacher))
        agree, count = int((answer == wanted).sum()), len(answer)
        kl, interval = mean_kl(teacher[first], outputs[first])
        found = {
            "agreement": agree / count,
            "agreement_interval": wilson(agree, count),
            "kl_nats": kl,
            "kl_nats_interval": interval,
        }
    distances = {
        name: float(np.linalg.norm(array - teacher[name]) / (np.linalg.norm(teacher[name]) or 1.0))
        for name, array in outputs.items()
    }
    return {**found, "relative": distances}


def _classifies(io: IO, answers: NDArray[Any]) -> bool:
    """Whether the first output is one distribution over classes a sample."""
    return next(iter(io.roles().values())) == "logits" and answers.ndim == 2


def _compare(live: Arrays, expected: Arrays | None, io: IO) -> dict[str, Any]:
    """Whether the live outputs are those ONNX Runtime was recorded to give."""
    if expected is None:
        return {
            "compared": False,
            "reason": "other Samples than the model was exported with",
        }
    gaps, sizes, equal = [0.0], [0.0], True
    for name in (tensor.name for tensor in io.outputs):
        found, wanted = live[name].astype(np.float64), expected[name].astype(np.float64)
        if found.shape != wanted.shape:
            raise ArtifactError(
                f"outputs.npz: {name!r} is {list(wanted.shape)}, the live output "
                f"{list(found.shape)}: export the model again"
            )
        equal = equal and bool((found == wanted).all())
        gaps.append(float(np.abs(found - wanted).max()))
        sizes.append(float(np.abs(wanted).max()))
    first = io.outputs[0].name
    differ = None
    if _classifies(io, live[first]):
        differ = float((live[first].argmax(axis=1) != expected[first].argmax(axis=1)).mean())
    return {
        "compared": True,
        "equal": equal,
        "largest_difference": max(gaps),
        "largest_recorded": max(sizes),
        "argmax_differ": differ,
    }


def _check_labels(samples: Arrays, io: IO, source: Artifact) -> None:
    labels = samples["labels"]
    if len(labels) == 0:
        raise ArtifactError(f"{source.path}: holds 0 samples, expected at least 1: export it again")
    if not io.labels:
        return
    wrong = (labels < 0) | (labels >= len(io.labels))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ArtifactError(
            f"{source.path}: sample {row} has label {int(labels[row])}, expected 0 to "
            f"{len(io.labels) - 1} ({len(io.labels)} classes): correct the data and export again"
        )


def _checked(outputs: Arrays, io: IO, count: int, where: str) -> Arrays:
    """Every output that io names, float64, one finite row a sample."""
    found = {}
    for index, tensor in enumerate(io.outputs):
        name = tensor.name
        if name not in outputs:
            raise ArtifactError(
                f"{where}: has no output {name!r}, it has {', '.join(sorted(outputs))}: export it "
                "again"
            )
        values = outputs[name].astype(np.float64)
        if index == 0 and io.labels and values.shape != (count, len(io.labels)):
            raise ArtifactError(
                f"{where}: output {name!r} has shape {list(values.shape)}, expected "
                f"[{count}, {len(io.labels)}] (samples, classes): evaluate a classifier on its own "
                "Samples"
            )
        if values.ndim == 0 or len(values) != count:
            raise ArtifactError(
                f"{where}: output {name!r} has shape {list(values.shape)}, expected {count} rows, "
                "one a sample: evaluate on its own Samples"
            )
        bad = ~np.isfinite(values).reshape(count, -1).all(axis=1)
        if bad.any():
            raise MeasurementError(
                f"{where}: {int(bad.sum())} of {count} answers hold NaN or infinity, first sample "
                f"{int(np.flatnonzero(bad)[0])}: an fp16 overflow is the usual cause"
            )
        found[name] = values
    return found


def _users_metric(samples: Artifact) -> dict[str, str]:
    """Hash of the module that scores, where it is there to be hashed."""
    io = IO.model_validate(samples.read_json("io.json"))
    module = python_module(io.metric or "")
    if module is None or metric.not_measured(io) is not None:
        return {}
    return {module: source_hash(module.partition(".")[0])}


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _describe(model: Artifact) -> Mapping[str, Any]:
    runtime = model.config.get("runtime", "onnxruntime")
    return {"id": model.id, "kind": model.kind, "arm": model.config["arm"], "runtime": runtime}
