"""Recipes of a few steps: the shortest way to run a stage for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekd import recipe
from edgekd.artifact import Artifact
from edgekd.errors import EdgekdError
from edgekd.recipe import Recipe


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


def export_refused(source: Artifact, out: Path, error: type[EdgekdError]) -> str:
    """The sentence with which export refuses a Teacher or Student; nothing is published."""
    from edgekd.export.model import export

    with pytest.raises(error) as caught:
        export(source, out)
    assert not list(out.glob("onnx-model-*"))
    return str(caught.value)
