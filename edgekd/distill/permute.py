"""Channels in another order, so that 2:4 keeps more magnitude; the network computes what it did.

Which four weights compete along k is an accident of how channels were numbered. Pool and Yu
("Channel Permutations for N:M Sparsity", NeurIPS 2021) renumber them: the columns of a layer, and
with them the rows of the layer that makes these channels and the parameters of all between
(`edgekd.distill.pairs`), so nothing is left to compute at run time.

Their search, kept simple: swap two channels of different groups of four wherever that keeps more,
the best swaps first; where no swap helps, exchange some at random and go on from there (their
escapes), and keep that if it ends better. What a swap is worth needs no trial. Of a group without
its channel i let x >= y be the two largest magnitudes in a row; with channel j of magnitude v in
its place the row keeps x + max(y, v). Summed over rows that is a table of channels by channels: a
swap of i and j gains table[i, j] + table[j, i] less what the two groups keep now, and after a swap
only the table's rows of the groups that took part are computed again.

Bounds: in each of `ROUNDS` the groups are dealt into windows of `WINDOW` channels, which are
searched apart, each with at most `TABLES` times the work of its table. The seed decides the rest.
Pairs are taken last to first, so that a layer's rows lie as they will when its columns are
searched, which matters where rows share a pattern. Left out: the residual stream (every layer on it
would move together), values and output projection of attention (bound to heads), and grouped
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import models, progress, sparse24
from edgekd.data import IO, Arrays
from edgekd.distill import sparsify
from edgekd.distill.pairs import Pair
from edgekd.eligible import LayerPlan
from edgekd.structure import LAYERS

# Columns whose swaps are looked at together; each round draws the windows anew.
WINDOW = 256
ROUNDS = 8
# Bound on the work in a window, in times that its table is computed.
TABLES = 4
# Share of groups of four that an escape disturbs.
_DISTURBED = 0.05
# |difference| / |answer| before and after: sums of float32 in another order.
LIMIT = 1e-5


def permute(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    found: Sequence[Pair],
    batch: Arrays,
    io: IO,
    pattern_rows: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Reorder channels of every pair that feeds a layer planned for 2:4, in place.

    Args:
        model: The dense float network; it answers as it did, to `LIMIT` of its largest answer. A
            pair that does not is put back and named.
        rows: The layer plan.
        found: What `pairs.pairs` found in this network.
        batch: Examples to compare its answers on, {name: dtype[n, ...]}.
        io: Names of the outputs.
        pattern_rows: Output rows that will share one pattern.
        seed: Decides the escapes.

    Returns:
        JSON values: ``kept_before`` and ``kept_after``, the share 0 to 1 of the planned layers'
        magnitude that a magnitude mask keeps; ``layers``, the same of each layer whose channels
        were reordered; ``undone``, producers whose pair turned out to be none.

    Raises:
        ContractError: A planned layer's n is not a multiple of `pattern_rows`.
    """
    planned = {row.layer: model.get_submodule(row.layer) for row in rows if row.sparse}
    for layer, module in planned.items():
        sparsify.require_rows(layer, module, pattern_rows)
    before = {layer: _kept(module, pattern_rows) for layer, module in planned.items()}
    undone, moved = [], []
    for pair in reversed(found):
        sparse = [planned[name] for name in pair.consumers if name in planned]
        if not sparse or not isinstance(model.get_submodule(pair.producer), LAYERS):
            continue
        magnitude = torch.cat([_columns(module, pattern_rows) for module in sparse])
        order = search(magnitude, seed)
        if not _gains(magnitude, order):
            continue
        if _fold(model, pair, order, batch, io):
            moved += [name for name in pair.consumers if name in planned]
        else:
            undone.append(pair.producer)
    after = {layer: _kept(module, pattern_rows) for layer, module in planned.items()}
    for name in undone:
        progress.say(f"permute: the channels of {name} change what the network answers: put back")
    return {
        "kept_before": _share(before.values()),
        "kept_after": _share(after.values()),
        "layers": {
            layer: {"kept_before": _share([before[layer]]), "kept_after": _share([after[layer]])}
            for layer in planned
            if layer in moved
        },
        "undone": undone,
    }


