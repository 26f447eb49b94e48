"""Residual branches, found by structure: where a module's output is added to the stream.

On a real forward pass, wherever two tensors are added, one of them was read while the other was
being computed, and a module returned the later one, that module closes a residual branch. It is an
attention branch if a softmax ran in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgekd.data import IO
from edgekd.distill import watch
from edgekd.distill.interception import FUSED, SOFTMAXES
from edgekd.errors import ConfigError
from edgekd.models import Tensors
from edgekd.structure import first_tensor

_ADD = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__,
        torch.Tensor.add_, torch.Tensor.__iadd__}  # fmt: skip
_SOFTMAX = {*SOFTMAXES, FUSED, torch.nn.functional.multi_head_attention_forward}


@dataclass(frozen=True)
class Site:
    """A module whose output is added to the residual stream.

    Attributes:
        module: Its name.
        attention: Whether a softmax ran in the branch.
        softmaxes: Which ones of the pass's softmaxes did, from 0.
    """

    module: str
    attention: bool
    softmaxes: tuple[int, ...] = ()


def residual_sites(model: nn.Module, inputs: Tensors, io: IO) -> list[Site]:
    """Every module whose output closes a residual branch, in forward order.

    Args:
        model: The network; left as it was.
        inputs: One example or more.
        io: Names of the outputs.
    """
    trace = _Trace(model, inputs)
    watch.traced(model, inputs, io, trace)
    return trace.sites


def chosen_sites(sites: list[Site]) -> list[str]:
    """Attention branches where there are any, else every branch.

    Raises:
        ConfigError: The network adds nothing to a residual stream, or closes several branches with
            one module.
    """
    if not sites:
        raise ConfigError(
            "intervention: the network has no module whose output is added to a residual stream; "
            "remove [distill.intervention] from the recipe"
        )
    chosen = [site.module for site in sites if site.attention] or [site.module for site in sites]
    module, runs = Counter(chosen).most_common(1)[0]
    if runs > 1:
        raise ConfigError(
            f"intervention: {module} closes {runs} residual branches in one pass, expected 1 "
            '(blocks that share a layer): use mode = "context" or "map" where it is attention, or '
            "remove [distill.intervention] from the recipe"
        )
    return chosen


class _Trace(TorchFunctionMode):
    """Notes when each tensor was made, by which module, when it was read, when a softmax ran."""

    def __init__(self, model: nn.Module, inputs: Tensors) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self._time = 0
        self._alive = list(inputs.values())  # so that no identity is used twice
        self._made = {id(tensor): (0, "") for tensor in self._alive}
        self._read: dict[int, list[int]] = {}
        self._closed: set[int] = set()  # what one run gave may be added more than once
        self._softmaxes: list[int] = []
        self._handles = [
            module.register_forward_hook(self._produced(name))
            for name, module in model.named_modules()
            if name
        ]

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def _produced(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook that remembers the innermost module a tensor came from."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None:
                return
            self._time += 1
            self._alive.append(tensor)
            time, inner = self._made.get(id(tensor), (self._time, ""))
            self._made[id(tensor)] = (time, inner or name)

        return hook

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self._time += 1
        for tensor in (*args, *(kwargs or {}).values()):
            if isinstance(tensor, Tensor):
                self._read.setdefault(id(tensor), []).append(self._time)
        if function in _SOFTMAX:
            self._softmaxes.append(self._time)
        elif function in _ADD and len(args) > 1:
            self._added(args[0], args[1])
        if isinstance(result, Tensor) and id(result) not in self._made:
            self._alive.append(result)
            self._made[id(result)] = (self._time, "")
        return result

    def _added(self, a: Any, b: Any) -> None:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
            return
        if id(a) not in self._made or id(b) not in self._made:
            return
        early, late = sorted((a, b), key=lambda tensor: self._made[id(tensor)])
        (start, _), (end, module) = self._made[id(early)], self._made[id(late)]
        if not module or id(late) in self._closed:
            return
        if any(start < time < end for time in self._read[id(early)]):
            inside = [n for n, time in enumerate(self._softmaxes) if start < time < end]
            self.sites.append(Site(module, bool(inside), tuple(inside)))
            self._closed.add(id(late))
