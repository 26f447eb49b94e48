"""Teacher intervention: intact teacher signals flow through a student that is being quantized.

Kim et al. (arXiv 2302.11812) observe that in quantization-aware training the error of early layers
drowns the signal that later layers learn from. In their mode TI-O the output of each attention
sub-layer, before it is added to the residual stream, is replaced by the teacher's. Here the
replacement is withdrawn gradually::

    out = lambda * teacher + (1 - lambda) * student,  lambda = 1 -> 0 over `share` of the steps

so that the student ends on its own signals alone. The student still computes its own output at each
site, and a loss term compares it with the teacher's: without it a fully replaced site would get no
gradient at all (the mixed signal's gradient is scaled by 1 - lambda).

Sites are found by structure, on a real forward pass: wherever two tensors are added, one of them
was read while the other was being computed, and a module returned the later one, that module closes
a residual branch. It is an attention branch if a softmax ran in between. Networks with attention
are intervened on their attention branches, others on every branch.

Left out here: TI-C and TI-M, which need attention's insides, and their stochastic and inverted
schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgekd.data import IO
from edgekd.errors import ConfigError
from edgekd.models import Tensors, forward
from edgekd.recipe import TeacherIntervention
from edgekd.structure import first_tensor

_ADD = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__,
        torch.Tensor.add_, torch.Tensor.__iadd__}  # fmt: skip
_SOFTMAX = {
    torch.softmax,
    torch.Tensor.softmax,
    torch.nn.functional.softmax,
    torch.nn.functional.scaled_dot_product_attention,
    torch.nn.functional.multi_head_attention_forward,
}


@dataclass(frozen=True)
class Site:
    """A module whose output is added to the residual stream."""

    module: str
    attention: bool


def residual_sites(model: nn.Module, inputs: Tensors, io: IO) -> list[Site]:
    """Every module whose output closes a residual branch, in forward order.

    Args:
        model: The network; left as it was.
        inputs: One example or more.
        io: Names of the outputs.
    """
    trace = _Trace(inputs)
    handles = [
        module.register_forward_hook(trace.produced(name))
        for name, module in model.named_modules()
        if name
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), trace:
            forward(model, inputs, io)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return trace.sites


def chosen_sites(sites: list[Site]) -> list[str]:
    """Attention branches where there are any, else every branch.

    Raises:
        ConfigError: The network adds nothing to a residual stream.
    """
    if not sites:
        raise ConfigError(
            "intervention: the network has no module whose output is added to a residual stream; "
            "remove [distill.intervention] from the recipe"
        )
    attention = [site.module for site in sites if site.attention]
    return attention or [site.module for site in sites]


class Intervention:
    """Mixes the teacher's site outputs into the student's forward pass while it trains.

    The teacher must run first in every step; what it answered at a site is used once, so a stale
    answer is an error and never a silent one.
    """

    def __init__(
        self,
        settings: TeacherIntervention,
        steps: int,
        student: nn.Module,
        teacher: nn.Module,
        sites: Sequence[tuple[str, str]],
    ) -> None:
        """Hook the sites.

        Args:
            settings: Share of the steps and the weight of the site loss.
            steps: Steps of the whole training.
            student: Its sites' outputs are mixed while it trains.
            teacher: Its sites' outputs are recorded.
            sites: Pairs of module names, student's and teacher's.
        """
        self.sites = [mine for mine, _ in sites]
        self._settings, self._steps = settings, steps
        self._strength = 1.0
        self._taught: dict[str, Tensor] = {}
        self._terms: list[Tensor] = []
        self._handles = [
            *(
                teacher.get_submodule(theirs).register_forward_hook(self._record(mine))
                for mine, theirs in sites
            ),
            *(
                student.get_submodule(mine).register_forward_hook(self._mix(mine))
                for mine, _ in sites
            ),
        ]

    def at(self, step: int) -> None:
        """Set lambda for a step, 1 at the first to 0 after ``share * steps``."""
        reach = self._settings.share * self._steps
        self._strength = max(0.0, 1.0 - step / reach) if reach > 0 else 0.0
        self._taught.clear()
        self._terms.clear()

    def loss(self) -> Tensor:
        """Mean over the sites of MSE(student's own output, teacher's) / Var(teacher), float32[]."""
        terms, self._terms = self._terms, []
        return self._settings.weight * torch.stack(terms).mean()

    def remove(self) -> None:
        """Take every hook off both networks."""
        for handle in self._handles:
            handle.remove()

    def _record(self, site: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                self._taught[site] = tensor.detach()

        return hook

    def _mix(self, site: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, _args: Any, output: Any) -> Any:
            if not module.training:
                return output
            own, taught = first_tensor(output), self._taught.pop(site, None)
            if own is None or taught is None or own.shape != taught.shape:
                raise ConfigError(
                    f"intervention: the student's {site} gives "
                    f"{None if own is None else list(own.shape)}, the teacher's "
                    f"{None if taught is None else list(taught.shape)}: both must give one tensor "
                    "of the same shape in every step; remove [distill.intervention]"
                )
            spread = taught.var(correction=0).clamp_min(1e-12)
            self._terms.append(torch.nn.functional.mse_loss(own, taught) / spread)
            mixed = self._strength * taught + (1.0 - self._strength) * own
            return mixed if isinstance(output, Tensor) else (mixed, *output[1:])

        return hook


class _Trace(TorchFunctionMode):
    """Notes when each tensor was made, by which module, when it was read, when a softmax ran."""

    def __init__(self, inputs: Tensors) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self._time = 0
        self._alive = list(inputs.values())  # so that no identity is used twice
        self._made = {id(tensor): (0, "") for tensor in self._alive}
        self._read: dict[int, list[int]] = {}
        self._softmaxes: list[int] = []

    def produced(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
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
        if module and any(start < time < end for time in self._read[id(early)]):
            attention = any(start < time < end for time in self._softmaxes)
            self.sites.append(Site(module, attention))
