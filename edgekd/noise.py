"""Inputs drawn at random within a network's own sizes and ranges.

Enough to calibrate scales, to compare graphs and to feed a clock, before any data is at hand. What
a network answers to noise is neither right nor wrong, so accuracy reads "not measured", while
agreement with the teacher and the distance of the outputs are measured as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import interface
from edgekd.data import IO, Arrays, Data
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe

TRAIN_ROWS = 256


@dataclass(frozen=True)
class Noise:
    """A split of inputs drawn at random, each row from its own seed.

    Attributes:
        io: Shapes and ranges of the inputs.
        rows: Number of rows.
        seed: Of the split.
        open: Size that each symbol other than the batch stands for.
    """

    io: IO
    rows: int
    seed: tuple[int, int]
    open: Mapping[str, int]

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: NDArray[np.int64]) -> tuple[Arrays, NDArray[np.int64]]:
        """Uniform within each input's range; segments are zeros; labels are 0.

        Every second row is padded: of rows that are all full, a graph that lost its mask would
        answer as the network does.
        """
        drawn: dict[str, list[NDArray[Any]]] = {tensor.name: [] for tensor in self.io.inputs}
        for row in rows:
            random = np.random.default_rng([*self.seed, int(row)])
            for tensor in self.io.inputs:
                shape = [s if isinstance(s, int) else self.open[s] for s in tensor.shape[1:]]
                low, high = tensor.range or (0.0, 1.0)
                cell: NDArray[Any]
                if tensor.dtype == "float32":
                    cell = random.uniform(low, high, shape).astype(np.float32)
                elif tensor.name == "input_ids":
                    cell = random.integers(int(low), int(high), shape, endpoint=True)
                elif tensor.name == "attention_mask":
                    full = shape[-1]
                    length = random.integers(1, full, endpoint=True) if row % 2 else full
                    cell = np.broadcast_to(np.arange(full) < length, shape).astype(np.int64)
                else:
                    cell = np.zeros(shape, np.int64)
                drawn[tensor.name].append(cell)
        inputs = {name: np.stack(cells) for name, cells in drawn.items()}
        return inputs, np.zeros(len(rows), np.int64)


def draw(recipe: Recipe) -> Data:
    """Noise for a recipe's teacher.

    Raises:
        ConfigError: The recipe would learn the labels; see `interface.of_recipe` too.
    """
    fit, losses = recipe.teacher.fit, recipe.distill.losses
    if (fit is not None and fit.steps > 0) or (losses.labels > 0 and losses.labels_from == "truth"):
        raise ConfigError(
            f"recipe {recipe.name}: data.source is random, whose labels mean nothing, and "
            "teacher.fit or distill.losses.labels would learn them: set teacher.fit.steps and "
            "distill.losses.labels to 0, or distill.losses.labels_from to 'teacher'"
        )
    what = interface.of_recipe(recipe)
    labels = what.labels or [str(number) for number in range(what.classes or 2)]
    io = what.io(labels).model_copy(update={"random": True})
    longest = {name: size.max for name, size in recipe.export.dynamic.items()}
    return Data(
        train=Noise(io, TRAIN_ROWS, (recipe.seed, 0), longest),
        evaluation=Noise(io, recipe.data.samples, (recipe.seed, 1), longest),
        io=io,
        files=what.files,
    )
