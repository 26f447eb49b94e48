"""Signals of a running network, replaced from outside: results of calls, and gradients of layers.

While a `Watch` is on, torch tells it of every function that is called. What makes up attention is a
softmax (its result is the map) and the product of that with values (the context); torch's fused
kernel is computed in those steps instead. These calls are counted, so the n-th of one pass is the
n-th of every pass, and a result is recorded or replaced by its number. `cut` keeps the gradients
of some of a layer's features from what the layer read. Neither edits the network's code, and off
them nothing differs: what is exported is the network that was built.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FUSED = functional.scaled_dot_product_attention
SOFTMAXES = {torch.softmax, Tensor.softmax, functional.softmax, torch.special.softmax}
PRODUCTS = {
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.linalg.matmul,
    torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm, torch.einsum,
}  # fmt: skip


class Watch(TorchFunctionMode):
    """Counts softmaxes and products; computes the fused kernel in its steps.

    `seen` is told of each result by its number and answers what takes its place.
    """

    def __init__(self, seen: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.events = 0
        self._seen = seen

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is FUSED:
            with self:
                return in_steps(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if function in SOFTMAXES or function in PRODUCTS:
            self.events += 1
            return self._seen(self.events - 1, result)
        return result


def in_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` as products around a softmax.

    Takes and returns what it does; a row that is masked throughout gives zeros, as there.
    """
    if enable_gqa:
        key, value = (
            x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value)
        )
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        attn_mask = causal if attn_mask is None else attn_mask
    dead = None
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
        dead = (scores == -math.inf).all(-1, keepdim=True)
        scores = scores.masked_fill(dead, 0.0)
    weights = torch.softmax(scores, dim=-1)
    if dead is not None:
        weights = weights.masked_fill(dead, 0.0)
    if dropout_p > 0:
        weights = functional.dropout(weights, dropout_p)
    return weights @ value


@contextlib.contextmanager
def cut(model: nn.Module, cuts: Mapping[str, Tensor], strength: float) -> Iterator[None]:
    """Scale what flows back through these features into their layer's input by 1 - strength.

    Values stay what they are, and the layer's own weights, masks and scales get their gradients in
    full. A layer of which only some features are meant (a packed projection) runs twice.

    Args:
        model: Its layers are hooked, and left as they were.
        cuts: {layer: bool[features]}.
        strength: 0 for plain gradients to 1 for none at all.
    """
    handles: list[Any] = []
    for name, features in cuts.items():
        module = model.get_submodule(name)
        if bool(features.all()):
            # Before the input's quantizer, whose learned scale is the layer's own.
            hook = _scaled_input(strength)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
        else:
            twice = _Twice(features.to(next(module.parameters()).device), strength)
            handles += [
                module.register_forward_pre_hook(twice.before, with_kwargs=True, prepend=True),
                module.register_forward_hook(twice.after),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Scaled(torch.autograd.Function):
    """The identity; its gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def _scaled(x: Tensor, strength: float) -> Tensor:
    if strength >= 1.0:
        return x.detach()
    return _Scaled.apply(x, 1.0 - strength)  # type: ignore[no-any-return, no-untyped-call]


def _scaled_input(strength: float) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (_scaled(args[0], strength), *args[1:]), kwargs
        return args, {**kwargs, "input": _scaled(kwargs["input"], strength)}

    return hook


class _Twice:
    """Runs a layer again on the scaled input, and takes the cut features from there."""

    def __init__(self, features: Tensor, strength: float) -> None:
        self._features, self._strength = features, strength
        self._input: Tensor | None = None
        self._again = False

    def before(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._again:
            self._input = args[0] if args else kwargs["input"]

    def after(self, module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if self._again or self._input is None:
            return None
        scaled, self._input, self._again = _scaled(self._input, self._strength), None, True
        try:
            again = module(scaled)
        finally:
            self._again = False
        return torch.where(_along(self._features, module), again, output)


def _along(features: Tensor, module: nn.Module) -> Tensor:
    """bool[features] shaped to a layer's output: the last axis of a Linear, the first of maps."""
    return features if isinstance(module, nn.Linear) else features[:, None, None]
