"""What the emulator says of kernels that break their promises; a test that hangs says nothing."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from kernels.conftest import SOURCES

CASES = Path(__file__).with_name("wrong_kernels.cpp")
# In the order of `kKernels`.
FAULTS = {
    "right": "",
    "one warp at a block's barrier": "block (0, 0): deadlock, 32 of 64 threads wait for others",
    "one lane not at a warp's barrier": "block (0, 0): deadlock, 62 of 64 threads wait for others",
    "read before a barrier": "read of another thread's word without a barrier in between",
    "written after the warp read": "write to a word that others read without a barrier in between",
    "written after another warp read": "two threads write a word without a barrier in between",
    "lanes at different instructions": "the lanes of a warp are at different instructions",
    "never written": "read of shared memory that nobody wrote",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("emulator") / "libwrong.so"
    flags = ["-std=c++17", "-U_FORTIFY_SOURCE", "-w", "-DEDGEKD_EMULATOR", f"-I{SOURCES / 'src'}"]
    command = ["c++", *flags, "-shared", "-fPIC", "-o", str(made), str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_promise_is_told(library: ctypes.CDLL, name: str, seed: int) -> None:
    fault = ctypes.create_string_buffer(200)
    library.run(list(FAULTS).index(name), ctypes.c_uint64(seed), fault, ctypes.c_size_t(200))
    where = r"block \(0, 0\), thread \d+: " if "deadlock" not in FAULTS[name] else ""
    expected = where + re.escape(FAULTS[name]) if FAULTS[name] else "$"
    assert re.match(expected, fault.value.decode()), fault.value
