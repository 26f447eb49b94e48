"""A small but whole recipe: real digits, two blocks at real width, a handful of steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
name = "tiny"
threads = 1
[teacher]
model = "hf:config.json"
[teacher.fit]
steps = {fit}
[data]
source = "python:edgekd.recipes.digits:load"
samples = 64
[quantization]
calibration_samples = 64
[distill]
steps = {steps}
"""
CONFIG = """{"architectures": ["ViTForImageClassification"], "model_type": "vit", "image_size": 8,
"patch_size": 2, "num_channels": 1, "hidden_size": 64, "num_hidden_layers": 2,
"num_attention_heads": 2, "intermediate_size": 128, "hidden_dropout_prob": 0.1, "num_labels": 10}"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


def write_recipe(directory: Path, fit: int = 30, steps: int = 10) -> Path:
    """Write the tiny recipe and its model configuration into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(CONFIG)
    path = directory / "tiny.toml"
    path.write_text(RECIPE.format(fit=fit, steps=steps))
    return path


def command(*args: object, before: str = "") -> list[str]:
    """The command line a user types, for this interpreter; `before` is code to run first."""
    code = f"{before}\nfrom edgekd.cli import main; main()"
    return [sys.executable, "-c", code, *map(str, args)]


def edgekd(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run edgekd as a user does and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*args), capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """One run of the whole chain: recipe, artifact directory, what stdout and stderr said."""
    root = tmp_path_factory.mktemp("chain")
    path = write_recipe(root / "recipe")
    out = root / "out"
    done = edgekd(
        "run", path, "--target", "cpu", "--target", "a100-sxm4-80gb-trt11.4",
        "--target", "jetson-agx-orin-64gb-jp6.2", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out / 'report.html'}\n"
    return path, out, done.stderr
