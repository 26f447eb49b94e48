"""Which layers share channels that nobody else reads, on three networks, and what parts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import configs, data
from tiny import models as tiny_models
from tiny.recipes import tiny
from torch import Tensor, nn

from edgekd import models
from edgekd.data import IO
from edgekd.data import Tensor as Named
from edgekd.distill.pairs import Pair, pairs


def io(*outputs: str) -> IO:
    return IO(
        inputs=[Named(name="x", dtype="float32", shape=["batch"])],
        outputs=[Named(name=name, dtype="float32", shape=["batch"]) for name in outputs],
        labels=[],
    )


def found(model: nn.Module, *shape: int) -> list[Pair]:
    """Pairs of a network of one input and one output."""
    torch.manual_seed(0)
    name = "input" if isinstance(model, nn.Sequential) else "x"
    return pairs(model, {name: torch.randn(2, *shape)}, io("y"))


def of(config: dict[str, object], source: str, base: Path) -> list[Pair]:
    recipe = tiny(base, config, source)
    model = models.build(models.describe(recipe.teacher.model, recipe.base))
    examples = getattr(data, source)()
    one = models.tensors(examples.train.take(np.array([0]))[0], model)
    return pairs(model, one, examples.io)


def test_vit(tmp_path: Path) -> None:
    layers = [f"vit.layers.{index}" for index in (0, 1)]
    wanted = []
    for layer in layers:
        qkv = tuple(f"{layer}.attention.{each}_proj" for each in "qkv")
        wanted += [
            Pair(f"{layer}.layernorm_before", qkv, (), 32),
            Pair(f"{layer}.layernorm_after", (f"{layer}.mlp.fc1",), (), 32),
            Pair(f"{layer}.mlp.fc1", (f"{layer}.mlp.fc2",), (), 64),
        ]
    wanted.append(Pair("vit.layernorm", ("classifier",), (), 32))
    assert of(configs.VIT, "images", tmp_path) == wanted


def test_bert_whose_norms_feed_the_residual_stream_or_leave_a_block(tmp_path: Path) -> None:
    layers = [f"bert.encoder.layer.{index}" for index in (0, 1)]
    assert of(configs.BERT, "tokens", tmp_path) == [
        *(Pair(f"{x}.intermediate.dense", (f"{x}.output.dense",), (), 64) for x in layers),
        Pair("bert.pooler.dense", ("classifier",), (), 32),
    ]


def test_resnet_with_batch_norm_between(tmp_path: Path) -> None:
    inner = [f"resnet.encoder.stages.{index}.layers.0.layer" for index in (0, 1)]
    assert of(configs.RESNET, "images", tmp_path) == [
        Pair(
            f"{layer}.0.convolution",
            (f"{layer}.1.convolution",),
            (f"{layer}.0.normalization",),
            channels,
        )
        for layer, channels in zip(inner, (16, 32), strict=True)
    ]


def test_depthwise_padding_pooling_and_flattening_keep_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU6(),
        nn.ZeroPad2d(1), nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 4),
    )  # fmt: skip
    assert found(model, 3, 8, 8) == [Pair("0", ("9",), ("3", "4"), 16)]
    assert model.training


def test_a_flattened_image_is_no_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 64, 4))
    assert found(model, 3, 8, 8) == []


class Net(nn.Module):
    """Two layers, and what stands between them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.gate = nn.Parameter(torch.rand(16))
        self.gain = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        h = self.one(x)
        middle = {
            "itself": lambda: h * torch.sigmoid(1.702 * h),
            "in place": lambda: h.relu_().add_(1.0),
            "one number": lambda: h * self.gain,
            "one number a row": lambda: h * x.norm(dim=1, keepdim=True),
            "another view and back": lambda: h.reshape(-1, 1, 16).transpose(1, 2).relu().mT[:, 0],
            "a parameter": lambda: h * self.gate,
            "residual": lambda: h + x,
            "softmax": lambda: h.softmax(-1),
            "norm": lambda: h / h.norm(dim=1, keepdim=True),
            "sort": lambda: h.sort(dim=1).values,
            "roll": lambda: h.roll(1, dims=1),
            "flip": lambda: h.flip(1),
            "half": lambda: torch.cat([h[:, :8], h[:, :8]], 1),
            "product": lambda: h @ h.T @ h,
            "returned": lambda: h,
            "twice": lambda: self.one(h),
        }[self.kind]()
        result = self.two(middle)
        return [result, h] if self.kind == "returned" else result


@pytest.mark.parametrize(
    "kind",
    ["itself", "in place", "one number", "one number a row", "another view and back"],
)
def test_what_keeps_channels(kind: str) -> None:
    assert found(Net(kind), 16) == [Pair("one", ("two",), (), 16)]


@pytest.mark.parametrize(
    "kind",
    ["a parameter", "residual", "softmax", "norm", "sort", "roll", "flip", "half", "product",
     "twice"],
)  # fmt: skip
def test_what_does_not(kind: str) -> None:
    assert found(Net(kind), 16) == []


def test_what_the_network_returns_is_read_outside() -> None:
    assert pairs(Net("returned"), {"x": torch.randn(2, 16)}, io("y", "h")) == []


def test_weights_that_are_shared_are_in_no_pair() -> None:
    assert [pair.producer for pair in found(tiny_models.mlp(), 32)] == [
        "blocks.0.fc1", "blocks.1.fc1", "norm",
    ]  # fmt: skip
    assert [pair.producer for pair in found(tiny_models.tied(), 32)] == ["norm"]


def test_grouped_convolutions_are_in_no_pair() -> None:
    one = nn.Sequential(nn.Conv2d(8, 16, 1, groups=2), nn.ReLU(), nn.Conv2d(16, 8, 1))
    two = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1, groups=2))
    assert found(one, 8, 4, 4) == found(two, 8, 4, 4) == []


def test_what_leaves_a_block_is_compared_with_the_teachers() -> None:
    def block(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 16))

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.ModuleDict())
    model[2] = nn.Sequential(block(16), block(16))
    model.append(nn.Linear(16, 4))
    # Into a block and within one, and not from one block to the next or out of the last.
    assert found(model, 8) == [
        Pair("0", ("2.0.0",), (), 16),
        Pair("2.0.0", ("2.0.2",), (), 32),
        Pair("2.1.0", ("2.1.2",), (), 32),
    ]


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert found(model, 16) == [Pair("0", ("2",), ("1",), 16)]
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
