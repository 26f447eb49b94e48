"""Teacher intervention: intact teacher signals flow through a student that is being quantized.

Kim et al. (arXiv 2302.11812) observe that in quantization-aware training the error of early layers
drowns the signal that later layers learn from. A signal of each attention is therefore replaced by
the teacher's: the branch's output before it is added to the residual stream (TI-O), the context
(TI-C) or the map (TI-M); which one when is the `signal` of a step. The paper replaces it in full
and then not at all; here it may also be withdrawn gradually::

    out = lambda * teacher + (1 - lambda) * student,  lambda = 1 -> 0 over `share` of the steps

so that the student ends on its own signals alone. The student still computes its own signal at each
site, and a loss term compares it with the teacher's: without it a fully replaced site would get no
gradient at all (the mixed signal's gradient is scaled by 1 - lambda). The term stays to the end of
the training, on the signal that was replaced last.

As in the authors' code, queries and keys (TI-M) or queries, keys and values (TI-C, TI-O) are
computed from detached hidden states, so that their loss trains the attention and nothing before it.
With lambda between 0 and 1, what flows back is scaled by 1 - lambda, like the signal.

Sites of TI-O are the residual branches that `edgekd.distill.branches` finds: networks with
attention are intervened on their attention branches, others on every branch. A branch without
attention, or without layers of its own for Q, K and V, is replaced and compared all the same, but
its loss also reaches the layers before it: the method says only for Q, K and V where to cut, and
cut at another place its first layers would learn from nothing. Sites of TI-C and TI-M are the
attentions that `edgekd.distill.attention` finds; they are watched during the step, so that
no network's code is edited and nothing of it is there afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.distill import attention, losses
from edgekd.distill.branches import chosen_sites, residual_sites
from edgekd.distill.interception import Watch, cut
from edgekd.errors import ConfigError
from edgekd.models import Tensors, forward
from edgekd.recipe import TeacherIntervention
from edgekd.structure import first_tensor

Signal = Literal["output", "context", "map"]
_SIGNALS: tuple[Signal, ...] = ("output", "context", "map")
# Modes in which the teacher's context takes the place of the student's in some steps.
REPLACE_CONTEXT = ("context", "gradual", "inverted", "stochastic")


def signal(settings: TeacherIntervention, steps: int, step: int, seed: int = 0) -> Signal:
    """Which signal is replaced in a step; a function of its arguments alone, so resume is exact.

    Args:
        settings: Its `mode` and `share`.
        steps: Of the whole training.
        step: From 0.
        seed: Of the recipe; what a stochastic step draws is decided by (seed, step). Once nothing
            is replaced any more, it is what the last intervened step drew.
    """
    if settings.mode == "stochastic":
        step = min(step, max(0, math.ceil(settings.share * steps) - 1))
        return _SIGNALS[int(np.random.default_rng([seed, step]).integers(3))]
    passed = step / (settings.share * steps) if steps else 0.0
    if settings.mode == "gradual":
        return "output" if passed < 1 / 6 else "context" if passed < 1 / 3 else "map"
    if settings.mode == "inverted":
        return "map" if passed < 1 / 3 else "context" if passed < 2 / 3 else "output"
    return settings.mode


def strength(settings: TeacherIntervention, steps: int, step: int) -> float:
    """Lambda in a step: share of the teacher's signal, 1 to 0, and 0 after ``share * steps``."""
    reach = settings.share * steps
    if settings.withdraw == "two-step":
        return 1.0 if step < reach else 0.0
    return max(0.0, 1.0 - step / reach) if reach > 0 else 0.0


@dataclass(frozen=True)
class Attentions:
    """The attentions of both networks, and which teacher's teaches which student's, in order."""

    student: attention.Found
    teacher: attention.Found
    pairs: list[tuple[int, int]]


def intervene(
    settings: TeacherIntervention,
    steps: int,
    seed: int,
    networks: tuple[nn.Module, nn.Module],
    inputs: Tensors,
    io: IO,
) -> Intervention:
    """Find and pair the sites that a mode needs, by relative depth.

    Args:
        settings: The recipe's section.
        steps: Of the whole training.
        seed: The recipe's.
        networks: Student and teacher.
        inputs: One example or more.
        io: Names of the outputs.

    Raises:
        ConfigError: A network cannot take the mode, or the two networks' signals differ in shape.
    """
    student, teacher = networks
    pairs: list[tuple[str, str]] = []
    cuts: attention.Cuts = {}
    attentions = None
    if settings.mode != "output":
        attentions = _attentions(settings.mode, networks, inputs, io)
    if settings.mode not in ("context", "map"):
        mine, theirs = (residual_sites(net, inputs, io) for net in networks)
        pairs = losses.paired(chosen_sites(mine), chosen_sites(theirs))
        inside = {number for site in mine for number in site.softmaxes}
        if inside:
            found = attentions.student if attentions else attention.find(student, inputs, io)
            cuts = found.cuts("output", inside)
    return Intervention(settings, steps, student, teacher, pairs, attentions, cuts, seed)


