"""Quantization-aware distillation: teacher and recipe in, 2:4-sparse INT8 Student out.

The order is fixed and each step proves what it did before the next begins: plan (which layers, and
why not the others), masks (2:4, on float weights), batch norm (warmed up, frozen, folded),
calibration (of the masked network), quantizers, distillation. Model Optimizer would accept some
other orders in silence and sparsify nothing; here there is no other order to ask for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from edgekd import (
    artifact,
    data,
    eligible,
    io_json,
    kinds,
    metric,
    models,
    progress,
    sources,
    structure,
)
from edgekd.artifact import Artifact, Question, Work, file_hash, source_hash, versions
from edgekd.distill import batchnorm, device, loop, losses, quantize, samples, sparsify
from edgekd.distill.calibrate import calibrate
from edgekd.distill.intervention import Intervention, chosen_sites, residual_sites
from edgekd.distill.objective import Objective
from edgekd.distill.teacher import DATA_SOURCES, TOOLS, teach, user_sources
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.recipe import Recipe
from edgekd.weights import load_weights

StudentArm = Literal["dense", "sparse"]


def distill(recipe: Recipe, out: Path, arm: StudentArm = "sparse") -> Artifact:
    """Train the Student of a recipe, and its Teacher first if need be.

    Args:
        recipe: What to compress and how.
        out: Directory of artifacts.
        arm: ``sparse`` for 2:4 INT8; ``dense`` for the same steps, losses and seed without 2:4.

    Raises:
        ConfigError: Something in the recipe does not fit the network or the data; NaN loss.
        ContractError: A step did not do what it promises (mask, quantizers, calibration).
    """
    teacher = teach(recipe, out)
    return artifact.make(
        out, question(recipe, teacher, arm), lambda work: _write(recipe, teacher, arm, work)
    )


def question(recipe: Recipe, teacher: Artifact, arm: StudentArm) -> Question:
    """What decides a Student."""
    spec = recipe.student.model or recipe.teacher.model
    sparsity = recipe.sparsity.model_dump() if arm == "sparse" else None
    config = {
        "arm": arm,
        "name": recipe.name,
        "seed": recipe.seed,
        "student": {"model": spec},
        "data": recipe.data.model_dump(),
        "sparsity": sparsity,
        "quantization": recipe.quantization.model_dump(),
        "distill": recipe.distill.model_dump(),
        **device.resolved(recipe),
    }
    sources = {
        "edgekd": source_hash(
            "edgekd.distill",
            "edgekd.models",
            "edgekd.weights",
            "edgekd.unpack",
            "edgekd.structure",
            *DATA_SOURCES,
            "edgekd.eligible",
            "edgekd.quant",
            "edgekd.sparse24",
        ),
        **user_sources(recipe, spec),
        **models.source_files(spec, recipe.base),
    }
    weights = _own_weights(recipe)
    if weights is not None:
        sources["student weights"] = file_hash(weights)
    return Question(
        kinds.STUDENT,
        config=config,
        parents={"teacher": teacher},
        sources=sources,
        tools=versions(*TOOLS, "nvidia-modelopt"),
    )


def _write(recipe: Recipe, parent: Artifact, arm: StudentArm, work: Work) -> Mapping[str, Any]:
    examples = sources.load(recipe)
    device.prepare(recipe)
    description = models.describe(recipe.student.model or recipe.teacher.model, recipe.base)
    teacher, student = _networks(parent, description, _own_weights(recipe))
    calibration = _batches(examples, recipe.quantization.calibration_samples)
    one = models.tensors(_batches(examples, 1)[0], student)
    models.probe(student, one, examples.io, description["spec"])

    sparsity = recipe.sparsity if arm == "sparse" else None
    rows = structure.plan(student, one, examples.io, sparsity, recipe.quantization)
    _anything_planned(recipe, rows, arm)
    masks = sparsify.masks(student, rows)
    norms = _batchnorm(recipe, examples, student, teacher, masks, work.keep)
    scales = calibrate(student, rows, masks, lambda twin: _feed(twin, calibration, examples))
    quantize.attach(student, rows, masks, scales)

    def check() -> None:
        quantize.verify(student, teacher, rows, masks)

    check()
    intervention = _intervention(recipe, student, teacher, one, examples.io)
    objective = Objective(recipe.distill.losses, student, teacher, examples.io, intervention)
    curve = loop.train(
        loop.Run(
            label=f"distill {arm}",
            model=student,
            loss=objective,
            split=examples.train,
            settings=recipe.distill,
            seed=recipe.seed,
            keep=work.keep,
            check=check,
            begin=intervention.at if intervention else lambda _: None,
        )
    )
    objective.remove()
    folded = {"folded": norms["folded"]} if norms["folded"] else {}
    _save(work.scratch, student, rows, curve, {**description, **folded})
    results = _record(work.scratch, recipe, examples, student, teacher, rows)
    return results | {
        "intervention_sites": intervention.sites if intervention else [],
        "batchnorm_folded": len(norms["folded"]),
        "batchnorm_frozen": norms["frozen"],
    }


def _batchnorm(
    recipe: Recipe,
    examples: data.Data,
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    keep: Path,
) -> dict[str, Any]:
    """Warm the student's batch norms up, freeze and fold them; what was folded, what stays."""
    batch = _batches(examples, models.BATCH)[0]
    one = {name: array[:1] for name, array in batch.items()}
    found = batchnorm.pairs(student, models.tensors(one, student), examples.io)
    names = batchnorm.norms(student)
    if not names:
        return {"folded": [], "frozen": []}
    quantize.attach_masks(student, masks)
    steps = recipe.distill.batchnorm_warmup
    if steps:
        objective = Objective(recipe.distill.losses, student, teacher, examples.io)
        (keep / "batchnorm").mkdir(parents=True, exist_ok=True)
        loop.train(
            loop.Run(
                label="batchnorm warm-up",
                model=student,
                loss=objective,
                split=examples.train,
                settings=recipe.distill.model_copy(update={"steps": steps}),
                seed=recipe.seed,
                keep=keep / "batchnorm",
            )
        )
        objective.remove()
    quantize.bake_masks(student, masks)
    batchnorm.freeze(student)
    batchnorm.fold(student, found, masks, batch, examples.io)
    frozen = sorted(set(names) - {norm for _, norm in found})
    left = f"; {len(frozen)} stay, frozen: {', '.join(frozen[:3])}" if frozen else ""
    progress.say(f"batch norm: {len(found)} of {len(names)} folded after {steps} steps{left}")
    return {"folded": [list(pair) for pair in found], "frozen": frozen}


