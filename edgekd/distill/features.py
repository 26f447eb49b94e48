"""The feature term: which blocks are compared, on which samples, and what each of them counts.

GPUSQ (arXiv 2305.10727, section 3) compares features in *critical* layers only, the later ones, and
only on samples where teacher and student name the same class; its quantized stage weighs each layer
by the layer's loss at the end of the sparse one. The formula and even the direction of that weight
are not public (the readings we have contradict each other), so both directions are here, scaled to
a mean of 1, which leaves the term's weight in the sum what it was::

    proportional:  w_b = l_b / mean(l)        inverse:  w_b = (1 / l_b) / mean(1 / l)

Two networks may cut one image into different patches or carry other special tokens. Their features
are compared where both have any: special tokens that only one has are dropped, and the finer grid
of patches is averaged down to the coarser. Left out: a learned projection between two widths
(FitNets' regressor), which would have to be trained, saved and resumed for a term that logits can
replace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.errors import ConfigError

# A batch's loss is noise; the mean over so many of the last steps is not.
LAST_STEPS = 50
# A block without any loss would have an infinite weight: it counts as one of this share.
SMALLEST_SHARE = 1e-6
SPECIAL_TOKENS = 2  # at most: a class token and a distillation token

Pairs = list[tuple[str, str]]
Curve = Sequence[Mapping[str, float]]


def critical(pairs: Pairs, share: float) -> Pairs:
    """The last `share` of the pairs, rounded up; at least one."""
    count = max(1, math.ceil(share * len(pairs) - 1e-9))  # 0.1 of 30 is 3, whatever floats say
    return pairs[-count:]


def gated(student: Tensor, teacher: Tensor, agree: Tensor) -> Tensor:
    """Mean over the samples that agree of MSE(student, teacher), over Var(teacher), float32[].

    The variance is the whole batch's, so that one sample alone does not set the scale. Where no
    sample agrees both the term and its gradient are 0.

    Args:
        student: float32[batch, ...].
        teacher: Of the same shape.
        agree: bool[batch].
    """
    spread = teacher.var(correction=0).clamp_min(1e-12)
    each = (student - teacher).square().flatten(1).mean(1)
    return (each * agree).sum() / agree.sum().clamp_min(1) / spread


def weights(curve: Curve, names: Sequence[str], direction: str) -> dict[str, float]:
    """What each block counts in the quantized stage, by name; their mean is 1.

    Args:
        curve: Rows of the sparse stage, with ``blocks.<name>`` for each block.
        names: The blocks.
        direction: ``inverse`` or ``proportional``.

    Raises:
        ConfigError: A block was never compared in the last steps, because the networks agreed on
            no sample.
    """
    losses = [_last(curve, name) for name in names]
    least = SMALLEST_SHARE * max(losses)
    if least == 0.0:
        return dict.fromkeys(names, 1.0)
    raised = [max(loss, least) for loss in losses]
    chosen = raised if direction == "proportional" else [1 / loss for loss in raised]
    mean = sum(chosen) / len(chosen)
    return {name: weight / mean for name, weight in zip(names, chosen, strict=True)}


def _last(curve: Curve, name: str) -> float:
    rows = curve[-LAST_STEPS:]
    found = [row[f"blocks.{name}"] for row in rows if f"blocks.{name}" in row]
    if not found:
        raise ConfigError(
            f"distill.losses.block_weights: block {name} was compared in none of the last "
            f"{len(rows)} steps of the sparse stage, expected at least 1: teacher and student "
            "agreed on no sample; train the stage longer, or set distill.losses.agreement = false"
        )
    return sum(found) / len(found)


def aligned(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two blocks' features in one shape.

    Args:
        student: float32[batch, tokens, width] or any other shape that the teacher's equals.
        teacher: float32[batch, other tokens, width].

    Raises:
        ConfigError: They differ in more than tokens, or their tokens are no grids of patches.
    """
    if student.shape == teacher.shape:
        return student, teacher
    shapes = f"a student block gives {list(student.shape)}, its teacher's {list(teacher.shape)}"
    same = student.shape[0] == teacher.shape[0] and student.shape[2:] == teacher.shape[2:]
    if student.ndim != 3 or teacher.ndim != 3 or not same:
        raise ConfigError(
            f"distill.losses.blocks: {shapes}; give them one width, or set distill.losses.blocks "
            "to 0"
        )
    forms = [_grid(each.shape[1]) for each in (student, teacher)]
    for form, each in zip(forms, (student, teacher), strict=True):
        if form is None:
            raise ConfigError(
                f"distill.losses.blocks: {shapes}; {each.shape[1]} tokens are no square of patches "
                f"and up to {SPECIAL_TOKENS} special tokens, so nothing says which belong "
                "together: set distill.losses.blocks to 0"
            )
    (mine, own), (theirs, his) = (form for form in forms if form is not None)
    special, edge = min(mine, theirs), min(own, his)
    return _cut(student, mine, own, special, edge), _cut(teacher, theirs, his, special, edge)


def _grid(tokens: int) -> tuple[int, int] | None:
    """(special tokens, edge of the square of patches); None where there is no such form."""
    edge = math.isqrt(tokens)
    special = tokens - edge * edge
    return (special, edge) if special <= SPECIAL_TOKENS else None


def _cut(tokens: Tensor, has: int, edge: int, special: int, to: int) -> Tensor:
    """The first special tokens, then the patches averaged to `to` times `to`."""
    patches = tokens[:, has:]
    if edge != to:
        square = patches.transpose(1, 2).reshape(len(patches), -1, edge, edge)
        patches = F.adaptive_avg_pool2d(square, to).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :special], patches], dim=1)
