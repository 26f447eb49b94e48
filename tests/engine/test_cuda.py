"""The ctypes binding against a stub libcudart compiled here, over host memory.

This tests the binding only: argument types, pointers and error paths. It says nothing about CUDA.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.engine import cuda
from edgekd.errors import ToolchainError

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import cudart


@pytest.fixture(scope="module")
def stub_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cudart.compile_stub(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def stub(stub_path: Path) -> Any:
    return cudart.with_one_device(stub_path)


def test_a_round_trip_through_device_memory(stub: Any, stub_path: Path) -> None:
    runtime = cuda.load(stub_path)
    before = stub.stub_live()
    stream = runtime.stream_create()
    sent = np.arange(12, dtype=np.int8).reshape(3, 4)
    address = runtime.malloc(sent.nbytes)
    assert address > 2**32  # a whole 64-bit pointer came back
    runtime.copy_to_device(address, sent, stream)
    received = np.zeros_like(sent)
    runtime.copy_to_host(received, address, stream)
    runtime.stream_synchronize(stream)
    np.testing.assert_array_equal(received, sent)
    runtime.free(address)
    runtime.stream_destroy(stream)
    assert stub.stub_live() == before


def test_events_give_integer_nanoseconds(stub: Any, stub_path: Path) -> None:
    runtime = cuda.load(stub_path)
    before = stub.stub_live()
    stream, start, end = runtime.stream_create(), runtime.event_create(), runtime.event_create()
    runtime.event_record(start, stream)
    runtime.event_record(end, stream)
    runtime.event_synchronize(end)
    assert runtime.event_elapsed_ns(start, end) == 250_000
    runtime.event_destroy(start)
    runtime.event_destroy(end)
    runtime.stream_destroy(stream)
    assert stub.stub_live() == before


def test_errors_carry_cudas_own_name(stub_path: Path) -> None:
    runtime = cuda.load(stub_path)
    with pytest.raises(ToolchainError) as caught:
        runtime.malloc(1 << 41)  # which also shows that sizes are passed in 64 bits
    assert str(caught.value) == (
        "cudaMalloc failed with cudaErrorMemoryAllocation (2, out of memory), expected cudaSuccess "
        "(0): check the device and its driver with edgekd doctor"
    )
    with pytest.raises(ToolchainError, match="cudaEventRecord failed with cudaErrorInvalidResour"):
        runtime.event_record(runtime.event_create(), 0)


def test_device_count(stub: Any, stub_path: Path) -> None:
    runtime = cuda.load(stub_path)
    assert runtime.device_count() == 1
    stub.stub_devices(0)
    assert runtime.device_count() == 0  # cudaErrorNoDevice
    stub.stub_devices(-1)
    with pytest.raises(ToolchainError, match="cudaErrorInsufficientDriver \\(35"):
        runtime.device_count()


def test_an_array_that_is_not_plain_memory_is_refused(stub_path: Path) -> None:
    with pytest.raises(ValueError, match="C-contiguous"):
        cuda.load(stub_path).copy_to_device(1, np.zeros((4, 4))[:, ::2], 1)


def test_an_absent_library_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"could not be loaded, tried .*absent\.so.*JetPack"):
        cuda.load(tmp_path / "absent.so")


def test_a_library_that_pip_installed_is_tried_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    library.parent.mkdir(parents=True)
    library.touch()
    # Alone: another package of theirs that is installed here would hide this one.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    candidates = list(cuda._candidates())
    assert candidates[0] == "libcudart.so"
    assert str(library) in candidates[3:]


def test_a_library_that_is_no_cudart_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.c").write_text("int nothing;")
    library = tmp_path / "libempty.so"
    subprocess.run(["cc", "-shared", "-o", library, tmp_path / "empty.c"], check=True)
    with pytest.raises(ToolchainError, match=r"libempty\.so .*cudaGetDeviceCount"):
        cuda.load(library)
