"""Does the graph that ships compute what the student computes? Measured on the samples.

Layer by layer first, each given the student's own integers (see `local`): that is where a wrong
graph shows, whatever the network. Then end to end, where rounding shows too: sums of floats are
taken in another order, an activation on a rounding boundary falls on the other side, and depth
carries that on. In published networks with random weights a third of the last layers' integers are
a step or more off, and it is the network's own doing: the student run with another number of
threads, or in float64, is as far from itself. So the end-to-end limit grows with what rounding
alone does to the student, measured by rounding every module's output to a bit less than float32
has, or to float16's bits. (Not by running it in float64: code that names float32 fails there.)
Where rounding alone moves the answers by a quarter of their size, they say too little to ship, and
the refusal names rounding and not the graph.

Where nothing is INT8 there are no integers to compare, no rounding boundary either, and end to end
is the whole proof: limits fit for INT8 would pass another GELU (0.01) or another BatchNorm eps
(0.02). Ten small networks (ViT, BERT, ResNet, Swin, ConvNeXt, MobileNetV3; torch, transformers and
timm) differ by 3e-7 to 1.1e-6 in float32 and 4e-4 to 1e-3 in float16: the limits lie 90 and 10
times above the worst. A GELU by tanh for one by erf (2e-4) is seen in float32; float16, which is
made from that graph, cannot see it.

A comparison proves nothing where the outputs hardly vary from sample to sample (tiny
initialisations do that), so the variation is reported beside it and a vacuous comparison says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd import models
from edgekd.data import IO, Arrays
from edgekd.errors import ContractError, ToolchainError
from edgekd.export import local, qdq_form, storage
from edgekd.recipe import Range

# Limits of |difference| / |student|, both over all samples, where rounding is of no account: what
# rounding alone does to the student stays an order below, a lost layer lies an order above.
FLOAT32_LIMIT = 0.05
FLOAT16_LIMIT = 0.1
# The same where nothing is INT8.
FLOAT32_LIMIT_UNQUANTIZED = 1e-4
FLOAT16_LIMIT_UNQUANTIZED = 1e-2
# What counts beside them: two courses of rounding differ by about as much as either moves the
# student, but which module rounds, and which way, is chance.
NOISE_FACTOR = 3
NOISE_LIMIT = 0.25
FLOAT32_BITS, FLOAT16_BITS = 23, 11  # of the mantissa; float32 has 24, one more than is kept
VARIATION_FLOOR = 1e-3
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
        Results for the manifest, and under ``outputs`` what the float32 graph answered. Of them
        ``noise`` and ``float16_noise`` are what rounding alone does to the student's outputs, as
        ``relative`` and ``float16_relative`` are what a graph differs by.

    Raises:
        ContractError: A layer or an output differs by more than its limit, an output is not
            finite, or rounding alone moves the student too far.
    """
    wanted = models.run(model, inputs, io)
    got = run(path, inputs, io)
    few = {name: array[:FLOAT16_SAMPLES] for name, array in wanted.items()}
    half_inputs = {name: array[:FLOAT16_SAMPLES] for name, array in inputs.items()}
    gap = _difference(path.name, got, wanted)
    gap_half = _difference(half.name, run(half, half_inputs, io), few)
    layers = _layers(model, path, half, inputs, io)
    noise = rounding_noise(model, inputs, wanted, io, FLOAT32_BITS)
    noise_half = rounding_noise(model, inputs, wanted, io, FLOAT16_BITS)
    floor, floor_half = floors(model)
    _require(path.name, gap, noise, floor)
    _require(half.name, gap_half, noise_half, floor_half)
    name = io.outputs[0].name
    spread = _variation(wanted, io)
    results: dict[str, Any] = {
        "samples": len(wanted[name]),
        "output_variation": spread,
        "vacuous": spread < VARIATION_FLOOR,
        **gap,
        "noise": noise,
        "argmax_differs": _share(got[name].argmax(-1) != wanted[name].argmax(-1)),
        "float16_relative": gap_half["relative"],
        "float16_noise": noise_half,
        **layers,
    }
    return {"parity": results, "outputs": got}


