"""The training loop: any loss on any network, resumable to the bit.

Everything that decides the next step is either a function of (seed, step) - the batch order and the
learning rate - or is in the checkpoint: weights, optimizer moments, the random generators' states
and the loss curve. So a run that is killed and started again ends with the very bytes of one that
was not. A checkpoint is one safetensors file, replaced atomically every 60 seconds and at the end;
nothing of it is a pickle.

A loss that explodes stops the run. NaN and infinity do at once. Growth alone says nothing: the
student of a dense arm starts at a KL of 1e-4 and rightly passes 40 times that on its way. What a
term is held to is the larger of its weight, which is the term's own unit (a squared error as large
as the teacher's variance, a nat), and its value before the first update. Students that learned
stayed below 2.3 of that unit; students that came out at chance, or at half the teacher's accuracy,
stood above 10 of it for 21 steps or more (demo digits, learning rates 2e-4 to 10, see README). A
checkpoint is written once the loss of its own weights is known to be in range, so the last one is
a good one; the result of a run is written as it is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekd import progress
from edgekd.artifact import replace_file
from edgekd.data import Split
from edgekd.distill import lsq
from edgekd.distill.samples import as_stored
from edgekd.errors import ConfigError
from edgekd.models import Tensors, tensors
from edgekd.recipe import Training
from edgekd.weights import state

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 60.0
# Between checkpoints too: a check costs about a step, so this is a hundredth of the time, and a
# mask that breaks costs a hundred steps at most.
CHECK_STEPS = 100
EXPLODED_FACTOR = 10.0
EXPLODED_STEPS = 20

Terms = dict[str, Tensor]
Curve = list[dict[str, float]]
Loss = Callable[[dict[str, Tensor], Tensor], Terms]


@dataclass
class Run:
    """One training run.

    Attributes:
        label: For the progress bar and messages, for example ``distill``.
        model: Trained in place.
        loss: From inputs and labels to weighted terms; their sum is minimised.
        split: Training examples.
        settings: Steps, batch size, learning rate and its schedule.
        seed: Decides the order of the examples.
        keep: Directory of the checkpoint.
        check: Called every `CHECK_STEPS` steps and at every checkpoint; raises when an invariant
            broke (the 2:4 mask).
        begin: Called with the step before each one, for losses that follow a schedule.
        observed: Called after the loss: what else the step writes into the curve.
        units: What counts as large, by term; 1 for a term that is not named.
    """

    label: str
    model: nn.Module
    loss: Loss
    split: Split
    settings: Training
    seed: int
    keep: Path
    check: Callable[[], None] = lambda: None
    begin: Callable[[int], None] = lambda _: None
    observed: Callable[[], Mapping[str, float]] = dict
    units: Mapping[str, float] = field(default_factory=dict)


def train(run: Run) -> Curve:
    """Train to the end, from the checkpoint if there is one.

    Returns:
        The loss curve: a row a step, ``{"step": .., "lr": .., <term>: ..}`` and what is observed.

    Raises:
        ConfigError: A loss term (names it and the step) exploded, or it or a weight is NaN or
            infinite.
    """
    settings = run.settings
    optimizer = torch.optim.AdamW(
        lsq.groups(run.model, settings.weight_decay),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    step, curve = _resume(run, optimizer)
    range_ = _Range(run, curve)
    saved = time.monotonic()
    run.model.train()
    with progress.bar(run.label, settings.steps) as show:
        while step < settings.steps:
            due = time.monotonic() - saved >= CHECKPOINT_SECONDS
            checkpoint = _packed(run, optimizer, step, curve) if due else None
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            run.begin(step)
            inputs, target = run.split.take(batch_rows(run, step))
            labels = tensors({"labels": as_stored(target)}, run.model)["labels"]
            terms = run.loss(tensors(inputs, run.model), labels)
            total = torch.stack(list(terms.values())).sum()
            row = {name: float(term.detach()) for name, term in terms.items()}
            range_.check(step, row)
            if checkpoint is not None and not range_.left:
                _save(run, checkpoint, step)
                saved = time.monotonic()
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate = learning_rate(settings, step)
            curve.append({"step": step, "lr": rate, **row, **run.observed()})
            step += 1
            show(step, f"loss {sum(row.values()):.4f}")
            if step % CHECK_STEPS == 0:
                run.check()
    range_.check_end()
    run.model.eval()
    _save(run, _packed(run, optimizer, step, curve), step)
    return curve


def learning_rate(settings: Training, step: int) -> float:
    """Linear warm-up over ``warmup * steps``, then a half cosine to zero."""
    warm = settings.warmup * settings.steps
    if step < warm:
        return settings.learning_rate * (step + 1) / (math.floor(warm) + 1)
    progress_ = (step - warm) / max(settings.steps - warm, 1e-9)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress_))


def batch_rows(run: Run, step: int) -> NDArray[np.int64]:
    """Rows of a step's batch, int64[batch_size]: a fresh permutation every epoch.

    A function of (seed, step) alone, so a resumed run reads the same examples. An epoch drops its
    incomplete last batch; a split smaller than a batch is its own batch.
    """
    size = min(run.settings.batch_size, len(run.split))
    per_epoch = len(run.split) // size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([run.seed, epoch]).permutation(len(run.split))
    return order[position * size : (position + 1) * size].astype(np.int64)


class _Range:
    """What every term is held to, and for how many steps each has been above it.

    Its whole memory is the curve, so a resumed run judges as one that was not: a checkpoint is
    written only where nothing is above.

    Attributes:
        left: Terms that are above their limit, with the number of steps.
    """

    def __init__(self, run: Run, curve: Curve) -> None:
        self.left: dict[str, int] = {}
        self._run, self._curve = run, curve
        self._first = dict(curve[0]) if curve else {}

    def check(self, step: int, row: dict[str, float]) -> None:
        """Take a step's terms in; raise where one is not finite or has been above for too long."""
        for name, value in row.items():
            if not math.isfinite(value):
                self._stop(name, step, f"is {value}")
        self._first = self._first or dict(row)
        above = [name for name, value in row.items() if value > self._limit(name)]
        self.left = {name: self.left.get(name, 0) + 1 for name in above}
        for name, steps in self.left.items():
            if steps >= EXPLODED_STEPS:
                self._stop(name, step, self._told(name, row[name], f"{steps} steps"))

    def check_end(self) -> None:
        """Raise where a term ends above its limit, and was above it in most of the last steps.

        A run that ends has no `EXPLODED_STEPS` left to show that a term stays above, so the median
        of the last ones stands for them. The last step alone is no evidence: one batch of hard
        examples is above for a step in a sound run too, and the next batch is not. To refuse is to
        throw a whole training away, and the same seed would end in the same batch again; to let
        pass what exploded in the very last steps costs little, for its accuracy is told next.
        """
        last = self._curve[-EXPLODED_STEPS:]
        for name in self.left:
            above = sum(row.get(name, 0.0) > self._limit(name) for row in last)
            if 2 * above > len(last):
                step, value = int(last[-1]["step"]), last[-1][name]
                self._stop(name, step, self._told(name, value, f"{above} of the last {len(last)}"))

    def _limit(self, name: str) -> float:
        unit = self._run.units.get(name, 1.0)
        return EXPLODED_FACTOR * max(unit, self._first.get(name, 0.0))

    def _told(self, name: str, value: float, how_long: str) -> str:
        return (
            f"has exploded: {value:.3g}, above {self._limit(name):.3g} for {how_long}, "
            f"which is {EXPLODED_FACTOR:g} times what it began at "
            f"({self._first.get(name, 0.0):.3g}) or its unit,"
        )

    def _stop(self, name: str, step: int, found: str) -> None:
        settings = self._run.settings
        raise ConfigError(
            f"{self._run.label}: loss term {name!r} {found} at step {step} of {settings.steps} "
            f"(learning rate {learning_rate(settings, step):.2g}): {_lower(self._run)}"
        )


