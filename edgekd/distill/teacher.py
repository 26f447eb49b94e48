"""The teacher as an artifact: adopted from a checkpoint, or fitted first when a recipe says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd import artifact, data, kinds, models, progress
from edgekd.artifact import (
    Artifact,
    Question,
    Work,
    file_hash,
    source_hash,
    user_hash,
    versions,
)
from edgekd.distill import device, loop, losses, samples
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe

TOOLS = ("torch", "transformers", "numpy", "safetensors")
SOURCES = ("edgekd.distill", "edgekd.models", "edgekd.structure", "edgekd.data", "edgekd.eligible")


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
    sources["examples"] = data.content_hash(data.load(recipe.data.source))
    weights = checkpoint(recipe)
    if weights is not None and weights.is_file():
        sources["checkpoint"] = file_hash(weights)
    config = {
        "teacher": recipe.teacher.model_dump(),
        "data": recipe.data.model_dump(),
        "seed": recipe.seed,
        "name": recipe.name,
        **device.resolved(recipe),
    }
    return Question(kinds.TEACHER, config=config, sources=sources, tools=versions(*TOOLS))


def user_sources(recipe: Recipe, *specs: str) -> dict[str, str]:
    """Hashes of the Python modules a recipe names, in its data source and in the given specs."""
    found = {}
    for spec in (recipe.data.source, *specs):
        module = data.python_module(spec)
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
    examples = data.load(recipe.data.source)
    device.prepare(recipe)
    description = models.describe(recipe.teacher.model, recipe.base)
    model = models.build(description).to(device.name())
    one = models.tensors(examples.train.take(samples.spread(len(examples.train), 1))[0], model)
    models.probe(model, one, examples.io, description["spec"])
    weights = checkpoint(recipe)
    results: dict[str, Any] = {"fitted": recipe.teacher.fit is not None}
    if recipe.teacher.fit is not None:
        output = examples.io.outputs[0].name
        run = loop.Run(
            label="fit teacher",
            model=model,
            loss=lambda inputs, target: {
                "labels": losses.labels(models.forward(model, inputs, examples.io)[output], target)
            },
            split=examples.train,
            settings=recipe.teacher.fit,
            seed=recipe.seed,
            keep=work.keep,
        )
        curve = loop.train(run)
        lines = "".join(json.dumps(row) + "\n" for row in curve)
        (work.scratch / "losses.jsonl").write_text(lines, encoding="utf-8")
    elif weights is not None:
        models.load_weights(model, weights)
    else:
        raise ConfigError(
            f"recipe {recipe.name}: the teacher {recipe.teacher.model!r} has no weights: give "
            "teacher.checkpoint, a directory with model.safetensors, or a [teacher.fit] section"
        )
    chosen = samples.choose(examples, recipe.data.samples)
    outputs = models.run(model, data.inputs_of(chosen), examples.io)
    samples.save(work.scratch / "samples.npz", chosen, teacher=outputs)
    models.save_weights(model, work.scratch / "model.safetensors")
    (work.scratch / "model.json").write_text(json.dumps(description, indent=1, sort_keys=True))
    (work.scratch / "io.json").write_text(examples.io.model_dump_json(indent=1))
    results["accuracy"] = samples.accuracy(outputs, chosen["labels"], examples.io)
    results["samples"] = len(chosen["labels"])
    results["parameters"] = sum(p.numel() for p in model.parameters())
    progress.say(f"teacher: accuracy {results['accuracy']:.2%} on {results['samples']} samples")
    return results
