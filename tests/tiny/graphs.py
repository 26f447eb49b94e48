"""The small OnnxModel that tests/engine makes, for tests elsewhere that need one.

It is made with onnx, which the device side lacks, so it is imported when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from tiny import programs


def make_model(out: Path, **options: Any) -> Artifact:
    """An OnnxModel with its parents; `options` are those of `make_model` in tests/engine."""
    made: Artifact = programs.load("tests/engine/conftest.py").make_model(out, **options)
    return made
