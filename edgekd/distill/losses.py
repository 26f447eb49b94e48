"""Distillation losses, each a few lines with its equation.

* logits: T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al.,
  arXiv 1503.02531; the factor T^2 keeps its gradient's size when T changes, section 2).
* blocks: mean squared error of a block's output over the variance of the teacher's, mean over the
  blocks. Dividing by the variance gives every depth the same say; without it the residual stream's
  growth would make the last blocks all that counts. (FitNets, arXiv 1412.6550, equation 3, without
  the regressor, which two equal widths do not need.)
* values: the same of an output that is no distribution, such as a detector's boxes.
* labels: cross-entropy with the ground truth, or with the class that the dense teacher names, or
  the user's own loss of the task.

Blocks of teacher and student are paired by relative depth, so a student of half the depth is taught
by every second block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.data import IO, python_object
from edgekd.errors import ConfigError
from edgekd.structure import first_tensor

Task = Callable[[dict[str, Tensor], Tensor], Tensor]


def logits(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) in nats, float32[] from float32[batch, ..., classes] twice."""
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    divergence = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(dim=-1)
    return divergence.mean() * temperature**2


def blocks(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over blocks of MSE(student, teacher) / Var(teacher), float32[]."""
    return torch.stack([values(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


def values(student: Tensor, teacher: Tensor) -> Tensor:
    """MSE(student, teacher) / Var(teacher), float32[] from two tensors of one shape."""
    return F.mse_loss(student, teacher) / teacher.var(correction=0).clamp_min(1e-12)


def labels(student: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats, float32[] from float32[batch, classes] and int64[batch]."""
    return F.cross_entropy(student, target)


def task(spec: str | None, io: IO) -> Task:
    """The loss of the task itself, from outputs and labels.

    Args:
        spec: ``python:<module>:<callable>`` from ({name: tensor}, labels) to a scalar tensor;
            None for cross-entropy of the first output.
        io: Names of the outputs and of the classes.

    Raises:
        ConfigError: It cannot be loaded, or there are no classes for the cross-entropy; when it is
            called: it failed, or returned no scalar.
    """
    if spec is None:
        if not io.labels:
            raise ConfigError(
                "distill.losses.task is missing: the network names no classes, so there is no "
                "cross-entropy with the labels: give python:<module>:<callable>, or where nothing "
                "is labelled distill.losses.labels_from = 'teacher'"
            )
        first = io.outputs[0].name
        return lambda outputs, target: labels(outputs[first], target)
    users = python_object(spec, "distill.losses.task")

    def loss(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
        try:
            found = users(outputs, target)
        except Exception as error:  # whatever the user's code raises is the user's to mend
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"distill.losses.task {spec!r} failed: {type(error).__name__}: {reason}"
            ) from error
        if not isinstance(found, Tensor) or found.numel() != 1:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"distill.losses.task {spec!r} returned {shape}, expected a tensor of one number"
            )
        return found.reshape(())

    return loss


def paired(student: Sequence[str], teacher: Sequence[str]) -> list[tuple[str, str]]:
    """Pair block names by relative depth; the last of both always meet.

    Raises:
        ConfigError: A network has no repeated blocks to compare.
    """
    for who, names in (("student", student), ("teacher", teacher)):
        if not names:
            raise ConfigError(
                f"distill.losses.blocks: the {who} has no repeated blocks to compare; set it to 0"
            )
    return [
        (
            name,
            teacher[
                (index + 1) * len(teacher) // len(student) - 1
                if len(teacher) >= len(student)
                else index * len(teacher) // len(student)
            ],
        )
        for index, name in enumerate(student)
    ]


class Taps:
    """Records what named modules return in the latest forward pass."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        """Hook the modules; `outputs` follows the order of `names`."""
        self._names = list(names)
        self._seen: dict[str, Tensor] = {}
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._keep(name)) for name in names
        ]

    def take(self) -> list[Tensor]:
        """Outputs in the order of the names, handed out once: the next pass makes new ones.

        Raises:
            ConfigError: A module was not reached in the latest pass.
        """
        seen, self._seen = self._seen, {}
        missing = [name for name in self._names if name not in seen]
        if missing:
            raise ConfigError(
                f"distill.losses.blocks: block {missing[0]} did not run in this step (layer "
                "dropout, or a branch not taken); turn that off, or set distill.losses.blocks to 0"
            )
        return [seen[name] for name in self._names]

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._seen = {}

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None:
                raise ConfigError(
                    f"distill.losses.blocks: block {name} returned {type(output).__name__}, "
                    "expected a tensor first; set distill.losses.blocks to 0"
                )
            self._seen[name] = tensor

        return hook
