"""A small ctypes binding to the CUDA runtime, so that the device side needs no torch.

Only what running an engine takes: memory, copies, streams and events. Addresses and handles are
plain ints, as TensorRT's Python API wants them. Nothing is freed by a garbage collector: whoever
allocates frees. Every failed call raises with CUDA's own name for the code (CUDA Runtime API,
"Data types used by CUDA Runtime", cudaError).
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekd.errors import ToolchainError

_NO_DEVICE = 100  # cudaErrorNoDevice
_HOST_TO_DEVICE = 1  # cudaMemcpyHostToDevice
_DEVICE_TO_HOST = 2  # cudaMemcpyDeviceToHost

_POINTER = ctypes.c_void_p
_OUT_POINTER = ctypes.POINTER(ctypes.c_void_p)
_SIGNATURES: dict[str, list[Any]] = {
    "cudaGetDeviceCount": [ctypes.POINTER(ctypes.c_int)],
    "cudaMalloc": [_OUT_POINTER, ctypes.c_size_t],
    "cudaFree": [_POINTER],
    "cudaMemcpyAsync": [_POINTER, _POINTER, ctypes.c_size_t, ctypes.c_int, _POINTER],
    "cudaStreamCreate": [_OUT_POINTER],
    "cudaStreamSynchronize": [_POINTER],
    "cudaStreamDestroy": [_POINTER],
    "cudaEventCreate": [_OUT_POINTER],
    "cudaEventRecord": [_POINTER, _POINTER],
    "cudaEventSynchronize": [_POINTER],
    "cudaEventElapsedTime": [ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER],
    "cudaEventDestroy": [_POINTER],
}


def load(path: Path | None = None) -> Cuda:
    """Load libcudart.

    Args:
        path: The library; without it the dynamic loader's own, then the one pip installed.

    Raises:
        ToolchainError: There is none, or it lacks a function.
    """
    tried = []
    for candidate in [str(path)] if path else _candidates():
        try:
            return Cuda(ctypes.CDLL(candidate))
        except (OSError, AttributeError) as error:
            tried.append(f"{candidate} ({error})")
    raise ToolchainError(
        f"the CUDA runtime could not be loaded, tried {'; '.join(tried)}: install libcudart with "
        "the CUDA toolkit or JetPack, or pip install nvidia-cuda-runtime"
    )


def _candidates() -> Iterator[str]:
    yield from ("libcudart.so", "libcudart.so.13", "libcudart.so.12")
    wheels = importlib.util.find_spec("nvidia")
    for folder in (wheels.submodule_search_locations or ()) if wheels else ():
        yield from (str(found) for found in sorted(Path(folder).glob("*/lib/libcudart.so.*")))


class Cuda:
    """The CUDA runtime's calls, each raising `ToolchainError` where CUDA reports an error."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Declare the calls on a loaded libcudart; `AttributeError` where it lacks one."""
        self._library = library
        for name, argtypes in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = argtypes, ctypes.c_int
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_int], ctypes.c_char_p

    def device_count(self) -> int:
        """Number of CUDA devices; 0 where CUDA says there is none."""
        count = ctypes.c_int(0)
        code: int = self._library.cudaGetDeviceCount(ctypes.byref(count))
        if code == _NO_DEVICE:
            return 0
        self._check("cudaGetDeviceCount", code)
        return count.value

    def malloc(self, size_bytes: int) -> int:
        """Allocate device memory and return its address."""
        return self._create("cudaMalloc", size_bytes)

    def free(self, address: int) -> None:
        """Free what `malloc` returned."""
        self._call("cudaFree", address)

    def copy_to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Enqueue a copy of a C-contiguous array; it must live until the stream is synchronized."""
        self._copy(address, _host_address(array), array.nbytes, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Enqueue a copy into a C-contiguous array; filled once the stream is synchronized."""
        self._copy(_host_address(array), address, array.nbytes, _DEVICE_TO_HOST, stream)

    def stream_create(self) -> int:
        """Create a stream and return its handle."""
        return self._create("cudaStreamCreate")

    def stream_synchronize(self, stream: int) -> None:
        """Wait until all work enqueued on the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def stream_destroy(self, stream: int) -> None:
        """Destroy what `stream_create` returned."""
        self._call("cudaStreamDestroy", stream)

    def event_create(self) -> int:
        """Create an event that can time, and return its handle."""
        return self._create("cudaEventCreate")

    def event_record(self, event: int, stream: int) -> None:
        """Enqueue the event on the stream."""
        self._call("cudaEventRecord", event, stream)

    def event_synchronize(self, event: int) -> None:
        """Wait until the event has happened."""
        self._call("cudaEventSynchronize", event)

    def event_elapsed_ns(self, start: int, end: int) -> int:
        """Time between two events that have happened, in ns (CUDA resolves about 500 ns)."""
        elapsed_ms = ctypes.c_float(0.0)
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed_ms), start, end)
        return round(elapsed_ms.value * 1e6)

    def event_destroy(self, event: int) -> None:
        """Destroy what `event_create` returned."""
        self._call("cudaEventDestroy", event)

    def _copy(self, to: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", to, source, size_bytes, kind, stream)

    def _create(self, name: str, *arguments: int) -> int:
        created = ctypes.c_void_p()
        self._call(name, ctypes.byref(created), *arguments)
        return created.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code:
            error = self._library.cudaGetErrorName(code).decode()
            meaning = self._library.cudaGetErrorString(code).decode()
            raise ToolchainError(
                f"{name} failed with {error} ({code}, {meaning}), expected cudaSuccess (0): "
                "check the device and its driver with edgekd doctor"
            )


def _host_address(array: npt.NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("CUDA copies plain memory, the array must be C-contiguous")
    return int(array.ctypes.data)
