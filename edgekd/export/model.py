"""The export stage: Teacher or Student in, OnnxModel out, with the Samples it was proven on.

Everything it claims is checked on the files that ship: legal graphs, integer weights exactly 2:4
along k, zero points 0, equal integers and scales in both graphs, and ONNX Runtime against the
student, layer by layer and end to end. The Samples are written first, so a graph names the samples
it was proven on as a parent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.torch import load_file
from torch import nn

from edgekd import artifact, data, io_json, kinds, models, progress, structure, traffic
from edgekd.artifact import (
    Artifact,
    Question,
    Work,
    file_hash,
    source_hash,
    user_hash,
    versions,
)
from edgekd.data import IO, Arrays
from edgekd.eligible import LayerPlan, refuse_below_int8, share_of_macs
from edgekd.errors import ContractError
from edgekd.export import parity, qdq_form, refusals, storage
from edgekd.export.attention import count_attention
from edgekd.export.proof import prove, structure_hash
from edgekd.export.to_onnx import Form, convert_float16, export_float32
from edgekd.recipe import Export
from edgekd.weights import load_weights

TOOLS = ("torch", "transformers", "timm", "onnx", "onnx-ir", "onnxruntime", "nvidia-modelopt",
         "numpy")  # fmt: skip
SOURCES = ("edgekd.export", "edgekd.models", "edgekd.classes", "edgekd.weights",
           "edgekd.unpack", "edgekd.structure", "edgekd.data", "edgekd.io_json", "edgekd.eligible",
           "edgekd.traffic", "edgekd.qdq", "edgekd.quant", "edgekd.sparse24")  # fmt: skip


def export(source: Artifact, out: Path, settings: Export | None = None) -> Artifact:
    """Export a Student (INT8, Q/DQ) or a Teacher (float) as an OnnxModel.

    Args:
        source: The Teacher or Student.
        out: Directory of artifacts.
        settings: A recipe's ``[export]``; default: that section's defaults. ``auto`` is decided by
            what an engine makes of the graphs, which only `edgekd.run` can see; here it means the
            choice that is safe without an engine: torchscript, weights in float.

    Raises:
        ConfigError: A symbol in the inputs' shapes has no sizes in the settings.
        ContractError: A file that would ship breaks a promise (2:4, integers, parity).
        ToolchainError: The network cannot be traced.
        UnsupportedError: Its weights have fewer bits than any target multiplies.
    """
    settings = resolved(settings or Export())
    refuse_below_int8(source)
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


def resolved(settings: Export) -> Export:
    """Settings without ``auto``: torchscript and float weights where nothing else is asked for."""
    exporter = "torchscript" if settings.exporter == "auto" else settings.exporter
    weights = "float" if settings.weights == "auto" else settings.weights
    return settings.model_copy(update={"exporter": exporter, "weights": weights})


def _samples(source: Artifact, out: Path) -> Artifact:
    """The Samples of a Teacher or Student, as an artifact of their own."""
    question = Question(
        kinds.SAMPLES,
        config={"name": source.config["name"]},
        parents={"source": source},
    )

    def write(work: Work) -> Mapping[str, Any]:
        shutil.copyfile(source.file("samples.npz"), work.scratch / "samples.npz")
        io_json.copy(source, work.scratch)
        return {"samples": source.results["samples"]}

    return artifact.make(out, question, write)


def _user_model(source: Artifact) -> dict[str, str]:
    module = data.python_module(source.read_json("model.json")["spec"])
    return {} if module is None else {module: user_hash(module)}


def _write(source: Artifact, samples: Artifact, settings: Export, work: Work) -> Mapping[str, Any]:
    io = IO.model_validate(source.read_json("io.json"))
    form = _form(settings, io)
    with np.load(samples.file("samples.npz"), allow_pickle=False) as arrays:
        inputs = data.inputs_of(arrays)
        recorded = data.recorded(arrays, "teacher" if source.kind == "Teacher" else "student")
    model = models.build(source.read_json("model.json"))
    load_weights(model, source.file("model.safetensors"))
    model.eval()
    example = models.tensors(
        {n: a[:2].repeat(2 // min(2, len(a)), 0) for n, a in inputs.items()}, model
    )
    refusals.require_any_batch(model, example, io)  # before anything else runs two rows
    rows, student = _plan(source, model, example, io)
    unfused = [b.unfused for b in traffic.watch(model, example, io).attention if b.unfused]
    qdq_form.attach(model, rows, student)
    _same_as_recorded(model, inputs, recorded, io, source)

    path, half = work.scratch / "ort.onnx", work.scratch / "trt.onnx"
    export_float32(model, example, io, form, path)
    storage.release()
    convert_float16(path, half)
    storage.release()
    rows = prove(path, half, rows, {name: t.numpy() for name, t in student.items()})
    del student  # as large as the network, and not needed again
    storage.release()
    measured = parity.measure(model, path, half, inputs, io)
    noise = (measured["parity"]["noise"], measured["parity"]["float16_noise"])
    measured["parity"] |= parity.at_other_sizes(
        model, path, half, inputs, io, settings.dynamic, noise
    )

    np.savez(work.scratch / "outputs.npz", **measured["outputs"])
    layers = [row.as_json() for row in rows]
    (work.scratch / "layers.json").write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    io_json.copy(source, work.scratch)
    attention = count_attention(ir.load(path)).as_json()
    attention["attention_blocks"] -= len(unfused)
    storage.release()
    results = {
        "quantized": any(row.int8 for row in rows),
        "sparse": any(row.sparse for row in rows),
        **attention,
        "attention_unfused": unfused,
        "layers": len(rows),
        "layers_int8": sum(row.int8 for row in rows),
        "layers_sparse": sum(row.sparse for row in rows),
        "macs_share_int8": share_of_macs(rows, "int8"),
        "macs_share_sparse": share_of_macs(rows, "sparse"),
        "parity": measured["parity"],
        "graph_sha256": {f.name: file_hash(f) for p in (path, half) for f in storage.files(p)},
        "structure_sha256": {p.name: structure_hash(p) for p in (path, half)},
    }
    _tell(results)
    return results


def _form(settings: Export, io: IO) -> Form:
    """How the graphs are made."""
    data.require_sizes(io, settings)
    limits = {name: (size.min, size.max) for name, size in settings.sizes.items()}
    return Form(settings.opset, settings.exporter, settings.weights, limits)  # type: ignore[arg-type]


def _plan(
    source: Artifact, model: nn.Module, example: models.Tensors, io: IO
) -> tuple[Sequence[LayerPlan], models.Tensors]:
    """The Student's plan, and its weights, masks and scales as stored.

    For a Teacher: every layer with the reason that nothing is planned, and nothing stored.
    """
    if source.kind != kinds.STUDENT.name:
        return structure.plan(model, example, io), {}
    files = ("model.safetensors", "quantizers.safetensors")
    stored = {name: t for file in files for name, t in load_file(source.file(file)).items()}
    return [LayerPlan(**row) for row in source.read_json("layers.json")], stored


def _same_as_recorded(
    model: nn.Module, inputs: Arrays, recorded: Arrays, io: IO, source: Artifact
) -> None:
    """The rebuilt network, in its shipped form, answers as the trained one did.

    Not to the bit: it may have been trained on a GPU, or with other threads, and an activation that
    lies on a rounding boundary then falls on the other side. How far that carries is measured where
    it is more than the usual limit.
    """
    answers = models.run(model, inputs, io)
    limit, _ = parity.floors(model)
    for name, answer in answers.items():
        gap = float(np.linalg.norm(answer - recorded[name]))
        size = float(np.linalg.norm(recorded[name]))
        if gap > limit * size + 1e-6:
            noise = parity.rounding_noise(model, inputs, answers, io, parity.FLOAT32_BITS)
            limit = parity.limit(limit, noise)
        if not gap <= limit * size + 1e-6:
            raise ContractError(
                f"export: rebuilt from {source.path}, the network answers {name!r} {gap:.3g} away "
                f"from what it answered when it was trained (size {size:.3g}, at most "
                f"{limit:.3g} of it expected): train it again with this version"
            )


def _tell(results: Mapping[str, Any]) -> None:
    found = results["parity"]
    line = f"onnx: {results['layers_int8']} of {results['layers']} layers INT8"
    if results["sparse"]:
        line += f", {results['layers_sparse']} exactly 2:4 in both files"
    if found["integers_compared"]:
        line += (
            f"; layer by layer {found['integers_differ']:.2g} of the integers differ from the "
            f"student's (largest step {found['integers_largest_step']})"
        )
    line += (
        f"; end to end the outputs by {found['relative']:.2g} of their size, of which rounding "
        f"alone makes about {found['noise']:.1g}"
    )
    if found["vacuous"]:
        line += (
            f"; this proves little: the outputs vary by {found['output_variation']:.1g} of their "
            f"size over {found['samples']} samples"
        )
    progress.say(line)
    for why in sorted(set(results["attention_unfused"])):
        progress.say(f"onnx: {results['attention_unfused'].count(why)} attention blocks are {why}")
