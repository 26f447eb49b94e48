"""Does every layer of a graph compute what the student's computes, each on its own?

End to end the two drift apart, and honestly so: sums of floats are taken in another order, here and
there an activation that lies on a rounding boundary falls on the other side, and a deep network
carries each such step on. Such a difference grows with depth, a wrong scale in the last layer does
not: one limit cannot tell the two. So the graph is cut before every quantized product, and given
there the integers that the student had in its place (what sequence models call teacher forcing). No
step is carried over a cut: what is left of rounding is a few integers in a million, one step each,
in float32, and one in a hundred in float16. A wrong scale, a lost mask or a missing quantizer shows
at the first layer behind it. Nothing of this depends on depth, on the weights, or on training.

A weight may serve several layers, or one layer run several times: their products are told apart by
order, which a trace keeps.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd import models, qdq, quant
from edgekd.data import IO, Arrays
from edgekd.errors import ContractError
from edgekd.export import storage

# Limits of |difference| / |student|, of a layer's input integers and of the outputs. Found are
# 0.0002 in float32 and 0.005 in float16; a tensor is a few hundred integers at least, of which one
# may well be a step off.
FLOAT32_LIMIT = 0.01
FLOAT16_LIMIT = 0.05
SAMPLES = 8
FED = ".student"  # ends the name of an input that stands for an inner value


@dataclass(frozen=True)
class Run:
    """One run of a quantized layer in the student: its input's integers, int8[...]."""

    layer: str
    integers: NDArray[np.int8]


def student(model: nn.Module, inputs: Arrays, io: IO) -> tuple[list[Run], Arrays]:
    """The student's input integers, in forward order, and its outputs.

    Args:
        model: In its shipped form (`qdq_form.attach`).
        inputs: {name: dtype[n, ...]}, of one batch.
        io: Names of the outputs.
    """
    found: list[Run] = []

    def keep(layer: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module.scale, torch.Tensor)
        q = torch.round(args[0] / module.scale).clamp(quant.INT8_MIN, quant.INT8_MAX)
        found.append(Run(layer, q.to(torch.int8).cpu().numpy()))

    suffix = ".input_quantizer"
    handles = [
        module.register_forward_pre_hook(functools.partial(keep, name.removesuffix(suffix)))
        for name, module in model.named_modules()
        if name.endswith(suffix)
    ]
    try:
        outputs = models.run(model, inputs, io)
    finally:
        for handle in handles:
            handle.remove()
    return found, outputs


def places(path: Path, model: nn.Module, runs: Sequence[Run]) -> list[str]:
    """Where in a graph each run's integers are: the name of a QuantizeLinear's output.

    Args:
        path: The float32 graph, whose weights have the network's names.
        model: As in `student`.
        runs: What `student` returned.

    Raises:
        ContractError: The graph quantizes the input of a layer more or less often than it runs.
    """
    weights = _weight_hashes(model)
    # Exporters merge equal weights under one name: runs and products are counted by content.
    waiting: dict[str, list[str]] = {}
    for node in ir.load(path).graph:
        weight, source = _quantized_product(node)
        if source and weights.get(qdq.layer_of(weight)):
            waiting.setdefault(weights[qdq.layer_of(weight)], []).append(source)
    expected = [weights[run.layer] for run in runs]
    for run, weight in zip(runs, expected, strict=True):
        if len(waiting.get(weight, ())) != expected.count(weight):
            raise ContractError(
                f"export: {path.name} quantizes the input of {run.layer} in "
                f"{len(waiting.get(weight, ()))} places, expected {expected.count(weight)}, as "
                "often as the student: a quantizer is missing, or one too many"
            )
    return [waiting[weight].pop(0) for weight in expected]


