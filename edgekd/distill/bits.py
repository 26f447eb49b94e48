"""A width of its own for each layer's weights, by the norm of its gradient (arXiv 1802.05668).

Polino, Pascanu and Alistarh (section 5 and their code) leave every layer half of its quantization
points, which is one bit less, and hand the rest out in proportion to gradient norms, taken over
five batches. A layer's ideal is ``mean - 1 + c * norm``, with c such that the second part is one
bit a weight on average. Their budget counts tensors: a bit is one bit, in a small layer as in a
large one. Ours counts weights, since a mean width is asked for to bound what is stored. There are
quantizers of 2, 4 and 8 bits, so an ideal is rounded down, and what that leaves goes, a step at a
time, to the layer that is furthest below its ideal, while the mean stays within the budget. Nothing
in it is drawn; equal layers are served in forward order.

The gradient is that of the recipe's own losses, at the student quantized to the widest width that
the mean affords: in float a student that starts as its teacher's copy has no gradient at all.

Left out: learned quantization points, which no target multiplies, and Huffman coding of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from edgekd import progress
from edgekd.data import Data
from edgekd.distill import quantize, samples
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.models import tensors

WIDTHS = (2, 4, 8)
BATCHES = 5
Batch = tuple[dict[str, Tensor], Tensor]


class Loss(Protocol):
    """Training loss of the network it was made for: inputs and labels to terms."""

    def __call__(self, inputs: dict[str, Tensor], labels: Tensor, /) -> Mapping[str, Tensor]:
        """Loss terms by name."""

    def remove(self) -> None:
        """Take its hooks off."""


def allocate(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    masks: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
    mean_bits: float,
    loss: Callable[[nn.Module], Loss],
    batches: Iterable[Batch],
) -> list[LayerPlan]:
    """The plan with `bits` of every quantized layer set.

    Args:
        model: The plain float network; not changed.
        rows: The layer plan.
        masks: 2:4 masks by layer.
        scales: Calibrated input scales by layer.
        mean_bits: Bits a weight on average, 2 to 8, at most.
        loss: Makes the training loss for a network it is given.
        batches: Inputs and labels, see `batches_of`.

    Raises:
        ContractError: A gradient is not finite, or all are zero.
    """
    if not scales:
        return list(rows)
    found = norms(model, rows, masks, scales, mean_bits, loss, batches)
    sizes = {row.layer: row.n * row.k for row in rows if row.int8 and not row.tied_to}
    chosen = widths(sizes, found, mean_bits)
    told = ", ".join(f"{list(chosen.values()).count(each)} of {each} bits" for each in WIDTHS)
    spent = sum(chosen[layer] * size for layer, size in sizes.items()) / sum(sizes.values())
    progress.say(f"bits: {told}; {spent:.2f} a weight, {mean_bits:g} allowed")
    return [
        replace(row, bits=chosen[row.tied_to or row.layer]) if row.int8 else row for row in rows
    ]


def batches_of(examples: Data, size: int, model: nn.Module) -> Iterator[Batch]:
    """Five training batches, spread evenly over the training examples."""
    rows = samples.spread(len(examples.train), BATCHES * size)
    for start in range(0, len(rows), size):
        inputs, target = examples.train.take(rows[start : start + size])
        labels = tensors({"labels": samples.as_stored(target)}, model)["labels"]
        yield tensors(inputs, model), labels


def norms(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    masks: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
    mean_bits: float,
    loss: Callable[[nn.Module], Loss],
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Norm of each quantized layer's weight gradient, the mean over the batches.

    Layers of one weight count once, under the first of them.
    """
    width = max(each for each in WIDTHS if each <= mean_bits)
    twin = copy.deepcopy(model)
    quantize.attach(twin, [replace(row, bits=width) for row in rows], masks, scales)
    twin.eval()  # without dropout: nothing is drawn
    objective = loss(twin)
    layers = [row.layer for row in rows if row.int8 and not row.tied_to]
    weights = {layer: quantize.original(twin.get_submodule(layer)) for layer in layers}
    totals, count = dict.fromkeys(layers, 0.0), 0
    for inputs, labels in batches:
        twin.zero_grad()
        torch.stack(list(objective(inputs, labels).values())).sum().backward()  # type: ignore[no-untyped-call]
        count += 1
        for layer, weight in weights.items():
            totals[layer] += 0.0 if weight.grad is None else float(weight.grad.double().norm())
    objective.remove()
    found = {layer: total / max(count, 1) for layer, total in totals.items()}
    bad = [layer for layer, norm in found.items() if not norm < float("inf")]
    if bad or not any(found.values()):
        what = f"of {bad[0]} is {found[bad[0]]}" if bad else f"is 0 in all {len(found)} layers"
        raise ContractError(
            f"bits: the norm of the loss's gradient {what}, expected positive numbers to divide "
            "quantization.mean_bits by: give quantization.weights instead"
        )
    return found


def widths(
    sizes: Mapping[str, int], norms: Mapping[str, float], mean_bits: float
) -> dict[str, int]:
    """Bits of each layer.

    Args:
        sizes: Layer -> number of weights.
        norms: Layer -> gradient norm.
        mean_bits: At most this many bits a weight.
    """
    weights = sum(sizes.values())
    budget = mean_bits * weights
    spread = sum(sizes[layer] * norms[layer] for layer in sizes)
    share = weights / (spread or 1.0)
    ideal = {layer: mean_bits - 1 + share * norms[layer] for layer in sizes}
    chosen = {
        layer: max((each for each in WIDTHS if each <= bits), default=WIDTHS[0])
        for layer, bits in ideal.items()
    }
    # A floor below the least width is raised to it: take that back where it is missed the least.
    while _spent(chosen, sizes) > budget and any(each > WIDTHS[0] for each in chosen.values()):
        layer = max(
            (each for each in chosen if chosen[each] > WIDTHS[0]),
            key=lambda each: chosen[each] - ideal[each],
        )
        chosen[layer] = WIDTHS[WIDTHS.index(chosen[layer]) - 1]
    while True:
        wider = {
            layer: WIDTHS[WIDTHS.index(bits) + 1]
            for layer, bits in chosen.items()
            if bits < WIDTHS[-1]
        }
        fit = [
            layer
            for layer, bits in wider.items()
            if _spent(chosen, sizes) + (bits - chosen[layer]) * sizes[layer] <= budget
        ]
        if not fit:
            return chosen
        layer = max(fit, key=lambda each: ideal[each] - chosen[each])
        chosen[layer] = wider[layer]


def _spent(chosen: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    return sum(bits * sizes[layer] for layer, bits in chosen.items())
