"""Batch norm in a student: frozen, then folded into the layer before it.

While it trains, batch norm divides by statistics of the batch, and on a device by fixed ones; the
weights that ship are neither. So there is one order (Jacob et al., arXiv 1712.05877, section 3.2,
without their correction factors, which a frozen norm does not need): some steps in float, masked,
with live norms; then the statistics stop; then::

    w' = w * gamma / sqrt(var + eps),  b' = (b - mean) * gamma / sqrt(var + eps) + beta

and masks, scales and quantizers are those of w'. A row is multiplied by one number, which moves
neither a zero nor the larger of two magnitudes, so the 2:4 mask that was chosen before still holds.

Pairs are found by tracing a real input: a norm is folded when the layer before it ran once, gave
its result to the norm and to nothing else, and holds a weight of its own. Any other norm (of the
input, after a sum, before the layer) stays and is frozen. The teacher keeps its norms.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edgekd import models, unpack
from edgekd.data import IO, Arrays
from edgekd.distill import watch
from edgekd.errors import ContractError
from edgekd.structure import LAYERS
from edgekd.weights import holders

# |difference| / |answer| of the folded network and the unfolded: float32's rounding of the weights.
LIMIT = 1e-5


def norms(model: nn.Module) -> list[str]:
    """Names of the batch norms of a network."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def pairs(model: nn.Module, inputs: models.Tensors, io: IO) -> list[tuple[str, str]]:
    """Every batch norm that can be folded, with the layer before it: (layer, norm) by name.

    Args:
        model: The network; left as it was.
        inputs: One example or more.
        io: Names of the outputs.
    """
    if not norms(model):
        return []
    trace = _Trace(model)
    outputs = watch.traced(model, inputs, io, trace)
    returned = {tensor.untyped_storage().data_ptr() for tensor in outputs.values()}
    alone = {held[0] for held in holders(model) if len(held) == 1}
    return [
        (layer, norm)
        for layer, norm, result in trace.pairs()
        if f"{layer}.weight" in alone
        and result.untyped_storage().data_ptr() not in returned
        and _fit(model.get_submodule(layer), model.get_submodule(norm), result)
    ]


def freeze(model: nn.Module) -> None:
    """Keep every batch norm on its running statistics from now on, whatever mode is set, in place.

    A hook on the module itself, since training code sets the mode of the whole network at will.
    """
    for name in norms(model):
        module = model.get_submodule(name)
        module.eval()
        module.register_forward_pre_hook(_stay_frozen)


def fold(
    model: nn.Module,
    found: Sequence[tuple[str, str]],
    masks: Mapping[str, Tensor],
    inputs: Arrays,
    io: IO,
) -> None:
    """Fold norms into the layers before them, in place, and prove that nothing else changed.

    Args:
        model: The float network, its masked weights already zero.
        found: What `pairs` returned.
        masks: 2:4 masks by layer.
        inputs: Examples to compare on, {name: dtype[n, ...]}.
        io: Names of the outputs.

    Raises:
        ContractError: The folded network answers otherwise, or a weight left its mask.
    """
    if not found:
        return
    before = models.run(model, inputs, io)
    kinds = sorted({type(model.get_submodule(norm)).__name__ for _, norm in found})
    folded = {layer: _folded(model, layer, norm) for layer, norm in found}
    unpack.without_batchnorm(model, found)
    with torch.no_grad():
        for layer, (weight, bias) in folded.items():
            module = model.get_submodule(layer)
            module.weight.copy_(weight)  # type: ignore[operator]
            module.bias.copy_(bias)  # type: ignore[operator]
            mask = masks.get(layer)
            if mask is not None and bool((module.weight[~mask] != 0).any()):  # type: ignore[index]
                raise ContractError(
                    f"batchnorm: after folding, weights of {layer} lie off its 2:4 mask: bake the "
                    "mask in before the norm is folded"
                )
    for name, after in models.run(model, inputs, io).items():
        size = float(abs(before[name]).max()) + 1e-30
        gap = float(abs(after - before[name]).max()) / size
        if not gap <= LIMIT:
            raise ContractError(
                f"batchnorm: with {len(found)} norms folded the network answers {name!r} "
                f"{gap:.3g} of its size away from what it answered before, expected at most "
                f"{LIMIT:g}: one of {', '.join(kinds)} does more than normalise; take that out of "
                "its class, into a module after it"
            )


def _folded(model: nn.Module, layer: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer with its norm in them, computed in float64."""
    owner, batch = model.get_submodule(layer), model.get_submodule(norm)
    weight, bias = owner.weight, owner.bias
    mean, variance = batch.running_mean, batch.running_var
    assert isinstance(weight, Tensor)
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    gain = 1.0 / torch.sqrt(variance.double() + batch.eps)  # type: ignore[operator]
    if isinstance(batch.weight, Tensor):
        gain = gain * batch.weight.detach().double()
    shift = -mean.double() * gain
    if isinstance(bias, Tensor):
        shift = shift + bias.detach().double() * gain
    if isinstance(batch.bias, Tensor):
        shift = shift + batch.bias.detach().double()
    spread = gain.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight.detach().double() * spread).float(), shift.float()


def _fit(layer: nn.Module, norm: nn.Module, result: Tensor) -> bool:
    """Whether a norm scales what a layer calls its outputs, by numbers that are known."""
    mean, weight = norm.running_mean, layer.weight
    plain = isinstance(layer, nn.Conv2d) or result.ndim == 2  # else features are not axis 1
    known = isinstance(mean, Tensor) and isinstance(weight, Tensor)
    return plain and known and len(mean) == len(weight)  # type: ignore[arg-type]


def _stay_frozen(module: nn.Module, _args: Any) -> None:
    module.training = False


class _Trace(TorchFunctionMode):
    """Notes which layer made each tensor, and which operations read it outside a batch norm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._alive: list[Tensor] = []  # so that no identity is used twice
        self._made: dict[int, str] = {}
        self._read: Counter[int] = Counter()
        self._took: list[tuple[str, Tensor]] = []
        self._runs: Counter[str] = Counter()
        self._inside = 0
        self._handles = []
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                hook = functools.partial(self._layer_ran, name)
                self._handles.append(module.register_forward_hook(hook))
            elif isinstance(module, _BatchNorm):
                take = functools.partial(self._norm_starts, name)
                self._handles.append(module.register_forward_pre_hook(take))
                self._handles.append(module.register_forward_hook(self._norm_ended))

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def pairs(self) -> list[tuple[str, str, Tensor]]:
        """(layer, norm, what lies between them) where nothing else reads that."""
        takers = Counter(id(tensor) for _, tensor in self._took)
        return [
            (self._made[id(tensor)], norm, tensor)
            for norm, tensor in self._took
            if id(tensor) in self._made
            and takers[id(tensor)] == 1
            and not self._read[id(tensor)]
            and self._runs[norm] == self._runs[self._made[id(tensor)]] == 1
        ]

    def _layer_ran(self, name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self._alive.append(output)
        self._made[id(output)] = name
        self._read[id(output)] = 0  # of a tensor that is gone and whose identity this one took
        self._runs[name] += 1

    def _norm_starts(self, name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inside += 1
        self._runs[name] += 1
        if args:
            self._took.append((name, args[0]))
            self._alive.append(args[0])

    def _norm_ended(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._inside -= 1

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self._inside and any(isinstance(each, Tensor) for each in tree_leaves(result)):
            for each in tree_leaves((args, kwargs or {})):
                if isinstance(each, Tensor):
                    self._read[id(each)] += 1
        return result
