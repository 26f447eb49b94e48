"""What was found about each claim, read from the manifests of the artifacts that were given.

Most proofs were made by the stage that published the artifact, which refuses to publish what breaks
them. What is checked here is that the file beside the proof is the file that was proven, and that
the proof covers all that was planned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from edgekd.artifact import Artifact
from edgekd.eligible import LayerPlan
from edgekd.report.collection import Collection, anchor
from edgekd.report.words import NOT_MEASURED, count, percent, plural, points, short, significant

State = Literal["proven", "evidence", "not measured", "failed"]


@dataclass(frozen=True)
class Where:
    """What a finding is about: words, and the artifact's place on the page (empty: none)."""

    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Finding:
    """One answer to a claim: its state, what was looked at, how, and the numbers.

    Attributes:
        state: How far the claim is shown.
        on: What was looked at.
        text: How, and the numbers.
        aside: What the verdict says of it where the state alone would say too much: the claim holds
            in part, or it does not hold and nothing is broken, as where dense kernels were faster.
    """

    state: State
    on: tuple[Where, ...]
    text: str
    aside: str = ""


def masks(run: Collection) -> Iterable[Finding]:
    """Whether every planned 2:4 layer is exactly 2:4 in both files."""
    models = [model for model in run.models if run.arm(model) == "sparse"]
    if not models:
        yield unseen("no 2:4 graph is among these artifacts")
    for model in models:
        rows = [row for row in run.plan(model) if row.sparse]
        on = _graphs(run, model)
        if problem := _other_file(model) or _counts_differ(model, "layers_sparse", len(rows)):
            yield Finding("failed", on, problem)
        elif not rows:
            yield unseen("no layer is planned for 2:4; the layer table gives each reason", on)
        else:
            yield Finding("proven", on, _mask_text(rows))


def _mask_text(rows: list[LayerPlan]) -> str:
    whole = [row for row in rows if row.int8]
    text = []
    if whole:
        weights = sum(row.n * row.k for row in whole)
        text.append(
            f"{plural(len(whole), 'layer')}, {count(weights)} weights: checked integer by integer "
            "in both files at export."
        )
    if len(rows) > len(whole):
        rest = plural(len(rows) - len(whole), "layer")
        text.append(f"{rest} 2:4 in float: no nonzero off the mask in either file.")
    return " ".join(text)


def integers(run: Collection) -> Iterable[Finding]:
    """Whether both files hold the same integers and scales."""
    if not run.quantized:
        yield unseen("no INT8 graph is among these artifacts")
    for model in run.quantized:
        rows = [row for row in run.plan(model) if row.int8]
        on = _graphs(run, model)
        if problem := _other_file(model) or _counts_differ(model, "layers_int8", len(rows)):
            yield Finding("failed", on, problem)
        else:
            weights = sum(row.n * row.k for row in rows)
            yield Finding(
                "proven",
                on,
                f"{plural(len(rows), 'layer')}, {count(weights)} integers compared with NumPy at "
                "export: none differs.",
            )


def parity(run: Collection) -> Iterable[Finding]:
    """Whether ONNX Runtime gives what the network gave in torch."""
    if not run.models:
        yield unseen("no graph is among these artifacts")
    for model in run.models:
        found = model.results["parity"]
        on = (place(run, model, "ort.onnx"),)
        if problem := _other_file(model):
            yield Finding("failed", on, problem)
        elif found["vacuous"]:
            spread = significant(found["output_variation"])
            yield unseen(
                f"outputs vary by only {spread} of their size from sample to sample, so an equal "
                "answer shows nothing",
                on,
            )
        else:
            # One step is a rounding boundary; no layer is given what another one rounded.
            small = found.get("integers_largest_step", 0) <= 1
            yield Finding("proven" if small else "evidence", on, _parity_text(found))


