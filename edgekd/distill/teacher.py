"""The teacher as an artifact: adopted from a checkpoint, or fitted first when a recipe says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgekd import artifact, data, io_json, kinds, metric, models, progress
from edgekd import sources as data_sources
from edgekd.artifact import (
    Artifact,
    Question,
    Work,
    source_hash,
    user_hash,
    versions,
)
from edgekd.distill import device, loop, losses, samples
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe, Training
from edgekd.weights import content_hash, load_weights, save_weights

TOOLS = ("torch", "transformers", "timm", "numpy", "safetensors")
# The code that decides what an example is.
DATA_SOURCES = ("edgekd.data", "edgekd.io_json", "edgekd.metric", "edgekd.noise",
                "edgekd.sources", "edgekd.interface", "edgekd.processors",
                "edgekd.preprocess")  # fmt: skip
SOURCES = ("edgekd.distill", "edgekd.models", "edgekd.classes", "edgekd.weights", "edgekd.unpack",
           "edgekd.structure", "edgekd.eligible", *DATA_SOURCES)  # fmt: skip


def teach(recipe: Recipe, out: Path) -> Artifact:
    """The Teacher a recipe names.

    Args:
        recipe: Its teacher and data sections decide.
        out: Directory of artifacts.

    Raises:
        ConfigError: No weights to be had, a checkpoint that does not fit, bad data, NaN loss.
    """
    return artifact.make(out, question(recipe), lambda work: _write(recipe, work))


def question(recipe: Recipe) -> Question:
    """What decides a Teacher: its sections, and hashes of the code, data and weights used."""
    spec = recipe.teacher.model
    sources = {
        "edgekd": source_hash(*SOURCES),
        **user_sources(recipe, spec),
        **models.source_files(spec, recipe.base),
    }
    sources["examples"] = data.content_hash(data_sources.load(recipe))
    weights = checkpoint(recipe)
    if weights is not None and weights.is_file():
        sources["checkpoint"] = content_hash(weights)
    config = {
        "teacher": recipe.teacher.model_dump(),
        "task": recipe.distill.losses.task if recipe.teacher.fit is not None else None,
        "data": recipe.data.model_dump(),
        "seed": recipe.seed,
        "name": recipe.name,
        **device.resolved(recipe),
    }
    return Question(kinds.TEACHER, config=config, sources=sources, tools=versions(*TOOLS))


def user_sources(recipe: Recipe, *specs: str) -> dict[str, str]:
    """Hashes of the Python modules a recipe names, for data and losses and as the given specs."""
    found = {}
    for spec in (recipe.data.source, recipe.data.metric, recipe.distill.losses.task, *specs):
        module = data.python_module(spec or "")
        if module is not None:
            found[module] = user_hash(module)
    return found


def checkpoint(recipe: Recipe) -> Path | None:
    """Where the teacher's weights are: the recipe's checkpoint, or beside an ``hf:`` config."""
    if recipe.teacher.checkpoint is not None:
        return recipe.base / recipe.teacher.checkpoint
    beside = models.weights_beside(recipe.teacher.model, recipe.base)
    if beside is not None and recipe.teacher.fit is not None:
        raise ConfigError(
            f"recipe {recipe.name}: {beside} holds the teacher's weights and [teacher.fit] would "
            "train others: remove one of them"
        )
    return beside


def _write(recipe: Recipe, work: Work) -> Mapping[str, Any]:
    examples = data_sources.load(recipe)
    require_loss(recipe, examples.io)
    device.prepare(recipe)
    description = models.describe(recipe.teacher.model, recipe.base, examples.io.labels)
    model = models.build(description).to(device.name())
    one = models.tensors(examples.train.take(samples.spread(len(examples.train), 1))[0], model)
    models.probe(model, one, examples.io, description["spec"])
    weights = checkpoint(recipe)
    results: dict[str, Any] = {"fitted": recipe.teacher.fit is not None}
    if recipe.teacher.fit is not None:
        run = loop.Run(
            label="fit teacher",
            model=model,
            loss=_loss(recipe, recipe.teacher.fit, model, examples.io),
            split=examples.train,
            settings=recipe.teacher.fit,
            seed=recipe.seed,
            keep=work.keep,
        )
        curve = loop.train(run)
        lines = "".join(json.dumps(row) + "\n" for row in curve)
        (work.scratch / "losses.jsonl").write_text(lines, encoding="utf-8")
    elif weights is not None:
        load_weights(model, weights)
    else:
        raise ConfigError(
            f"recipe {recipe.name}: the teacher {recipe.teacher.model!r} has no weights: give "
            "teacher.checkpoint, a directory with model.safetensors, or a [teacher.fit] section"
        )
    chosen = samples.choose(examples, recipe.data.samples)
    outputs = models.run(model, data.inputs_of(chosen), examples.io)
    samples.save(work.scratch / "samples.npz", chosen, teacher=outputs)
    save_weights(model, work.scratch / "model.safetensors")
    (work.scratch / "model.json").write_text(json.dumps(description, indent=1, sort_keys=True))
    io_json.save(examples.io, examples.files, work.scratch)
    results["accuracy"] = samples.accuracy(outputs, chosen["labels"], examples.io)
    results["samples"] = len(chosen["labels"])
    results["parameters"] = sum(p.numel() for p in model.parameters())
    told = metric.told(results["accuracy"], examples.io)
    progress.say(f"teacher: accuracy {told} on {results['samples']} samples")
    return results


def require_loss(recipe: Recipe, io: data.IO) -> None:
    """Refuse a teacher that is to be fitted and has nothing to learn from.

    Raises:
        ConfigError: It takes steps, the data name no classes and the recipe no loss of the task.
    """
    fit = recipe.teacher.fit
    if fit is not None and fit.steps and recipe.distill.losses.task is None and not io.labels:
        raise ConfigError(
            f"recipe {recipe.name}: teacher.fit trains {fit.steps} steps on the labels, but "
            f"data.source {recipe.data.source!r} names 0 classes and distill.losses.task is not "
            'given: give distill.losses.task = "python:<module>:<callable>", a trained teacher as '
            "teacher.checkpoint, or teacher.fit.steps = 0 for random weights"
        )


def _loss(recipe: Recipe, fit: Training, model: nn.Module, io: data.IO) -> loop.Loss:
    """What a teacher is fitted by; nothing where it takes no step."""
    if not fit.steps:
        return lambda _inputs, _target: {}
    task = losses.task(recipe.distill.losses.task, io)
    return lambda inputs, target: {"labels": task(models.forward(model, inputs, io), target)}
