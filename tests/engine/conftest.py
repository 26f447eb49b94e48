"""A small OnnxModel with its Samples and Student, made as export makes them, without torch.

One INT8 linear of 64 x 64, a Relu, and a float head of 10 classes; dynamic batch 1 to 8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import artifact, kinds, quant, sparse24
from edgekd.artifact import Artifact, Question, Work

Models = Callable[..., Artifact]
EXPORT = {"opset": 17, "batch_min": 1, "batch_opt": 4, "batch_max": 8}
ROWS = 20  # not a multiple of batch_max
LABELS = [f"digit {number}" for number in range(10)]


@pytest.fixture
def onnx_model(tmp_path: Path) -> Models:
    """A function that makes an OnnxModel in ``tmp_path / "out"``; see `make_model`."""
    return lambda **options: make_model(tmp_path / "out", **options)


def make_model(
    out: Path,
    arm: str = "sparse",
    head_int8: bool = False,
    labels: npt.NDArray[np.int64] | None = None,
    arrays: dict[str, Any] | None = None,
    graph: Callable[[onnx.ModelProto], None] = lambda _: None,
    plan: Callable[[list[dict[str, Any]]], None] = lambda _: None,
    attention_blocks: int = 0,
    attention_unfused: Sequence[str] = (),
) -> Artifact:
    """Make an OnnxModel and its parents.

    Args:
        out: Directory of artifacts.
        arm: ``fp16``, ``dense`` or ``sparse``.
        head_int8: Plan the float head for INT8 too: a plan the graph breaks.
        labels: Labels of the Samples; default: what the teacher answers.
        arrays: Replaces arrays of the Samples.
        graph: Alters both graphs.
        plan: Alters the rows of the layer plan.
        attention_blocks: What export counted; the graph has none.
        attention_unfused: Why further blocks cannot be fused, as export says it.
    """
    random = np.random.default_rng(7)
    weights = {
        "fc": random.normal(0, 0.2, (64, 64)).astype(np.float32),
        "head": random.normal(0, 0.3, (10, 64)).astype(np.float32),
    }
    scale = np.full(64, 2.0**-7, np.float32)
    if arm == "sparse":
        weights["fc"] = np.where(sparse24.mask(weights["fc"]), weights["fc"], 0)
    if arm != "fp16":
        weights["fc"] = quant.snap(weights["fc"], scale, axis=0)
    x = random.uniform(-1, 1, (ROWS, 64)).astype(np.float32)
    logits = np.maximum(x @ weights["fc"].T, 0) @ weights["head"].T
    samples = {
        "input.x": x,
        "labels": logits.argmax(axis=1) if labels is None else labels,
        "ids": np.arange(ROWS),
        "teacher.logits": logits.astype(np.float32),
        "student.logits": (logits + random.normal(0, 0.05, logits.shape)).astype(np.float32),
        **(arrays or {}),
    }
    graphs = {}
    for name, kind in (("trt.onnx", np.float16), ("ort.onnx", np.float32)):
        graphs[name] = _graph(weights, scale, np.dtype(kind), quantized=arm != "fp16")
        graph(graphs[name])
    rows = _layers(arm, head_int8)
    plan(rows)
    counted = {
        "attention_blocks": attention_blocks,
        "attention_unfused": list(attention_unfused),
        "loose_products": 0,
    }
    return _publish(out, arm, samples, graphs, rows, counted)


def _graph(
    weights: dict[str, Any], scale: npt.NDArray[np.float32], dtype: np.dtype[Any], quantized: bool
) -> onnx.ModelProto:
    """x -> Q/DQ -> MatMul with a float weight behind Q/DQ and Transpose -> Relu -> MatMul."""
    constants = {
        "fc.weight": weights["fc"].astype(dtype),
        "head.weight": weights["head"].T.astype(dtype),
        "x_scale": np.asarray(2.0**-7, dtype),
        "w_scale": scale.astype(dtype),
        "x_zero": np.zeros((), np.int8),
        "w_zero": np.zeros(64, np.int8),
    }
    nodes = []
    for tensor, axis in (("x", {}), ("fc.weight", {"axis": 0})) if quantized else ():
        names = [f"{tensor[0]}_scale", f"{tensor[0]}_zero"]
        names = [name.replace("f_", "w_") for name in names]
        nodes += [
            helper.make_node("QuantizeLinear", [tensor, *names], [f"{tensor}.q"], **axis),
            helper.make_node("DequantizeLinear", [f"{tensor}.q", *names], [f"{tensor}.dq"], **axis),
        ]
    end = ".dq" if quantized else ""
    nodes += [
        helper.make_node("Transpose", [f"fc.weight{end}"], ["fc.t"], perm=[1, 0]),
        helper.make_node("MatMul", [f"x{end}", "fc.t"], ["h"], "/fc/MatMul"),
        helper.make_node("Relu", ["h"], ["r"], "/relu/Relu"),
        helper.make_node("MatMul", ["r", "head.weight"], ["logits"], "/head/MatMul"),
    ]
    element = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    if not quantized:
        constants = {name: constants[name] for name in ("fc.weight", "head.weight")}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", element, ["batch", 64])],
            [helper.make_tensor_value_info("logits", element, ["batch", 10])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )


def _layers(arm: str, head_int8: bool) -> list[dict[str, Any]]:
    def row(layer: str, n: int, int8: bool, sparse: bool) -> dict[str, Any]:
        return {
            "layer": layer,
            "type": "Linear",
            "n": n,
            "k": 64,
            "macs": n * 64,
            "int8": int8,
            "int8_reason": "" if int8 else "stays in float",
            "sparse": sparse,
            "sparse_reason": "" if sparse else "stays dense",
            "node": f"/{layer}/MatMul",
        }

    return [row("fc", 64, arm != "fp16", arm == "sparse"), row("head", 10, head_int8, False)]


def _publish(
    out: Path,
    arm: str,
    samples: dict[str, Any],
    graphs: dict[str, onnx.ModelProto],
    layers: list[dict[str, Any]],
    counted: dict[str, Any],
) -> Artifact:
    io = json.dumps(
        {
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
            "labels": LABELS,
            "preprocess": {"kind": "none"},
        }
    )

    def write_student(work: Work) -> dict[str, Any]:
        for name in kinds.STUDENT.files:
            (work.scratch / name).write_text("stands for training", encoding="utf-8")
        return {}

    def write_samples(work: Work) -> dict[str, Any]:
        np.savez(work.scratch / "samples.npz", **samples)
        (work.scratch / "io.json").write_text(io, encoding="utf-8")
        return {}

    def write_model(work: Work) -> dict[str, Any]:
        for name, model in graphs.items():
            onnx.save(model, work.scratch / name)
        (work.scratch / "io.json").write_text(io, encoding="utf-8")
        (work.scratch / "layers.json").write_text(json.dumps(layers), encoding="utf-8")
        session = onnxruntime.InferenceSession(
            work.scratch / "ort.onnx", providers=["CPUExecutionProvider"]
        )
        (logits,) = session.run(["logits"], {"x": samples["input.x"]})
        np.savez(work.scratch / "outputs.npz", logits=logits)
        return {**counted, "quantized": arm != "fp16"}

    # What differs between two models of one test must be a part of the question, as in the stages.
    answer = [
        samples["labels"].tolist(),
        [g.SerializeToString().hex()[:4000] for g in graphs.values()],
    ]
    student = artifact.make(
        out,
        Question(kinds.STUDENT, {"recipe": {"name": "tiny", "seed": 3}, "arm": arm}),
        write_student,
    )
    made_samples = artifact.make(
        out,
        Question(kinds.SAMPLES, {"arm": arm, "answer": answer}, {"source": student}),
        write_samples,
    )
    config = {"export": EXPORT, "arm": arm, "answer": [answer, layers, counted]}
    parents = {"source": student, "samples": made_samples}
    return artifact.make(out, Question(kinds.ONNX_MODEL, config, parents), write_model)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index is asked for wheels: a Bundle without them is made as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
