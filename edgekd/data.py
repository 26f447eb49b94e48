"""Data as every stage sees it: batches of named arrays, and a description of the inputs.

A recipe names a callable that returns `Data`, or files that `edgekd.sources` reads. A split is
anything with a length that can take rows by index; order is decided by the training loop from its
seed alone, so a split holds no state and a resumed run sees the same batches. `IO` travels with
every graph as ``io.json`` (see `edgekd.io_json`).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ConfigError, EdgekdError, names_that_exist
from edgekd.io_json import IO, Image, Nothing, Tensor, Text
from edgekd.sections import Export

__all__ = [  # what a user's data code needs, the parts of `io_json` included
    "IO",
    "ArraySplit",
    "Arrays",
    "Data",
    "Image",
    "Nothing",
    "Split",
    "Tensor",
    "Text",
    "content_hash",
    "inputs_of",
    "load",
    "python_module",
    "python_object",
    "recorded",
    "require_sizes",
]

Arrays = dict[str, NDArray[Any]]
READ_BYTES = 64 << 20  # read at a time where a whole split is gone through
HASHED = 1024  # rows that are hashed as one array: part of every hash ever made, not to change
CHECKED = 4096  # rows at most that are checked at a time


class Split(Protocol):
    """Rows that can be taken by index."""

    def __len__(self) -> int:
        """Number of examples."""

    def take(self, rows: NDArray[np.int64]) -> tuple[Arrays, NDArray[Any]]:
        """Inputs {name: dtype[len(rows), ...]} and labels dtype[len(rows), ...].

        The labels of a classifier are int64[len(rows)]; those of another task are whatever its own
        loss and metric read.
        """


@dataclass(frozen=True)
class ArraySplit:
    """A split that lives in memory: inputs {name: dtype[n, ...]}, labels dtype[n, ...]."""

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any]

    def __post_init__(self) -> None:
        """Refuse inputs and labels of different length."""
        for name, array in self.inputs.items():
            if len(array) != len(self.labels):
                raise ConfigError(
                    f"ArraySplit: input {name!r} has {len(array)} rows, labels has "
                    f"{len(self.labels)}: give one label for each row"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> tuple[Arrays, NDArray[Any]]:
        """Rows of every input, and their labels."""
        return {name: array[rows] for name, array in self.inputs.items()}, self.labels[rows]


@dataclass(frozen=True)
class Data:
    """What a data callable returns: two splits, and the facts of the inputs.

    Attributes:
        train: Examples to learn from, and to calibrate on.
        evaluation: Examples to judge by.
        io: Inputs, outputs, labels and preprocessing.
        files: What travels beside ``io.json``: name -> content, for text its ``tokenizer.json``.
        content: Hash of everything that decides the examples, where it is cheaper than reading
            every one of them; see `content_hash`.
    """

    train: Split
    evaluation: Split
    io: IO
    files: Mapping[str, bytes] = field(default_factory=dict)
    content: Callable[[], str] | None = None


def load(source: str) -> Data:
    """Call the function a recipe names and check what it returns, once.

    Args:
        source: ``python:<module>:<callable>``.

    Raises:
        ConfigError: The source cannot be loaded or fails, a split is empty, a label is no whole
            number or out of range, an input is missing, of another dtype or shape than io says, or
            not finite, or io names a callable that is not there.
    """
    make = python_object(source, "data.source")
    try:
        data = make()
    except (EdgekdError, ModuleNotFoundError):
        raise
    except Exception as error:  # whatever the user's code raises is the user's to mend
        raise ConfigError(f"data.source {source!r} failed: {_told(error)}") from error
    if not isinstance(data, Data):
        raise ConfigError(
            f"data.source {source!r} returned {type(data).__name__}, expected edgekd.data.Data"
        )
    after = data.io.postprocess or ""
    if after.startswith("python:"):
        python_object(after, f"data.source {source!r}, io.postprocess")
    for name, split in (("train", data.train), ("evaluation", data.evaluation)):
        _check_split(f"data.source {source!r}, {name} split", split, data.io)
    return data


def require_sizes(io: IO, settings: Export) -> None:
    """Every changing size of the inputs has its limits, and nothing else has.

    Raises:
        ConfigError: A symbol in a shape has none in ``[export]``, or there is no such symbol.
    """
    symbols = {size for t in io.inputs for size in t.shape if isinstance(size, str)} | {"batch"}
    for name in sorted(symbols - set(settings.sizes)):
        raise ConfigError(
            f"export: the inputs have the changing size {name!r}, and the recipe says nothing of "
            f"it: add [export.dynamic.{name}] with min, opt and max"
        )
    for name in sorted(set(settings.sizes) - symbols):
        raise ConfigError(
            f"export.dynamic.{name}: no input has this size. {names_that_exist(name, symbols)}"
        )


def inputs_of(samples: Mapping[str, NDArray[Any]]) -> Arrays:
    """The network's inputs among the arrays of a ``samples.npz``."""
    return recorded(samples, "input")


