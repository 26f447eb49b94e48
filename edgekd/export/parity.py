"""Does the graph that ships compute what the student computes? Measured on the samples.

Both sides do the same arithmetic on the same integers, but sums of floats are taken in another
order, so here and there an activation that lies on a rounding boundary falls on the other side. The
share of input integers that differ and the largest step between two of them say whether that is all
there is: a wrong scale, a lost mask or a misplaced Q/DQ shows up as many or as large ones.

A comparison proves nothing where the outputs hardly vary from sample to sample (tiny
initialisations do that), so the variation is reported beside it and a vacuous comparison says so.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd import models, qdq, quant
from edgekd.data import IO, Arrays
from edgekd.errors import ContractError, ToolchainError

# Limits of |difference| / |student|, both over all samples: rounding flips stay an order below, a
# wrong scale or a lost layer lies an order above.
FLOAT32_LIMIT = 0.05
FLOAT16_LIMIT = 0.1
# The same of any layer's input integers. Flips add up with depth (a quarter of all integers may be
# a step off in twelve random blocks), yet a step is small; a scale off by a tenth is not.
INTEGERS_LIMIT = 0.05
VARIATION_FLOOR = 1e-3
INTEGER_SAMPLES = 32
FLOAT16_SAMPLES = 32


def measure(model: nn.Module, path: Path, half: Path, inputs: Arrays, io: IO) -> dict[str, Any]:
    """Compare a network in its shipped form with both graphs, through ONNX Runtime.

    Args:
        model: The torch network whose numbers are to be met.
        path: The float32 graph, ``ort.onnx``.
        half: The float16 graph, ``trt.onnx``; ONNX Runtime stands in for TensorRT here.
        inputs: {name: dtype[n, ...]}.
        io: Names of inputs and outputs.

    Returns:
        Results for the manifest, and under ``outputs`` what the float32 graph answered.

    Raises:
        ContractError: A difference is above its limit, or an output is not finite.
    """
    wanted = models.run(model, inputs, io)
    got = run(path, inputs, io)
    few = {name: array[:FLOAT16_SAMPLES] for name, array in inputs.items()}
    got_half = run(half, few, io)
    name = io.outputs[0].name
    spread = float(np.std(wanted[name], axis=0).mean() / (np.abs(wanted[name]).mean() + 1e-30))
    results: dict[str, Any] = {
        "samples": len(wanted[name]),
        "output_variation": spread,
        "vacuous": spread < VARIATION_FLOOR,
        **_difference("ort.onnx", got, wanted, FLOAT32_LIMIT),
        "argmax_differs": _share(got[name].argmax(-1) != wanted[name].argmax(-1)),
        "float16_relative": _difference(
            "trt.onnx", got_half, {n: a[:FLOAT16_SAMPLES] for n, a in wanted.items()}, FLOAT16_LIMIT
        )["relative"],
        **_integers(model, path, inputs, io),
    }
    return {"parity": results, "outputs": got}


def run(path: Path, inputs: Arrays, io: IO, inner: tuple[str, ...] = ()) -> Arrays:
    """Outputs of a graph through ONNX Runtime on the CPU, float32 where they are floats.

    Args:
        path: An ONNX file.
        inputs: {name: dtype[n, ...]}; floats are cast to what the graph takes.
        io: Names of the outputs.
        inner: Further outputs of the graph; batches are then those of `models.run`, since a tensor
            inside the network need not have the batch as its first axis.

    Raises:
        ToolchainError: ONNX Runtime cannot open the file.
        ContractError: It fails on a batch.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if path.name == "trt.onnx":
        # Nobody ships this file to ONNX Runtime, whose layout rewrites of float16 graphs crash the
        # process on some (torch's own encoder, 1.31.1).
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # This rewrite makes int32 biases whose scale underflows in float16 graphs: a wrong output.
    try:
        session = ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["WeightBiasQuantization"],
        )
    except Exception as error:  # its exception classes are private
        reason = " ".join(str(error).split())[:300]
        raise ToolchainError(f"export: ONNX Runtime cannot open {path.name}: {reason}") from error
    half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
    names = [*(tensor.name for tensor in io.outputs), *inner]
    count = len(next(iter(inputs.values())))
    parts = []
    # Batches of 1 and 3 too: a graph that keeps the batch it was traced with fails on one of them.
    first = [] if inner else [0, 1]
    starts = [s for s in (*first, *range(2 * len(first), count, models.BATCH)) if s < count]
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        feed = {
            n: a[start:end].astype(np.float16) if n in half else a[start:end]
            for n, a in inputs.items()
        }
        try:
            answers = session.run(names, feed)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ContractError(
                f"export: {path.name} fails on a batch of {end - start} ({reason}): it was traced "
                "with 2 and must take any; take the batch size from the input's shape"
            ) from error
        parts.append(dict(zip(names, answers, strict=True)))
    joined = {n: np.concatenate([part[n] for part in parts]) for n in names}
    return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in joined.items()}


