"""Masks: what Model Optimizer chooses, and what we refuse to take from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import models
from tiny.recipes import plan
from torch import nn

from edgekd import sparse24
from edgekd.distill import quantize, sparsify
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError


def row(layer: str, module: nn.Module) -> LayerPlan:
    n, k = module.weight.shape[0], module.weight[0].numel()
    return LayerPlan(layer, type(module).__name__, n, k, 1, True, "", True, "")


def test_the_mask_keeps_the_two_largest_of_four() -> None:
    torch.manual_seed(0)
    model = models.mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = sparsify.masks(model, plan(model))
    assert sorted(masks) == [
        "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "stem",
    ]  # fmt: skip
    for layer, mask in masks.items():
        weight = model.get_submodule(layer).weight
        assert mask.dtype == torch.bool
        assert np.array_equal(mask.numpy(), sparse24.mask(weight.detach().numpy()))
    # Model Optimizer worked on a copy: same values, same classes, no attribute of its own.
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {type(module).__module__ for module in model.modules()} <= {
        "tiny.models", *(f"torch.nn.modules.{m}" for m in
                         ("linear", "container", "dropout", "normalization")),
    }  # fmt: skip


def test_a_convolution_is_sparse_along_its_input_channels() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3)
    masks = sparsify.masks(nn.Sequential(conv), [row("0", conv)])
    mask = masks["0"].numpy()
    assert mask.shape == (8, 16, 3, 3)
    assert (mask.reshape(8, 4, 4, 3, 3).sum(axis=2) == 2).all()
    weight = sparse24.conv_as_matrix(conv.weight.detach().numpy())
    assert np.array_equal(sparse24.conv_as_matrix(mask), sparse24.mask(weight))


@pytest.mark.parametrize("rows", [2, 8])
def test_rows_share_a_pattern(rows: int) -> None:
    torch.manual_seed(0)
    model = models.mlp()
    for layer, mask in sparsify.masks(model, plan(model), rows).items():
        weight = model.get_submodule(layer).weight.detach().numpy()
        assert np.array_equal(mask.numpy(), sparse24.mask(weight, rows)), layer
    conv = nn.Conv2d(32, 16, 3, groups=2)
    mask = sparsify.masks(nn.Sequential(conv), [row("0", conv)], rows)["0"].numpy()
    weight = sparse24.conv_as_matrix(conv.weight.detach().numpy())
    assert mask.shape == conv.weight.shape
    assert np.array_equal(sparse24.conv_as_matrix(mask), sparse24.mask(weight, rows))


def test_rows_that_cannot_share_a_pattern() -> None:
    model, conv = models.mlp(), nn.Conv2d(32, 16, 1, groups=2)
    with pytest.raises(ContractError) as caught:
        sparsify.masks(model, plan(model), 5)
    assert "stem: n is 32, expected a multiple of pattern_rows, 5: exclude the layer" in str(
        caught.value
    )
    with pytest.raises(ContractError, match="0: n is 8, expected a multiple of pattern_rows, 16"):
        sparsify.masks(nn.Sequential(conv), [row("0", conv)], 16)  # each group is a matrix


def test_a_mask_whose_rows_do_not_share_as_asked_is_refused() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]]).bool()
    sparsify.prove("fc", mask, 1)
    with pytest.raises(ContractError) as caught:
        sparsify.prove("fc", mask, 2)
    assert "in the mask of fc, 1 of 2 runs of 2 rows have more than one pattern" in str(
        caught.value
    )


@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 3, 3), (8, 16, 3, 1)])
def test_a_matrix_becomes_the_weight_it_was(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    matrix = torch.from_numpy(sparsify.as_matrix(weight))
    assert torch.equal(sparsify.from_matrix(matrix, shape), weight)


def test_nothing_planned_costs_nothing() -> None:
    assert sparsify.masks(models.mlp(), []) == {}


def test_names_that_model_optimizer_leaves_out_by_default_are_sparse() -> None:
    model = models.excluded()  # its default rules leave out *lm_head*
    assert "lm_head" in sparsify.masks(model, plan(model))


@pytest.mark.parametrize(("layer", "n", "k"), [("head", 4, 32), ("stem", 32, 20)])
def test_a_layer_it_skips_is_refused_and_not_taken_for_sparse(layer: str, n: int, k: int) -> None:
    model = models.mlp() if layer == "head" else models.odd()
    rows = [replace(r, sparse=True) if r.layer == layer else r for r in plan(model)]
    assert next((r.n, r.k) for r in rows if r.layer == layer) == (n, k)
    with pytest.raises(ContractError) as caught:
        sparsify.masks(model, rows)
    assert f"{layer} is planned for 2:4 but Model Optimizer gave it" in str(caught.value)
    assert "an all-ones mask" in str(caught.value)
    assert "add it to sparsity.exclude, or make n a multiple of 8 and k of 16" in str(caught.value)


def test_masks_come_before_quantizers() -> None:
    model = models.mlp()
    rows = plan(model)
    scales = {r.layer: torch.tensor(0.5) for r in rows if r.int8}
    quantize.attach(model, [replace(r, sparse=False) for r in rows], {}, scales)
    with pytest.raises(ContractError) as caught:
        sparsify.masks(model, rows)
    assert "already quantized (5 quantizers, first stem.input_quantizer)" in str(caught.value)
    assert "masks are chosen first, on float weights" in str(caught.value)


def breaks(monkeypatch: pytest.MonkeyPatch, change: Any) -> ContractError:
    """Let Model Optimizer return changed masks, and read what we say."""
    import modelopt.torch.sparsity as mts

    real = mts.sparsify

    def wrong(model: nn.Module, mode: Any) -> nn.Module:
        pruned = real(model, mode)
        change(pruned.get_submodule("stem"))
        return pruned

    monkeypatch.setattr(mts, "sparsify", wrong)
    torch.manual_seed(0)
    model = models.mlp()
    with pytest.raises(ContractError) as caught:
        sparsify.masks(model, plan(model))
    return caught.value


def test_a_mask_with_three_of_four_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(module: nn.Module) -> None:
        module._weight_mask[0, :4] = torch.tensor([True, True, True, False])

    found = str(breaks(monkeypatch, change))
    assert "the mask of stem keeps 1 of 256 groups with other than 2 of 4 weights" in found


def test_a_mask_that_keeps_the_small_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(module: nn.Module) -> None:
        module._weight_mask.logical_not_()

    found = str(breaks(monkeypatch, change))
    assert "the mask of stem does not keep the larger magnitudes" in found


def test_a_layer_without_any_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(module: nn.Module) -> None:
        module.set_mask(None)

    assert "stem is planned for 2:4 but Model Optimizer gave it no mask" in str(
        breaks(monkeypatch, change)
    )


def test_the_library_is_kept_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with sparsify.quiet():
        print("chatter")
    model = models.mlp()
    sparsify.masks(model, plan(model))
    assert capsys.readouterr().out == ""