def cut(path: Path, to: Path, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Write a graph whose inner values also come from outside.

    Every value of `names` becomes an output, and what used it uses a new input, its name with `FED`
    behind it. The large weights go to a file of the copy's own, ``<to>.data``.

    Args:
        path: Either graph.
        to: The copy.
        runs: What `student` returned.
        names: What `places` found for them in the float32 graph.

    Raises:
        ContractError: The graph has no such value: a quantizer is missing in it, or renamed.
    """
    model = ir.load(path)
    made = {value.name: value for node in model.graph for value in node.outputs}
    for run, name in zip(runs, names, strict=True):
        if name not in made:
            raise ContractError(_lacks(path.name, model.graph, run.layer, name, len(set(names))))
    for name in dict.fromkeys(names):
        fed = ir.Value(name=name + FED, type=ir.TensorType(ir.DataType.INT8))
        for node, index in list(made[name].uses()):
            node.replace_input_with(index, fed)
        made[name].type = ir.TensorType(ir.DataType.INT8)
        model.graph.inputs.append(fed)
        model.graph.outputs.append(made[name])
    storage.save(model, to, limit_bytes=0)


def judge(
    which: str, runs: Sequence[Run], names: Sequence[str], got: Arrays, limit: float
) -> dict[str, Any]:
    """Compare what a cut graph computed with what the student did.

    Args:
        which: The graph's file name, for the message.
        runs: What `student` returned.
        names: Where each run's integers are in the graph.
        got: The cut graph's outputs.
        limit: Of |difference| / |student| in each layer.

    Returns:
        Integers compared, the share that differ, the largest step between two, and the largest
        relative difference of a layer.

    Raises:
        ContractError: A layer's is above the limit; the first in forward order is named, since what
            is wrong lies right before it.
    """
    differ = total = largest = 0
    worst = 0.0
    for run, name in zip(runs, names, strict=True):
        gap = np.abs(got[name].astype(np.int16).ravel() - run.integers.ravel())
        step, count = int(gap.max()), int(np.count_nonzero(gap))
        size = np.linalg.norm(run.integers.astype(np.float64)) + 1e-30
        relative = float(np.linalg.norm(gap.astype(np.float64)) / size)
        if relative > limit:
            raise ContractError(
                f"export: given the student's integers everywhere else, {which} quantizes the "
                f"input of {run.layer} to other ones: they differ by {relative:.3g} of their size "
                f"({count / gap.size:.1%} of them, largest step {step}), expected at most {limit}: "
                "the graph itself is wrong there, in that layer's scale or in what stands between "
                "it and the layers before"
            )
        differ, total = differ + count, total + gap.size
        largest, worst = max(largest, step), max(worst, relative)
    return {
        "integers_compared": total,
        "integers_differ": differ / total,
        "integers_largest_step": largest,
        "integers_relative": worst,
    }


def _lacks(file: str, graph: ir.Graph, layer: str, name: str, expected: int) -> str:
    """What to say of a graph without a value that its twin has."""
    found = len({source for _, source in map(_quantized_product, graph) if source})
    if found < expected:
        return (
            f"export: {file} quantizes {found} inputs of products, its float32 twin {expected}: "
            f"{file} lacks the quantizer before {layer} (value {name}), which the conversion to "
            "float16 dropped; name the layer in quantization.exclude, or report it"
        )
    return (
        f"export: {file} has no value {name}, to which its float32 twin quantizes the input of "
        f"{layer}, though both quantize {expected} inputs: the conversion to float16 renamed it, "
        "so its layers cannot be compared"
    )


def _weight_hashes(model: nn.Module) -> Mapping[str, str]:
    """A hash of every quantized layer's weight."""
    return {
        name: hashlib.sha256(module.weight.detach().numpy().tobytes()).hexdigest()
        for name, module in model.named_modules()
        if hasattr(module, "input_quantizer") and isinstance(module.weight, torch.Tensor)
    }


def _quantized_product(node: ir.Node) -> tuple[str, str]:
    """The weight of a product, and the integers its input is made from; "" where there are none.

    Of a layer whose rows are split into several products of one input, the first stands for all.
    """
    if node.op_type in ("MatMul", "Gemm", "Conv"):
        for weight, other in (node.inputs[1::-1], node.inputs[:2]):
            path = _back(weight)
            if path and path[-1].is_initializer() and len(path) > 1:
                name = (path[-1].name or "").removesuffix(".weight")
                if qdq.layer_of(name) != name and "@0:" not in name:
                    return "", ""
                integers = [v for v in _back(other) if _made_by(v) == "QuantizeLinear"]
                return name, (integers[0].name or "") if integers else ""
    return "", ""


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
