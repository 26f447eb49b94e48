"""``launch.cu`` itself, with a few lines of C++ in place of CUDA's runtime, which wants a GPU.

What is shown is what it asks the runtime for, and that an error is said once: not again by the next
launch, nor where it was somebody else's.
"""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.engine.native import Kernels
from edgekd.errors import ToolchainError, UnsupportedError
from edgekd.sparse_gemm import Output
from kernels.conftest import NAMES, Runtime

# Nothing reads them; each operand has its own.
ADDRESSES = {name: 4096 * i for i, name in enumerate(("x", "weights", "y", "scale", "bias"), 1)}
EXTRA = 65536
KIB = 1024


def start(
    launcher: Kernels, tile: str | None, sizes: tuple[int, int, int] = (197, 768, 128), **more: Any
) -> None:
    more = {"output": "s32", "extra": EXTRA, "tile": tile, "stream": 77, **more}
    launcher.gemm(sizes=sizes, **ADDRESSES, **more)


def test_a_launch_is_all_that_the_tile_says(launcher: Kernels, runtime: Runtime) -> None:
    start(launcher, "large_256x128", output="f16")
    asked = {name: getattr(runtime, name) for name in NAMES}
    kernel = asked["kernel"]
    assert kernel != 0
    assert asked == {
        "device": 0, "multiprocessors": 108, "last": 0, "device_fails": 0, "attribute_fails": 0,
        "launch_fails": 0, "launches": 1, "launched_on": 0, "kernel": kernel, "grid_x": 3,
        "grid_y": 2, "grid_z": 1, "threads": 256, "threads_y": 1, "threads_z": 1,
        "shared_bytes": 73728, "stream": 77, "attribute_bytes": 73728, "attribute_kernel": kernel,
        "x": 4096, "weights": 8192, "y": 12288, "scale": 16384, "bias": 20480, "extra": 65536,
        "m": 197, "n": 768, "k": 128,
    }  # fmt: skip


def test_every_kernel_is_launched_as_the_table_says(
    launcher: Kernels, runtime: Runtime, table: dict[str, Any]
) -> None:
    launched = set()
    for name, launch in table["kernels"].items():
        runtime.attribute_bytes = runtime.attribute_kernel = 0
        start(launcher, launch["tile"], output=launch["output"], sparse=launch["kind"] == "sparse")
        kernel, shared = runtime.kernel, launch["dynamic_shared_bytes"]
        found = (runtime.grid_x, runtime.grid_y, runtime.threads, runtime.shared_bytes)
        rows = -(-197 // launch["tokens"])
        wanted = (768 // launch["features"], rows, launch["block_threads"], shared)
        assert found == wanted, name
        assert runtime.grid_x != runtime.grid_y, "exchanged, they would look the same"
        launched.add(kernel)
        # More than 48 KiB have to be asked for: CUDA's guide, shared memory of sm_80 and later.
        asked = (runtime.attribute_bytes, runtime.attribute_kernel)
        assert asked == ((shared, kernel) if shared > 48 * KIB else (0, 0)), name
    assert len(launched) == runtime.launches == len(table["kernels"]) == 64


@pytest.mark.parametrize("output", ["s32", "f16"])
def test_an_operand_that_is_not_given_is_null(
    launcher: Kernels, runtime: Runtime, output: Output
) -> None:
    given = {"x": 4096, "weights": 8192, "y": 12288}
    floats = {"scale": 16, "bias": 32} if output == "f16" else {}
    launcher.gemm(output, (8, 64, 64), **given, **floats)
    found = [getattr(runtime, name) for name in ("x", "weights", "y", "scale", "bias", "extra")]
    assert found == [4096, 8192, 12288, *(floats.values() or (0, 0)), 0]
    assert runtime.stream == 0


def test_the_table_is_asked_for_the_current_devices_multiprocessors(
    launcher: Kernels, runtime: Runtime
) -> None:
    sizes, chosen = (197, 192, 768), {}
    runtime.device = 3
    for multiprocessors in (8, 108):
        runtime.multiprocessors = multiprocessors
        start(launcher, None, sizes)
        choice = launcher.choose(sizes, multiprocessors)
        assert choice is not None
        chosen[choice[0]] = runtime.kernel
    assert len(chosen) == 2
    for tile, kernel in chosen.items():
        start(launcher, tile, sizes)
        assert runtime.kernel == kernel, tile


def test_a_grid_has_at_most_65535_rows_of_blocks(launcher: Kernels, runtime: Runtime) -> None:
    start(launcher, "small_t8", (65535 * 8, 64, 64))
    assert (runtime.grid_x, runtime.grid_y, runtime.m) == (1, 65535, 524280)
    with pytest.raises(UnsupportedError, match="m is 524281, expected at most 524280 with tile"):
        start(launcher, "small_t8", (65535 * 8 + 1, 64, 64))


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
