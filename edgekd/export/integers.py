"""The integers a graph holds, against the plan.

Every planned layer must be there as often as it runs, INT8 in both operands, and 2:4 on its
integers. A weight that several layers share may be stored once or once for each: exporters merge
equal constants and call the one that stays by any of their names, and autocast copies it again
under new names. So a name that is no layer's is looked up by its content. Which of its nodes is
which layer is then told by the input's scale, which each layer has for itself, and among equals by
order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekd import sparse24
from edgekd.errors import ContractError
from edgekd.qdq import QuantizedWeight


@dataclass(frozen=True)
class Use:
    """A planned INT8 layer as the student stores it.

    Attributes:
        layer: Its name.
        weight: What `content` says of its integers and scales; equal for layers that share them.
        input_scale: Scale of its input.
        runs: How often it runs.
    """

    layer: str
    weight: str
    input_scale: float
    runs: int = 1


def assign(weights: Sequence[QuantizedWeight], uses: Sequence[Use]) -> list[QuantizedWeight]:
    """Name the layer of each node whose weight serves several layers; others pass as they are.

    Args:
        weights: What `qdq.quantized_weights` read, in graph order.
        uses: The planned layers in forward order.

    Returns:
        The weights, in graph order, each under the name of the layer that runs there.
    """
    layers = {use.layer for use in uses}
    by_content = {use.weight: use.layer for use in reversed(uses)}
    known = [
        weight
        if weight.layer in layers
        else replace(weight, layer=by_content.get(_content_of(weight), weight.layer))
        for weight in weights
    ]
    groups: dict[str, list[Use]] = {}
    for use in uses:
        groups.setdefault(use.weight, []).append(use)
    group_of = {use.layer: group for group in groups.values() if group[1:] for use in group}
    open_runs = {use.layer: use.runs for use in uses}
    named = list(known)
    for exact in (True, False):
        for index, weight in enumerate(known):
            if named[index] is not weight or weight.layer not in group_of:
                continue
            for use in group_of[weight.layer]:
                fits = not exact or use.input_scale == weight.input_scale
                if open_runs[use.layer] and fits:
                    open_runs[use.layer] -= 1
                    named[index] = replace(weight, layer=use.layer)
                    break
    return named


def content(integers: NDArray[np.int8], scale: NDArray[np.float32]) -> str:
    """A hash of integers int8[n, k] and scales float32[n], equal where both are."""
    parts = (np.ascontiguousarray(integers), np.ascontiguousarray(scale, np.float32))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _content_of(weight: QuantizedWeight) -> str:
    scale = np.broadcast_to(weight.scale.ravel(), len(weight.integers))
    return content(weight.integers, scale)


def prove(
    weights: Sequence[QuantizedWeight],
    planned_int8: Mapping[str, int] | Collection[str],
    planned_sparse: Collection[str],
) -> None:
    """Prove that the planned layers are INT8 in both operands and the sparse ones exactly 2:4.

    Args:
        weights: What `qdq.quantized_weights` read, after `assign`.
        planned_int8: Layers that must be there as INT8, and in how many nodes; once by default.
        planned_sparse: Layers that must be there too, 2:4 along k on their integers.

    Raises:
        ContractError: A planned layer is missing, is in more or fewer nodes than it runs, has a
            float input, or breaks 2:4.
    """
    runs = planned_int8 if isinstance(planned_int8, Mapping) else {}
    planned = sorted({*planned_int8, *planned_sparse})
    uses = {layer: [weight for weight in weights if weight.layer == layer] for layer in planned}
    wrong = [f"{layer} (missing)" for layer in planned if not uses[layer]]
    for layer in planned:
        expected = runs.get(layer, 1)
        if uses[layer] and len(uses[layer]) != expected:
            wrong.append(f"{layer} (in {len(uses[layer])} nodes, expected {expected})")
    float_input = {weight.layer for weight in weights if weight.input_scale is None}
    wrong += [f"{layer} (its input is float)" for layer in planned if layer in float_input]
    if wrong:
        found = ", ".join(sorted({weight.layer for weight in weights})) or "none"
        raise ContractError(
            f"{len(wrong)} of {len(planned)} planned layers are not found exactly once for each run"
            f" as INT8 in weight and input: {', '.join(wrong)}; found: {found}: place Q/DQ directly"
            " before each, or take them out of the plan"
        )
    for layer in sorted(planned_sparse):
        for use in uses[layer]:
            sparse24.require_groups(use.channels, layer)
            sparse24.check(use.integers, layer)


def same_integers(a: Sequence[QuantizedWeight], b: Sequence[QuantizedWeight]) -> None:
    """Prove that two graphs of one student hold the same integers and the same scales.

    Args:
        a: Weights of one graph, for example the fp16 one for TensorRT.
        b: Weights of the other, for example the fp32 one for ONNX Runtime.

    Raises:
        ContractError: A layer is in one graph only, or its integers, scales or input scale differ.
    """
    layers_a, layers_b = (
        Counter((weight.layer, weight.integers.shape) for weight in weights) for weights in (a, b)
    )
    if layers_a != layers_b:
        raise ContractError(
            f"the graphs hold different INT8 layers: only the first {sorted(layers_a - layers_b)},"
            f" only the second {sorted(layers_b - layers_a)}: export both from one student"
        )
    ordered = (sorted(weights, key=lambda weight: weight.layer) for weights in (a, b))
    for one, two in zip(*ordered, strict=True):
        for what in ("integers", "scale", "input_scale"):
            x, y = (np.ravel(getattr(weight, what)) for weight in (one, two))
            differ = np.flatnonzero(x != y)
            if differ.size:
                raise ContractError(
                    f"{one.layer}: {what} differ between the two graphs in {differ.size} of"
                    f" {x.size} values, the first is {x[differ[0]]} and {y[differ[0]]}, expected"
                    " equal: export both from one student, scales from quant.scale_from_amax"
                )
