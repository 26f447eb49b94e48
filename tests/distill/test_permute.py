"""Channel permutation: the search against brute force, and a network that answers as before."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from tiny import data
from tiny.recipes import plan
from torch import Tensor, nn

from edgekd import models
from edgekd.data import Data
from edgekd.distill import permute, sparsify
from edgekd.distill.pairs import Pair, pairs
from edgekd.eligible import LayerPlan


def kept(magnitude: Tensor) -> float:
    return float(magnitude.double().reshape(-1, 4).sort(dim=1).values[:, 2:].sum())


def splits(columns: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every way to part columns into groups of four."""
    if not columns:
        return [()]
    first, rest = columns[0], columns[1:]
    found = []
    for three in itertools.combinations(rest, 3):
        left = tuple(each for each in rest if each not in three)
        found += [(first, *three, *others) for others in splits(left)]
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("columns", [4, 8, 12])
def test_it_finds_the_best_of_all_orders_or_nearly(columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    magnitude = torch.randn(16, columns).abs() * torch.rand(columns)
    order = permute.search(magnitude, seed)
    assert sorted(order.tolist()) == list(range(columns))
    best = max(kept(magnitude[:, list(each)]) for each in splits(tuple(range(columns))))
    # Up to two groups there is no order that swaps do not reach; among more, some hills are lower.
    assert kept(magnitude[:, order]) == pytest.approx(best, rel=1e-6 if columns < 12 else 5e-3)
    assert torch.equal(order, permute.search(magnitude, seed))


def test_what_a_swap_gains_is_what_it_changes() -> None:
    torch.manual_seed(0)
    magnitude = torch.rand(24, 16)
    climb = permute._Climb(magnitude)
    for _ in range(3):
        before = climb.order.clone()
        one, two = climb._best()
        assert len({place // 4 for place in (*one.tolist(), *two.tolist())}) == 2 * len(one)
        climb._swap(one, two)
        assert climb.total() == pytest.approx(kept(magnitude[:, climb.order]), rel=1e-6)
        assert climb.total() > kept(magnitude[:, before])


def test_windows_of_a_wide_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permute, "WINDOW", 16)
    torch.manual_seed(0)
    magnitude = torch.randn(16, 72).abs() * torch.rand(72)
    order = permute.search(magnitude)
    assert sorted(order.tolist()) == list(range(72))
    assert kept(magnitude[:, order]) > 1.01 * kept(magnitude)


Network = tuple[nn.Module, list[LayerPlan], Data]


@pytest.fixture(scope="module")
def network(network: Network) -> Network:
    for module in network[0].modules():
        if isinstance(module, nn.BatchNorm2d):  # else nothing tells its channels apart
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("pattern_rows", [1, 4])
def test_more_is_kept_and_the_function_is_the_same(network: Network, pattern_rows: int) -> None:
    model, rows, examples = network
    batch = examples.train.take(np.arange(8))[0]
    one = models.tensors({name: array[:1] for name, array in batch.items()}, model)
    twin = copy.deepcopy(model)
    found = pairs(twin, one, examples.io)
    results = permute.permute(twin, rows, found, batch, examples.io, pattern_rows)
    assert results["undone"] == []
    planned = {row.layer for row in rows if row.sparse}
    fed = {name for pair in found for name in pair.consumers if name in planned}
    layers = results["layers"]
    assert len(layers) >= 2
    assert set(layers) <= fed
    for layer, shares in layers.items():
        assert shares["kept_after"] > shares["kept_before"] + 1e-4, layer
        weight = twin.get_submodule(layer).weight
        assert not torch.equal(weight, model.get_submodule(layer).weight)
        if pattern_rows == 1:
            mask = sparsify.masks(twin, [row for row in rows if row.layer == layer])[layer]
            weight = weight.detach()
            share = float((weight * mask).abs().sum() / weight.abs().sum())
            assert share == pytest.approx(shares["kept_after"], rel=1e-4)
    assert results["kept_after"] > results["kept_before"]
    other = examples.evaluation.take(np.arange(16))[0]  # not the examples it was compared on
    for name, answer in models.run(model, other, examples.io).items():
        gap = abs(models.run(twin, other, examples.io)[name] - answer).max()
        assert gap <= 1e-5 * abs(answer).max()


def test_what_is_no_pair_after_all_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    from tiny import models as tiny_models

    model = tiny_models.mlp().eval()
    examples = data.vectors()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = Pair("stem", ("blocks.0.fc1",), (), 32)  # the residual stream reads the stem too
    right = Pair("blocks.0.fc1", ("blocks.0.fc2",), (), 64)
    batch = examples.train.take(np.arange(8))[0]
    results = permute.permute(model, plan(model), [wrong, right], batch, examples.io)
    assert results["undone"] == ["stem"]
    assert list(results["layers"]) == ["blocks.0.fc2"]
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"blocks.0.fc1.weight", "blocks.0.fc1.bias", "blocks.0.fc2.weight"}
    said = capsys.readouterr().err
    assert "permute: the channels of stem change what the network answers: put back" in said
