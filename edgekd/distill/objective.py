"""The distillation objective: one step's weighted loss terms from student, teacher and recipe.

GPUSQ's sum (arXiv 2305.10727, section 3) under the recipe's names::

    L = alpha L_hard + beta L_soft + gamma L_feature
      = losses.labels labels + losses.logits logits + losses.blocks blocks

The paper's weights are said to be 1, 10 and 5, of terms in its own units; ours are told in
`edgekd.distill.losses` and `edgekd.distill.features`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.distill import features, losses
from edgekd.distill.intervention import Intervention
from edgekd.errors import ConfigError, ContractError, names_that_exist
from edgekd.models import Tensors, forward
from edgekd.recipe import Losses
from edgekd.structure import blocks


class Objective:
    """Callable from inputs and labels to weighted terms; the teacher runs first, in every step.

    Attributes:
        observed: What the latest step adds to the curve: ``agreement``, the share of samples on
            which the networks agree, and ``blocks.<name>``, a block's loss before any weight.
        blocks: Names of the student's blocks that are compared.
        units: How much of a term is one of its own unit, by term: its weight.
    """

    def __init__(
        self,
        settings: Losses,
        student: nn.Module,
        teacher: nn.Module,
        io: IO,
        intervention: Intervention | None = None,
        *,
        labeller: nn.Module | None = None,
        weights: Mapping[str, float] | None = None,
        observe: bool = False,
    ) -> None:
        """Weigh every output; tap the paired blocks when block features are asked for.

        Args:
            settings: Weights of the terms.
            student: Trained.
            teacher: Frozen.
            io: Names of the outputs.
            intervention: Teacher signals in the student's forward pass; adds its own term.
            labeller: Whose answers are the labels with ``labels_from = "teacher"``; default: the
                teacher's.
            weights: What each block counts; default: the same.
            observe: Note each block's loss.

        Raises:
            ConfigError: A weight is given for an output there is not, the task's loss cannot be
                loaded, or what agreement or the teacher's labels are read from names no classes.
        """
        self._settings, self._io = settings, io
        self._student, self._teacher = student, teacher
        self._labeller, self._intervention = labeller or teacher, intervention
        self._weights = _output_weights(settings, io)
        self._first = next(iter(io.roles()))
        self._observe = observe
        self.observed: dict[str, float] = {}
        self._task = _hard(settings, io) if settings.labels > 0 else None
        self._taps: list[losses.Taps] = []
        self.blocks: list[str] = []
        if settings.blocks > 0:
            if settings.agreement:
                _answers_classes(io, "distill.losses.agreement = true")
            pairs = losses.paired(blocks(student), blocks(teacher))
            pairs = features.critical(pairs, settings.critical)
            self.blocks = [mine for mine, _ in pairs]
            self._taps = [
                losses.Taps(student, self.blocks),
                losses.Taps(teacher, [theirs for _, theirs in pairs]),
            ]
        self._counts = None if weights is None else [weights[name] for name in self.blocks]
        outputs = io.roles().items()
        self.units = {
            _term(role, output, index): self._weights[output]
            for index, (output, role) in enumerate(outputs)
        } | {"blocks": settings.blocks, "labels": settings.labels}

    def __call__(self, inputs: Tensors, target: Tensor) -> Tensors:
        """Terms {name: float32[]}, each times its weight; terms of weight 0 are not computed."""
        settings = self._settings
        acting = self._intervention
        with torch.no_grad(), acting.teaching() if acting else contextlib.nullcontext():
            taught = self._answers("teacher", self._teacher, inputs)
        with acting.acting() if acting else contextlib.nullcontext():
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
                terms[_term(role, output, index)] = weight * loss
        if settings.blocks > 0:
            agree = self._agreement(answered, taught) if settings.agreement else None
            terms["blocks"] = settings.blocks * self._block_loss(agree)
        if self._task is not None:
            wanted = self._labels(target, taught, inputs)
            terms["labels"] = settings.labels * self._task(answered, wanted)
        # An evaluated student is on its own: nothing was replaced, so there is nothing to compare.
        if acting is not None and self._student.training:
            terms["intervention"] = acting.loss()
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

    def _agreement(self, answered: Tensors, taught: Tensors) -> Tensor:
        """Samples on which both networks name the same class, bool[batch]."""
        ours, theirs = answered[self._first], taught[self._first]
        if ours.ndim != 2:
            raise ConfigError(
                f"distill.losses.agreement: output {self._first} is {list(ours.shape)}, expected "
                "[batch, classes], one class a sample: set distill.losses.agreement = false"
            )
        return ours.detach().argmax(-1) == theirs.argmax(-1)

    def _labels(self, target: Tensor, taught: Tensors, inputs: Tensors) -> Tensor:
        """The labels to learn: the data's, or the classes that the dense teacher names."""
        if self._settings.labels_from == "truth":
            return target
        if self._labeller is not self._teacher:
            with torch.no_grad():
                taught = self._answers("teacher", self._labeller, inputs)
        return taught[self._first].argmax(-1)

    def _block_loss(self, agree: Tensor | None) -> Tensor:
        """Weighted mean over the blocks; `observed` gets what is noted of them."""
        mine, theirs = (taps.take() for taps in self._taps)
        found = [features.aligned(a, b) for a, b in zip(mine, theirs, strict=True)]
        if agree is None:
            each = torch.stack([losses.values(a, b) for a, b in found])
        else:
            _one_row_a_sample(found[0][0], agree)
            each = torch.stack([features.gated(a, b, agree) for a, b in found])
        self._note(each, agree)
        if self._counts is None:
            return each.mean()
        return (each * each.new_tensor(self._counts)).mean()

    def _note(self, each: Tensor, agree: Tensor | None) -> None:
        self.observed = {}
        if agree is not None:
            self.observed["agreement"] = float(agree.float().mean())
        # Where no sample agrees nothing was compared, which is no loss of 0.
        if self._observe and (agree is None or self.observed["agreement"] > 0):
            losses_ = each.detach().tolist()
            named = zip(self.blocks, losses_, strict=True)
            self.observed |= {f"blocks.{name}": loss for name, loss in named}


def _term(role: str, output: str, index: int) -> str:
    return f"{role}.{output}" if index else role


def _hard(settings: Losses, io: IO) -> losses.Task:
    """What learns the labels: the task's loss, or cross-entropy with the teacher's answers."""
    if settings.labels_from == "truth":
        return losses.task(settings.task, io)
    first = _answers_classes(io, "distill.losses.labels_from = 'teacher'")
    return lambda outputs, target: losses.labels(outputs[first].flatten(0, -2), target.flatten())


def _answers_classes(io: IO, what: str) -> str:
    """Name of the first output, which must be logits."""
    first, role = next(iter(io.roles().items()))
    if role != "logits":
        raise ConfigError(
            f"{what} reads a class from output {first!r}, whose role in io is {role!r}, expected "
            "'logits': take the key out, or correct the role"
        )
    return first


def _one_row_a_sample(block: Tensor, agree: Tensor) -> None:
    if len(block) != len(agree):
        raise ConfigError(
            f"distill.losses.agreement: a block gives {list(block.shape)} for {len(agree)} "
            "samples, expected a row for each: set distill.losses.agreement = false"
        )


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
