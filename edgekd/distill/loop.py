"""The training loop: any loss on any network, resumable to the bit.

Everything that decides the next step is either a function of (seed, step) - the batch order and the
learning rate - or is in the checkpoint: weights, optimizer moments, the random generators' states
and the loss curve. So a run that is killed and started again ends with the very bytes of one that
was not. A checkpoint is one safetensors file, replaced atomically every 60 seconds and at the end;
nothing of it is a pickle.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from edgekd.distill.samples import as_stored
from edgekd.errors import ConfigError
from edgekd.models import Tensors, tensors
from edgekd.recipe import Training
from edgekd.weights import state

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 60.0

Terms = dict[str, Tensor]
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
        check: Called at every checkpoint; raises when an invariant broke (the 2:4 mask).
        begin: Called with the step before each one, for losses that follow a schedule.
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


def train(run: Run) -> list[dict[str, float]]:
    """Train to the end, from the checkpoint if there is one.

    Returns:
        The loss curve: a row a step, ``{"step": .., "lr": .., <term>: ..}``.

    Raises:
        ConfigError: A loss term (names it and the step) or a weight is NaN or infinite.
    """
    settings = run.settings
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    step, curve = _resume(run, optimizer)
    saved = time.monotonic()
    run.model.train()
    with progress.bar(run.label, settings.steps) as show:
        while step < settings.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            run.begin(step)
            inputs, target = run.split.take(batch_rows(run, step))
            labels = tensors({"labels": as_stored(target)}, run.model)["labels"]
            terms = run.loss(tensors(inputs, run.model), labels)
            total = torch.stack(list(terms.values())).sum()
            row = {name: float(term.detach()) for name, term in terms.items()}
            _check_finite(run, step, row)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curve.append({"step": step, "lr": learning_rate(settings, step), **row})
            step += 1
            show(step, f"loss {sum(row.values()):.4f}")
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                _save(run, optimizer, step, curve)
                saved = time.monotonic()
    run.model.eval()
    _save(run, optimizer, step, curve)
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


def _check_finite(run: Run, step: int, row: dict[str, float]) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise ConfigError(
                f"{run.label}: loss term {name!r} is {value} at step {step} of "
                f"{run.settings.steps} (learning rate {learning_rate(run.settings, step):.2g}): "
                f"lower the learning_rate of {run.settings.learning_rate:g}"
            )


def _save(
    run: Run, optimizer: torch.optim.Optimizer, step: int, curve: list[dict[str, float]]
) -> None:
    """Check what must hold, then replace the checkpoint."""
    run.check()
    for name, parameter in run.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ConfigError(
                f"{run.label}: {name} is NaN or infinite after {step} of {run.settings.steps} "
                f"steps: lower the learning_rate of {run.settings.learning_rate:g}"
            )
    saved = {f"model.{name}": tensor for name, tensor in state(run.model).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            saved[f"optimizer.{index}.{name}"] = torch.as_tensor(value).contiguous()
    saved["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        saved["random.cuda"] = torch.cuda.get_rng_state()
    # As a tensor: a header may hold 100 MB, which a curve outgrows in a million steps.
    about = json.dumps({"step": step, "curve": curve}).encode()
    saved["about"] = torch.frombuffer(bytearray(about), dtype=torch.uint8)
    replace_file(run.keep / CHECKPOINT, lambda path: save_file(saved, path))


def _resume(run: Run, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
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
