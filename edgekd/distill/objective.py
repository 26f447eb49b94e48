"""The distillation objective: one step's weighted loss terms from student, teacher and recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.distill import losses
from edgekd.distill.intervention import Intervention
from edgekd.errors import ConfigError, ContractError, names_that_exist
from edgekd.models import Tensors, forward
from edgekd.recipe import Losses
from edgekd.structure import blocks


class Objective:
    """Callable from inputs and labels to weighted terms; the teacher runs first, in every step."""

    def __init__(
        self,
        settings: Losses,
        student: nn.Module,
        teacher: nn.Module,
        io: IO,
        intervention: Intervention | None = None,
    ) -> None:
        """Weigh every output; tap the paired blocks when block features are asked for.

        Args:
            settings: Weights of the terms.
            student: Trained.
            teacher: Frozen.
            io: Names of the outputs.
            intervention: Teacher signals in the student's forward pass; adds its own term.

        Raises:
            ConfigError: A weight is given for an output there is not, or the task's loss cannot be
                loaded.
        """
        self._settings, self._io = settings, io
        self._student, self._teacher = student, teacher
        self._intervention = intervention
        self._weights = _output_weights(settings, io)
        self._task = losses.task(settings.task, io) if settings.labels > 0 else None
        self._taps: list[losses.Taps] = []
        if settings.blocks > 0:
            pairs = losses.paired(blocks(student), blocks(teacher))
            self._taps = [
                losses.Taps(student, [mine for mine, _ in pairs]),
                losses.Taps(teacher, [theirs for _, theirs in pairs]),
            ]

    def __call__(self, inputs: Tensors, target: Tensor) -> Tensors:
        """Terms {name: float32[]}, each times its weight; terms of weight 0 are not computed."""
        settings = self._settings
        with torch.no_grad():
            taught = self._answers("teacher", self._teacher, inputs)
        answered = self._answers("student", self._student, inputs)
        for output, found in answered.items():
            if found.shape != taught[output].shape:
                raise ConfigError(
                    f"student and teacher disagree on {output}: {list(found.shape)} against "
                    f"{list(taught[output].shape)}; give the student as many classes as the teacher"
                )
        terms: Tensors = {}
        for index, (output, role) in enumerate(self._io.roles().items()):
            weight = self._weights[output]
            if weight > 0:
                ours, theirs = answered[output], taught[output]
                loss = (
                    losses.logits(ours, theirs, settings.temperature)
                    if role == "logits"
                    else losses.values(ours, theirs)
                )
                terms[f"{role}.{output}" if index else role] = weight * loss
        if settings.blocks > 0:
            terms["blocks"] = settings.blocks * self._block_loss()
        if self._task is not None:
            terms["labels"] = settings.labels * self._task(answered, target)
        if self._intervention is not None:
            terms["intervention"] = self._intervention.loss()
        return terms

    def _answers(self, who: str, network: nn.Module, inputs: Tensors) -> Tensors:
        try:
            return forward(network, inputs, self._io)
        except ContractError as error:
            raise ConfigError(
                f"the {who}: {error}; teacher and student need the same outputs"
            ) from error

    def remove(self) -> None:
        """Take taps and intervention off both networks again."""
        for taps in self._taps:
            taps.remove()
        if self._intervention is not None:
            self._intervention.remove()

    def _block_loss(self) -> Tensor:
        mine, theirs = (taps.take() for taps in self._taps)
        for a, b in zip(mine, theirs, strict=True):
            if a.shape != b.shape:
                raise ConfigError(
                    f"distill.losses.blocks: a student block gives {list(a.shape)}, its teacher's "
                    f"{list(b.shape)}; give them one width, or set distill.losses.blocks to 0"
                )
        return losses.blocks(mine, theirs)


def _output_weights(settings: Losses, io: IO) -> dict[str, float]:
    """What each output counts: `Losses.outputs`, of logits times `Losses.logits`."""
    roles = io.roles()
    for name in settings.outputs:
        if name not in roles:
            raise ConfigError(
                f"distill.losses.outputs: there is no output {name!r}. "
                f"{names_that_exist(name, roles)}"
            )
    return {
        name: settings.outputs.get(name, 1.0) * (settings.logits if role == "logits" else 1.0)
        for name, role in roles.items()
    }
