"""ONNX Runtime on the CPU: the session every stage opens, its options stated one by one.

An option left to its default is an option that changes with the next release, and with it the
answer and the latency. So the options that decide either are written into ``session.json`` of an
Engine, and a session is opened from that file alone.

``WeightBiasQuantization`` is disabled: it rounds the float bias of a quantized layer to an
integer, which is not the arithmetic the student was trained with (on fp16 graphs it cost a
relative error of 0.2). ONNX Runtime makes no use of 2:4, so dense and 2:4 weights are expected to
run equally fast.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgekd.data import Arrays
from edgekd.errors import ArtifactError, ConfigError, ToolchainError, install, names_that_exist

_NUMPY = {"float": "float32", "double": "float64"}  # the others have NumPy's own name


def options(threads: int | None = None) -> dict[str, Any]:
    """The session options edgekd uses, as stored in ``session.json``.

    Args:
        threads: Threads of one operator; default: the CPUs this process may use.
    """
    return {
        "intra_op_num_threads": threads or len(os.sched_getaffinity(0)),
        "inter_op_num_threads": 1,
        "execution_mode": "ORT_SEQUENTIAL",
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "disabled_optimizers": ["WeightBiasQuantization"],
        "providers": ["CPUExecutionProvider"],
    }


def fingerprint(session_options: dict[str, Any]) -> dict[str, Any]:
    """What decides a CPU engine's answers and speed: processor, threads, ONNX Runtime."""
    return {
        "device": _cpu_model(),
        "threads": session_options["intra_op_num_threads"],
        "onnxruntime": str(_load().__version__),
    }


class Session:
    """A graph opened with ONNX Runtime; runs one batch of any size."""

    def __init__(self, path: Path, session_options: dict[str, Any]) -> None:
        """Open a graph.

        Args:
            path: The ``.onnx`` file.
            session_options: As `options` returns them; every key must be there.

        Raises:
            ToolchainError: onnxruntime is not installed.
            ConfigError: An option is missing or unknown.
            ArtifactError: ONNX Runtime refuses the file.
        """
        ort = _load()
        _check(session_options)
        try:
            session = _open(ort, path, session_options)
            self.dtypes = {node.name: _dtype(node.type) for node in session.get_inputs()}
        except Exception as error:  # onnxruntime's own errors share no base but Exception
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"{path}: ONNX Runtime {ort.__version__} cannot open it ({reason}): export it again"
            ) from error
        self._session = session
        self.outputs = [node.name for node in session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one batch; inputs {name: array} of the graph's dtypes, outputs {name: array}."""
        return dict(zip(self.outputs, self._session.run(self.outputs, inputs), strict=True))


def _open(ort: ModuleType, path: Path, session_options: dict[str, Any]) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = session_options["intra_op_num_threads"]
    settings.inter_op_num_threads = session_options["inter_op_num_threads"]
    settings.execution_mode = ort.ExecutionMode.__members__[session_options["execution_mode"]]
    settings.graph_optimization_level = ort.GraphOptimizationLevel.__members__[
        session_options["graph_optimization_level"]
    ]
    settings.log_severity_level = 3  # errors; warnings about unused initializers help nobody
    return ort.InferenceSession(
        str(path),
        sess_options=settings,
        providers=session_options["providers"],
        disabled_optimizers=session_options["disabled_optimizers"],
    )


def _dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of ``tensor(float)`` and the like."""
    element = name[len("tensor(") : -1]
    return np.dtype(_NUMPY.get(element, element))


def _check(session_options: dict[str, Any]) -> None:
    known = options(1)
    wrong = sorted(set(session_options) ^ set(known))
    if wrong:
        state = "missing" if wrong[0] in known else "unknown"
        raise ConfigError(
            f"session option {wrong[0]!r} is {state}: build the engine again. "
            f"{names_that_exist(wrong[0], known)}"
        )


def _load() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise ToolchainError(
            f"onnxruntime cannot be imported ({error}): {install('ort')}"
        ) from error
    module: ModuleType = onnxruntime
    return module


def _cpu_model() -> str:
    """Name of the processor as Linux gives it, else its architecture (ARM gives no name)."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
