"""``rates.cu`` itself on a stand-in for CUDA's runtime: what it counts, and that the best counts.

r, the ratio of its two numbers, is what every aim on a GPU is judged by.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels.conftest import SOURCES, compiled

HERE = Path(__file__).parent
MULTIPROCESSORS = 108
NULL, BAD_NAME, LAUNCH_FAILED = 1, 6, 7


class Runtime(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_double) for n in ("multiprocessors", "now", "launches", "open", "last")),
        ("fails_at", ctypes.c_double),
        *((name, ctypes.c_double * 32) for name in ("took", "blocks", "threads", "kernel")),
    ]

    multiprocessors: float
    launches: float
    open: float
    last: float
    fails_at: float
    took: ctypes.Array[ctypes.c_double]
    blocks: ctypes.Array[ctypes.c_double]
    threads: ctypes.Array[ctypes.c_double]
    kernel: ctypes.Array[ctypes.c_double]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("rates") / "librates.so"
    compiled(
        "c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-DEDGEKD_EMULATOR", "-Wno-unknown-pragmas",
        "-U_FORTIFY_SOURCE", f"-I{HERE / 'stand_in_of_events'}", f"-I{SOURCES / 'include'}",
        f"-I{SOURCES / 'src'}", str(HERE / "rates.cpp"), "-o", str(path),
    )  # fmt: skip
    found = ctypes.CDLL(str(path))
    found.stand_in.restype = ctypes.POINTER(Runtime)
    return found


@pytest.fixture
def runtime(library: ctypes.CDLL) -> Runtime:
    found: Runtime = library.stand_in().contents
    ctypes.memset(ctypes.addressof(found), 0, ctypes.sizeof(found))
    found.multiprocessors = MULTIPROCESSORS
    for launch in range(32):
        found.took[launch] = 9.0
    return found


@pytest.fixture
def rate(library: ctypes.CDLL) -> Callable[[int], tuple[int, float]]:
    def asked(kind: int) -> tuple[int, float]:
        value = ctypes.c_double(-1.0)
        return library.edgekd_raw_rate(kind, ctypes.byref(value)), value.value

    return asked


@pytest.mark.parametrize(("kind", "k"), [(0, 64), (1, 32)], ids=["sparse", "dense"])
def test_multiply_adds_a_second(
    rate: Callable[[int], tuple[int, float]], runtime: Runtime, kind: int, k: int
) -> None:
    # 3 sizes of block, 6 launches each, the first to warm up: the best is the 3rd with 8 warps.
    runtime.took[0] = runtime.took[6] = runtime.took[12] = 0.001
    runtime.took[8] = 2.0
    status, found = rate(kind)
    assert status == 0
    assert found == pytest.approx(16 * 8 * k * 8 * 4096 * MULTIPROCESSORS * 8 / 2e-3)
    assert list(runtime.threads)[:18] == [128.0] * 6 + [256.0] * 6 + [512.0] * 6
    assert list(runtime.blocks)[:18] == [float(MULTIPROCESSORS)] * 18
    assert (runtime.launches, runtime.open, len(set(runtime.kernel[:18]))) == (18, 0, 1)


@pytest.mark.parametrize("kind", [0, 1], ids=["sparse", "dense"])
def test_a_warp_multiplies_as_often_as_is_counted(library: ctypes.CDLL, kind: int) -> None:
    mmas = (ctypes.c_uint64 * 2)()
    assert library.multiplied(kind, mmas) == 0
    assert list(mmas) == [8 * 4096 * (kind == 0), 8 * 4096 * (kind == 1)]


def test_the_kinds_are_two_kernels(
    rate: Callable[[int], tuple[int, float]], runtime: Runtime
) -> None:
    first = []
    for kind in (0, 1):
        runtime.launches = 0
        rate(kind)
        first.append(runtime.kernel[0])
    assert first[0] != first[1]


def test_a_launch_that_fails_is_a_status_and_leaves_nothing(
    rate: Callable[[int], tuple[int, float]], runtime: Runtime
) -> None:
    runtime.fails_at = 8
    assert rate(0) == (LAUNCH_FAILED, 0.0)
    assert (runtime.launches, runtime.open, runtime.last) == (8, 0, 0)


def test_wrong_arguments_are_a_status(
    library: ctypes.CDLL, rate: Callable[[int], tuple[int, float]], runtime: Runtime
) -> None:
    assert library.edgekd_raw_rate(0, None) == NULL
    assert rate(7) == (BAD_NAME, 0.0)
    assert runtime.launches == 0