class Intervention:
    """Mixes the teacher's signals into the student's forward pass while it trains.

    The teacher must run first in every step, within `teaching`, the student within `acting`; what
    the teacher answered at a site is used once, so a stale answer is an error and never a silent
    one.
    """

    def __init__(
        self,
        settings: TeacherIntervention,
        steps: int,
        student: nn.Module,
        teacher: nn.Module,
        sites: Sequence[tuple[str, str]],
        attentions: Attentions | None = None,
        cuts: attention.Cuts | None = None,
        seed: int = 0,
    ) -> None:
        """Hook the sites.

        Args:
            settings: Mode, schedule, share of the steps and the weight of the site loss.
            steps: Steps of the whole training.
            student: Its signals are mixed while it trains.
            teacher: Its signals are recorded.
            sites: Pairs of module names, student's and teacher's, whose outputs TI-O replaces.
            attentions: What TI-C and TI-M replace; of the modes that need them.
            cuts: Layers of the student's Q, K and V in the branches that TI-O replaces; default:
                there are none.
            seed: Of the stochastic mode.
        """
        self._settings, self._steps, self._seed = settings, steps, seed
        self._student, self._teacher = student, teacher
        self._attentions, self._cuts = attentions, cuts or {}
        self._outputs: dict[str | int, str] = {mine: mine for mine, _ in sites}
        self._calls: dict[str | int, str] = {}
        if attentions is not None:
            calls = attentions.student.calls
            self._calls = {mine: calls[mine].module for mine, _ in attentions.pairs}
        self.sites = [*self._outputs.values(), *self._calls.values()]
        self._taught: dict[str | int, Tensor] = {}
        self._terms: dict[str | int, Tensor] = {}
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
        self.at(0)

    def at(self, step: int) -> None:
        """Set the signal and lambda for a step; lambda is 1 at the first."""
        self._be(
            signal(self._settings, self._steps, step, self._seed),
            strength(self._settings, self._steps, step),
        )

    def _be(self, what: Signal, share: float) -> None:
        self._signal, self._strength = what, share
        self._taught.clear()
        self._terms.clear()

    def attempt(self, inputs: Tensors, io: IO) -> None:
        """Replace each signal of the mode in full in one pass, and take every hook off.

        It is for the time before anything is trained. The networks are as before afterwards:
        layers run as in evaluation, so that dropout and batch norm do not act on one example.

        Args:
            inputs: One example or more.
            io: Names of the outputs.

        Raises:
            ConfigError: The two networks' signals differ in shape, or a site does not run once.
        """
        networks = (self._student, self._teacher)
        modes = [(module, module.training) for net in networks for module in net.modules()]
        buffers = [(buffer, buffer.clone()) for net in networks for buffer in net.buffers()]
        cuda = {p.device for p in self._student.parameters() if p.device.type == "cuda"}
        mode = self._settings.mode
        try:
            with torch.random.fork_rng(list(cuda)), torch.no_grad():
                for net in networks:
                    net.eval()
                self._student.training = True
                for each in _SIGNALS if mode not in _SIGNALS else (mode,):
                    self._be(each, 1.0)
                    with self.teaching():
                        forward(self._teacher, inputs, io)
                    with self.acting():
                        forward(self._student, inputs, io)
                    self.loss()
        finally:
            self.remove()
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)

    @contextlib.contextmanager
    def teaching(self) -> Iterator[None]:
        """Record the teacher's maps or contexts in the one pass that runs within."""
        if self._attentions is None or self._signal == "output":
            yield
            return
        found = self._attentions.teacher

        def record(call: int, result: Tensor) -> Tensor:
            self._taught[call] = result.detach()
            return result

        with self._watched(found, record):
            yield

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Replace the student's signals in the one pass that runs within, and cut Q, K and V.

        Raises:
            ConfigError: The pass had other attentions than the one they were found on.
        """
        if not self._student.training:
            yield
            return
        if self._attentions is None or self._signal == "output":
            with cut(self._student, self._cuts if self._strength > 0 else {}, self._strength):
                yield
            return
        found, teachers = self._attentions.student, dict(self._attentions.pairs)

        def replace(call: int, own: Tensor) -> Tensor:
            taught = self._taught.get(teachers[call])
            what = f"{self._signal} in {found.calls[call].module}"
            return self._mixed(call, what, own, taught)

        cuts = found.cuts(self._signal) if self._strength > 0 else {}
        with cut(self._student, cuts, self._strength), self._watched(found, replace):
            yield
        self._taught.clear()

    def loss(self) -> Tensor:
        """Mean over the sites of MSE(student's own signal, teacher's) / Var(teacher), float32[].

        Raises:
            ConfigError: A site did not run since the step began.
        """
        terms, self._terms = self._terms, {}
        wanted = self._outputs if self._signal == "output" else self._calls
        missing = [name for site, name in wanted.items() if site not in terms]
        if missing:
            raise ConfigError(
                f"intervention: {len(terms)} of {len(wanted)} sites gave a signal in this step, "
                f"{missing[0]} gave none (a layer that does not run in every step): turn that off, "
                "or remove [distill.intervention]"
            )
        return self._settings.weight * torch.stack(list(terms.values())).mean()

    def remove(self) -> None:
        """Take every hook off both networks."""
        for handle in self._handles:
            handle.remove()

    @contextlib.contextmanager
    def _watched(
        self, found: attention.Found, use: Callable[[int, Tensor], Tensor]
    ) -> Iterator[None]:
        numbers = {
            call.softmax if self._signal == "map" else call.product: index
            for index, call in enumerate(found.calls)
        }

        def seen(number: int, result: Tensor) -> Tensor:
            return use(numbers[number], result) if number in numbers else result

        with Watch(seen) as watch:
            yield
        if watch.events != found.events:
            raise ConfigError(
                f"intervention: {watch.events} softmaxes and products ran in this step, "
                f"{found.events} when attention was looked for (layer dropout, or a branch not "
                'taken): turn that off, or use mode = "output"'
            )

    def _record(self, site: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and self._signal == "output":
                self._taught[site] = tensor.detach()

        return hook

    def _mix(self, site: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            # The network's flag: a frozen batch norm that closes a branch stays in evaluation.
            if not self._student.training or self._signal != "output":
                return output
            mixed = self._mixed(site, site, first_tensor(output), self._taught.pop(site, None))
            return _with_first(output, mixed)

        return hook

    def _mixed(
        self, site: str | int, what: str, own: Tensor | None, taught: Tensor | None
    ) -> Tensor:
        """Compare a signal with the teacher's and mix the two."""
        if own is None or taught is None or own.shape != taught.shape:
            raise ConfigError(
                f"intervention: the student's {what} gives "
                f"{None if own is None else list(own.shape)}, the teacher's "
                f"{None if taught is None else list(taught.shape)}: both must give one tensor "
                "of the same shape in every step: give both as many tokens and channels, use "
                'mode = "map" where attentions differ in width alone, or remove '
                "[distill.intervention]"
            )
        self._terms[site] = losses.values(own, taught)
        return self._strength * taught + (1.0 - self._strength) * own