def _parity_text(found: dict[str, Any]) -> str:
    compared = found["integers_compared"]
    text = ""
    if compared:
        step = found["integers_largest_step"]
        differ = found["integers_differ"]
        text = (
            f"Layer by layer, on the student's own integers: of {count(compared)} activation "
            "integers "
        )
        text += (
            f"{percent(differ)} differ, the largest step is {step}. "
            if differ
            else ("none differs. ")
        )
    answers = found["argmax_differs"]
    changed = f"{percent(answers)} of the answers change" if answers else "no answer changes"
    return (
        f"{text}End to end outputs differ by {significant(found['relative'])} of their size and "
        f"{changed} on {plural(found['samples'], 'sample')}; trt.onnx, run by ONNX Runtime in "
        f"float16, by {significant(found['float16_relative'])}. Rounding alone moves the network's "
        f"own outputs by {significant(found['noise'])}, and by "
        f"{significant(found['float16_noise'])} in float16."
    )


def accuracy(run: Collection) -> Iterable[Finding]:
    """Whether what was run is as accurate as the teacher, by each report."""
    reports = run.of("AccuracyReport")
    for report in reports:
        row = next(row for row in report.results["rows"] if row["who"] == "model")
        model = report.results["model"]
        ran = run.find(model["id"])
        name = f"{run.name(report)}: {run.ran(report)}"
        on = Where(name, anchor(ran.id) if ran else "")
        reason = report.results["not_measured"]
        yield unseen(reason, (on,)) if reason else _kept(report, row, on)
    judged = {run.arm(report) for report in reports}
    for student in run.of("Student"):
        if run.arm(student) not in judged:
            yield unseen(
                f"what ships was not run; {_while_training(student)}",
                (place(run, student),),
            )
    if not reports and not run.of("Student"):
        yield unseen("there is no student among these artifacts")


def _while_training(student: Artifact) -> str:
    found = student.results
    if found["accuracy"] is None:
        return "while training nothing could be scored"
    return (
        f"while training in torch {percent(found['accuracy'])} were right, the teacher "
        f"{percent(found['teacher_accuracy'])}, of {plural(found['samples'], 'sample')}"
    )


def _kept(report: Artifact, row: dict[str, Any], on: Where) -> Finding:
    """Judge a paired difference by its interval; how much loss is too much, a gate decides."""
    low, high = row["difference_interval"]
    state: State = "failed" if high < 0 else "proven" if low >= 0 else "evidence"
    verdict = {
        "failed": "a loss",
        "proven": "no loss",
        "evidence": f"a loss above {points(low).lstrip('-−')} points is excluded",  # noqa: RUF001
    }[state]
    samples, top1 = plural(report.results["count"], "sample"), percent(row["top1"])
    right = f"{top1} of {samples} right"
    if report.results["metric"] != "top-1":
        right = f"{report.results['metric']} gives {top1} on {samples}"
    return Finding(
        state,
        (on,),
        f"{points(row['difference'])} points, 95% interval {points(low)} to {points(high)}: "
        f"{verdict}. {right}"
        + (
            "."
            if row["agreement"] is None
            else f"; the teacher's answer on {percent(row['agreement'])}."
        ),
    )


def _graphs(run: Collection, model: Artifact) -> tuple[Where, ...]:
    return (place(run, model, "trt.onnx and ort.onnx"),)


def place(run: Collection, found: Artifact, file: str = "") -> Where:
    """An artifact in words, such as ``2:4 INT8: ort.onnx``, with its place on the page."""
    parts = [run.name(found)] if run.arm(found) else []
    parts += [file] if file else []
    text = ": ".join(parts)
    if "target" in found.config:
        text = f"{text} for {run.target(found)}" if text else run.target(found)
    return Where(text or found.kind, anchor(found.id))


def unseen(reason: str, on: tuple[Where, ...] = ()) -> Finding:
    """Nobody looked, and why."""
    return Finding("not measured", on, f"{NOT_MEASURED.capitalize()}: {reason}.")


def _other_file(model: Artifact) -> str:
    """Why the proof is of another file than the one beside it; empty where it is the same."""
    proven, held = model.results["graph_sha256"], model.manifest.files
    wrong = [name for name in sorted(proven) if held[name].sha256 != proven[name]]
    return "".join(
        f"The proof is of {name} {short(proven[name])}, the file here is "
        f"{short(held[name].sha256)}."
        for name in wrong[:1]
    )


def _counts_differ(model: Artifact, name: str, planned: int) -> str:
    proven = model.results[name]
    if proven == planned:
        return ""
    return f"{plural(proven, 'layer')} proven, {planned} planned in layers.json."