def recorded(samples: Mapping[str, NDArray[Any]], who: str) -> Arrays:
    """What ``samples.npz`` holds as ``<who>.<name>``: inputs, or outputs of teacher or student."""
    prefix = f"{who}."
    return {n.removeprefix(prefix): samples[n] for n in samples if n.startswith(prefix)}


def python_object(spec: str, where: str) -> Any:
    """Import ``python:<module>:<name>``; the only code a recipe can name.

    Raises:
        ConfigError: The form is wrong, or the module or name does not exist.
    """
    parts = spec.split(":")
    if len(parts) != 3 or parts[0] != "python" or not all(parts) or parts[1].startswith("."):
        raise ConfigError(f"{where}: found {spec!r}, expected python:<module>:<callable>")
    try:
        module = importlib.import_module(parts[1])
    except Exception as error:  # a syntax error, or whatever its top level raises
        raise ConfigError(f"{where}: cannot import {parts[1]!r}: {_told(error)}") from error
    if not callable(getattr(module, parts[2], None)):
        raise ConfigError(f"{where}: module {parts[1]!r} has no callable {parts[2]!r}")
    return getattr(module, parts[2])


def _told(error: Exception) -> str:
    """An exception of somebody else's code on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def content_hash(data: Data) -> str:
    """SHA-256 (hex) of what was learned from: equal hashes mean equal examples and equal io.

    Without `Data.content` every example is read and hashed, whatever file it came from. With it,
    the source hashes the bytes of its files and everything that turns them into examples (which
    rows, columns and preprocessing): the same promise, without decoding them. The other way round
    is weaker there: the same pixels in another file format hash to something else.
    """
    digest = hashlib.sha256(data.io.model_dump_json().encode())
    for name in sorted(data.files):
        digest.update(hashlib.sha256(data.files[name]).digest())
    if data.content is not None:
        digest.update(data.content().encode())
        return digest.hexdigest()
    for split in (data.train, data.evaluation):
        rows = np.arange(len(split), dtype=np.int64)
        most = _rows_at_a_time(split, HASHED)
        for start in range(0, len(rows), HASHED):
            digest = _hash_rows(digest, split, rows[start : start + HASHED], most)
    return digest.hexdigest()


def _hash_rows(digest: Any, split: Split, rows: NDArray[np.int64], most: int) -> Any:
    """The digest with some rows, as one array each, though only `most` are read at a time.

    Large rows are read once for each input. Where parts of them are of another shape than the
    whole (padded to the longest, say) the whole is read after all: the hash may not depend on it.
    """
    parts = [rows[start : start + most] for start in range(0, len(rows), most)]
    inputs, labels = split.take(parts[0])
    names, found, before = sorted(inputs), [labels], digest.copy()
    kinds = {name: (inputs[name].dtype, inputs[name].shape[1:]) for name in names}
    for name in names:
        dtype, shape = kinds[name]
        digest.update(f"{name} {dtype} {(len(rows), *shape)}".encode())
        found = []
        for part in parts:
            inputs, labels = split.take(part) if len(parts) > 1 else (inputs, labels)
            array = inputs[name]
            alike = (array.dtype, array.shape) == (dtype, (len(part), *shape))
            if not alike and len(parts) > 1:
                return _hash_rows(before, split, rows, len(rows))
            digest.update(np.ascontiguousarray(array).tobytes())
            found.append(labels)
    if len({(each.dtype, each.shape[1:]) for each in found}) > 1:
        return _hash_rows(before, split, rows, len(rows))
    count = sum(map(len, found))
    digest.update(f"{labels.dtype} {(count, *labels.shape[1:])}".encode())
    for each in found:
        digest.update(np.ascontiguousarray(each).tobytes())
    return digest


def _rows_at_a_time(split: Split, most: int) -> int:
    """Rows to read at once: `most`, or fewer where they are large, by the size of the first."""
    if len(split) == 0:
        return most
    inputs, labels = split.take(np.zeros(1, np.int64))
    row_bytes = sum(array.nbytes for array in (*inputs.values(), labels))
    return max(1, min(most, READ_BYTES // max(1, row_bytes)))


def python_module(spec: str) -> str | None:
    """Module named by ``python:<module>:<name>``, None for any other spec."""
    parts = spec.split(":")
    return parts[1] if parts[0] == "python" and len(parts) == 3 else None


def _check_split(where: str, split: Split, io: IO) -> None:
    if len(split) == 0:
        raise ConfigError(f"{where}: holds 0 examples, expected at least 1")
    rows = np.arange(len(split), dtype=np.int64)
    most = _rows_at_a_time(split, CHECKED)
    for start in range(0, len(rows), most):
        taken = rows[start : start + most]
        inputs, labels = split.take(taken)
        if io.labels:
            check_labels(where, labels, io, start, len(taken))
        elif len(labels) != len(taken):
            raise ConfigError(
                f"{where}: {len(labels)} labels for {len(taken)} examples: give one for each"
            )
        for tensor in io.inputs:
            _check_input(where, tensor, inputs, len(taken))


def check_labels(where: str, labels: NDArray[Any], io: IO, start: int, count: int) -> None:
    """A classifier's labels are one class number for each example.

    Args:
        where: To begin messages with.
        labels: Of the examples from `start` on.
        io: Names of the classes.
        start: Number of the first example.
        count: How many examples there are.

    Raises:
        ConfigError: They are of another type or number, or name no class.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ConfigError(
            f"{where}: labels of {count} examples are {labels.dtype}{list(labels.shape)}, "
            f"expected int64[{count}]"
        )
    wrong = (labels < 0) | (labels >= len(io.labels))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ConfigError(
            f"{where}: example {start + row} has label {int(labels[row])}, expected 0 to "
            f"{len(io.labels) - 1} ({len(io.labels)} classes)"
        )


def _check_input(where: str, tensor: Tensor, inputs: Arrays, examples: int) -> None:
    if tensor.name not in inputs:
        raise ConfigError(
            f"{where}: input {tensor.name!r} is missing; found {', '.join(sorted(inputs))}"
        )
    array = inputs[tensor.name]
    sizes = [size for size in tensor.shape if size != "batch"]
    fits = len(sizes) == array.ndim - 1 and all(
        isinstance(want, str) or want == have
        for want, have in zip(sizes, array.shape[1:], strict=True)
    )
    if array.dtype != np.dtype(tensor.dtype) or not fits:
        raise ConfigError(
            f"{where}: input {tensor.name!r} is {array.dtype}{list(array.shape[1:])} an example, "
            f"expected {tensor.dtype}{sizes}"
        )
    if len(array) != examples:
        raise ConfigError(
            f"{where}: input {tensor.name!r} has {len(array)} rows for {examples} examples"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(f"{where}: input {tensor.name!r} holds NaN or infinity: clean the data")