def _with_first(output: Any, mixed: Tensor) -> Any:
    """What a module gave, with the mixed signal for its `first_tensor`."""
    if isinstance(output, Tensor):
        return mixed
    if isinstance(output, Mapping):
        key = next(key for key, value in output.items() if isinstance(value, Tensor))
        changed: Any = copy.copy(output)
        changed[key] = mixed
        return changed
    at = next(index for index, value in enumerate(output) if isinstance(value, Tensor))
    return (*output[:at], mixed, *output[at + 1 :])


def _attentions(
    mode: str, networks: tuple[nn.Module, nn.Module], inputs: Tensors, io: IO
) -> Attentions:
    """Both networks' attentions, paired by relative depth and of equal shapes."""
    mine, theirs = (attention.find(net, inputs, io) for net in networks)
    for who, found, net in zip(("student", "teacher"), (mine, theirs), networks, strict=True):
        attention.require(found, who, mode, net)
    names = [[str(index) for index in range(len(found.calls))] for found in (mine, theirs)]
    pairs = [(int(one), int(two)) for one, two in losses.paired(*names)]
    for one, two in pairs:
        ours, his = mine.calls[one], theirs.calls[two]
        for what in ("map",) if mode == "map" else ("map", "context"):
            shapes = [list(getattr(call, what)) for call in (ours, his)]
            if shapes[0] != shapes[1] and not (mode == "context" and what == "map"):
                raise ConfigError(
                    f"intervention: mode {mode!r} replaces the {what} in the student's "
                    f"{ours.module}, {shapes[0]} for one example, by that in the teacher's "
                    f"{his.module}, {shapes[1]}: {_advice(what, *shapes)}"
                )
    return Attentions(mine, theirs, pairs)


def _advice(what: str, ours: list[int], his: list[int]) -> str:
    """What to do about maps [.., tokens, tokens] or contexts [.., tokens, features] that differ."""
    tokens = slice(-2, None if what == "map" else -1)
    if ours[tokens] != his[tokens]:
        return "give both as many tokens, as every mode needs, or remove [distill.intervention]"
    if ours[:-2] != his[:-2]:
        return 'give both as many heads, or use mode = "output", which needs equal widths alone'
    return 'give both as many features a head, or use mode = "map"'
