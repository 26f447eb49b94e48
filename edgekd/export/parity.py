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
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd import models, qdq, quant
from edgekd.data import IO, Arrays
from edgekd.errors import ContractError, ToolchainError
from edgekd.export import storage
from edgekd.recipe import Range

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
SIZE_SAMPLES = 3


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


def at_other_sizes(
    model: nn.Module, path: Path, inputs: Arrays, io: IO, dynamic: Mapping[str, Range]
) -> dict[str, float]:
    """Compare a network with its graph at the sizes of every symbol other than the batch.

    A graph that kept the size it was traced with agrees at that size alone. Inputs of another size
    are the samples' own, cut or repeated along that axis.

    Args:
        model: The torch network.
        path: The float32 graph.
        inputs: {name: dtype[n, ...]}.
        io: Names, and where each symbol stands.
        dynamic: Symbol -> its sizes.

    Returns:
        ``<symbol> <size>`` -> relative difference.

    Raises:
        ContractError: The graph fails at a size, or its answers differ.
    """
    found = {}
    for symbol, sizes in dynamic.items():
        for size in sorted({sizes.min, sizes.opt, sizes.max}):
            few = _resized({n: a[:SIZE_SAMPLES] for n, a in inputs.items()}, io, symbol, size)
            wanted = models.run(model, few, io)
            try:
                gap = _difference(path.name, run(path, few, io), wanted, FLOAT32_LIMIT)
            except ContractError as error:
                raise ContractError(
                    f"export: at {symbol} {size} the graph does not compute the network: it keeps "
                    f"a size it was traced with; set export.exporter to the other one, or take "
                    f"the size from the input's shape ({error})"
                ) from error
            found[f"{symbol} {size}"] = gap["relative"]
    return found


def _resized(inputs: Arrays, io: IO, symbol: str, size: int) -> Arrays:
    resized = dict(inputs)
    for tensor in io.inputs:
        for axis in [i for i, each in enumerate(tensor.shape) if each == symbol]:
            array = resized[tensor.name]
            indices = np.arange(size) % array.shape[axis]
            resized[tensor.name] = np.take(array, indices, axis=axis)
    return resized


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
    options.enable_cpu_mem_arena = False  # it would keep the largest batch's memory
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
    del session
    storage.release()
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
    tapped = path.with_name("tapped.onnx")
    try:
        sources = _tap(path, tapped)
        storage.release()
        outside = run(
            tapped, few, io, tuple(sorted({t for taps in sources.values() for t in taps}))
        )
    finally:
        for file in storage.files(tapped):
            file.unlink(missing_ok=True)
    differ = total = largest = 0
    relative: dict[str, float] = {}
    weights = _weight_hashes(model)
    for layer, integers in inside:
        # A weight that serves several runs or layers: of the nodes whose input has this one's size
        # (a head runs on several levels), the one whose input is nearest is this one.
        taps = {
            t
            for name, found in sources.items()
            if weights.get(name) == weights[layer]
            for t in found
        }
        gaps = (
            np.abs(outside[tap].astype(np.int16).ravel() - integers.ravel())
            for tap in taps
            if outside[tap].size == integers.size
        )
        gap = min(gaps, key=lambda each: int(each.astype(np.int64).sum()))
        differ += int((gap > 0).sum())
        total += gap.size
        largest = max(largest, int(gap.max()))
        size = np.linalg.norm(integers.astype(np.float64)) + 1e-30
        gone = float(np.linalg.norm(gap.astype(np.float64)) / size)
        relative[layer] = max(gone, relative.get(layer, 0.0))
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


def _weight_hashes(model: nn.Module) -> dict[str, str]:
    """A hash of every quantized layer's weight: exporters merge equal ones under one name."""
    return {
        name: hashlib.sha256(module.weight.detach().numpy().tobytes()).hexdigest()
        for name, module in model.named_modules()
        if hasattr(module, "input_quantizer") and isinstance(module.weight, torch.Tensor)
    }


def _torch_integers(
    model: nn.Module, inputs: Arrays, io: IO
) -> list[tuple[str, NDArray[np.int16]]]:
    """The input integers of each run of each quantized layer, in forward order."""
    found: list[tuple[str, NDArray[np.int16]]] = []

    def keep(layer: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module.scale, torch.Tensor)
        q = torch.round(args[0] / module.scale).clamp(quant.INT8_MIN, quant.INT8_MAX)
        found.append((layer, q.cpu().numpy().astype(np.int16)))

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


def _tap(path: Path, tapped: Path) -> dict[str, list[str]]:
    """Write the graph with its activation integers as outputs; returns {layer: output names}.

    Weights that lie beside the graph stay there: the copy names the same file.
    """
    model = ir.load(path)
    sources: dict[str, list[str]] = {}
    for node in model.graph:
        layer, source = _quantized_product(node)
        if source is None:
            continue
        source.type = ir.TensorType(ir.DataType.INT8)
        assert source.name is not None
        sources.setdefault(layer, []).append(source.name)
        if source not in model.graph.outputs:
            model.graph.outputs.append(source)
    storage.save(model, tapped, limit_bytes=0)
    return sources


def _quantized_product(node: ir.Node) -> tuple[str, ir.Value | None]:
    """The layer whose product a node is, and the integers its input was made from."""
    if node.op_type in ("MatMul", "Gemm", "Conv"):
        for weight, other in (node.inputs[1::-1], node.inputs[:2]):
            path = _back(weight)
            if path and path[-1].is_initializer() and len(path) > 1:
                layer = qdq.layer_of(path[-1].name or "")
                integers = [v for v in _back(other) if _made_by(v) == "QuantizeLinear"]
                return layer, integers[0] if integers else None
    return "", None


def _back(value: ir.Value | None) -> list[ir.Value]:
    """A value and what it was made from, back through Q/DQ and changes of form."""
    path = []
    while value is not None:
        path.append(value)
        node = value.producer()
        through = node is not None and node.op_type in (*qdq.PASS_THROUGH, *qdq.QDQ)
        value = node.inputs[0] if node is not None and through else None
    return path


def _made_by(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _share(different: NDArray[np.bool_]) -> float:
    return float(np.mean(different))
