"""Learned step size quantization: scales that train beside the weights (arXiv 1902.08153).

The gradient to a scale s is the paper's equation 3, and to the value v its equation 5::

    dv_hat/ds = -v/s + round(v/s)  inside -Qn < v/s < Qp,  -Qn below,  Qp above
    dv_hat/dv = 1                  inside,                  0 elsewhere

and what reaches s is multiplied by g = 1 / sqrt(N * Qp), N the values that share s: the weights of
a row that the mask keeps, or the features of one example (section 2.2).

Two things are ours. A scale is ``initial * exp(RATE * log_scale)`` and `log_scale` is what trains,
from 0: it cannot turn negative, the first step computes exactly what calibrated scales compute, and
Adam, which takes steps of the learning rate's size whatever the gradient's, moves every scale by
`RATE` times that share of itself and not by a multiple of it (a weight's scale is near 1e-3; Adam
also cancels g, which is kept for other optimizers). With a `RATE` of 1 fine-tuning of some hundred
steps could hardly move a scale. And training sees the number that ships: the scale rounded up to a
value float16 holds (see `edgekd.quant`), with the gradient passing straight through.

Left out: the paper's start at 2 mean|v| / sqrt(Qp), since calibration gives a better one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# What a scale may be: float16's smallest value, and the largest at which -128 is still finite.
SCALE_MIN, SCALE_MAX = 2.0**-24, 511.75
RATE = 10.0  # how much faster than the learning rate a scale's logarithm moves
_PARAMETER = "log_scale"


class LearnedScale(nn.Module):
    """One scale, or one a row, that trains; calling it gives float32, positive, not yet rounded."""

    initial: Tensor

    def __init__(self, initial: Tensor) -> None:
        """Start from calibration's scale or the weight's, float32[] or float32[n, 1, ...]."""
        super().__init__()
        self.register_buffer("initial", initial.detach().clone())
        self.log_scale = nn.Parameter(torch.zeros_like(initial))

    def forward(self) -> Tensor:
        """The scale as its gradient sees it."""
        return (self.initial * (RATE * self.log_scale).exp()).clamp(SCALE_MIN, SCALE_MAX)

    def shipped(self) -> Tensor:
        """The scale as the forward pass and every graph use it, a value of float16."""
        with torch.no_grad():
            return float16_above(self())


class LSQ(torch.autograd.Function):
    """Quantize and dequantize, with gradients for the value and for its scale."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, count: int | Tensor
    ) -> Tensor:
        """``clamp(round(x / s), low, high) * s`` with s the scale rounded up to float16.

        Args:
            ctx: For the backward pass.
            x: float32[...].
            scale: float32, broadcast against x.
            low: Smallest integer, -Qn.
            high: Largest integer, Qp.
            count: N, one number or one for each scale.
        """
        shipped = float16_above(scale)
        ctx.save_for_backward(x, shipped)
        ctx.range, ctx.count = (low, high), count
        return torch.round(x / shipped).clamp_(low, high).mul_(shipped)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Equations 5 and 3, the latter times g."""
        x, shipped = ctx.saved_tensors
        low, high = ctx.range
        ratio = x / shipped
        inside = (ratio > low) & (ratio < high)
        slope = torch.where(inside, torch.round(ratio) - ratio, ratio.clamp(low, high))
        to_scale = (grads[0] * slope).sum_to_size(shipped.shape)
        count = torch.as_tensor(ctx.count, dtype=torch.float32, device=shipped.device)
        return grads[0] * inside, to_scale / (count * high).sqrt(), None, None, None


def fake_quant(x: Tensor, scale: Tensor, low: int, high: int, count: int | Tensor) -> Tensor:
    """Quantize and dequantize with gradients to x and scale; see `LSQ`."""
    return LSQ.apply(x, scale, low, high, count)  # type: ignore[no-any-return, no-untyped-call]


def float16_above(scale: Tensor) -> Tensor:
    """The smallest float16 values that are not below the given ones, as float32, same shape.

    Args:
        scale: float32, positive, at most 65504.
    """
    nearest = scale.half()
    below = (nearest.float() < scale).to(torch.int16)
    # The next float16 above: positive floats order as their bits do.
    return (nearest.view(torch.int16) + below).view(torch.float16).float()


def scales(model: nn.Module) -> dict[str, Tensor]:
    """What decides a network's learned scales, by name; empty where none is learned."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.endswith((f".{_PARAMETER}", ".learned.initial"))
    }


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A network's trainable parameters for an optimizer: weight decay acts on no scale.

    One group, in the network's order, where no scale is learned.
    """
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    scales = [p for name, p in trained if name.rpartition(".")[2] == _PARAMETER]
    others = [p for name, p in trained if name.rpartition(".")[2] != _PARAMETER]
    found: list[dict[str, Any]] = [{"params": others, "weight_decay": weight_decay}]
    return [*found, {"params": scales, "weight_decay": 0.0}] if scales else found
