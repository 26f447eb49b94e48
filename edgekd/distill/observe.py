"""Input scales from histograms: percentile, mse and entropy calibration, and the best of all.

Max calibration gives one outlier the say over every other value. The other methods look at how
often each magnitude occurs and clip some:

* percentile (99.99): the smallest bin edge that at most one value in 10,000 lies above.
* mse: the edge whose quantizer has the least squared error, each bin taken at its middle.
* entropy: the edge whose clipped distribution loses least information (KL divergence) when its bins
  are merged into 128 levels, as TensorRT's and Model Optimizer's calibrators define it.

The definitions are Model Optimizer's, but the code is our own, for reasons that tests show on its
version 0.47. Its mse passes the number of bits where the quantizer expects a bias and clips at the
first edge it tries, a sixteenth of the range. Its histogram takes its range from the first batch,
so another batch size gives other scales, and counts in float32, which stops at 2**24; ours spans
0 to max calibration's own range, in `BINS` equal bins of int64. Its entropy agrees with ours to the
bin and takes 2 to 5 seconds a layer in a loop in Python (ours 0.1). Its percentile is the lower
edge of the bin that reaches it, which may clip more than was asked; ours is the upper.

`best` decides by what a scale is for: the mean squared distance of the layer's output, with input
and weight quantized as they ship, from the float layer's, over the calibration data. Layers that
read the same tensor are decided together, or the tensor would have to be quantized more than once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.distill import quantize, watch
from edgekd.distill.watch import Run
from edgekd.eligible import LayerPlan
from edgekd.quant import INT8_MAX, scale_from_amax

BINS = 2048
ONE_IN = 10_000  # may lie above the 99.99th percentile
# Methods in the order in which a tie is decided.
METHODS = ("max", "percentile", "mse", "entropy")
# Clipping below a sixteenth of the range is not tried, as in TensorRT.
_FIRST = 128
_LEVELS = INT8_MAX + 1
Counts = NDArray[np.int64]


def histograms(model: nn.Module, scales: Mapping[str, Tensor], run: Run) -> dict[str, Counts]:
    """How often each input magnitude of each layer occurs.

    Args:
        model: The float network, masked; left as it was.
        scales: Scales of max calibration by layer; a histogram spans 0 to 127 of them.
        run: Passes the calibration batches through the network.

    Returns:
        {layer: int64[BINS]}.
    """
    found = {layer: np.zeros(BINS, dtype=np.int64) for layer in scales}

    def look(layer: str, _module: nn.Module, x: Tensor, _output: Tensor) -> None:
        width = float(scales[layer]) * INT8_MAX / BINS
        bins = (x.detach().abs().flatten() / width).long().clamp_(max=BINS - 1)
        found[layer] += torch.bincount(bins, minlength=BINS).cpu().numpy()

    watch.runs(model, scales, run, look)
    return found


def clipped(method: str, counts: Counts) -> int:
    """The bin edge, 1..BINS, at which a method clips a histogram.

    Args:
        method: ``percentile``, ``mse`` or ``entropy``.
        counts: int64[BINS] of magnitudes.
    """
    if method == "percentile":
        above = counts.sum() - np.cumsum(counts)
        return int(np.argmax(above <= counts.sum() // ONE_IN)) + 1
    return _mse(counts) if method == "mse" else _entropy(counts)


def scale_at(edge: int, of_max: Tensor) -> Tensor:
    """The scale that clips at a bin edge, given max calibration's, float32[]."""
    amax = float(of_max) * INT8_MAX / BINS * edge
    return torch.tensor(scale_from_amax(amax), dtype=torch.float32).reshape(()).to(of_max.device)


def errors(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    candidates: Mapping[str, Mapping[str, Tensor]],
    run: Run,
) -> dict[str, dict[str, float]]:
    """Mean squared error of each quantized layer's output for each scale of its input.

    Args:
        model: The float network, masked; left as it was.
        rows: The layer plan, which says the weights' widths.
        candidates: Layer -> method -> scale of its input, float32[].
        run: Passes the calibration batches through the network.
    """
    shadows = {row.layer: _shipped(model, row) for row in rows if row.layer in candidates}
    # Beside the weights: see `quantize.attach`.
    scales = {
        layer: {
            name: scale.to(quantize.original(shadows[layer]).device) for name, scale in each.items()
        }
        for layer, each in candidates.items()
    }
    sums = {layer: dict.fromkeys(each, 0.0) for layer, each in candidates.items()}
    counts = dict.fromkeys(candidates, 0)

    def look(layer: str, _module: nn.Module, x: Tensor, output: Tensor) -> None:
        counts[layer] += output.numel()
        for method, scale in scales[layer].items():
            answer = shadows[layer](quantize.fake_quant(x, scale))
            sums[layer][method] += float((answer - output).double().square().sum())

    watch.runs(model, candidates, run, look)
    return {
        layer: {method: total / max(counts[layer], 1) for method, total in each.items()}
        for layer, each in sums.items()
    }


