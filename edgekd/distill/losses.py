"""Distillation losses, each a few lines with its equation.

* logits: T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al.,
  arXiv 1503.02531; the factor T^2 keeps its gradient's size when T changes, section 2).
* blocks: mean squared error of a block's output over the variance of the teacher's, mean over the
  blocks. Dividing by the variance gives every depth the same say; without it the residual stream's
  growth would make the last blocks all that counts. (FitNets, arXiv 1412.6550, equation 3, without
  the regressor, which two equal widths do not need.)
* labels: cross-entropy with the ground truth.

Blocks of teacher and student are paired by relative depth, so a student of half the depth is taught
by every second block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.structure import first_tensor


def logits(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) in nats, float32[] from float32[batch, ..., classes] twice."""
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    divergence = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(dim=-1)
    return divergence.mean() * temperature**2


def blocks(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over blocks of MSE(student, teacher) / Var(teacher), float32[]."""
    terms = [
        F.mse_loss(s, t) / t.var(correction=0).clamp_min(1e-12)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


def labels(student: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats, float32[] from float32[batch, classes] and int64[batch]."""
    return F.cross_entropy(student, target)


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
