"""The examples that travel: chosen once, with what each network answered on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import metric
from edgekd.data import IO, Arrays, Data
from edgekd.models import BATCH


def choose(data: Data, count: int) -> Arrays:
    """The evaluation examples that travel: ``input.<name>``, ``labels`` and ``ids``.

    They are spread evenly over the evaluation split, so that a sorted one is not cut by class.
    """
    rows = spread(len(data.evaluation), count)
    inputs, labels = data.evaluation.take(rows)
    named = {f"input.{name}": array for name, array in inputs.items()}
    return {**named, "labels": as_stored(labels), "ids": rows}


def spread(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` row numbers, int64, spread evenly over `total` rows."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def as_stored(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels in the type that everything downstream has: int64 for whole numbers, else float32."""
    return labels.astype(np.int64 if labels.dtype.kind in "iub" else np.float32)


def accuracy(outputs: Arrays, labels: NDArray[Any], io: IO) -> float | None:
    """Mean score, 0 to 1: top-1 or the recipe's metric; None where nothing can be scored."""
    return metric.mean(outputs, labels, io)


def save(path: Path, samples: Arrays, **recorded: Arrays) -> None:
    """Write ``samples.npz``: the samples and each network's outputs as ``<who>.<output>``."""
    named = {
        f"{who}.{name}": array
        for who, outputs in recorded.items()
        for name, array in outputs.items()
    }
    np.savez(path, **samples, **named)  # type: ignore[arg-type]


def batches(data: Data, count: int) -> list[Arrays]:
    """Inputs of `count` training examples spread evenly over the split, in batches."""
    rows = spread(len(data.train), count)
    return [data.train.take(rows[start : start + BATCH])[0] for start in range(0, len(rows), BATCH)]
