"""Where training runs, and what makes it repeatable there.

On a CPU at a fixed number of threads a run is deterministic to the bit; on a GPU it may not be, and
then the manifest says so.
"""

from __future__ import annotations

import os
from typing import Any

from edgekd.recipe import Recipe


def name() -> str:
    """``cuda`` where torch can use one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def threads(recipe: Recipe) -> int:
    """CPU threads a recipe trains with: its own number, or every core this process may use."""
    return recipe.threads or len(os.sched_getaffinity(0))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The part of a question that depends on the machine."""
    device = name()
    return {"device": device, "threads": threads(recipe), "deterministic": device == "cpu"}


def prepare(recipe: Recipe) -> None:
    """Seed torch and fix what can be fixed; call before the first random number."""
    import torch

    torch.set_num_threads(threads(recipe))
    torch.manual_seed(recipe.seed)
    if name() == "cpu":
        torch.use_deterministic_algorithms(True)
