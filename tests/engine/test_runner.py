"""`EngineRunner` on the stub libcudart, with a stand-in for TensorRT.

This shows the order of its calls and what it does with its buffers, and nothing about TensorRT or
CUDA: no GPU was at hand to run an engine on.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.engine import cuda
from edgekd.engine.runner import EngineRunner
from edgekd.errors import ConfigError, ToolchainError

STUB = Path(__file__).with_name("stub_cudart.c")


@pytest.fixture(scope="module")
def stub_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(STUB)], check=True)
    return library


@pytest.fixture
def stub(stub_path: Path) -> Any:
    """The stub's own functions."""
    library = ctypes.CDLL(str(stub_path))
    library.stub_devices(1)
    return library


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


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.SimpleNamespace(
        __name__="tensorrt",
        __version__="10.3.0",
        ILogger=object,
        TensorIOMode=types.SimpleNamespace(INPUT="in"),
        nptype=lambda dtype: dtype,
        Runtime=lambda _: types.SimpleNamespace(
            deserialize_cuda_engine=lambda plan: Engine() if plan == b"plan" else None
        ),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)


@pytest.mark.usefixtures("stub", "tensorrt")
def test_runner_sends_runs_and_receives(stub: Any, stub_path: Path) -> None:
    before = stub.stub_live()
    runner = EngineRunner(b"plan", "tensorrt", cuda.load(stub_path))
    with contextlib.closing(runner):
        for batch in (2, 8, 1):  # a larger batch grows the buffers, a smaller one reuses them
            x = np.random.default_rng(batch).standard_normal((4, batch)).astype(np.float32).T
            assert x.flags.c_contiguous is (batch == 1)
            result = runner({"x": x})
            assert list(result) == ["y"]
            np.testing.assert_array_equal(result["y"], 2 * x)
    assert stub.stub_live() == before


@pytest.mark.usefixtures("stub", "tensorrt")
@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("z", np.zeros((1, 4), np.float32), r"given inputs \['z'\], expected \['x'\]"),
        ("x", np.zeros((1, 4), np.float64), "has dtype float64, expected float32"),
        ("x", np.zeros((9, 4), np.float32), r"\(9, 4\), expected one from \(1, 4\) to \(8, 4\)"),
    ],
)
def test_runner_refuses_what_the_engine_does_not_take(
    stub_path: Path, name: str, array: np.ndarray[Any, Any], words: str
) -> None:
    runner = EngineRunner(b"plan", "tensorrt", cuda.load(stub_path))
    with contextlib.closing(runner), pytest.raises(ConfigError, match=words):
        runner({name: array})


@pytest.mark.usefixtures("stub", "tensorrt")
def test_runner_says_that_there_is_no_device(stub: Any, stub_path: Path) -> None:
    stub.stub_devices(0)
    with pytest.raises(ToolchainError, match="0 CUDA devices found, expected at least 1"):
        EngineRunner(b"plan", "tensorrt", cuda.load(stub_path))


@pytest.mark.usefixtures("stub", "tensorrt")
def test_runner_says_that_the_engine_failed(
    stub_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "execute_async_v3", lambda *_: False)
    runner = EngineRunner(b"plan", "tensorrt", cuda.load(stub_path))
    with contextlib.closing(runner), pytest.raises(ToolchainError, match="could not run the eng"):
        runner({"x": np.zeros((1, 4), np.float32)})


@pytest.mark.usefixtures("stub", "tensorrt")
def test_runner_says_that_the_plan_cannot_be_opened(stub_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"tensorrt 10\.3\.0 cannot open the plan"):
        EngineRunner(b"another plan", "tensorrt", cuda.load(stub_path))
