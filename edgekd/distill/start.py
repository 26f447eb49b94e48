"""A Student that another one goes on from: its weights, and its 2:4 masks where it stays 2:4.

`student.start` names the artifact, `sparsity.release` the layers that become dense: their masks are
dropped, the pruned weights begin at 0 and grow as training wants them. Every other mask is taken
exactly as it is; none is chosen again: `sparsity.method` and `sparsity.permute` did their work when
the first Student was made, and a recipe that gives them beside it is refused when it is read.
Network and plan must be that Student's own, but for what is released: masks of another layer's
weights would be 2:4 and mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from edgekd import artifact, kinds
from edgekd.artifact import Artifact
from edgekd.distill import sparsify
from edgekd.eligible import DENSE_ARM, RELEASED, LayerPlan, asks_below_int8
from edgekd.errors import ConfigError, ContractError
from edgekd.recipe import Recipe


def opened(recipe: Recipe) -> Artifact | None:
    """The Student that a recipe's student starts from, None where it names none.

    Raises:
        ArtifactError: There is none, it is altered, or of another kind.
    """
    named = recipe.student.start
    return None if named is None else artifact.load(recipe.base / named, kinds.STUDENT)


def parents(recipe: Recipe) -> dict[str, Artifact]:
    """What it adds to a Student's parents."""
    found = opened(recipe)
    return {} if found is None else {"start": found}


def description(recipe: Recipe, wanted: Mapping[str, Any], found: Artifact) -> dict[str, Any]:
    """What the starting Student is built from: the recipe's network, with batch norms folded in.

    Args:
        recipe: Named in messages.
        wanted: What `models.describe` says of the recipe's student.
        found: The starting Student.

    Raises:
        ConfigError: It is another network.
    """
    own: dict[str, Any] = found.read_json("model.json")
    # A configuration is the network; where there is none, the name of what builds it is.
    one, two = (each["config"] or each["spec"] for each in (own, wanted))
    if one != two:
        differ = f"found {own['spec']!r}, expected {wanted['spec']!r}"
        if isinstance(one, dict) and isinstance(two, dict):
            key = next(key for key in sorted({*one, *two}) if one.get(key) != two.get(key))
            differ = f"found {key} = {one.get(key)!r}, expected {two.get(key)!r}"
        raise _another(recipe, f"its network is not this student's: {differ}")
    return own


def masks(recipe: Recipe, rows: Sequence[LayerPlan], found: Artifact) -> dict[str, Tensor]:
    """The starting Student's masks of every layer that is planned for 2:4.

    Args:
        recipe: Its sparsity section says what is released.
        rows: The layer plan.
        found: The starting Student.

    Returns:
        {layer: bool[weight shape]}.

    Raises:
        ConfigError: Its plan is another one, or its masks are not shared by as many rows as the
            recipe asks.
        ContractError: A mask is not 2:4.
    """
    theirs = {row["layer"]: row for row in found.read_json("layers.json")}
    # Weights below 8 bits are stored quantized: as INT8 they would be no better, in silence.
    for layer, row in theirs.items():
        if row["bits"] < 8 and not asks_below_int8(recipe.quantization):
            raise _another(recipe, f"{layer} has weights of {row['bits']} bits in it, expected 8")
    ours = {row.layer: row for row in rows}
    for layer in [*ours, *(name for name in theirs if name not in ours)]:
        mine = ours.get(layer)
        have, want = _told(theirs.get(layer)), _told(None if mine is None else mine.as_json())
        if have == want or (mine is not None and _released(mine, theirs.get(layer))):
            continue
        reason = f" ({mine.sparse_reason})" if mine is not None and mine.sparse_reason else ""
        differs = f"{layer} is {have} in it, expected {want}{reason}"
        raise _another(recipe, differs, _arm_to_leave(mine, theirs.get(layer)))
    stored = load_file(found.file("quantizers.safetensors"))
    kept = {row.layer: stored[f"{row.layer}.mask"].bool() for row in rows if row.sparse}
    for layer, mask in kept.items():
        sparsify.prove(layer, mask)
        _prove_rows(recipe, found, layer, mask)
    return kept


def _prove_rows(recipe: Recipe, found: Artifact, layer: str, mask: Tensor) -> None:
    """Assert that rows of a mask share patterns as the recipe asks."""
    asked, made = recipe.sparsity.pattern_rows, found.config["sparsity"]["pattern_rows"]
    try:
        sparsify.prove_rows(layer, mask, asked)
    except ContractError as error:
        raise ConfigError(
            f"recipe {recipe.name}: student.start {recipe.student.start!r} was made with "
            f"sparsity.pattern_rows = {made}, expected {asked}, and its masks are kept as they are "
            f"({error}): set sparsity.pattern_rows to {made}, or name a Student made with {asked}"
        ) from error


def _told(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "absent"
    forms = f"{'INT8' if row['int8'] else 'float'}, {'2:4' if row['sparse'] else 'dense'}"
    return f"{row['type']} n={row['n']} k={row['k']} {forms}"


def _released(ours: LayerPlan, theirs: Mapping[str, Any] | None) -> bool:
    """Whether a layer differs in nothing but that it is 2:4 no more."""
    was = theirs is not None and _told({**theirs, "sparse": False}) == _told(ours.as_json())
    return was and ours.sparse_reason.endswith(RELEASED)


def _arm_to_leave(ours: LayerPlan | None, theirs: Mapping[str, Any] | None) -> str:
    """The arm that goes on from the other arm's Student; empty where the arms are the same."""
    if ours is not None and ours.sparse_reason == DENSE_ARM:
        return "dense"
    return "sparse" if theirs is not None and theirs["sparse_reason"] == DENSE_ARM else ""


def _another(recipe: Recipe, what: str, arm: str = "") -> ConfigError:
    advice = (
        f"leave '{arm}' out of the recipe's arms, or name a Student of the {arm} arm"
        if arm
        else "name a Student of this network, plan and arm, list what becomes dense in "
        "sparsity.release, or remove student.start"
    )
    return ConfigError(
        f"recipe {recipe.name}: student.start {recipe.student.start!r} is a checkpoint of another "
        f"recipe: {what}: {advice}"
    )
