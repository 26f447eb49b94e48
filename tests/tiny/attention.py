"""Attention, and what resembles it, each written in one way.

Every function takes queries, keys and values float32[batch, heads, tokens, depth] and answers the
same shape; `network` puts linears around it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS, WIDTH, HEADS = 8, 4, 2
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


class Mixed(nn.Module):
    """One residual branch around `mix`; takes ``x`` float32[batch, 32], answers [batch, 4]."""

    def __init__(self, mix: Mix, tokens: int = TOKENS, width: int = WIDTH) -> None:
        super().__init__()
        self.mix, self.shape = mix, (tokens, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens, width = self.shape
        x = x.reshape(-1, tokens, width)
        parts = [
            linear(x).reshape(-1, tokens, HEADS, width // HEADS).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        ]
        mixed = self.mix(*parts).transpose(1, 2).reshape(-1, tokens, width)
        return self.head(x + self.out(mixed)).mean(1)


def network(mix: Mix, tokens: int = TOKENS, width: int = WIDTH) -> nn.Module:
    return Mixed(mix, tokens, width)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def exp_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = _scores(q, k).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def exp_sum_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The maximum taken off, and the division behind the second product."""
    scores = _scores(q, k)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return (weights @ v) / weights.sum(-1, keepdim=True)


def relu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_scores(q, k).relu() / TOKENS) @ v


def cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)).tanh() @ v


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Katharopoulos et al. 2020, eq. 6, without the normaliser."""
    return (functional.elu(q) + 1) @ ((functional.elu(k) + 1).transpose(-1, -2) @ v)


def linear_normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Divided by a third product, of the queries and the sum of the keys."""
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    total = torch.einsum("bhqd,bhd->bhq", q, k.sum(2)).unsqueeze(-1)
    return q @ (k.transpose(-1, -2) @ v) / total


def linear_in_one_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with the reciprocal as a third operand of the closing product."""
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    inverse = 1 / torch.einsum("bhqd,bhd->bhq", q, k.sum(2))
    kept = torch.einsum("bhkd,bhkm->bhdm", k, v)
    return torch.einsum("bhqd,bhdm,bhq->bhqm", q, kept, inverse)


def shared_kv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head of keys for all queries; the keys are the values too."""
    return _scores(q, k[:, :1]).softmax(-1) @ k[:, :1] + v


def scores_used_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two sums of values with the same scores."""
    weights = _scores(q, k).softmax(-1)
    return weights @ v - weights @ q


def difference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sum of values with the difference of two scores (differential attention)."""
    return (_scores(q, k).softmax(-1) - _scores(q, v).softmax(-1)) @ v


def mask_of_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two blocks, one after the other, under one mask that is a product itself."""
    seen = (k[..., :1] > 0).float()
    mask = (seen @ seen.transpose(-1, -2) - 1) * 1e4
    first = (_scores(q, k) + mask).softmax(-1) @ v
    return (_scores(first, k) + mask).softmax(-1) @ v


def bilinear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One product of two activations and nothing after it."""
    return v * (q @ k.transpose(-1, -2)).mean((-2, -1), keepdim=True)


def squeeze_excite(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gates: products element by element, once as an Einsum."""
    gated = torch.einsum("bhtd,bhd->bhtd", v, k.mean(2).sigmoid())
    return gated * q.softmax(-1)


class SqueezeExcite(nn.Module):
    """A convolution's channels gated by their means; takes ``x`` float32[batch, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = (
            nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        )  # fmt: skip
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.reshape(-1, 1, 4, 8))
        gate = self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x * gate).mean((2, 3)))


def squeeze_excite_conv() -> nn.Module:
    return SqueezeExcite()