def rounding_noise(model: nn.Module, inputs: Arrays, wanted: Arrays, io: IO, bits: int) -> float:
    """How far rounding alone moves a network's outputs, relative to their size.

    Args:
        model: The torch network.
        inputs: {name: dtype[n, ...]}; the first `local.SAMPLES` are run.
        wanted: Its outputs on them.
        io: Names of the outputs.
        bits: Of the mantissa that every module's output is rounded to.

    Returns:
        The largest |difference| / |output| of an output.
    """
    # Veltkamp's splitting: the upper bits of a float32 in three operations, rounded to nearest.
    factor = 2.0 ** (24 - bits) + 1

    def rounded(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not (isinstance(output, torch.Tensor) and output.is_floating_point()):
            return output
        spread = output * factor
        upper = spread - (spread - output)
        return torch.where(upper.isfinite(), upper, output)

    # Blocks too, not only what they are made of: a residual sum is no module's output but theirs.
    handles = [module.register_forward_hook(rounded) for module in model.modules()]
    try:
        found = models.run(model, {n: a[: local.SAMPLES] for n, a in inputs.items()}, io)
    finally:
        for handle in handles:
            handle.remove()
    return max(_relative(found[n], wanted[n][: local.SAMPLES]) for n in found)


def floors(model: nn.Module) -> tuple[float, float]:
    """What the float32 and float16 graph of a network may differ by, if rounding is of no account.

    Args:
        model: In its shipped form (`qdq_form.attach`).
    """
    if any(isinstance(module, qdq_form.Quantizer) for module in model.modules()):
        return FLOAT32_LIMIT, FLOAT16_LIMIT
    return FLOAT32_LIMIT_UNQUANTIZED, FLOAT16_LIMIT_UNQUANTIZED


def limit(floor: float, noise: float) -> float:
    """What a graph may differ by where rounding alone moves the student by `noise`."""
    return max(floor, NOISE_FACTOR * noise)


def at_other_sizes(
    model: nn.Module,
    path: Path,
    half: Path,
    inputs: Arrays,
    io: IO,
    dynamic: Mapping[str, Range],
    noise: tuple[float, float] = (0.0, 0.0),
) -> dict[str, dict[str, float]]:
    """Compare a network with both graphs at the sizes of every symbol other than the batch.

    A graph that kept the size it was traced with agrees at that size alone. Inputs of another size
    are the samples' own, cut or repeated along that axis. As in `measure`, each layer is compared
    on the student's integers, and then the outputs.

    Args:
        model: The torch network.
        path: The float32 graph.
        half: The float16 graph.
        inputs: {name: dtype[n, ...]}.
        io: Names, and where each symbol stands.
        dynamic: Symbol -> its sizes.
        noise: What rounding alone does to the network's outputs, in float32 and in float16.

    Returns:
        Relative differences ``<symbol> <size>`` -> float, under ``sizes`` of the float32 graph and
        under ``float16_sizes`` of the float16 graph.

    Raises:
        ContractError: A graph fails at a size, or its layers or answers differ.
    """
    found: dict[str, dict[str, float]] = {"sizes": {}, "float16_sizes": {}}
    checks = list(zip(found, (path, half), noise, floors(model), strict=True))
    for symbol, sizes in dynamic.items():
        for size in sorted({sizes.min, sizes.opt, sizes.max}):
            few = _resized({n: a[:SIZE_SAMPLES] for n, a in inputs.items()}, io, symbol, size)
            wanted = models.run(model, few, io)
            try:
                _layers(model, path, half, few, io)
                for key, file, moved, floor in checks:
                    gap = _difference(file.name, run(file, few, io), wanted)
                    _require(file.name, gap, moved, floor)
                    found[key][f"{symbol} {size}"] = gap["relative"]
            except ContractError as error:
                raise ContractError(
                    f"export: at {symbol} {size} the graph does not compute the network: it keeps "
                    f"a size it was traced with; set export.exporter to the other one, or take "
                    f"the size from the input's shape ({error})"
                ) from error
    return found


def _resized(inputs: Arrays, io: IO, symbol: str, size: int) -> Arrays:
    resized = dict(inputs)
    for tensor in io.inputs:
        for axis in [i for i, each in enumerate(tensor.shape) if each == symbol]:
            array = resized[tensor.name]
            indices = np.arange(size) % array.shape[axis]
            resized[tensor.name] = np.take(array, indices, axis=axis)
    return resized


def run(path: Path, inputs: Arrays, io: IO) -> Arrays:
    """Outputs of a graph through ONNX Runtime on the CPU, float32 where they are floats.

    Args:
        path: An ONNX file.
        inputs: {name: dtype[n, ...]}; floats are cast to what the graph takes.
        io: Names of the outputs.

    Raises:
        ToolchainError: ONNX Runtime cannot open the file.
        ContractError: It fails on a batch.
    """
    session = _session(path)
    names = [tensor.name for tensor in io.outputs]
    count = len(next(iter(inputs.values())))
    parts = []
    # Batches of 1 and 3 too: a graph that keeps the batch it was traced with fails on one of them.
    starts = [s for s in (0, 1, *range(4, count, models.BATCH)) if s < count]
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        feed = {n: a[start:end] for n, a in inputs.items()}
        try:
            parts.append(_answers(session, names, feed))
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ContractError(
                f"export: {path.name} fails on a batch of {end - start} ({reason}): it was traced "
                "with 2 and must take any; take the batch size from the input's shape"
            ) from error
    del session
    storage.release()
    return {n: np.concatenate([part[n] for part in parts]) for n in names}


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # it would keep the largest batch's memory
    if path.name.startswith("trt."):
        # Nobody ships this file to ONNX Runtime, whose layout rewrites of float16 graphs crash the
        # process on some (torch's own encoder, 1.31.1).
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # This rewrite makes int32 biases whose scale underflows in float16 graphs: a wrong output.
    try:
        return ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["WeightBiasQuantization"],
        )
    except Exception as error:  # its exception classes are private
        reason = " ".join(str(error).split())[:300]
        raise ToolchainError(f"export: ONNX Runtime cannot open {path.name}: {reason}") from error


