"""What a pass multiplies and moves, counted on networks whose counts are known."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import configs
from torch import Tensor, nn

from edgekd import models, traffic
from edgekd.data import IO
from edgekd.data import Tensor as IOTensor
from edgekd.traffic import AttentionBlock, Moved

TOKENS, WIDTH = 6, 8


class Attention(nn.Module):
    """One head over x float32[batch, 6, 8]; `kind` says how its products are written."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.kind == "sdpa":
            return self.o(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])
        if self.kind == "einsum":
            scores = torch.einsum("bic,bjc->bij", q, k).softmax(-1)
            return self.o(torch.einsum("bij,bjc->bic", scores, v))
        scores = q @ k.transpose(1, 2) / WIDTH**0.5
        if self.kind == "in place":
            scores += 1.0
            scores.relu_()
        if self.kind == "exp":
            scores = scores.exp() / scores.exp().sum(-1, keepdim=True)
        if self.kind == "one product":
            return self.o(scores @ torch.ones(TOKENS, WIDTH))
        return self.o((scores if self.kind == "in place" else scores.softmax(-1)) @ v)


def _io(shape: list[int], name: str = "x") -> IO:
    return IO(
        inputs=[IOTensor(name=name, dtype="float32", shape=["batch", *shape])],
        outputs=[IOTensor(name="logits", dtype="float32", shape=["batch"])],
        labels=[],
    )


def _watch(model: nn.Module, *shape: int, examples: int = 3) -> traffic.Traffic:
    return traffic.watch(model, {"x": torch.randn(examples, *shape)}, _io([*shape]))


@pytest.mark.parametrize("kind", ["softmax", "sdpa", "einsum", "exp", "in place"])
def test_attention_is_two_products_of_activations_however_it_is_written(kind: str) -> None:
    found = _watch(Attention(kind), TOKENS, WIDTH)
    # Q K^T and P V take 6 x 6 x 8 multiply-accumulates each; Q, K, V and the result hold 48.
    assert found.attention == [AttentionBlock(2 * 288, elements=4 * 48, k=8, n=8)]


def test_counts_are_for_one_example() -> None:
    one, many = (_watch(Attention("softmax"), TOKENS, WIDTH, examples=n) for n in (1, 5))
    assert one.attention == many.attention
    assert (
        one.layers
        == many.layers
        == {name: Moved(TOKENS * WIDTH, TOKENS * WIDTH) for name in ("q", "k", "v", "o")}
    )


class Bilinear(nn.Module):
    """One product of two activations, and nothing after it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) @ self.b(x).transpose(1, 2)).mean((1, 2))


class WeightedTwice(nn.Module):
    """Two products of activations with a Linear between them: no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x @ x.transpose(1, 2)) @ self.b(x).transpose(1, 2)


class TwoBlocks(nn.Module):
    """Attention whose result goes into the next one's products through a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention("softmax"), Attention("sdpa")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


@pytest.mark.parametrize(("model", "blocks"), [(Bilinear, 0), (WeightedTwice, 0), (TwoBlocks, 2)])
def test_blocks_are_counted_once_and_only_where_there_are_some(
    model: type[nn.Module], blocks: int
) -> None:
    assert len(_watch(model(), TOKENS, WIDTH).attention) == blocks


def test_a_convolution_moves_what_it_reads_and_writes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
    found = traffic.watch(_Taking(model), {"x": torch.randn(2, 3, 8, 8)}, _io([3, 8, 8]))
    assert found.layers == {"inner.0": Moved(read=3 * 64, written=4 * 16)}
    assert "convolution" in found.operators
    assert found.attention == []


def test_a_layer_that_runs_twice_moves_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    assert _watch(Twice(), WIDTH).layers == {"fc": Moved(2 * WIDTH, 2 * WIDTH)}


@pytest.mark.parametrize(
    ("config", "blocks"),
    [(configs.VIT, 2), (configs.SWIN, 3), (configs.CONVNEXT, 0), (configs.RESNET, 0)],
    ids=["vit", "swin", "convnext", "resnet"],
)
def test_families_have_the_attention_they_are_known_for(
    config: dict[str, object], blocks: int
) -> None:
    model = models.build({"spec": "hf:test", "config": config})
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    found = traffic.watch(model, inputs, _io([3, 16, 16], "pixel_values"))
    assert len(found.attention) == blocks


def test_the_network_is_left_as_it_was() -> None:
    model = Attention("softmax").train()
    before = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    _watch(model, TOKENS, WIDTH)
    assert traffic.forward_ns(model, {"x": torch.randn(2, TOKENS, WIDTH)}, _io([6, 8])) > 0
    assert model.training
    assert {name: dict(module._forward_hooks) for name, module in model.named_modules()} == before


class _Taking(nn.Module):
    """Takes its input by name, as every network of ours does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Unequal(nn.Module):
    """Attention whose heads have 8 features in keys and 16 in values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x[..., :8], x[..., 8:16], x[..., 16:]
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def test_heads_of_unequal_keys_and_values_are_not_fused_and_say_so() -> None:
    (block,) = _watch(Unequal(), TOKENS, 32).attention
    assert (block.k, block.n) == (8, 16)
    assert "a head's keys have 8 features and its values 16" in block.unfused
    assert "two products and a softmax" in block.unfused


def test_narrow_heads_are_not_fused_and_say_so() -> None:
    (block,) = _watch(Attention("softmax"), TOKENS, WIDTH).attention
    assert block.unfused == (
        "not fused: a head has 8 features, fused kernels take at least 9; it runs as two products "
        "and a softmax"
    )
    assert not replace(block, k=9, n=9).unfused


def test_a_pass_lets_go_of_what_it_has_used() -> None:
    alive: list[int] = []

    class Chain(nn.Module):
        """Looks, at every step, how many of its earlier results are still there."""

        def forward(self, x: Tensor) -> Tensor:
            made: list[weakref.ref[Tensor]] = []
            for _ in range(8):
                x = x @ x
                made.append(weakref.ref(x))
                alive.append(sum(each() is not None for each in made))
            return x.sum((1, 2))

    _watch(Chain(), TOKENS, TOKENS)
    assert alive == [1] * 8