def _difference(which: str, got: Arrays, wanted: Arrays, limit: float) -> dict[str, float]:
    largest = relative = 0.0
    for name, expected in wanted.items():
        if got[name].shape != expected.shape:
            raise ContractError(
                f"export: {which} answers {name!r} of shape {list(got[name].shape)}, expected "
                f"{list(expected.shape)}: it keeps the batch it was traced with; take the batch "
                "size from the input's shape"
            )
        if not np.isfinite(expected).all():
            raise ContractError(
                f"export: the network itself answers NaN or infinity at {name!r} in float32: train "
                "it again, with a lower learning rate"
            )
        if not np.isfinite(got[name]).all():
            raise ContractError(
                f"export: {which} answers NaN or infinity at {name!r}: it overflows there; "
                "leave the layers that do out of the INT8 plan or rescale the inputs"
            )
        gap = got[name] - expected
        largest = max(largest, float(np.abs(gap).max()))
        relative = max(relative, float(np.linalg.norm(gap) / (np.linalg.norm(expected) + 1e-30)))
    if relative > limit:
        raise ContractError(
            f"export: {which} differs from the student by {relative:.3g} of its size, expected at "
            f"most {limit} (largest difference {largest:.3g}): it does not compute the student"
        )
    return {"largest_difference": largest, "relative": relative}


def _integers(model: nn.Module, path: Path, inputs: Arrays, io: IO) -> dict[str, Any]:
    """Share of quantized activations that differ between torch and the graph, and by how much."""
    few = {name: array[:INTEGER_SAMPLES] for name, array in inputs.items()}
    inside = _torch_integers(model, few, io)
    if not inside:
        return {"integers_compared": 0}
    graph = onnx.load(path)
    tapped = path.with_name("tapped.onnx")
    sources = _tap(graph, tapped)
    try:
        outside = run(tapped, few, io, tuple(sorted(set(sources.values()))))
    finally:
        tapped.unlink()
    differ = total = largest = 0
    relative = {}
    for layer, integers in inside.items():
        gap = np.abs(outside[sources[layer]].astype(np.int16).ravel() - integers.ravel())
        differ += int((gap > 0).sum())
        total += gap.size
        largest = max(largest, int(gap.max()))
        size = np.linalg.norm(integers.astype(np.float64)) + 1e-30
        relative[layer] = float(np.linalg.norm(gap.astype(np.float64)) / size)
    worst = max(relative, key=relative.__getitem__)
    if relative[worst] > INTEGERS_LIMIT:
        raise ContractError(
            f"export: the input integers of {worst} differ from the student's by "
            f"{relative[worst]:.3g} of their size (in all {differ / total:.1%} differ, largest "
            f"step {largest}), expected at most {INTEGERS_LIMIT}: {path.name} does not quantize "
            "what the student quantizes"
        )
    return {
        "integers_compared": total,
        "integers_differ": differ / total,
        "integers_largest_step": largest,
        "integers_relative": relative[worst],
    }


def _torch_integers(model: nn.Module, inputs: Arrays, io: IO) -> dict[str, NDArray[np.int16]]:
    found: dict[str, NDArray[np.int16]] = {}

    def keep(layer: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module.scale, torch.Tensor)
        q = torch.round(args[0] / module.scale).clamp(quant.INT8_MIN, quant.INT8_MAX)
        found[layer] = q.cpu().numpy().astype(np.int16)

    suffix = ".input_quantizer"
    handles = [
        module.register_forward_pre_hook(functools.partial(keep, name.removesuffix(suffix)))
        for name, module in model.named_modules()
        if name.endswith(suffix)
    ]
    try:
        models.run(model, inputs, io)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tap(graph: onnx.ModelProto, path: Path) -> dict[str, str]:
    """Write the graph with its activation integers as outputs; returns {layer: output name}."""
    nodes = {weight.layer: weight.node for weight in qdq.quantized_weights(graph)}
    model = ir.from_proto(graph)
    by_name = {node.name: node for node in model.graph}
    sources: dict[str, str] = {}
    for layer, name in nodes.items():
        value = by_name[name].inputs[0]
        while value is not None and value.producer() is not None:
            producer = value.producer()
            assert producer is not None
            if producer.op_type == "QuantizeLinear":
                break
            value = producer.inputs[0]
        assert value is not None
        value.type = ir.TensorType(ir.DataType.INT8)
        assert value.name is not None
        sources[layer] = value.name
        if value not in model.graph.outputs:
            model.graph.outputs.append(value)
    ir.save(model, path)
    return sources


def _share(different: NDArray[np.bool_]) -> float:
    return float(np.mean(different))
