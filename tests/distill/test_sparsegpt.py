"""SparseGPT against a slow reference, and what it promises on three networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import data
from tiny import models as tiny_models
from torch import Tensor, nn

from edgekd import models, sparse24
from edgekd.data import Data
from edgekd.distill import quantize, sparsegpt, sparsify
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError

Run = Callable[[nn.Module], None]


def row(layer: str, module: nn.Module, **changes: Any) -> LayerPlan:
    n, k = module.weight.shape[0], module.weight[0].numel()
    return LayerPlan(layer, type(module).__name__, n, k, 1, True, "", True, "", **changes)


def reference(
    weight: Tensor, hessian: Tensor, pattern_rows: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Column by column: the inverse of what is left is computed anew every time."""
    h = hessian.numpy() + np.eye(len(hessian)) * 0.01 * hessian.numpy().diagonal().mean()
    w = weight.double().numpy().copy()
    n, k = w.shape
    mask = np.zeros((n, k), bool)
    for j in range(k):
        if j % 4 == 0:
            diagonal = [np.linalg.inv(h[i:, i:])[0, 0] for i in range(j, j + 4)]
            cost = w[:, j : j + 4] ** 2 / diagonal
            for top in range(0, n, pattern_rows):
                tile = slice(top, top + pattern_rows)
                kept = np.argsort(-cost[tile].sum(axis=0), kind="stable")[:2]
                mask[tile, j + kept] = True
        inverse = np.linalg.inv(h[j:, j:])
        for i in range(n):
            if not mask[i, j]:
                w[i, j:] -= w[i, j] / inverse[0, 0] * inverse[0]
                w[i, j] = 0.0
    return w, mask


def error(weight: Tensor, new: Tensor, hessian: Tensor) -> float:
    """Squared output error on the inputs the Hessian is of."""
    gap = (weight - new).double()
    return float(torch.einsum("ij,jk,ik->", gap, hessian, gap))


def correlated(n: int, k: int, rows: int = 512) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, k, dtype=torch.float64) @ torch.randn(k, k, dtype=torch.float64)
    return torch.randn(n, k), 2 * x.T @ x / rows


@pytest.mark.parametrize("pattern_rows", [1, 2, 8])
@pytest.mark.parametrize("columns", [4, 12, 128])
def test_it_is_the_slow_reference(
    pattern_rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsegpt, "COLUMNS", columns)
    weight, hessian = correlated(16, 32)
    new, mask = sparsegpt.compensated(weight, hessian, pattern_rows)
    wanted, wanted_mask = reference(weight, hessian, pattern_rows)
    assert np.array_equal(mask.numpy(), wanted_mask)
    np.testing.assert_allclose(new.numpy(), wanted, rtol=1e-8, atol=1e-8)
    assert (mask.reshape(-1, 4).sum(dim=1) == 2).all()
    assert (mask.reshape(16 // pattern_rows, pattern_rows, 32) == mask[::pattern_rows, None]).all()


def test_inputs_that_tell_nothing_leave_magnitude_to_decide() -> None:
    weight, _ = correlated(8, 16)
    nothing = torch.zeros(16, 16, dtype=torch.float64)
    white = torch.eye(16, dtype=torch.float64)
    for hessian in (nothing, white):
        new, mask = sparsegpt.compensated(weight, hessian)
        assert np.array_equal(mask.numpy(), sparse24.mask(weight.numpy()))
        assert torch.equal(new.float(), weight * mask)  # nothing is correlated: nothing to make up


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(32, 8, (3, 1), groups=2, dilation=2, padding="same", bias=False),
        nn.Conv2d(16, 8, 3, padding=2, padding_mode="reflect", bias=False),
    ],
)
def test_the_hessian_of_a_convolution_is_of_the_inputs_its_weights_meet(
    conv: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsegpt, "_UNFOLDED", 1)  # one example at a time
    torch.manual_seed(1)
    x = torch.randn(3, conv.in_channels, 9, 9)
    (hessian,) = sparsegpt.hessians(nn.Sequential(conv), {"0": ["0"]}, lambda net: net(x)).values()
    assert len(hessian) == conv.groups
    output = conv(x)
    # Of any weights, w H w is twice the mean square of what they answer.
    rows = torch.from_numpy(sparsify.as_matrix(conv.weight)).double()
    for part, h, seen in zip(
        rows.chunk(conv.groups), hessian, output.chunk(conv.groups, dim=1), strict=True
    ):
        wanted = 2 * seen.double().square().mean(dim=(0, 2, 3))
        found = torch.einsum("ij,jk,ik->i", part, h, part)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def network(
    network: tuple[nn.Module, list[LayerPlan], Data],
) -> tuple[nn.Module, list[LayerPlan], Run]:
    """A small network, its plan, and what passes calibration data through it."""
    model, rows, examples = network
    inputs = examples.train.take(np.arange(32))[0]
    return model, rows, lambda net: models.run(net, inputs, examples.io)  # type: ignore[return-value]


def test_every_layer_loses_less_than_by_magnitude(
    network: tuple[nn.Module, list[LayerPlan], Run],
) -> None:
    model, rows, run = network
    planned = [each.layer for each in rows if each.sparse]
    assert len(planned) >= 4
    twin, masks = copy.deepcopy(model), sparsify.masks(model, rows)
    assert set(sparsegpt.prune(twin, rows, run)) == set(planned)
    for layer in planned:
        # On the inputs that the layer had when it was pruned: those of the pruned network.
        hessian = sparsegpt.hessians(twin, {layer: [layer]}, run)[layer]
        assert len(hessian) == 1
        dense = model.get_submodule(layer).weight
        by_magnitude = dense * masks[layer]
        found, worse = (
            error(*(torch.from_numpy(sparsify.as_matrix(w)) for w in (dense, new)), hessian[0])
            for new in (twin.get_submodule(layer).weight, by_magnitude)
        )
        assert found < 0.95 * worse, layer


