"""Where training runs, and what makes it repeatable there.

On a CPU at a fixed number of threads a run is deterministic to the bit; on a GPU it may not be, and
then the manifest says so, and which GPU it was: a run that a kill cut is not resumed on another
model's, whose sums round otherwise.

Float32 stays float32. torch lets cuDNN round a convolution's inputs to the 10 bits of TF32 on an
Ampere GPU or later unless it is told not to; then a folded norm would not answer as before to 1e-5,
and INT8 convolutions would train on other numbers than ship.
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
    import torch

    device = name()
    found = {"device": device, "threads": threads(recipe), "deterministic": device == "cpu"}
    return found if device == "cpu" else {**found, "gpu": torch.cuda.get_device_name()}


def float32() -> None:
    """Compute float32 in float32 from here on, in the whole process: no TF32, whoever asked."""
    import torch

    # The general ones first: where a single one says nothing, it follows these.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.fp32_precision = "ieee"
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")  # torch.backends.cuda.matmul.allow_tf32 too


def prepare(recipe: Recipe) -> None:
    """Seed torch and fix what can be fixed; call before the first random number."""
    import torch

    float32()
    torch.set_num_threads(threads(recipe))
    torch.manual_seed(recipe.seed)
    if name() == "cpu":
        torch.use_deterministic_algorithms(True)