def _intervention(
    recipe: Recipe, student: nn.Module, teacher: nn.Module, one: models.Tensors, io: data.IO
) -> Intervention | None:
    settings = recipe.distill.intervention
    if settings is None:
        return None
    mine, theirs = (chosen_sites(residual_sites(net, one, io)) for net in (student, teacher))
    sites = losses.paired(mine, theirs)
    return Intervention(settings, recipe.distill.steps, student, teacher, sites)


def _own_weights(recipe: Recipe) -> Path | None:
    """Weights beside the student's own ``hf:`` configuration, where the recipe names one."""
    spec = recipe.student.model
    return None if spec is None else models.weights_beside(spec, recipe.base)


def _networks(
    parent: Artifact, description: Mapping[str, Any], weights: Path | None
) -> tuple[nn.Module, nn.Module]:
    """Teacher (frozen) and student on their device.

    A student starts from its own weights where it has some, else from the teacher's where the two
    networks are equal, else from random ones.
    """
    teacher_description = parent.read_json("model.json")
    teacher = models.build(teacher_description)
    load_weights(teacher, parent.file("model.safetensors"))
    student = models.build(description)
    shapes = [{n: t.shape for n, t in net.state_dict().items()} for net in (teacher, student)]
    if weights is not None:
        load_weights(student, weights)
    elif description["config"] == teacher_description["config"] and shapes[0] == shapes[1]:
        student.load_state_dict(teacher.state_dict())
    else:
        progress.say("student: another network than its teacher, starts from random weights")
    teacher.to(device.name()).eval().requires_grad_(False)
    return teacher, student.to(device.name())


