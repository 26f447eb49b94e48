"""The emulator's library, compiled once for a test session."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgekd.engine.native import Kernels

# bench/kernels/mutants.py gives sources with a seeded fault.
SOURCES = Path(os.environ.get("EDGEKD_KERNELS", Path(__file__).parents[2] / "kernels"))


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return compile_emulator(SOURCES, tmp_path_factory.mktemp("kernels"))


def compile_emulator(sources: Path, out: Path, *options: str) -> Kernels:
    command = ["make", "-s", "-C", str(sources), "emulator", f"OUT={out}", *options]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return Kernels(out / "libedgekd_emulator.so")
