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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekd import progress
from edgekd.artifact import replace_file
from edgekd.data import Split
from edgekd.errors import ConfigError
from edgekd.models import state
from edgekd.recipe import Training

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
    """

    label: str
    model: nn.Module
    loss: Loss
    split: Split
    settings: Training
    seed: int
    keep: Path
    check: Callable[[], None] = lambda: None


def train(run: Run) -> list[dict[str, float]]:
    """Train to the end, from the checkpoint if there is one.

    Returns:
        The loss curve: a row a step, ``{"step": .., "lr": .., <term>: .., "total": ..}``.

    Raises:
        ConfigError: A loss term is NaN or infinite (names the term and the step).
    """
    settings = run.settings
    device = next(run.model.parameters()).device
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
            inputs, target = run.split.take(batch_rows(run, step))
            tensors = {name: torch.from_numpy(a).to(device) for name, a in inputs.items()}
            terms = run.loss(tensors, torch.from_numpy(target).to(device))
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
                run.check()
                _save(run, optimizer, step, curve)
                saved = time.monotonic()
    run.model.eval()
    run.check()
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
    tensors = {f"model.{name}": tensor for name, tensor in state(run.model).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).contiguous()
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    about = {"step": str(step), "curve": json.dumps(curve)}
    replace_file(run.keep / CHECKPOINT, lambda path: save_file(tensors, path, metadata=about))


def _resume(run: Run, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
    path = run.keep / CHECKPOINT
    if not path.is_file():
        return 0, []
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    run.model.load_state_dict(_below(tensors, "model."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        index, field = name.split(".")
        moments.setdefault(int(index), {})[field] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    progress.say(f"{run.label}: resumed at step {about['step']} of {run.settings.steps}")
    return int(about["step"]), json.loads(about["curve"])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
