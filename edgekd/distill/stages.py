"""What trains in float before the quantized stage: batch norm's warm-up, then GPUSQ's first stage.

In GPUSQ (arXiv 2305.10727, section 3) a 2:4 network in float learns from the dense teacher first;
then the quantized student starts from it and has it for a teacher. Both stages have the same losses
and the same masks::

    masks -> batch norm warmed up, frozen, folded -> float stage -> calibration -> quantized stage

Norms are folded before the float stage and not after it, so that both stages train the network that
ships, and the teacher of the second has the very structure of its student. In the dense arm the
stage has no masks and is otherwise the same, so that two arms differ in 2:4 alone.

The stage has a checkpoint of its own, which ends as its result and stays until the Student is
published: a kill between the stages costs neither of them. Teacher intervention belongs to the
quantized stage, whose error it is about.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import data, metric, models, progress, sparse24
from edgekd.distill import batchnorm, features, loop, quantize, samples
from edgekd.distill.intervention import Intervention
from edgekd.distill.objective import Objective
from edgekd.distill.sparsify import as_matrix
from edgekd.errors import ConfigError, ContractError
from edgekd.recipe import Recipe

FOLDER = "float-stage"


@dataclass(frozen=True)
class FloatStage:
    """What the quantized stage goes on with.

    Attributes:
        teacher: Teaches the quantized stage: the float stage's result, or the dense teacher.
        curve: Loss rows, none where there was no such stage.
        weights: What each block counts; None where all count the same.
        results: For the Student's manifest.
    """

    teacher: nn.Module
    curve: loop.Curve = field(default_factory=list)
    weights: Mapping[str, float] | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    def both(self, quantized: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Rows of both stages, each with its ``stage``; one stage alone needs no name."""
        if not self.curve:
            return list(quantized)
        first = [{**row, "stage": "float"} for row in self.curve]
        return [*first, *({**row, "stage": "quantized"} for row in quantized)]

    def objective(
        self,
        recipe: Recipe,
        student: nn.Module,
        dense: nn.Module,
        io: data.IO,
        intervention: Intervention | None,
    ) -> Objective:
        """The quantized stage's objective; `dense` is the teacher whose answers may be labels."""
        return Objective(
            recipe.distill.losses,
            student,
            self.teacher,
            io,
            intervention,
            labeller=dense,
            weights=self.weights,
            observe=recipe.distill.sparse is not None,
        )


def warm_up(
    recipe: Recipe,
    examples: data.Data,
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    keep: Path,
) -> dict[str, Any]:
    """Warm the student's batch norms up, freeze and fold them; what was folded, what stays.

    Raises:
        ConfigError: There are steps to warm up with, and no batch norm; a loss exploded.
        ContractError: A mask did not hold.
    """
    names, steps = batchnorm.norms(student), recipe.distill.batchnorm_warmup
    if not names and steps:
        raise ConfigError(
            f"recipe {recipe.name}: distill.batchnorm_warmup is {steps} and the student has no "
            "batch norm: remove it"
        )
    if not names:
        return {"folded": [], "frozen": []}
    batch = samples.batches(examples, models.BATCH)[0]
    one = {name: array[:1] for name, array in batch.items()}
    found = batchnorm.pairs(student, models.tensors(one, student), examples.io)
    quantize.attach_masks(student, masks)
    if steps:
        label = "batchnorm warm-up"
        objective = Objective(recipe.distill.losses, student, teacher, examples.io)
        (keep / "batchnorm").mkdir(parents=True, exist_ok=True)
        loop.train(
            loop.Run(
                label=label,
                model=student,
                loss=objective,
                split=examples.train,
                settings=recipe.distill.model_copy(update={"steps": steps}),
                seed=recipe.seed,
                keep=keep / "batchnorm",
                check=lambda: _masks_hold(student, masks, label),
                units=objective.units,
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


def float_stage(
    recipe: Recipe,
    arm: str,
    examples: data.Data,
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    keep: Path,
) -> FloatStage:
    """Train the float student under its masks, where the recipe has ``[distill.sparse]``.

    Args:
        recipe: Its distill section decides.
        arm: For messages.
        examples: The recipe's data.
        student: Its batch norms folded; trained in place, what its masks hide is zero afterwards.
        teacher: The dense one, frozen.
        masks: 2:4 masks by layer; none in the dense arm.
        keep: Where checkpoints survive a kill.

    Raises:
        ConfigError: A loss exploded, or no block weight can be taken from it.
        ContractError: A mask did not hold.
    """
    settings = recipe.distill.sparse
    if settings is None:
        return FloatStage(teacher)
    quantize.attach_masks(student, masks)
    objective = Objective(recipe.distill.losses, student, teacher, examples.io, observe=True)
    (keep / FOLDER).mkdir(parents=True, exist_ok=True)
    curve = loop.train(
        loop.Run(
            label=f"distill {arm}, float stage",
            model=student,
            loss=objective,
            split=examples.train,
            settings=settings,
            seed=recipe.seed,
            keep=keep / FOLDER,
            check=lambda: _masks_hold(student, masks, "float stage"),
            observed=lambda: objective.observed,
            units=objective.units,
        )
    )
    objective.remove()
    quantize.bake_masks(student, masks)
    direction = recipe.distill.losses.block_weights
    weights = None
    if direction != "equal":
        weights = features.weights(curve, objective.blocks, direction)
    results = _results(recipe, examples, student) | {"block_weights": weights}
    taught_by = teacher
    if settings.teaches:
        taught_by = copy.deepcopy(student).eval().requires_grad_(False)
    return FloatStage(taught_by, curve, weights, {"float_stage": results})


def _masks_hold(student: nn.Module, masks: Mapping[str, Tensor], stage: str) -> None:
    for layer, mask in masks.items():
        module = student.get_submodule(layer)
        carried = quantize.mask_of(module)
        if carried is None or not torch.equal(carried, mask.to(carried.device)):
            raise ContractError(f"{stage}: the 2:4 mask of {layer} was lost or changed")
        assert isinstance(module.weight, Tensor)
        sparse24.check(as_matrix(module.weight), f"{stage}: {layer}")


def _results(recipe: Recipe, examples: data.Data, student: nn.Module) -> dict[str, Any]:
    """What the stage ended at, in float, on the samples that travel."""
    settings = recipe.distill.sparse
    assert settings is not None
    chosen = samples.choose(examples, recipe.data.samples)
    outputs = models.run(student, data.inputs_of(chosen), examples.io)
    accuracy = samples.accuracy(outputs, chosen["labels"], examples.io)
    told = metric.told(accuracy, examples.io)
    progress.say(f"float stage: accuracy {told} after {settings.steps} steps")
    return {"steps": settings.steps, "teaches": settings.teaches, "accuracy": accuracy}
