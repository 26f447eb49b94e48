"""The kernels' sources under the compiler's check for undefined behaviour.

What is no bug on this machine may be one where another compiler reads the same line: an overflow
of a signed index, a shift past a word, a misaligned load. In a process of its own, for a finding
ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kernels.conftest import SOURCES, compile_emulator

RUN = """
import ctypes, sys
from pathlib import Path

import numpy as np

from edgekd import sparse_gemm
from edgekd.engine.native import Kernels
from kernels import gemms

kernels = Kernels(Path(sys.argv[1]))
for tile in kernels.tiles:
    for output in sparse_gemm.OUTPUTS:
        for sparse in (True, False):
            gemm = gemms.random(11, 256, 128, output, sparse)
            assert (gemm.run(kernels, tile) == gemm.expected()).all()
edges = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 0.0, -0.0], np.float32)
q, address = np.zeros(len(edges), np.int8), ctypes.c_void_p(edges.ctypes.data)
for scale in (1e-45, 1e-30, 1.0, 3e38):
    kernels.library.edgekd_emulator_quantize(
        address, ctypes.c_float(scale), ctypes.c_int64(len(edges)), ctypes.c_void_p(q.ctypes.data)
    )
kernels.library.edgekd_emulator_gelu(address, ctypes.c_int64(len(edges)), address)
for m in (1, 2**25 - 1):
    for multiprocessors in (1, 2**31 - 1):
        assert kernels.choose((m, 64, 64), multiprocessors) is not None
print("ran to its end")
"""


def test_nothing_is_undefined(tmp_path: Path) -> None:
    compile_emulator(SOURCES, tmp_path, "SANITIZE=-fsanitize=undefined -fno-sanitize-recover=all")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "libedgekd_emulator.so")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran to its end\n", "")
