"""``launch.cu`` itself, with a few lines of C++ in place of CUDA's runtime, which wants a GPU.

What is shown is what it asks the runtime for, and that an error is said once: not again by the next
launch, nor where it was somebody else's.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.engine.native import Kernels
from edgekd.errors import ToolchainError
from kernels.conftest import SOURCES

STAND_IN = Path(__file__).with_name("stand_in")
ADDRESS = 4096  # of every operand: nothing reads it
NAMES = (
    "last", "device_fails", "attribute_fails", "launch_fails", "launches", "grid_x", "grid_y",
    "threads", "shared_bytes", "attribute_bytes", "stream", "m", "n", "k",
)  # fmt: skip


class Runtime(ctypes.Structure):
    """``Runtime`` of the stand-in's header, field by field."""

    _fields_ = tuple((name, ctypes.c_int64) for name in NAMES)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    made = tmp_path_factory.mktemp("launch") / "liblaunch.so"
    folders = [f"-I{each}" for each in (STAND_IN, SOURCES / "include", SOURCES / "src")]
    flags = ["-std=c++17", "-O0", "-w", "-U_FORTIFY_SOURCE", "-DEDGEKD_EMULATOR", *folders]
    source = str(SOURCES / "src" / "launch.cu")
    command = ["c++", *flags, "-shared", "-fPIC", "-o", str(made), "-x", "c++", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Kernels(made)


@pytest.fixture
def runtime(launcher: Kernels) -> Iterator[Runtime]:
    launcher.library.stand_in.restype = ctypes.POINTER(Runtime)
    runtime = launcher.library.stand_in().contents
    yield runtime
    ctypes.memset(ctypes.addressof(runtime), 0, ctypes.sizeof(runtime))


def start(launcher: Kernels, tile: str) -> None:
    launcher.gemm("s32", (197, 512, 128), ADDRESS, ADDRESS, ADDRESS, tile=tile, stream=77)


def test_a_launch_is_what_the_tile_says(launcher: Kernels, runtime: Runtime) -> None:
    start(launcher, "large_256x128")
    asked = {name: getattr(runtime, name) for name in NAMES}
    assert asked == {
        "last": 0, "device_fails": 0, "attribute_fails": 0, "launch_fails": 0, "launches": 1,
        "grid_x": 2, "grid_y": 2, "threads": 256, "shared_bytes": 73728, "attribute_bytes": 73728,
        "stream": 77, "m": 197, "n": 512, "k": 128,
    }  # fmt: skip


def test_few_tokens_ask_for_no_attribute(launcher: Kernels, runtime: Runtime) -> None:
    start(launcher, "small_t24")
    assert (runtime.shared_bytes, runtime.attribute_bytes) == (49152, 0)


@pytest.mark.parametrize(
    ("what", "error", "sentence"),
    [
        ("device_fails", 100, "no CUDA device: no device"),
        ("attribute_fails", 1, "sparse_large_128x128_s32: refused"),
        ("launch_fails", 701, "sparse_large_128x128_s32: refused"),
    ],
)
def test_an_error_is_said_once(
    launcher: Kernels, runtime: Runtime, what: str, error: int, sentence: str
) -> None:
    setattr(runtime, what, error)
    with pytest.raises(ToolchainError, match=f"^sparse_gemm_s8: {sentence}$"):
        start(launcher, "large_128x128")
    assert (runtime.last, runtime.launches) == (0, 0)
    setattr(runtime, what, 0)
    start(launcher, "large_128x128")
    assert runtime.launches == 1


def test_an_error_of_somebody_else_is_not_ours(launcher: Kernels, runtime: Runtime) -> None:
    runtime.last = 700
    start(launcher, "large_128x128")
    assert (runtime.last, runtime.launches) == (700, 1)