def _answers(session: ort.InferenceSession, names: list[str], feed: Arrays) -> Arrays:
    """Outputs of one batch; floats go in as the graph takes them and come out as float32."""
    half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
    cast = {n: a.astype(np.float16) if n in half else a for n, a in feed.items()}
    answers = dict(zip(names, session.run(names, cast), strict=True))
    return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in answers.items()}


def _difference(which: str, got: Arrays, wanted: Arrays) -> dict[str, float]:
    """The largest differences of any output, absolute and relative; shapes and numbers hold."""
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
    return {
        "largest_difference": max(float(np.abs(got[n] - e).max()) for n, e in wanted.items()),
        "relative": max(_relative(got[n], expected) for n, expected in wanted.items()),
    }


def _relative(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    size = np.linalg.norm(wanted.astype(np.float64))
    return float(np.linalg.norm(got.astype(np.float64) - wanted) / (size + 1e-30))


def _variation(outputs: Arrays, io: IO) -> float:
    """How much the output that varies least does so over the samples, relative to its size.

    Of the floats, where there are any: whole numbers (classes, counts) may well be constant.
    """
    floats = [tensor.name for tensor in io.outputs if tensor.dtype.startswith("float")]
    return min(
        float(np.std(outputs[n], axis=0).mean() / (np.abs(outputs[n]).mean() + 1e-30))
        for n in floats or outputs
    )


def _require(which: str, gap: Mapping[str, float], noise: float, floor: float) -> None:
    """Refuse a graph that differs by more than rounding does, and a network where that is much."""
    if gap["relative"] > limit(floor, noise):
        raise ContractError(
            f"export: {which} differs from the student by {gap['relative']:.3g} of its size, "
            f"expected at most {limit(floor, noise):.3g} (largest difference "
            f"{gap['largest_difference']:.3g}; rounding alone moves the student by {noise:.2g}): "
            "it does not compute the student"
        )
    if gap["relative"] > floor and noise > NOISE_LIMIT:
        raise ContractError(
            f"export: rounding noise grows to {noise:.3g} of the outputs' size in this network, "
            f"expected at most {NOISE_LIMIT}: its outputs under INT8 are not reproducible to "
            f"better than that, and {which}, which computes each layer as the student does, ends "
            f"{gap['relative']:.3g} away; train it (random weights do this), or leave layers out "
            "of the INT8 plan"
        )


def _layers(model: nn.Module, path: Path, half: Path, inputs: Arrays, io: IO) -> dict[str, Any]:
    """Each layer of both graphs against the student's, on the student's integers."""
    few = {name: array[: local.SAMPLES] for name, array in inputs.items()}
    runs, wanted = local.student(model, few, io)
    if not runs:
        return {"integers_compared": 0}
    names = local.places(path, model, runs)
    fed = {name + local.FED: run.integers for name, run in zip(names, runs, strict=True)}
    outputs = [tensor.name for tensor in io.outputs]
    found: list[dict[str, Any]] = []
    for file, limit in ((path, local.FLOAT32_LIMIT), (half, local.FLOAT16_LIMIT)):
        cut = file.with_name(f"{file.stem}.cut.onnx")
        try:
            local.cut(file, cut, runs, names)
            storage.release()
            got = _answers(_session(cut), [*dict.fromkeys(names), *outputs], {**few, **fed})
        finally:
            for each in storage.files(cut):
                each.unlink(missing_ok=True)
            storage.release()
        layers = local.judge(file.name, runs, names, got, limit)
        gone = max(_relative(got[n], wanted[n]) for n in outputs)
        if not gone <= limit:
            raise ContractError(
                f"export: given the student's integers at every layer, {file.name} answers "
                f"{gone:.3g} of their size away from the student, expected at most {limit}: the "
                "graph itself is wrong behind the last quantized layer, or beside them"
            )
        found.append({**layers, "layers_relative": gone})
    # Both compare as many.
    return found[0] | {f"float16_{name}": value for name, value in list(found[1].items())[1:]}


def _share(different: NDArray[np.bool_]) -> float:
    return float(np.mean(different))
