"""Attention watched from outside: the fused kernel in steps, results by number, cut gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.interception import Watch, cut, in_steps


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = (drawn(2, 4, 5, 8, seed=seed) for seed in (1, 2, 3))
MASK = torch.tensor([[1, 1, 0, 1, 0]] * 4 + [[0] * 5]).bool()  # the last row sees nothing


class TestTheFusedKernelInSteps:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"is_causal": True},
            {"scale": 0.3},
            {"attn_mask": MASK},
            {"attn_mask": torch.zeros(5, 5).masked_fill(~MASK, -math.inf)},
            {"attn_mask": drawn(2, 1, 5, 5)},
        ],
    )
    def test_values_and_gradients_are_torchs(self, options: dict[str, Any]) -> None:
        found = []
        for attention in (in_steps, functional.scaled_dot_product_attention):
            inputs = [x.clone().requires_grad_() for x in (Q, K, V)]
            result = attention(*inputs, **options)
            found.append((result, *torch.autograd.grad(result.pow(2).sum(), inputs)))
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)

    def test_grouped_heads(self) -> None:
        options = {"enable_gqa": True}
        k, v = K[:, :2], V[:, :2]
        theirs = functional.scaled_dot_product_attention(Q, k, v, **options)
        assert torch.allclose(in_steps(Q, k, v, **options), theirs, atol=1e-5)

    def test_dropout_is_of_the_map(self) -> None:
        torch.manual_seed(0)
        eye = torch.eye(5).expand(2, 4, 5, 5)
        found = in_steps(Q, K, eye, dropout_p=0.5)
        kept = found > 0
        assert 0.3 < float(kept.float().mean()) < 0.7
        whole = in_steps(Q, K, eye)
        assert torch.allclose(found[kept], 2 * whole[kept])


@pytest.mark.parametrize(
    "attention",
    [
        lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v,
        lambda q, k, v: torch.matmul(functional.softmax(torch.matmul(q, k.mT), -1), v),
        lambda q, k, v: q.matmul(k.mT).softmax(-1).matmul(v),
        lambda q, k, v: torch.einsum("...qk,...kd->...qd", (q @ k.mT).softmax(-1), v),
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=1.0),
    ],
)
def test_a_watch_sees_scores_map_and_context_and_may_replace_them(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    seen: dict[int, Tensor] = {}

    def uniform(number: int, result: Tensor) -> Tensor:
        seen[number] = result
        return torch.full_like(result, 0.2) if number == 1 else result

    plain = attention(Q, K, V)
    with Watch(uniform) as watch:
        found = attention(Q, K, V)
    scores = Q @ K.mT
    assert watch.events == 3
    for number, expected in enumerate((scores, scores.softmax(-1), found)):
        assert torch.allclose(seen[number], expected, atol=1e-5)
    assert torch.allclose(found, V.mean(-2, keepdim=True).expand(V.shape), atol=1e-6)
    assert torch.equal(attention(Q, K, V), plain)


class TestCut:
    """Against the layer with an explicit detach."""

    @pytest.mark.parametrize("features", [[True] * 6, [True, True, False, True, False, False]])
    @pytest.mark.parametrize("strength", [1.0, 0.25])
    @pytest.mark.parametrize("convolution", [False, True])
    def test_a_layer_learns_in_full_and_its_input_in_part(
        self, features: list[bool], strength: float, convolution: bool
    ) -> None:
        layer: nn.Module = nn.Conv2d(4, 6, 1) if convolution else nn.Linear(4, 6)
        x = drawn(3, 4, 2, 2) if convolution else drawn(3, 4)
        mask = torch.tensor(features)
        shaped = mask[:, None, None] if convolution else mask
        net, loss = nn.Sequential(layer), lambda y: y.sin() * torch.arange(y.numel()).view_as(y)
        leaf = x.clone().requires_grad_()
        with cut(net, {"0": mask}, strength):
            out = net(leaf)
        assert torch.equal(out, layer(x))
        wanted = [leaf, *layer.parameters()]
        ours = torch.autograd.grad(loss(out).sum(), wanted, materialize_grads=True)

        part = (1 - strength) * leaf + strength * leaf.detach()
        slow = torch.where(shaped, layer(part), layer(leaf))
        theirs = torch.autograd.grad(loss(slow).sum(), wanted)
        for mine, expected in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, expected, atol=1e-5)
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks

    def test_an_input_given_by_name_counts_too(self) -> None:
        class ByName(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(4, 6)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(input=x)

        for features in (torch.ones(6).bool(), torch.arange(6) < 3):
            net, leaf = ByName(), drawn(3, 4).requires_grad_()
            with cut(net, {"fc": features}, 1.0):
                out = net(leaf)
            out[:, :3].sum().backward()
            assert leaf.grad is None or not leaf.grad.any()
            assert net.fc.weight.grad[:3].any()

    def test_an_error_inside_leaves_no_hook(self) -> None:
        net = nn.Sequential(nn.Linear(4, 6))
        with pytest.raises(KeyError), cut(net, {"0": torch.arange(6) < 3}, 1.0):
            raise KeyError("x")
        assert not net[0]._forward_hooks
        assert not net[0]._forward_pre_hooks
