"""`EngineRunner` on the stub libcudart, with a stand-in for TensorRT.

This shows the order of its calls and what it does with its buffers, and nothing about TensorRT or
CUDA: no GPU was at hand to run an engine on.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.engine import cuda
from edgekd.engine.runner import EngineRunner
from edgekd.errors import ConfigError, ToolchainError

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import cudart


@pytest.fixture(scope="module")
def stub_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cudart.compile_stub(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def stub(stub_path: Path) -> Any:
    return cudart.with_one_device(stub_path)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", cudart.tensorrt())


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
    monkeypatch.setattr(cudart.Engine, "execute_async_v3", lambda *_: False)
    runner = EngineRunner(b"plan", "tensorrt", cuda.load(stub_path))
    with contextlib.closing(runner), pytest.raises(ToolchainError, match="could not run the eng"):
        runner({"x": np.zeros((1, 4), np.float32)})


@pytest.mark.usefixtures("stub", "tensorrt")
def test_runner_says_that_the_plan_cannot_be_opened(stub_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"tensorrt 10\.3\.0 cannot open the plan"):
        EngineRunner(b"another plan", "tensorrt", cuda.load(stub_path))
