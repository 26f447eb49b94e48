"""The distillation objective: one step's weighted loss terms from student, teacher and recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.distill import losses
from edgekd.distill.intervention import Intervention
from edgekd.errors import ConfigError
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
        """Tap the paired blocks of both networks when block features are asked for.

        Args:
            settings: Weights of the terms.
            student: Trained.
            teacher: Frozen.
            io: Names of the outputs.
            intervention: Teacher signals in the student's forward pass; adds its own term.
        """
        self._settings, self._io = settings, io
        self._student, self._teacher = student, teacher
        self._intervention = intervention
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
        output = self._io.outputs[0].name
        with torch.no_grad():
            taught = forward(self._teacher, inputs, self._io)[output]
        answered = forward(self._student, inputs, self._io)[output]
        if answered.shape != taught.shape:
            raise ConfigError(
                f"student and teacher disagree on {output}: {list(answered.shape)} against "
                f"{list(taught.shape)}; give the student as many classes as the teacher"
            )
        terms: Tensors = {}
        if settings.logits > 0:
            terms["logits"] = settings.logits * losses.logits(
                answered, taught, settings.temperature
            )
        if settings.blocks > 0:
            terms["blocks"] = settings.blocks * self._block_loss()
        if settings.labels > 0:
            terms["labels"] = settings.labels * losses.labels(answered, target)
        if self._intervention is not None:
            terms["intervention"] = self._intervention.loss()
        return terms

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