@pytest.mark.parametrize("pattern_rows", [1, 4])
def test_weights_are_2_to_4_in_place_and_the_rest_is_as_it_was(
    network: tuple[nn.Module, list[LayerPlan], Run], pattern_rows: int
) -> None:
    model, rows, run = network
    twin = copy.deepcopy(model)
    masks = sparsegpt.prune(twin, rows, run, pattern_rows)
    changed = set()
    for (name, before), after in zip(
        model.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        if not torch.equal(before, after):
            changed.add(name)
    assert changed == {f"{layer}.weight" for layer in masks}
    for layer, mask in masks.items():
        weight = twin.get_submodule(layer).weight
        assert mask.shape == weight.shape
        assert torch.equal(weight != 0, mask)
        matrix = sparsify.as_matrix(mask)
        tiles = matrix.reshape(len(matrix) // pattern_rows, pattern_rows, -1)
        assert (tiles == tiles[:, :1]).all()
        assert (matrix.reshape(-1, 4).sum(axis=1) == 2).all()


def vectors() -> Run:
    examples = data.vectors()
    inputs = examples.train.take(np.arange(32))[0]
    return lambda net: models.run(net, inputs, examples.io)  # type: ignore[return-value]


def test_a_layer_is_pruned_on_what_the_pruned_ones_before_it_answer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
    x = torch.randn(64, 32)
    rows = [row("0", model[0]), row("2", model[2])]
    twin = copy.deepcopy(model)
    sparsegpt.prune(twin, rows, lambda net: net(x))
    inputs = twin[1](twin[0](x)).detach().double()
    wanted, _ = sparsegpt.compensated(model[2].weight, 2 * inputs.T @ inputs / 64)
    torch.testing.assert_close(twin[2].weight.double(), wanted, rtol=1e-4, atol=1e-6)


def test_one_mask_and_one_hessian_for_a_weight_that_two_layers_hold() -> None:
    torch.manual_seed(0)
    model = tiny_models.tied().eval()
    one, two = "blocks.0.fc1", "blocks.1.fc1"
    rows = [
        row(one, model.get_submodule(one)),
        row(two, model.get_submodule(two), tied_to=one),
    ]
    dense = model.get_submodule(one).weight.detach().clone()
    seen = sparsegpt.hessians(model, {one: [one, two]}, vectors())
    masks = sparsegpt.prune(model, rows, vectors())
    assert torch.equal(masks[one], masks[two])
    assert model.get_submodule(one).weight is model.get_submodule(two).weight
    wanted, mask = sparsegpt.compensated(dense, seen[one][0])
    assert torch.equal(masks[one], mask)
    torch.testing.assert_close(model.get_submodule(one).weight, wanted.float())


class TwoSizes(nn.Module):
    """One convolution's weight, held twice: on a map of 8 x 8 and on one of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.small.weight = self.large.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x).mean((2, 3)) + self.small(3 * x[:, :, ::4, ::4]).mean((2, 3))


def test_the_hessian_of_a_shared_weight_is_of_all_rows_it_meets() -> None:
    torch.manual_seed(0)
    model, x = TwoSizes(), torch.randn(4, 16, 8, 8)
    names = ["large", "small"]
    (found,) = sparsegpt.hessians(model, {"large": names}, lambda net: net(x))["large"]
    maps = [x, 3 * x[:, :, ::4, ::4]]
    pooled = torch.cat([each.movedim(1, -1).reshape(-1, 16) for each in maps]).double()
    assert len(pooled) == 4 * (64 + 4)
    wanted = 2 * pooled.T @ pooled / len(pooled)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    dense = model.large.weight.detach().flatten(1).clone()
    rows = [row("large", model.large), row("small", model.small, tied_to="large")]
    masks = sparsegpt.prune(model, rows, lambda net: net(x))
    pruned, mask = sparsegpt.compensated(dense, wanted)
    assert torch.equal(masks["large"].flatten(1), mask)
    torch.testing.assert_close(model.small.weight.flatten(1), pruned.float())


def test_nothing_planned_costs_nothing() -> None:
    def run(_net: nn.Module) -> None:
        raise AssertionError

    assert sparsegpt.prune(tiny_models.mlp(), [], run) == {}


def refused(model: nn.Module, rows: list[LayerPlan], run: Run, pattern_rows: int = 1) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ContractError) as caught:
        sparsegpt.prune(model, rows, run, pattern_rows)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    return str(caught.value)


def test_what_it_refuses() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    rows = [row("0", model[0])]
    said = refused(model, rows, lambda _net: None)
    assert "sparsegpt: no calibration input reached 0, expected some: exclude it from" in said
    said = refused(model, rows, lambda net: net(torch.full((2, 16), np.inf)))
    assert "sparsegpt: the inputs of 0 hold NaN or infinity, expected finite numbers" in said
    said = refused(model, rows, lambda net: net(torch.ones(2, 16)), pattern_rows=3)
    assert "0: n is 8, expected a multiple of pattern_rows, 3: exclude the layer" in said
    grouped = nn.Sequential(nn.Conv2d(32, 16, 1, groups=2))
    said = refused(grouped, [row("0", grouped[0])], lambda _net: None, pattern_rows=16)
    assert "0: n is 8, expected a multiple of pattern_rows, 16" in said  # of each group
    quantize.attach(model, [row("0", model[0])], {"0": torch.ones(8, 16)}, {"0": torch.tensor(1.0)})
    assert "already quantized (1 quantizers" in refused(model, rows, lambda _net: None)
