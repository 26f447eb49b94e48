"""Quantization-aware distillation: teacher and recipe in, 2:4-sparse INT8 Student out.

The stage around `edgekd.distill.prepare`, which takes the steps before the first training step, and
`edgekd.distill.loop`, which trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgekd import artifact, kinds, models, progress, sources
from edgekd.artifact import Artifact, Question, Work, source_hash, versions
from edgekd.distill import device, loop, start
from edgekd.distill.prepare import TOOLS, Prepared, StudentArm
from edgekd.distill.teacher import DATA_SOURCES, teach, user_sources
from edgekd.recipe import Recipe
from edgekd.weights import content_hash, load_weights


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
            "edgekd.classes",
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
        sources["student weights"] = content_hash(weights)
    return Question(
        kinds.STUDENT,
        config=config,
        parents={"teacher": teacher, **start.parents(recipe)},
        sources=sources,
        tools=versions(*TOOLS, "nvidia-modelopt"),
    )


def _write(recipe: Recipe, parent: Artifact, arm: StudentArm, work: Work) -> Mapping[str, Any]:
    examples = sources.load(recipe)
    device.prepare(recipe)
    spec = recipe.student.model or recipe.teacher.model
    description = models.describe(spec, recipe.base, examples.io.labels)
    weights = _own_weights(recipe)
    began = start.opened(recipe)
    if began is not None:
        description = start.description(recipe, description, began)
        weights = began.file("model.safetensors")
    teacher, student = _networks(parent, description, weights)
    prepared = Prepared(recipe, arm, examples, teacher, student, description, work.keep)
    curve = loop.train(
        loop.Run(
            label=f"distill {arm}",
            model=student,
            loss=prepared.loss,
            split=examples.train,
            settings=recipe.distill,
            seed=recipe.seed,
            keep=work.keep,
            check=prepared.check,
            begin=prepared.begin,
            observed=lambda: prepared.observed,
            units=prepared.units,
        )
    )
    return prepared.save(work.scratch, curve)


def _own_weights(recipe: Recipe) -> Path | None:
    """Weights beside the student's own ``hf:`` configuration, where the recipe names one."""
    spec = recipe.student.model
    if recipe.student.start is not None:
        return None
    return None if spec is None else models.weights_beside(spec, recipe.base)


def _networks(
    parent: Artifact, description: Mapping[str, Any], weights: Path | None
) -> tuple[nn.Module, nn.Module]:
    """Teacher (frozen) and student on their device.

    A student starts from its own weights where it has some (those of `student.start` or beside its
    configuration), else from the teacher's where the two networks are equal, else from random ones.
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
