"""The attentions of any network, and the layers that compute their queries, keys and values.

On one pass, attention is the softmax of a product of two activations, whose result (the map) is
multiplied by values, once; that product's result is the context. Teacher intervention's
stop-gradients also need the layers. Each Linear's output is therefore replaced by noise that
requires a gradient; gradients of scores and of values then reach exactly the nearest Linears,
feature by feature, so that a packed projection's thirds are told apart as well as three layers.

Left out: maps that are no softmax (linear attention, sigmoid), softmaxes that two products read or
that two are mixed of (differential attention), projections that are not a Linear or Conv2d of their
own, and one projection for keys and values. Each is refused in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from edgekd.data import IO
from edgekd.distill.interception import FUSED, PRODUCTS, SOFTMAXES, Watch
from edgekd.errors import ConfigError
from edgekd.models import Tensors, forward
from edgekd.structure import LAYERS

Cuts = dict[str, Tensor]  # layer -> bool[features]


@dataclass
class Call:
    """One attention in a network's pass.

    Attributes:
        module: The innermost module whose code runs it.
        softmax: Number of the call whose result is the map.
        product: Number of the call whose result is the context.
        map: The map's shape, for one example.
        context: The context's.
        queries: Features of the layers that its scores are computed from.
        values: Features of the layers that its values are computed from.
        shared: A layer (or the network's input) that both are computed from; empty: none.
        nth: Which of the pass's softmaxes it is, from 0; `branches.Site` counts them alike.
    """

    module: str
    softmax: int
    product: int
    map: tuple[int, ...]
    context: tuple[int, ...]
    queries: Cuts = field(default_factory=dict)
    values: Cuts = field(default_factory=dict)
    shared: str = ""
    nth: int = 0


@dataclass(frozen=True)
class Found:
    """Attention calls in forward order, softmaxes and products in all, and what else was seen."""

    calls: list[Call]
    events: int
    others: list[str]

    def cuts(self, signal: str, inside: Container[int] | None = None) -> Cuts:
        """Features whose gradient must not reach the hidden states while `signal` is replaced.

        Queries and keys for ``map``; values too otherwise (arXiv 2302.11812, its code).

        Args:
            signal: ``map``, ``context`` or ``output``.
            inside: Softmaxes, by `Call.nth`, whose attention is meant if it has layers of its own
                for Q, K and V; default: every attention.
        """
        cuts: Cuts = {}
        for call in self.calls:
            own = call.queries and call.values and not call.shared
            if inside is not None and (call.nth not in inside or not own):
                continue
            for part in (call.queries,) if signal == "map" else (call.queries, call.values):
                for layer, features in part.items():
                    cuts[layer] = cuts[layer] | features if layer in cuts else features
        return cuts


def find(model: nn.Module, inputs: Tensors, io: IO) -> Found:
    """Every attention of a network, in forward order.

    Args:
        model: The network, quantized or not; left as it was.
        inputs: One example or more.
        io: Names of the outputs.
    """
    trace = _Trace()
    handles: list[Any] = []
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(trace.entered(name)),
            module.register_forward_hook(trace.left(name)),
        ]
    modes = [(module, module.training) for module in model.modules()]
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)  # what requires a gradient then depends on the input
    try:
        with torch.enable_grad(), trace:
            forward(model, {name: trace.seed(x) for name, x in inputs.items()}, io)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for handle in handles:
            handle.remove()
    return Found(trace.calls(), trace.events, trace.others)


def require(found: Found, who: str, mode: str, model: nn.Module) -> None:
    """Refuse a network without attention that can be intervened in.

    Args:
        found: What `find` found.
        who: ``student`` or ``teacher``; of the student, layers are needed too.
        mode: The recipe's, for the sentence.
        model: For its class's name.

    Raises:
        ConfigError: There is none, or gradients cannot be kept apart as the method asks.
    """
    problem = "" if found.calls else (found.others or ["found no softmax"])[0]
    for call in found.calls if who == "student" else ():
        if call.shared:
            problem = f"in {call.module}, {call.shared} feeds both the scores and the values"
        elif not call.queries:
            problem = f"in {call.module}, no Linear or Conv2d feeds the scores"
        if problem:
            break
    if problem:
        raise ConfigError(
            f"intervention: mode {mode!r} needs attention, softmax(Q K) V with layers of their own "
            f"for Q, K and V; in the {who} ({type(model).__name__}): {problem}; use "
            'mode = "output", which takes any network with residual branches'
        )


@dataclass
class _Softmax:
    """A softmax while it is not known whether it is attention's."""

    module: str
    number: int
    nth: int
    scores: Tensor
    result: Tensor
    of_product: bool
    contexts: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    mixed: bool = False


class _Trace(Watch):
    """Follows scores and maps through one pass by the identity of tensors.

    A tensor's tags are the softmaxes it was made from, and -1 where it is made from a product of
    two activations. A layer's output is noise of its own and carries none.
    """

    def __init__(self) -> None:
        super().__init__(lambda _number, result: result)
        self.others: list[str] = []
        self._ran = 0
        self._inside: list[str] = []
        self._softmaxes: dict[int, _Softmax] = {}
        self._tags: dict[int, frozenset[int]] = {}
        self._alive: list[Tensor] = []  # so that no identity is used twice
        self._leaves: list[tuple[str, Tensor, int | None]] = []
        self._noise = torch.Generator().manual_seed(0)

    def seed(self, x: Tensor) -> Tensor:
        """An input of the network, whose gradients are asked for where it has any."""
        return self._leaf("the network's input", x, None) if x.is_floating_point() else x

    def entered(self, name: str) -> Callable[[nn.Module, Any], None]:
        """A hook that knows whose code runs."""
        return lambda _module, _args: self._inside.append(name)

    def left(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        """A hook that replaces a layer's output by noise."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            self._inside.pop()
            if isinstance(module, nn.Embedding):
                return self._leaf(name, output, None)
            given = args[0] if args and isinstance(args[0], Tensor) else output
            if isinstance(module, LAYERS) and given.requires_grad:
                noise = torch.randn(output.shape, generator=self._noise).to(output)
                return self._leaf(name, noise, -1 if isinstance(module, nn.Linear) else 1)
            return output

        return hook

    def calls(self) -> list[Call]:
        """Softmaxes that turned out to be attention's, with their layers."""
        found = []
        for each in self._softmaxes.values():
            if not each.of_product:
                self._note(each, "is not of a product of two activations")
            elif each.mixed:
                self._note(each, "is mixed with another before it meets the values")
            elif len(each.contexts) != 1:
                self._note(each, f"enters {len(each.contexts)} products with values, expected 1")
            else:
                found.append(self._call(each))
        return sorted(found, key=lambda call: call.softmax)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is functional.multi_head_attention_forward:
            self.others.append(f"{self._where()} runs torch's attention with packed weights")
            self._ran += 1
        result = super().__torch_function__(function, types, args, kwargs)
        if function is FUSED:
            return result
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        tags = frozenset().union(*(self._tags.get(id(x), frozenset()) for x in given))
        if function in SOFTMAXES:
            number = self.events - 1
            self._softmaxes[number] = _Softmax(
                self._where(), number, self._ran, given[0], result, of_product=-1 in tags
            )
            self._ran += 1
            tags = frozenset({number})
        elif function in PRODUCTS:
            self._multiplied(given, tags - {-1}, result)
            activations = [x for x in given if not isinstance(x, nn.Parameter)]
            tags = frozenset({-1} if len(activations) > 1 else ())
        for tensor in tree_leaves(result) if tags else ():
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                self._tags[id(tensor)] = tags
        return result

    def _multiplied(self, given: Sequence[Tensor], maps: frozenset[int], result: Tensor) -> None:
        for number in maps:
            softmax = self._softmaxes[number]
            others = [x for x in given if number not in self._tags.get(id(x), ())]
            softmax.mixed |= len(maps) > 1 or len(others) != 1
            if others:
                softmax.contexts.append((self.events - 1, others[0], result))

    def _call(self, each: _Softmax) -> Call:
        number, values, context = each.contexts[0]
        call = Call(
            each.module,
            each.number,
            number,
            tuple(each.result.shape),
            tuple(context.shape),
            nth=each.nth,
        )
        shared: list[str] = []
        scores, values_ = (self._features(x) for x in (each.scores, values))
        for layer in scores.keys() & values_.keys():
            if bool((scores[layer] & values_[layer]).any()):
                shared.append(layer)
        call.shared = min(shared, default="")
        named = {name for name, _, axis in self._leaves if axis is not None}
        call.queries = {name: mask for name, mask in scores.items() if name in named}
        call.values = {name: mask for name, mask in values_.items() if name in named}
        return call

    def _features(self, x: Tensor) -> Cuts:
        """Which features of which layers (or seeds) a tensor is computed from."""
        if not x.requires_grad:
            return {}
        noise = torch.randn(x.shape, generator=self._noise).to(x)
        leaves = [leaf for _, leaf, _ in self._leaves]
        grads = torch.autograd.grad(x, leaves, noise, retain_graph=True, allow_unused=True)
        found: Cuts = {}
        for (name, _, axis), grad in zip(self._leaves, grads, strict=True):
            if grad is None or not bool(grad.any()):
                continue
            reached = grad != 0
            mask = reached.any().reshape(1)
            if axis is not None:
                mask = reached.movedim(axis, 0).flatten(1).any(1).cpu()
            found[name] = found[name] | mask if name in found else mask
        return found

    def _leaf(self, name: str, x: Tensor, axis: int | None) -> Tensor:
        leaf = x.detach().clone().requires_grad_()
        self._leaves.append((name, leaf, axis))
        return leaf.clone()  # code may write into what it was given

    def _note(self, each: _Softmax, why: str) -> None:
        self.others.append(f"the softmax in {each.module} {why}")

    def _where(self) -> str:
        return (self._inside[-1] if self._inside else "") or "the network itself"
