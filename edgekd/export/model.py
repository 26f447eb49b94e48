"""The export stage: Teacher or Student in, OnnxModel out, with the Samples it was proven on.

Everything it claims is checked on the files that ship: legal graphs, integer weights exactly 2:4
along k, zero points 0, equal integers and scales in both graphs, and ONNX Runtime against the
student. The Samples are written first, so a graph names the samples it was proven on as a parent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.torch import load_file
from torch import nn

from edgekd import artifact, data, kinds, models, progress, qdq, structure
from edgekd.artifact import Artifact, Question, Work, file_hash, source_hash, versions
from edgekd.data import IO, Arrays
from edgekd.eligible import LayerPlan, plan, share_of_macs
from edgekd.errors import ContractError
from edgekd.export import parity, qdq_form
from edgekd.export.attention import count_attention
from edgekd.export.to_onnx import convert_float16, export_float32
from edgekd.recipe import Export

TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "nvidia-modelopt", "numpy")
SOURCES = ("edgekd.export", "edgekd.models", "edgekd.structure", "edgekd.data", "edgekd.qdq",
           "edgekd.quant", "edgekd.sparse24")  # fmt: skip


def export(source: Artifact, out: Path, settings: Export | None = None) -> Artifact:
    """Export a Student (INT8, Q/DQ) or a Teacher (float) as an OnnxModel.

    Args:
        source: The Teacher or Student.
        out: Directory of artifacts.
        settings: Opset and batch sizes, a recipe's ``[export]``; default: that section's defaults.

    Raises:
        ContractError: A file that would ship breaks a promise (2:4, integers, parity).
        ToolchainError: The network cannot be traced.
    """
    settings = settings or Export()
    samples = _samples(source, out)
    arm = source.config.get("arm", "fp16")
    question = Question(
        kinds.ONNX_MODEL,
        config={"arm": arm, "name": source.config["name"], "export": settings.model_dump()},
        parents={"source": source, "samples": samples},
        sources={"edgekd": source_hash(*SOURCES), **_user_model(source)},
        tools=versions(*TOOLS),
    )
    return artifact.make(out, question, lambda work: _write(source, samples, settings, work))


def _samples(source: Artifact, out: Path) -> Artifact:
    """The Samples of a Teacher or Student, as an artifact of their own."""
    question = Question(
        kinds.SAMPLES,
        config={"name": source.config["name"]},
        parents={"source": source},
    )

    def write(work: Work) -> Mapping[str, Any]:
        for name in kinds.SAMPLES.files:
            (work.scratch / name).write_bytes(source.file(name).read_bytes())
        return {"samples": source.results["samples"]}

    return artifact.make(out, question, write)


def _user_model(source: Artifact) -> dict[str, str]:
    module = data.python_module(source.read_json("model.json")["spec"])
    return {} if module is None else {module: source_hash(module)}


def _write(source: Artifact, samples: Artifact, settings: Export, work: Work) -> Mapping[str, Any]:
    io = IO.model_validate(source.read_json("io.json"))
    with np.load(samples.file("samples.npz"), allow_pickle=False) as arrays:
        inputs = data.inputs_of(arrays)
        recorded = data.recorded(arrays, "teacher" if source.kind == "Teacher" else "student")
    model = models.build(source.read_json("model.json"))
    models.load_weights(model, source.file("model.safetensors"))
    model.eval()
    example = models.tensors(
        {n: a[:2].repeat(2 // min(2, len(a)), 0) for n, a in inputs.items()}, model
    )
    rows = _rows(source, model, example, io)
    if any(row.int8 for row in rows):
        qdq_form.attach(model, rows, load_file(source.file("quantizers.safetensors")))
    _same_as_recorded(model, inputs, recorded, io, source)

    path, half = work.scratch / "ort.onnx", work.scratch / "trt.onnx"
    export_float32(model, example, io, settings.opset, path)
    convert_float16(path, half)
    rows = _prove(path, half, rows)
    measured = parity.measure(model, path, half, inputs, io)

    np.savez(work.scratch / "outputs.npz", **measured["outputs"])
    layers = [row.as_json() for row in rows]
    (work.scratch / "layers.json").write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    (work.scratch / "io.json").write_text(io.model_dump_json(indent=1) + "\n", encoding="utf-8")
    results = {
        "quantized": any(row.int8 for row in rows),
        "sparse": any(row.sparse for row in rows),
        "attention_blocks": count_attention(ir.load(path)),
        "layers": len(rows),
        "layers_int8": sum(row.int8 for row in rows),
        "layers_sparse": sum(row.sparse for row in rows),
        "macs_share_int8": share_of_macs(rows, "int8"),
        "macs_share_sparse": share_of_macs(rows, "sparse"),
        "parity": measured["parity"],
        "graph_sha256": {p.name: file_hash(p) for p in (path, half)},
    }
    _tell(results)
    return results


def _rows(
    source: Artifact, model: nn.Module, example: models.Tensors, io: IO
) -> Sequence[LayerPlan]:
    """The Student's plan; for a Teacher every layer with the reason that nothing is planned."""
    if source.kind == kinds.STUDENT.name:
        return [LayerPlan(**row) for row in source.read_json("layers.json")]
    return plan(structure.layers(model, example, io), None, None)


def _same_as_recorded(
    model: nn.Module, inputs: Arrays, recorded: Arrays, io: IO, source: Artifact
) -> None:
    """The rebuilt network, in its shipped form, answers as the trained one did."""
    for name, answer in models.run(model, inputs, io).items():
        gap = float(np.abs(answer - recorded[name]).max())
        size = float(np.abs(recorded[name]).max())
        if gap > 1e-3 * size + 1e-6:
            raise ContractError(
                f"export: rebuilt from {source.path}, the network answers {name!r} up to {gap:.3g} "
                f"away from what it answered when it was trained (largest answer {size:.3g})"
            )


def _prove(path: Path, half: Path, rows: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Prove both files and note each layer's node in them."""
    full = qdq.quantized_weights(qdq.load(path))
    twin = qdq.quantized_weights(qdq.load(half))
    int8 = [row.layer for row in rows if row.int8]
    sparse = [row.layer for row in rows if row.sparse and row.int8]
    for weights in (full, twin):
        qdq.prove(weights, int8, sparse)
    qdq.same_integers(full, twin)
    nodes = {weight.layer: weight.node for weight in twin}
    return [replace(row, node=nodes.get(row.layer, "")) for row in rows]


def _tell(results: Mapping[str, Any]) -> None:
    found = results["parity"]
    line = f"onnx: {results['layers_int8']} of {results['layers']} layers INT8"
    if results["sparse"]:
        line += f", {results['layers_sparse']} exactly 2:4 in both files"
    if found["integers_compared"]:
        line += (
            f"; against the student {found['integers_differ']:.3%} of integers differ "
            f"(largest step {found['integers_largest_step']})"
        )
    progress.say(f"{line}, outputs by {found['relative']:.2g} of their size")
