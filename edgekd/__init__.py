"""edgekd compiles a teacher network into a proven 2:4-sparse INT8 student for an edge device."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["prepare"]


def __getattr__(name: str) -> Any:
    """`edgekd.prepare`, imported when it is asked for: a device has no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'edgekd' has no attribute {name!r}")
    # Not an import statement: whatever imports edgekd would seem to need all of its training side.
    return importlib.import_module("edgekd.distill.prepare").prepare
