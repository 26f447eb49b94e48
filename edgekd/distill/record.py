"""What a Student holds, written: weights, quantizers, plan, curve, and both networks' answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from edgekd import data, eligible, io_json, metric, models, progress
from edgekd.distill import quantize, samples
from edgekd.eligible import LayerPlan
from edgekd.recipe import Recipe


def save(
    scratch: Path,
    student: nn.Module,
    rows: Sequence[LayerPlan],
    curve: Sequence[Mapping[str, float]],
    description: Mapping[str, Any],
) -> None:
    """Float weights (masked), quantizers, plan and curve, under the plain network's names.

    Weights of fewer than 8 bits are stored quantized: their scales stand on their own, and export,
    which could go on from float ones, does not take them.
    """
    quantizers = {}
    weights = quantize.plain_state(student)
    for row in rows:
        module = student.get_submodule(row.layer) if row.int8 or row.sparse else None
        mask = None if module is None else quantize.mask_of(module)
        if mask is not None:
            quantizers[f"{row.layer}.mask"] = mask
        if module is not None and row.int8:
            quantizers[f"{row.layer}.weight_scale"] = quantize.shipped_weight_scale(module)
            quantizers[f"{row.layer}.input_scale"] = quantize.input_scale(module).clone()
            if row.bits != 8:  # what reads a Student quantizes to 8 bits, which leaves these be
                weights[f"{row.layer}.weight"] = module.weight.detach().clone().contiguous()  # type: ignore[operator]
    save_file(weights, scratch / "model.safetensors")
    save_file(quantizers, scratch / "quantizers.safetensors")
    plan = [row.as_json() for row in rows]
    (scratch / "layers.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    text = json.dumps(description, indent=1, sort_keys=True) + "\n"
    (scratch / "model.json").write_text(text, encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in curve)
    (scratch / "losses.jsonl").write_text(lines, encoding="utf-8")


def record(
    scratch: Path,
    recipe: Recipe,
    examples: data.Data,
    student: nn.Module,
    teacher: nn.Module,
    rows: Sequence[LayerPlan],
) -> dict[str, Any]:
    """Answers of both networks on the samples that travel, and the manifest's results."""
    chosen = samples.choose(examples, recipe.data.samples)
    inputs, io = data.inputs_of(chosen), examples.io
    ours, theirs = models.run(student, inputs, io), models.run(teacher, inputs, io)
    samples.save(scratch / "samples.npz", chosen, teacher=theirs, student=ours)
    io_json.save(io, examples.files, scratch)
    results: dict[str, Any] = {
        "accuracy": samples.accuracy(ours, chosen["labels"], io),
        "teacher_accuracy": samples.accuracy(theirs, chosen["labels"], io),
        "samples": len(chosen["labels"]),
        "parameters": sum(row.n * row.k for row in rows if not row.tied_to),
        "layers": len(rows),
        "layers_int8": sum(row.int8 for row in rows if row.bits == 8),
        "layers_by_bits": _by_bits(rows),
        "layers_sparse": sum(row.sparse for row in rows),
        "macs_share_int8": eligible.share_of_macs(rows, "int8"),
        "macs_share_sparse": eligible.share_of_macs(rows, "sparse"),
    }
    below = [f", {count} of {bits} bits" for bits, count in results["layers_by_bits"].items()]
    accuracies = results["accuracy"], results["teacher_accuracy"]
    progress.say(
        f"student: accuracy {metric.told_beside('{ours} (teacher {theirs})', *accuracies, io)} "
        f"on {results['samples']} samples; "
        f"{results['layers_int8']} of {results['layers']} layers INT8{''.join(below)}, "
        f"{results['layers_sparse']} 2:4"
    )
    return results


def _by_bits(rows: Sequence[LayerPlan]) -> dict[str, int]:
    """How many layers have weights of each width below 8 bits."""
    widths = sorted({row.bits for row in rows if row.int8 and row.bits != 8})
    return {str(bits): sum(row.int8 and row.bits == bits for row in rows) for bits in widths}