def same_inputs(model: nn.Module, layers: Sequence[str], run: Run) -> dict[str, str]:
    """The first layer, in forward order, that reads the very tensor a layer reads, for each.

    A layer that runs several times reads several tensors; it goes with one that reads them all. The
    first pass in which a layer runs tells: one that the first batch goes around (a branch that
    depends on the data) is placed by a later batch.
    """
    read: dict[str, list[int]] = {}
    alive: list[Tensor] = []  # so that no identity is used twice in a pass
    groups: dict[str, str] = {}

    def look(layer: str, _module: nn.Module, x: Tensor, _output: Tensor) -> None:
        alive.append(x)
        read.setdefault(layer, []).append(id(x))

    def ends(*_: object) -> None:
        together: dict[tuple[int, ...], list[str]] = {}
        for layer, ids in read.items():
            together.setdefault(tuple(ids), []).append(layer)
        for readers in together.values():
            first = next((groups[layer] for layer in readers if layer in groups), readers[0])
            for layer in readers:
                groups.setdefault(layer, first)
        read.clear()
        alive.clear()  # the inputs of all passes may not fit in memory

    handle = model.register_forward_hook(ends)
    try:
        watch.runs(model, layers, run, look)
    finally:
        handle.remove()
    return groups


def best(
    found: Mapping[str, Mapping[str, float]], groups: Mapping[str, str], rows: Sequence[LayerPlan]
) -> dict[str, str]:
    """The method of least error for each layer; layers of one group add theirs up and agree.

    Args:
        found: Layer -> method -> mean squared error.
        groups: Layer -> the first layer that reads the same tensor.
        rows: The layer plan, for how many outputs each mean is over.
    """
    outputs = {row.layer: row.n for row in rows}
    totals: dict[str, dict[str, float]] = {}
    for layer, each in found.items():
        total = totals.setdefault(groups[layer], dict.fromkeys(METHODS, 0.0))
        for method, error in each.items():
            total[method] += error * outputs[layer]
    chosen = {
        group: min(METHODS, key=lambda method: (total[method], METHODS.index(method)))
        for group, total in totals.items()
    }
    return {layer: chosen[groups[layer]] for layer in found}


def _mse(counts: Counts) -> int:
    """Edge of least squared error, each bin at its middle; the widest of equals."""
    edges = np.arange(_FIRST, BINS + 1, dtype=np.float64)[:, None]
    middles = np.arange(BINS, dtype=np.float64)[None] + 0.5
    steps = edges / INT8_MAX
    error = np.minimum(np.rint(middles / steps), INT8_MAX) * steps - middles
    return _widest((error**2) @ counts.astype(np.float64))


def _entropy(counts: Counts) -> int:
    """Edge of least KL(clipped || clipped and merged into 128 levels); the widest of equals."""
    bins = counts.astype(np.float64)
    bins[0] = bins[1]  # mostly zeros, which every scale holds exactly
    divergences = []
    for edge in range(_FIRST, BINS + 1):
        kept = bins[:edge]
        level = np.arange(edge) * _LEVELS // edge
        filled = kept > 0
        total = np.bincount(level, weights=kept, minlength=_LEVELS)
        number = np.bincount(level, weights=filled, minlength=_LEVELS)
        merged = np.where(filled, (total / np.maximum(number, 1))[level], 0.0)
        reference = kept.copy()
        reference[-1] += bins[edge:].sum()
        divergences.append(_divergence(reference, merged))
    return _widest(np.array(divergences))


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p || q) in nats of two histograms; infinite where q lacks what p has."""
    held = p > 0
    if not held.any():
        return 0.0
    if (q[held] == 0).any():
        return float("inf")
    p, q = p[held] / p.sum(), q[held] / q.sum()
    return float((p * np.log(p / q)).sum())


def _widest(losses: NDArray[np.float64]) -> int:
    """Edge of the least loss, the last of equals."""
    return _FIRST + len(losses) - 1 - int(np.argmin(losses[::-1]))


def _shipped(model: nn.Module, row: LayerPlan) -> nn.Module:
    """A layer of its own with its weight quantized as it ships."""
    module = copy.deepcopy(model.get_submodule(row.layer))
    weight = module.weight
    assert isinstance(weight, Tensor)
    # The mask's zeros are in the weight already; a ternary scale needs to know which they are.
    quantizer = quantize.WeightQuantizer(weight != 0 if row.sparse else None, row.bits)
    with torch.no_grad():
        weight.copy_(quantizer.to(weight.device)(weight))
    return module