def _batches(examples: data.Data, count: int) -> list[data.Arrays]:
    """Inputs of `count` training examples spread evenly over the split, in batches."""
    rows = samples.spread(len(examples.train), count)
    return [
        examples.train.take(rows[start : start + models.BATCH])[0]
        for start in range(0, len(rows), models.BATCH)
    ]


def _feed(model: nn.Module, batches: Sequence[data.Arrays], examples: data.Data) -> None:
    for batch in batches:
        models.run(model, batch, examples.io)


def _anything_planned(recipe: Recipe, rows: Sequence[LayerPlan], arm: StudentArm) -> None:
    if not rows:
        raise ContractError(f"recipe {recipe.name}: the student has no Linear or Conv2d layer")
    if any(row.int8 or row.sparse for row in rows):
        return
    # The first layer is often the odd one (three channels); the largest tells what to change.
    largest = max(rows, key=lambda row: row.macs)
    advice = "widen quantization.include or choose another student"
    if arm == "dense" and "quantization.convolutions" in largest.int8_reason:
        advice = "leave 'dense' out of the recipe's arms, or set quantization.convolutions = true"
    raise ContractError(
        f"recipe {recipe.name}: no layer of the {arm} student can be INT8"
        f"{' or 2:4' if arm == 'sparse' else ''}; {largest.layer}: {largest.int8_reason}; {advice}"
    )


def _save(
    scratch: Path,
    student: nn.Module,
    rows: Sequence[LayerPlan],
    curve: Sequence[Mapping[str, float]],
    description: Mapping[str, Any],
) -> None:
    """Float weights (masked), quantizers, plan and curve, under the plain network's names."""
    quantizers = {}
    weights = quantize.plain_state(student)
    for row in rows:
        module = student.get_submodule(row.layer) if row.int8 or row.sparse else None
        mask = None if module is None else quantize.mask_of(module)
        if mask is not None:
            quantizers[f"{row.layer}.mask"] = mask
        if module is not None and row.int8:
            latent = weights[f"{row.layer}.weight"]
            quantizers[f"{row.layer}.weight_scale"] = quantize.weight_scale(latent).flatten()
            quantizers[f"{row.layer}.input_scale"] = quantize.input_scale(module)
    save_file(weights, scratch / "model.safetensors")
    save_file(quantizers, scratch / "quantizers.safetensors")
    plan = [row.as_json() for row in rows]
    (scratch / "layers.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    text = json.dumps(description, indent=1, sort_keys=True) + "\n"
    (scratch / "model.json").write_text(text, encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in curve)
    (scratch / "losses.jsonl").write_text(lines, encoding="utf-8")


def _record(
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
    results = {
        "accuracy": samples.accuracy(ours, chosen["labels"], io),
        "teacher_accuracy": samples.accuracy(theirs, chosen["labels"], io),
        "samples": len(chosen["labels"]),
        "parameters": sum(row.n * row.k for row in rows if not row.tied_to),
        "layers": len(rows),
        "layers_int8": sum(row.int8 for row in rows),
        "layers_sparse": sum(row.sparse for row in rows),
        "macs_share_int8": eligible.share_of_macs(rows, "int8"),
        "macs_share_sparse": eligible.share_of_macs(rows, "sparse"),
    }
    progress.say(
        f"student: accuracy {metric.told(results['accuracy'], io)} (teacher "
        f"{metric.told(results['teacher_accuracy'], io)}) on {results['samples']} samples; "
        f"{results['layers_int8']} of {results['layers']} layers INT8, "
        f"{results['layers_sparse']} 2:4"
    )
    return results