def search(magnitude: Tensor, seed: int = 0) -> Tensor:
    """An order of the columns in which groups of four keep more of their two largest.

    Args:
        magnitude: float32[rows, k], not negative, k a multiple of 4.
        seed: Decides the windows and the escapes.

    Returns:
        int64[k]: the column that comes to each place; never worse than the given order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(magnitude.shape[1], device=magnitude.device)
    for _ in range(ROUNDS):
        groups = torch.randperm(len(order) // sparse24.GROUP, generator=generator)
        for window in torch.split(groups.to(order.device), WINDOW // sparse24.GROUP):
            steps = torch.arange(sparse24.GROUP, device=order.device)
            places = (window[:, None] * sparse24.GROUP + steps).flatten()
            climb = _Climb(magnitude[:, order[places]])
            before = climb.total()
            if not climb.rise():
                climb.disturb(generator)
                climb.rise()
            if climb.total() > before:
                order[places] = order[places][climb.order]
    return order


class _Climb:
    """An order of some columns, and what every swap in it would gain."""

    def __init__(self, magnitude: Tensor) -> None:
        self._columns = magnitude.t().contiguous()
        count = len(self._columns)
        self._sums = self._columns.sum(dim=1)
        self._budget = TABLES * count
        self._table = magnitude.new_zeros((count, count))
        self._kept = magnitude.new_zeros(count // sparse24.GROUP)
        self.order = torch.arange(count, device=magnitude.device)
        self._refresh(torch.arange(len(self._kept)))

    def total(self) -> float:
        """Magnitude kept in this order."""
        return float(self._kept.double().sum())

    def disturb(self, generator: torch.Generator) -> None:
        """Exchange a channel between some groups drawn at random, two by two."""
        groups = len(self._kept)
        pairs = max(1, int(groups * _DISTURBED / 2))
        drawn = torch.randperm(groups, generator=generator)[: 2 * pairs]
        places = torch.randint(sparse24.GROUP, (len(drawn),), generator=generator)
        places = (drawn * sparse24.GROUP + places).to(self.order.device)
        half = len(places) // 2
        self._swap(places[:half], places[half : 2 * half])

    def rise(self) -> bool:
        """Swap until nothing gains or the budget is spent; whether anything did."""
        rose = False
        while self._budget > 0:
            one, two = self._best()
            if not len(one):
                break
            self._swap(one, two)
            rose = True
        return rose

    def _best(self) -> tuple[Tensor, Tensor]:
        """Places of swaps that gain, the best first, no group in two of them."""
        order = self.order
        table = self._table[order][:, order]
        kept = self._kept.repeat_interleave(sparse24.GROUP)
        gain = table + table.t() - kept[:, None] - kept[None, :]
        group = torch.arange(len(order), device=order.device) // sparse24.GROUP
        gain[group[:, None] == group[None, :]] = 0.0
        values, partners = gain.max(dim=1)
        # Below this, a gain is rounding.
        least = 1e-5 * float(self._kept.mean())
        ranked = values.argsort(descending=True, stable=True)
        ranked = ranked[values[ranked] > least]
        one: list[int] = []
        two: list[int] = []
        used: set[int] = set()
        for place, partner in zip(ranked.tolist(), partners[ranked].tolist(), strict=True):
            groups = {place // sparse24.GROUP, partner // sparse24.GROUP}
            if not groups & used:
                used |= groups
                one.append(place)
                two.append(partner)
        return tuple(torch.tensor(each, dtype=torch.int64) for each in (one, two))  # type: ignore[return-value]

    def _swap(self, one: Tensor, two: Tensor) -> None:
        self.order[one], self.order[two] = self.order[two], self.order[one]
        touched = torch.cat([one, two]).div(sparse24.GROUP, rounding_mode="floor")
        self._refresh(torch.unique(touched))

    def _refresh(self, groups: Tensor) -> None:
        """Compute the table's rows anew for the channels of some groups."""
        if not len(groups):
            return
        groups = groups.to(self.order.device)
        channels = self.order.reshape(-1, sparse24.GROUP)[groups]
        self._budget -= channels.numel()
        values = self._columns[channels]
        self._kept[groups] = values.sort(dim=1).values[:, -sparse24.KEPT :].sum(dim=(1, 2))
        for place in range(sparse24.GROUP):
            others = [each for each in range(sparse24.GROUP) if each != place]
            _, y, x = values[:, others].sort(dim=1).values.unbind(dim=1)
            # max(y, v) is half of y + v + |y - v|, whose sums need no third axis in memory.
            apart = torch.cdist(y, self._columns, p=1.0)
            larger = (y.sum(dim=1)[:, None] + self._sums[None, :] + apart) / 2
            self._table[channels[:, place]] = x.sum(dim=1)[:, None] + larger


def _fold(model: nn.Module, pair: Pair, order: Tensor, batch: Arrays, io: IO) -> bool:
    """Reorder a pair's channels, in place; whether the network still answers as before.

    Where it does not, they are put back.
    """
    before = models.run(model, batch, io)
    _reorder(model, pair, order)
    after = models.run(model, batch, io)
    gaps = [
        float(abs(after[name] - before[name]).max()) / (float(abs(before[name]).max()) + 1e-30)
        for name in before
    ]
    same = all(gap <= LIMIT for gap in gaps)
    if not same:
        _reorder(model, pair, order.argsort())
    return same


def _reorder(model: nn.Module, pair: Pair, order: Tensor) -> None:
    with torch.no_grad():
        for name in (pair.producer, *pair.between):
            module = model.get_submodule(name)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.ndim and len(tensor) == pair.channels:
                    tensor.copy_(tensor[order])
        for name in pair.consumers:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight.copy_(weight[:, order])


def _columns(module: nn.Module, pattern_rows: int) -> Tensor:
    """Magnitudes float32[rows, k or channels], one row for all that keep one pattern."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    n, channels = weight.shape[:2]
    tiles = weight.detach().abs().float().reshape(n // pattern_rows, pattern_rows, channels, -1)
    return tiles.sum(dim=1).movedim(1, -1).flatten(0, 1)


def _kept(module: nn.Module, pattern_rows: int) -> tuple[float, float]:
    """Magnitude that a mask keeps of a layer, and all there is."""
    magnitude = _columns(module, pattern_rows).double()
    largest = magnitude.reshape(-1, sparse24.GROUP).sort(dim=1).values[:, -sparse24.KEPT :]
    return float(largest.sum()), float(magnitude.sum())


def _gains(magnitude: Tensor, order: Tensor) -> bool:
    old, new = (
        each.double().reshape(-1, sparse24.GROUP).sort(dim=1).values[:, -sparse24.KEPT :].sum()
        for each in (magnitude, magnitude[:, order])
    )
    return bool(new > old)


def _share(kept: Iterable[tuple[float, float]]) -> float:
    parts, wholes = zip(*kept, strict=True)
    return float(sum(parts)) / (float(sum(wholes)) or 1.0)
