from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgekd.artifact import Artifact
from edgekd.engine import ort
from edgekd.errors import ArtifactError, ConfigError, ToolchainError, install


def test_every_option_that_decides_an_answer_is_stated() -> None:
    assert ort.options(3) == {
        "intra_op_num_threads": 3,
        "inter_op_num_threads": 1,
        "execution_mode": "ORT_SEQUENTIAL",
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "disabled_optimizers": ["WeightBiasQuantization"],
        "providers": ["CPUExecutionProvider"],
    }


def test_a_session_answers_with_the_options_it_was_given(
    onnx_model: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    real = onnxruntime.InferenceSession

    def spy(*args: Any, **kwargs: Any) -> Any:
        used.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    session = ort.Session(onnx_model().file("ort.onnx"), ort.options(1))
    assert used[-1]["sess_options"].intra_op_num_threads == 1
    assert used[-1]["disabled_optimizers"] == ["WeightBiasQuantization"]
    assert session.dtypes == {"x": np.dtype("float32")}
    assert session({"x": np.zeros((3, 64), np.float32)})["logits"].shape == (3, 10)


def test_the_fingerprint_names_processor_threads_and_version() -> None:
    found = ort.fingerprint(ort.options(2))
    assert found["threads"] == 2
    assert found["onnxruntime"] == onnxruntime.__version__
    assert len(found["device"]) > 3


def test_without_onnxruntime_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *args)

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ToolchainError, match=re.escape(f"): {install('ort')}")):
        ort.fingerprint(ort.options(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spin": True}, "session option 'spin' is unknown: build the engine again. There are: "),
        ({"providers": None}, "session option 'providers' is missing"),
    ],
)
def test_a_session_json_that_was_edited(
    onnx_model: Callable[..., Artifact], change: dict[str, Any], words: str
) -> None:
    options = {k: v for k, v in {**ort.options(1), **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=words):
        ort.Session(onnx_model().file("ort.onnx"), options)


def test_a_file_onnxruntime_refuses(onnx_model: Callable[..., Artifact]) -> None:
    path = onnx_model().file("io.json")
    with pytest.raises(ArtifactError, match=r"io.json: ONNX Runtime .* cannot open it"):
        ort.Session(path, ort.options(1))
