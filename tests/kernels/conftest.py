"""What is compiled once for a test session: the emulator, the table of kernels, and ``launch.cu``.

The last has a few lines of C++ in place of CUDA's runtime, which wants a GPU.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.engine.native import Kernels

# bench/kernels/mutants.py gives sources with a seeded fault.
SOURCES = Path(os.environ.get("EDGEKD_KERNELS", Path(__file__).parents[2] / "kernels"))
STAND_IN = Path(__file__).with_name("stand_in")
NAMES = (
    "device", "multiprocessors", "last", "device_fails", "attribute_fails", "launch_fails",
    "launches", "launched_on", "kernel", "grid_x", "grid_y", "grid_z", "threads", "threads_y",
    "threads_z", "shared_bytes", "stream", "attribute_bytes", "attribute_kernel",
    "x", "weights", "scale", "bias", "extra", "m", "n", "k", "y",
)  # fmt: skip


class Runtime(ctypes.Structure):
    """``Runtime`` of the stand-in's header, field by field: what ``launch.cu`` asked of it."""

    _fields_ = tuple((name, ctypes.c_int64) for name in NAMES)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return compile_emulator(SOURCES, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``instances.json``: how each kernel is launched."""
    out = tmp_path_factory.mktemp("instances")
    compiled("make", "-s", "-C", str(SOURCES), "instances", f"OUT={out}")
    found: dict[str, Any] = json.loads((out / "instances.json").read_text())
    return found


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """``launch.cu`` on the stand-in."""
    made = tmp_path_factory.mktemp("launch") / "liblaunch.so"
    folders = [f"-I{each}" for each in (STAND_IN, SOURCES / "include", SOURCES / "src")]
    flags = ["-std=c++17", "-O0", "-w", "-U_FORTIFY_SOURCE", "-DEDGEKD_EMULATOR", *folders]
    source = str(SOURCES / "src" / "launch.cu")
    compiled("c++", *flags, "-shared", "-fPIC", "-o", str(made), "-x", "c++", source)
    return Kernels(made)


@pytest.fixture
def runtime(launcher: Kernels) -> Iterator[Runtime]:
    launcher.library.stand_in.restype = ctypes.POINTER(Runtime)
    runtime: Runtime = launcher.library.stand_in().contents
    runtime.multiprocessors = 108
    yield runtime
    ctypes.memset(ctypes.addressof(runtime), 0, ctypes.sizeof(runtime))


def compile_emulator(sources: Path, out: Path, *options: str) -> Kernels:
    compiled("make", "-s", "-C", str(sources), "emulator", f"OUT={out}", *options)
    return Kernels(out / "libedgekd_emulator.so")


def compiled(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
