"""The device side, and every help text, work where no heavy library is installed.

import-linter (``make test`` runs it once) reads imports without running them, so it cannot tell
one inside a function from one at the top. Here modules are imported for real, with the libraries
blocked.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import edgekd

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "modelopt",
    "safetensors",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "sklearn",
    "matplotlib",
    "scipy",
    "jinja2",
    "rich",
    "PIL",
    "tokenizers",
    "datasets",
)
TRAIN_SIDE = {"distill", "export", "models", "structure", "recipes", "report", "sources",
              "noise", "interface", "processors", "plan", "init", "traffic", "weights",
              "unpack", "classes", "torch_ops"}  # fmt: skip
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOCK + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def device_modules() -> list[str]:
    """Every module but those that only a machine that trains needs."""
    found = pkgutil.walk_packages(edgekd.__path__, "edgekd.", onerror=lambda _: None)
    names = [module.name for module in found if module.name.split(".")[1] not in TRAIN_SIDE]
    return [*names, "edgekd.report.describe"]  # `inspect`, which a Bundle's commands begin with


def test_the_block_holds() -> None:
    for name in HEAVY:
        done = run_blocked(f"import {name}")
        assert f"No module named '{name}' (blocked)" in done.stderr


def test_device_side_imports_without_heavy_libraries() -> None:
    modules = device_modules()
    assert {"edgekd.cli", "edgekd.runner", "edgekd.evaluate", "edgekd.engine.trt"} <= set(modules)
    lines = "\n".join(f"import {name}" for name in modules)
    done = run_blocked(lines + "\nprint('imported')")
    assert done.stdout == "imported\n", done.stderr


def test_help_of_edgekd_and_of_every_verb_needs_no_heavy_library() -> None:
    done = run_blocked(
        "from edgekd.cli import main\n"
        "for words in [[], *([verb] for verb in main.commands)]:\n"
        "    try:\n"
        "        main([*words, '--help'], prog_name='edgekd')\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0, (words, ended.code)\n"
        "print(len(main.commands), 'verbs')\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
    verbs = int(done.stdout.splitlines()[-1].split()[0])
    assert done.stdout.count("Usage: ") == 1 + verbs
    assert verbs >= 2
