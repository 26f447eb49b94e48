"""Difficulty moved from activations to weights: SmoothQuant's scaling (arXiv 2211.10438, eq. 4).

One activation scale serves a whole tensor, so a channel with outliers costs every other channel its
resolution, while weights have a scale a row. Channel j is divided by::

    s_j = max|X_j| ** alpha / max|W_j| ** (1 - alpha)

where its values X_j are made, and the columns W_j that read it are multiplied. Both are folded into
the weights there are: of a LayerNorm, batch norm, Linear or Conv2d before, and of the Linears and
Conv2ds after, so nothing is added to the network. It is done on the float network before masks are
chosen, since those must see the weights that ship.

Sites are pairs of `edgekd.distill.pairs`, which has every pointwise operator between; only a
positively homogeneous one (ReLU, none) lets a scale pass, and not GELU. Rather than keep a list of
operators, each site is tried: its channels are multiplied by powers of two, which rounds nothing,
and the network must answer as before. Then the real scales are folded, and its answers compared
again; where they differ by more than `LIMIT` the site is put back and said. A value projection and
the output projection of the same attention are a pair in the same way (each channel is averaged
over tokens by itself), found by trying the few layers before each layer that nothing else scales.

Left out: scales that are not folded but multiplied while the network runs (no Q/DQ graph could
fuse them), and a LayerNorm that the residual stream reads too, as in BERT's post-norm blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import models, progress
from edgekd.data import IO, Arrays
from edgekd.distill import watch
from edgekd.distill.intervention import REPLACE_CONTEXT
from edgekd.distill.pairs import Pair, pairs
from edgekd.eligible import LayerPlan
from edgekd.recipe import Recipe

# |difference| / |answer| of the network with and without a site: float32's rounding of weights.
LIMIT = 1e-5
# How many layers before an output projection may be its values: queries, keys and values.
_NEAR = 3


def asked(
    recipe: Recipe, model: nn.Module, rows: Sequence[LayerPlan], batches: Sequence[Arrays], io: IO
) -> list[dict[str, Any]]:
    """`equalise` as a recipe wants it; nothing where it does not."""
    alpha, intervention = recipe.quantization.smooth, recipe.distill.intervention
    if alpha is None:
        return []
    values = intervention is None or intervention.mode not in REPLACE_CONTEXT
    return equalise(model, rows, batches, io, alpha, attention=values)


def equalise(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    batches: Sequence[Arrays],
    io: IO,
    alpha: float,
    *,
    attention: bool = True,
) -> list[dict[str, Any]]:
    """Scale every site, in place.

    Args:
        model: The float network, without masks or quantizers.
        rows: The layer plan; a site counts where a quantized layer reads its channels.
        batches: Calibration data, {name: dtype[n, ...]} each.
        io: Names of the outputs.
        alpha: Share of the difficulty that moves, 0 to 1.
        attention: Whether values may be scaled too; not where a teacher's context is to take the
            place of the student's, whose channels would then have other scales. A teacher's map
            mixes tokens and no channels, and a branch's output is made where scales are gone.

    Returns:
        One row a site tried: ``producer``, ``consumers``, ``scaled`` and, of a scaled one, the
        ``smallest`` and ``largest`` scale.
    """
    planned = {row.layer for row in rows if row.int8}
    one = models.tensors(batches[0], model)
    answer = _Answers(model, batches[0], io)
    sites = [pair for pair in pairs(model, one, io) if planned & set(pair.consumers)]
    sites = [pair for pair in sites if _passes(model, pair, answer)]
    if attention:
        sites += _through_attention(model, rows, sites, answer)
    largest = _largest_inputs(model, sites, batches, io)
    told = []
    for pair in sites:
        scales = _scales(model, pair, largest[pair.consumers[0]], alpha)
        with _Folded(model, pair, scales) as folded:
            gap = answer.gap()
            if gap <= LIMIT:
                folded.keep()
                answer.renew()
            else:
                progress.say(
                    f"equalise: {pair.producer} is left as it was: with its channels scaled the "
                    f"network answers {gap:.2g} of its size away, expected at most {LIMIT:g}"
                )
        told.append(
            {"producer": pair.producer, "consumers": list(pair.consumers), "scaled": gap <= LIMIT}
            | ({"smallest": float(scales.min()), "largest": float(scales.max())})
        )
    _tell(told, planned, attention)
    return told


def _tell(told: Sequence[Mapping[str, Any]], planned: set[str], attention: bool) -> None:
    closed = "" if attention else "; values are left, as a teacher's context is to take their place"
    scaled = [row for row in told if row["scaled"]]
    reached = planned & {layer for row in scaled for layer in row["consumers"]}
    if not scaled:
        progress.say(
            "equalise: no site: before none of the quantized layers is a LayerNorm, a Linear or a "
            "Conv2d whose channels only they read, with nothing but ReLU between"
            f"{closed}; nothing changed"
        )
        return
    progress.say(
        f"equalise: {len(scaled)} sites, inputs of {len(reached)} of {len(planned)} quantized "
        f"layers; the others have no layer before them whose channels only they read{closed}"
    )


class _Answers:
    """What a network answers to one batch, held against what it answered before."""

    def __init__(self, model: nn.Module, batch: Arrays, io: IO) -> None:
        self._model, self._batch, self._io = model, batch, io
        self.renew()

    def renew(self) -> None:
        self._before = models.run(self._model, self._batch, self._io)

    def gap(self) -> float:
        """Largest |difference| over the largest |answer|, over all outputs."""
        gaps = [
            float(abs(after - self._before[name]).max())
            / (float(abs(self._before[name]).max()) + 1e-30)
            for name, after in models.run(self._model, self._batch, self._io).items()
        ]
        return max(gaps) if all(gap == gap for gap in gaps) else float("inf")


class _Folded:
    """A pair with its channels divided and multiplied back; put back at the end unless kept."""

    def __init__(self, model: nn.Module, pair: Pair, scales: Tensor) -> None:
        self._model, self._pair, self._scales = model, pair, scales
        self._saved: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> _Folded:
        # The last module with a value a channel: a batch norm's statistics stay its own.
        last = (self._pair.producer, *self._pair.between)[-1]
        for name in ("weight", "bias"):
            self._scale(getattr(self._model.get_submodule(last), name, None), 0, -1)
        for layer in self._pair.consumers:
            self._scale(self._model.get_submodule(layer).weight, 1, 1)
        return self

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for parameter, value in self._saved:
                parameter.copy_(value)

    def keep(self) -> None:
        """Do not put it back."""
        self._saved.clear()

    def _scale(self, parameter: Any, axis: int, power: int) -> None:
        if not isinstance(parameter, Tensor):
            return
        self._saved.append((parameter, parameter.detach().clone()))
        spread = [1] * parameter.ndim
        spread[axis] = -1
        with torch.no_grad():
            factors = self._scales.double().pow(power).reshape(spread).to(parameter.device)
            parameter.copy_((parameter.double() * factors).float())


def _passes(model: nn.Module, pair: Pair, answer: _Answers) -> bool:
    """Whether a scale of each channel passes from producer to consumers, whatever it is."""
    last = model.get_submodule((pair.producer, *pair.between)[-1])
    if not isinstance(getattr(last, "weight", None), Tensor):
        return False
    probe = 2.0 ** (torch.arange(pair.channels) % 5 - 2).float()
    with _Folded(model, pair, probe):
        return answer.gap() <= LIMIT


def _through_attention(
    model: nn.Module, rows: Sequence[LayerPlan], found: Sequence[Pair], answer: _Answers
) -> list[Pair]:
    """Value and output projections, by trial."""
    linear = [row for row in rows if row.type == "Linear" and not row.tied_to and row.runs == 1]
    shared = {row.tied_to for row in rows}
    free = [row for row in linear if row.layer not in shared]
    read = {layer for pair in found for layer in pair.consumers}
    made = {pair.producer for pair in found}
    sites: list[Pair] = []
    for at, row in enumerate(free):
        if not row.int8 or row.layer in read:
            continue
        for before in free[max(0, at - _NEAR) : at][::-1]:
            pair = Pair(before.layer, (row.layer,), (), before.n)
            if before.n == row.k and before.layer not in made and _passes(model, pair, answer):
                sites.append(pair)
                made.add(before.layer)
                break
    return sites


def _scales(model: nn.Module, pair: Pair, inputs: Tensor, alpha: float) -> Tensor:
    """s_j of every channel, float32[channels]; 1 where nothing is read or nothing arrives."""
    weights = torch.zeros_like(inputs)
    for layer in pair.consumers:
        weight = model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        columns = weight.detach().abs().transpose(0, 1).flatten(1).amax(1)
        weights = torch.maximum(weights, columns)
    scales = inputs.double().pow(alpha) / weights.double().clamp(min=1e-30).pow(1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), scales, 1.0).float()


def _largest_inputs(
    model: nn.Module, sites: Sequence[Pair], batches: Sequence[Arrays], io: IO
) -> dict[str, Tensor]:
    """max|X_j| of each site's channels over the calibration data, by its first consumer."""
    found: dict[str, Tensor] = {}

    def look(layer: str, module: nn.Module, x: Tensor, _output: Tensor) -> None:
        axis = 1 if isinstance(module, nn.Conv2d) else x.ndim - 1
        size = x.detach().abs().transpose(0, axis).flatten(1).amax(1)
        found[layer] = torch.maximum(found[layer], size) if layer in found else size

    def run(net: nn.Module) -> None:
        for batch in batches:
            models.run(net, batch, io)

    watch.runs(model, [pair.consumers[0] for pair in sites], run, look)
    return found
