"""Which norms fold, and that folding changes nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import data, forms
from torch import Tensor, nn

from edgekd import models, sparse24
from edgekd.distill import batchnorm
from edgekd.errors import ContractError

IMAGES = data.images()
BATCH = IMAGES.train.take(np.arange(8))[0]


def warmed(model: nn.Module) -> nn.Module:
    """Statistics, gains and shifts as after some training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 4)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


def pairs(model: nn.Module) -> list[tuple[str, str]]:
    return batchnorm.pairs(model, models.tensors(BATCH, model), IMAGES.io)


class Net(nn.Module):
    """A convolution and a norm, and something done between them or beside."""

    def __init__(self, between: str = "") -> None:
        super().__init__()
        self.between = between
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.other = nn.Conv2d(3, 16, 3)
        self.head = nn.Linear(16, 4)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.conv(pixel_values)
        if self.between == "activation":
            x = torch.relu(x)
        y = self.norm(x)
        if self.between == "read again":
            y = y + x
        if self.between == "layer twice":
            y = y + self.conv(pixel_values)
        if self.between == "norm twice":
            y = y + self.norm(self.other(pixel_values))
        if self.between == "only its shape":
            y = y.reshape(x.shape)
        answer = self.head(y.mean((2, 3)))
        return (x.mean((2, 3))[:, :4] * 0 + answer) if self.between == "mixed in" else answer


class TestPairs:
    def test_a_convolution_and_its_norm(self) -> None:
        assert pairs(Net()) == [("conv", "norm")]
        assert pairs(Net("only its shape")) == [("conv", "norm")]

    @pytest.mark.parametrize(
        "between", ["activation", "read again", "layer twice", "norm twice", "mixed in"]
    )
    def test_what_stands_in_the_way(self, between: str) -> None:
        assert pairs(Net(between)) == []

    def test_every_place_in_a_network(self) -> None:
        model = forms.convolutions()
        assert pairs(model) == [
            ("stem", "norm1"), ("grouped", "norm2"), ("pointwise", "norm3"), ("fc", "norm4"),
        ]  # fmt: skip
        assert not any(module._forward_hooks for module in model.modules())

    def test_tied_weights_unknown_statistics_and_other_axes_do_not(self) -> None:
        model = Net()
        model.other.weight = model.conv.weight
        assert pairs(model) == []
        model = Net()
        model.norm = nn.BatchNorm2d(16, track_running_stats=False)
        assert pairs(model) == []

        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.norm = nn.Linear(16, 48), nn.BatchNorm1d(48)

            def forward(self, pixel_values: Tensor) -> Tensor:
                x = self.fc(pixel_values.flatten(1, 2))  # [batch, 48, 48]: axis 1 is not features
                return self.norm(x)[:, 0, :4]

        assert pairs(Tokens()) == []

    def test_a_network_without_norms(self) -> None:
        assert batchnorm.pairs(nn.Linear(2, 2), {}, IMAGES.io) == []

    @pytest.mark.parametrize("config", ["RESNET"])
    def test_of_transformers(self, config: str) -> None:
        from tiny import configs

        model = models.build({"spec": "hf:x", "config": getattr(configs, config)})
        assert len(pairs(model)) == len(batchnorm.norms(model)) == 6

    def test_of_timm_with_the_activation_inside(self) -> None:
        spec = "timm:mobilenetv3_small_050?num_classes=4"
        model = warmed(models.build(models.describe(spec, Path()))).eval()
        batch = {"x": BATCH["pixel_values"]}
        found = batchnorm.pairs(model, models.tensors(batch, model), IMAGES.io)
        assert len(found) == len(batchnorm.norms(model)) == 34
        before = models.run(model, batch, IMAGES.io)["logits"]
        batchnorm.fold(model, found, {}, batch, IMAGES.io)
        assert batchnorm.norms(model) == []
        after = models.run(model, batch, IMAGES.io)["logits"]
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


class TestFold:
    def test_by_hand(self) -> None:
        model = nn.ModuleDict({"conv": nn.Linear(1, 1), "norm": nn.BatchNorm1d(1, eps=0.0)})
        values = {"conv.weight": 3, "conv.bias": 5, "norm.weight": 2, "norm.bias": 7,
                  "norm.running_mean": 1, "norm.running_var": 4}  # fmt: skip
        state = model.state_dict()
        for name, value in values.items():
            state[name].fill_(value)
        weight, bias = batchnorm._folded(model, "conv", "norm")
        assert weight.item() == 3 * 2 / 2
        assert bias.item() == (5 - 1) * 2 / 2 + 7

    def test_the_answers_are_the_same_and_the_mask_is_exact(self) -> None:
        model = warmed(forms.convolutions()).eval()
        masks = {}
        for layer in ("grouped", "pointwise", "fc"):
            weight = model.get_submodule(layer).weight
            matrix = (
                sparse24.conv_as_matrix(weight.detach().numpy())
                if weight.ndim == 4
                else (weight.detach().numpy())
            )
            kept = torch.from_numpy(sparse24.mask(matrix))
            if weight.ndim == 4:
                n, c, r, s = weight.shape
                kept = kept.reshape(n, r, s, c).permute(0, 3, 1, 2)
            masks[layer] = kept.contiguous()
            weight.data *= masks[layer]
        found = pairs(model)
        batchnorm.freeze(model)
        before = models.run(model, BATCH, IMAGES.io)["logits"]
        batchnorm.fold(model, found, masks, BATCH, IMAGES.io)
        after = models.run(model, BATCH, IMAGES.io)["logits"]
        assert np.abs(after).max() > 0
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
        for layer, mask in masks.items():
            assert not model.get_submodule(layer).weight[~mask].any()
        assert batchnorm.norms(model) == ["first", "summed"]

    def test_a_weight_off_its_mask(self) -> None:
        model = warmed(Net()).eval()
        mask = torch.zeros_like(model.conv.weight, dtype=torch.bool)
        with pytest.raises(ContractError, match="after folding, weights of conv lie off its 2:4"):
            batchnorm.fold(model, [("conv", "norm")], {"conv": mask}, BATCH, IMAGES.io)

    def test_a_norm_that_does_more_than_it_says(self) -> None:
        class Doubling(nn.BatchNorm2d):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        model = warmed(Net())
        model.norm = warmed(Doubling(16))
        with pytest.raises(
            ContractError,
            match=r"with 1 norms folded the network answers 'logits' .* 1e-05: .*Doubling does",
        ):
            batchnorm.fold(model.eval(), pairs(model), {}, BATCH, IMAGES.io)


def test_frozen_norms_stand_still_whatever_mode_is_set() -> None:
    model = warmed(Net("activation"))
    batchnorm.freeze(model)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        before = {n: t.clone() for n, t in each.norm.state_dict().items()}
        each.train()
        each(**models.tensors(BATCH, each))
        assert each.conv.training
        assert all(torch.equal(t, before[n]) for n, t in each.norm.state_dict().items())
