"""The step that gives every layer planned for 2:4 its mask, in the way the recipe asks for.

In order: channels are permuted, then masks are chosen (and by SparseGPT weights changed). Or they
are those of the Student that this one goes on from, which were chosen when that one was made.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import data, metric, models, progress
from edgekd.distill import pairs, permute, samples, sparsegpt, sparsify, start
from edgekd.eligible import LayerPlan
from edgekd.recipe import Recipe

# Examples that a permuted network must answer as before.
_COMPARED = 8


def masks(
    recipe: Recipe,
    model: nn.Module,
    rows: Sequence[LayerPlan],
    examples: data.Data,
    batches: Sequence[data.Arrays],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Masks by layer, and what a Student's results say about them.

    Args:
        recipe: Its sparsity section, its student's start and its seed.
        model: The float network; changed in place by SparseGPT and by a permutation.
        rows: The layer plan.
        examples: The recipe's data.
        batches: Calibration inputs.

    Raises:
        ConfigError: The Student to go on from is another recipe's.
        ContractError: A mask is not what was planned.
    """
    began = start.opened(recipe)
    if began is not None:
        found = start.masks(recipe, rows, began)
        device = next(model.parameters()).device
        return {layer: mask.to(device) for layer, mask in found.items()}, {}
    if not any(row.sparse for row in rows) or not recipe.sparsity.permute:
        return _choose(recipe, model, rows, examples, batches), {}
    twin = copy.deepcopy(model)
    results = _permute(recipe, model, rows, examples, batches)
    before = _accuracy(recipe, twin, _choose(recipe, twin, rows, examples, batches), examples)
    found = _choose(recipe, model, rows, examples, batches)
    after = _accuracy(recipe, model, found, examples)
    results |= {"accuracy_before": before, "accuracy_after": after}
    told = metric.told_beside("{theirs} without, {ours} with", after, before, examples.io)
    progress.say(
        f"permute: {len(results['layers'])} layers reordered, kept magnitude "
        f"{results['kept_before']:.2%} -> {results['kept_after']:.2%}; accuracy right after "
        f"masking {told}"
    )
    return found, {"permutation": results}


def _choose(
    recipe: Recipe,
    model: nn.Module,
    rows: Sequence[LayerPlan],
    examples: data.Data,
    batches: Sequence[data.Arrays],
) -> dict[str, Tensor]:
    section = recipe.sparsity
    if section.method == "magnitude":
        return sparsify.masks(model, rows, section.pattern_rows)

    def run(net: nn.Module) -> None:
        for batch in batches:
            models.run(net, batch, examples.io)

    return sparsegpt.prune(model, rows, run, section.pattern_rows)


def _permute(
    recipe: Recipe,
    model: nn.Module,
    rows: Sequence[LayerPlan],
    examples: data.Data,
    batches: Sequence[data.Arrays],
) -> dict[str, Any]:
    some = {name: array[:_COMPARED] for name, array in batches[0].items()}
    one = models.tensors({name: array[:1] for name, array in some.items()}, model)
    found = pairs.pairs(model, one, examples.io)
    section = recipe.sparsity
    return permute.permute(model, rows, found, some, examples.io, section.pattern_rows, recipe.seed)


def _accuracy(
    recipe: Recipe, model: nn.Module, found: Mapping[str, Tensor], examples: data.Data
) -> float | None:
    """Accuracy, 0 to 1, of the masked float network; None where nothing can be scored."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, mask in found.items():
            twin.get_submodule(layer).weight.mul_(mask)  # type: ignore[operator]
    chosen = samples.choose(examples, recipe.data.samples)
    outputs = models.run(twin, data.inputs_of(chosen), examples.io)
    return samples.accuracy(outputs, chosen["labels"], examples.io)
