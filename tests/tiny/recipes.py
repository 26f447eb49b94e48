"""Recipes of a few steps: the shortest way to run a stage for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgekd import recipe
from edgekd.artifact import Artifact
from edgekd.errors import EdgekdError
from edgekd.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekd.eligible import LayerPlan

Students = Callable[[str], Artifact]
StopAt = Callable[[int, type[BaseException]], None]
Breaks = Callable[[Callable[[Any], None]], None]
# For a network without repeated blocks, whose outputs cannot be compared block by block.
NO_BLOCKS: dict[str, Any] = {"steps": 2, "batch_size": 16, "losses": {"blocks": 0.0}}
UNTRAINED: dict[str, Any] = {"steps": 0, "losses": {"blocks": 0.0}}


def tiny(
    base: Path, model: str | dict[str, Any] = "mlp", data: str = "vectors", **changes: Any
) -> Recipe:
    """A recipe in a directory.

    Args:
        base: Where a transformers configuration is written to.
        model: Name of a callable in tiny.models, ``forms:<name>`` for one in tiny.forms, or a
            transformers configuration.
        data: Name of a callable in tiny.data.
        **changes: Sections or keys that replace the ones below.
    """
    if isinstance(model, dict):
        base.mkdir(parents=True, exist_ok=True)
        (base / "config.json").write_text(json.dumps(model))
        spec = "hf:config.json"
    else:
        spec = f"python:tiny.{model}" if ":" in model else f"python:tiny.models:{model}"
    document: dict[str, Any] = {
        "name": "tiny",
        "threads": 1,
        "teacher": {"model": spec, "fit": {"steps": 3, "batch_size": 16}},
        "data": {"source": f"python:tiny.data:{data}", "samples": 24},
        "quantization": {"calibration_samples": 32, "convolutions": True},
        "distill": {"steps": 2, "batch_size": 16},
        **changes,
    }
    found = recipe.parse(document, "tiny")
    found._base = base
    return found


def plan(model: nn.Module) -> list[LayerPlan]:
    """Which layers a recipe without exceptions plans, of a network that takes tiny.data's ``x``."""
    import numpy as np

    from edgekd import structure
    from edgekd.models import tensors
    from tiny.data import vectors

    examples = vectors()
    one = tensors(examples.train.take(np.array([0]))[0], model)
    return structure.plan(model, one, examples.io, recipe.Sparsity(), recipe.Quantization())


def export_refused(source: Artifact, out: Path, error: type[EdgekdError]) -> str:
    """The sentence with which export refuses a Teacher or Student; nothing is published."""
    from edgekd.export.model import export

    with pytest.raises(error) as caught:
        export(source, out)
    assert not list(out.glob("onnx-model-*"))
    return str(caught.value)


def stored(found: Artifact, name: str) -> dict[str, Tensor]:
    """Tensors of one of an artifact's safetensors files."""
    from safetensors.torch import load_file

    return load_file(found.file(f"{name}.safetensors"))
