"""The stub libcudart of tests/engine, compiled, and a stand-in for TensorRT that works on it.

Together they show the order of calls and what is done with buffers, and nothing about a GPU.
"""

from __future__ import annotations

import ctypes
import subprocess
import types
from pathlib import Path
from typing import Any

import numpy as np

STUB = Path(__file__).parents[1] / "engine" / "stub_cudart.c"


def compile_stub(folder: Path) -> Path:
    """The stub as a library in a folder."""
    library = folder / "libcudart.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(STUB)], check=True)
    return library


def with_one_device(library: Path) -> Any:
    """The stub's own functions, which say how much of what it gave out is still held."""
    stub = ctypes.CDLL(str(library))
    stub.stub_devices(1)
    return stub


class Engine:
    """Stands in for an engine y = 2 x on [batch, 4] fp32, batch 1 to 8, and for its context."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_dtype(self, _: str) -> type:
        return np.float32

    def get_tensor_profile_shape(self, _: str, __: int) -> list[tuple[int, ...]]:
        return [(1, 4), (4, 4), (8, 4)]

    def create_execution_context(self) -> Engine:
        return self

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return len(shape) == 2 and 1 <= shape[0] <= 8 and shape[1] == 4

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        count = self.shape[0] * self.shape[1]
        x, y = ((ctypes.c_float * count).from_address(self.addresses[name]) for name in "xy")
        for index in range(count):
            y[index] = 2 * x[index]
        return stream != 0


def tensorrt() -> Any:
    """A module in TensorRT's place, which opens the plan ``b"plan"`` and no other."""
    return types.SimpleNamespace(
        __name__="tensorrt",
        __version__="10.3.0",
        ILogger=object,
        TensorIOMode=types.SimpleNamespace(INPUT="in"),
        nptype=lambda dtype: dtype,
        Runtime=lambda _: types.SimpleNamespace(
            deserialize_cuda_engine=lambda plan: Engine() if plan == b"plan" else None
        ),
    )
