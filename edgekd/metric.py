"""How right each answer is: top-1, or a user's own metric, one score a sample.

A score for each sample, and not one number for all of them, is what an interval can be computed
from and what pairs two networks on the same samples. Where nothing can be scored, because inputs
are noise, because nothing says what is right, or because the user's module is not on this machine
(a device often has the engine and not the code around it), that is a reason in words and no number.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data import Arrays, python_module, python_object
from edgekd.errors import ConfigError, EdgekdError
from edgekd.io_json import IO

TOP1 = "top-1"


def name(io: IO) -> str:
    """What is scored: ``top-1``, or the user's ``python:<module>:<callable>``."""
    return io.metric or TOP1


def not_measured(io: IO) -> str | None:
    """Why no answer can be scored here; None where it can."""
    if io.random:
        return "random inputs"
    if io.metric is None:
        return None if io.labels else "the network names no classes, and data.metric is not given"
    module = python_module(io.metric) or io.metric
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a package above it is missing
        found = None
    return None if found is not None else f"module {module!r} of data.metric is not installed here"


def scores(outputs: Arrays, labels: NDArray[Any], io: IO) -> NDArray[np.float64] | None:
    """A score in 0..1 for each sample, float64[n]; None where `not_measured` gives a reason.

    Args:
        outputs: {name: array[n, ...]}.
        labels: int64[n], or what the user's metric reads.
        io: Names the outputs, the classes and the metric.

    Raises:
        ConfigError: The user's metric cannot be loaded, fails, or returns something else.
    """
    if not_measured(io) is not None:
        return None
    if io.metric is None:
        right: NDArray[Any] = outputs[io.outputs[0].name].argmax(axis=-1) == labels
        return right.astype(np.float64)
    where = f"data.metric {io.metric!r}"
    score = python_object(io.metric, "data.metric")
    try:
        found = np.asarray(score(outputs, labels), dtype=np.float64)
    except EdgekdError:
        raise
    except Exception as error:  # whatever the user's code raises is the user's to mend
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{where} failed: {type(error).__name__}: {reason}") from error
    if found.shape != (len(labels),):
        raise ConfigError(
            f"{where} returned {list(found.shape)} scores, expected [{len(labels)}], one a sample"
        )
    wrong = ~((found >= 0) & (found <= 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ConfigError(f"{where} gave sample {row} the score {found[row]:g}, expected 0 to 1")
    return found


def mean(outputs: Arrays, labels: NDArray[Any], io: IO) -> float | None:
    """The mean score, 0 to 1; None where `not_measured` gives a reason."""
    found = scores(outputs, labels, io)
    return None if found is None else float(found.mean())


def told(score: float | None, io: IO) -> str:
    """A mean score in words."""
    return f"not measured: {not_measured(io)}" if score is None else f"{score:.2%}"


def told_beside(words: str, ours: float | None, theirs: float | None, io: IO) -> str:
    """Two mean scores in ``words``, where {ours} and {theirs} stand; the reason once where none is.

    A score is None for a reason that lies in the data, so both are or neither is.
    """
    if ours is None or theirs is None:
        return told(None, io)
    return words.format(ours=told(ours, io), theirs=told(theirs, io))