def _lower(run: Run) -> str:
    """What to do about a run that diverged, and where it was last sound."""
    checkpoint = run.keep / CHECKPOINT
    kept = f"; the last good checkpoint is {checkpoint}" if checkpoint.is_file() else ""
    return f"lower the learning_rate of {run.settings.learning_rate:g}{kept}"


def _packed(run: Run, optimizer: torch.optim.Optimizer, step: int, curve: Curve) -> Tensors:
    """A checkpoint's tensors. A forward pass leaves them as they are; an update does not."""
    saved = {f"model.{name}": tensor for name, tensor in state(run.model).items()}
    for name, _ in run.model.named_buffers(remove_duplicate=False):
        if f"model.{name}" in saved:  # batch norm's follow the forward pass
            saved[f"model.{name}"] = saved[f"model.{name}"].clone()
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            saved[f"optimizer.{index}.{name}"] = torch.as_tensor(value).contiguous()
    saved["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        saved["random.cuda"] = torch.cuda.get_rng_state()
    # As a tensor: a header may hold 100 MB, which a curve outgrows in a million steps.
    about = json.dumps({"step": step, "curve": curve}).encode()
    saved["about"] = torch.frombuffer(bytearray(about), dtype=torch.uint8)
    return saved


def _save(run: Run, checkpoint: Tensors, step: int) -> None:
    """Check what must hold, then replace the checkpoint."""
    run.check()
    for name, parameter in run.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ConfigError(
                f"{run.label}: {name} is NaN or infinite after {step} of {run.settings.steps} "
                f"steps: {_lower(run)}"
            )
    replace_file(run.keep / CHECKPOINT, lambda path: save_file(checkpoint, path))


def _resume(run: Run, optimizer: torch.optim.Optimizer) -> tuple[int, Curve]:
    """Load the checkpoint; (0, []) where there is none, or one that is not this run's."""
    path = run.keep / CHECKPOINT
    if not path.is_file():
        return 0, []
    try:
        with safe_open(path, framework="pt") as file:
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(bytes(saved["about"].tolist()))
        step, curve = int(about["step"]), list(about["curve"])
        moments = _moments(run, optimizer, saved)
    except (SafetensorError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        progress.say(
            f"{run.label}: {path} is not a checkpoint of this run ({reason}): starting anew"
        )
        return 0, []
    run.model.load_state_dict(_below(saved, "model."))
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(saved["random.cpu"])
    if "random.cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["random.cuda"])
    progress.say(f"{run.label}: resumed at step {step} of {run.settings.steps}")
    return step, curve


def _moments(
    run: Run, optimizer: torch.optim.Optimizer, saved: Tensors
) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state in a checkpoint that fits this run in full.

    Raises:
        ValueError: A tensor is missing, left over or of another shape: nothing may be loaded.
    """
    wanted = {f"model.{name}": tensor.shape for name, tensor in state(run.model).items()}
    wanted["random.cpu"] = torch.get_rng_state().shape
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(saved, "optimizer.").items():
        index, field = name.split(".")
        moments.setdefault(int(index), {})[field] = tensor
        scalar = torch.Size([])
        wanted[f"optimizer.{name}"] = scalar if field == "step" else parameters[int(index)].shape
    found = {n: t.shape for n, t in saved.items() if n not in ("about", "random.cuda")}
    differ = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    if differ:
        raise ValueError(f"{len(differ)} tensors do not fit, first {differ[0]}")
    return moments


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
