"""The small OnnxModel that tests/engine makes, for tests elsewhere that need one.

It is made with onnx, which the device side lacks, so it is imported when it is asked for.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact


def make_model(out: Path, **options: Any) -> Artifact:
    """An OnnxModel with its parents; `options` are those of `make_model` in tests/engine."""
    file = Path(__file__).parents[1] / "engine" / "conftest.py"
    spec = importlib.util.spec_from_file_location("graph_maker", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Artifact = module.make_model(out, **options)
    return made
