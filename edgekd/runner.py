"""A runner maps named arrays to named arrays; everything that can answer opens as one.

An OnnxModel runs through ONNX Runtime, an Engine through its own runtime, a Teacher or Student
through torch, and outputs that were
recorded into Samples open as a runner too: then a comparison needs no torch, and the device none
of the host's libraries. A caller may pass any number of rows in whatever float type it has; the
runner splits them into batches the engine takes and converts them to the engine's types. Nothing
is padded: rows that were never asked for are not computed.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from edgekd import data, kinds
from edgekd.artifact import Artifact
from edgekd.data import Arrays, inputs_of
from edgekd.errors import ArtifactError, ConfigError, UnsupportedError, names_that_exist


class Runner(Protocol):
    """Anything that maps named arrays to named arrays, row by row along axis 0."""

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs {name: array[rows, ...]} of inputs {name: array[rows, ...]}."""


class Batched:
    """A runner for any number of rows around one that takes batches of a limited size."""

    def __init__(
        self,
        run: Runner,
        dtypes: Mapping[str, np.dtype[Any]],
        batch_min: int,
        batch_max: int,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Wrap a runner.

        Args:
            run: Runs one batch.
            dtypes: The types its inputs must have.
            batch_min: Smallest batch it takes.
            batch_max: Largest batch it takes.
            close: Frees what the runner holds.
        """
        self._run = run
        self._dtypes = dtypes
        self._batch_min, self._batch_max = batch_min, batch_max
        self.close = close

    def __enter__(self) -> Batched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run all rows.

        Raises:
            ConfigError: An input is missing or unknown, inputs differ in their number of rows, or
                the rows cannot be split into batches the engine takes.
        """
        for name in sorted(set(self._dtypes) - set(inputs)):
            given = ", ".join(sorted(inputs)) or "none"
            raise ConfigError(f"input {name!r} is missing: given are {given}")
        for name in sorted(set(inputs) - set(self._dtypes)):
            raise ConfigError(f"input {name!r} is unknown. {names_that_exist(name, self._dtypes)}")
        counts = {name: len(array) for name, array in inputs.items()}
        rows = max(counts.values())
        if len(set(counts.values())) > 1 or rows == 0:
            raise ConfigError(f"the inputs hold {counts} rows, expected one number, at least 1")
        # Batches as equal as can be: 65 rows at most 64 at a time are 33 and 32, not 64 and 1,
        # which an engine with a smallest batch could not take.
        pieces = np.array_split(np.arange(rows), math.ceil(rows / self._batch_max))
        if len(pieces[-1]) < self._batch_min:
            raise ConfigError(
                f"{rows} rows cannot be split into batches of {self._batch_min} to "
                f"{self._batch_max}: give another number of rows"
            )
        answers = [
            self._run({name: inputs[name][piece].astype(d) for name, d in self._dtypes.items()})
            for piece in pieces
        ]
        return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}


class Recorded:
    """Recorded outputs: answers the very inputs they were recorded for, and no others."""

    def __init__(self, inputs: Arrays, outputs: Arrays, where: str) -> None:
        """Index recorded rows.

        Args:
            inputs: {name: array[n, ...]}.
            outputs: {name: array[n, ...]}, row i the answer to row i of the inputs.
            where: What they come from, to begin messages with.
        """
        self._outputs, self._where = outputs, where
        self._rows = {digest: row for row, digest in enumerate(_digests(inputs))}

    def __call__(self, inputs: Arrays) -> Arrays:
        """Look rows up.

        Raises:
            ArtifactError: A row is not among the recorded ones.
        """
        digests = _digests(inputs)
        unknown = [row for row, digest in enumerate(digests) if digest not in self._rows]
        if unknown:
            raise ArtifactError(
                f"{self._where}: {len(unknown)} of {len(digests)} rows were never recorded, first "
                f"row {unknown[0]}: use the inputs of these Samples, or a live runner"
            )
        rows = [self._rows[digest] for digest in digests]
        return {name: array[rows] for name, array in self._outputs.items()}


def open(model: Artifact) -> Batched:
    """Open an OnnxModel, an Engine, a Student or a Teacher; close it, or use it in a ``with``.

    Args:
        model: The artifact.

    Raises:
        ArtifactError: It is of another kind.
        UnsupportedError: It is evidence, which is never run.
        ToolchainError: Its runtime is absent or cannot open it here.
    """
    if model.kind == kinds.ONNX_MODEL.name:
        return _open_ort(model, "ort.onnx", None)
    if model.kind in (kinds.TEACHER.name, kinds.STUDENT.name):
        # Not an import statement: no stage runs such a network, so none depends on its code.
        network = importlib.import_module("edgekd.export.network").Network(model)
        return Batched(network, network.dtypes, 1, network.batch)
    if model.kind != kinds.ENGINE.name:
        raise ArtifactError(
            f"{model.path}: is a {model.kind}, expected an OnnxModel, an Engine, a Student or a "
            "Teacher"
        )
    if model.config["runtime"] == "onnxruntime":
        return _open_ort(model, "model.onnx", model.read_json("session.json"))
    if model.config["runtime"] != "tensorrt":
        raise UnsupportedError(
            f"{model.path}: is a {model.config['runtime']} plan kept as evidence, which is never "
            "run: build the Engine on the target, or evaluate the OnnxModel"
        )
    from edgekd.engine.runner import EngineRunner

    engine = EngineRunner(model.file("model.plan").read_bytes(), "tensorrt")
    return Batched(engine, engine.dtypes, *_limits(model), close=engine.close)


def samples(artifact: Artifact) -> Arrays:
    """Every array of a Samples artifact: ``input.<name>``, ``labels``, ``teacher.<name>``, ..."""
    with np.load(artifact.file("samples.npz"), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def recorded(artifact: Artifact, who: str) -> Runner:
    """Open the outputs that a teacher or a student gave on Samples.

    Args:
        artifact: A Samples artifact.
        who: ``teacher`` or ``student``.

    Raises:
        ArtifactError: The Samples hold no outputs of that name.
    """
    arrays = samples(artifact)
    outputs = data.recorded(arrays, who)
    if not outputs:
        known = {name.split(".")[0] for name in arrays if "." in name} - {"input"}
        raise ArtifactError(
            f"{artifact.path}: holds no outputs of {who!r}. {names_that_exist(who, known)}"
        )
    return Recorded(inputs_of(arrays), outputs, f"{artifact.path}, {who}")


def outputs(model: Artifact) -> Arrays:
    """What ONNX Runtime answered to the model's Samples at export, {name: array[n, ...]}."""
    with np.load(model.file("outputs.npz"), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def fingerprint(model: Artifact) -> dict[str, Any]:
    """What decides a live answer beside the model: the device and its runtime."""
    if model.config.get("runtime") == "tensorrt":
        return {"device": model.config["device"], "tensorrt": model.config["version"]}
    from edgekd.engine import ort

    engine = model.kind == kinds.ENGINE.name
    return ort.fingerprint(model.read_json("session.json") if engine else ort.options())


def _open_ort(model: Artifact, name: str, options: dict[str, Any] | None) -> Batched:
    from edgekd.engine import ort

    session = ort.Session(model.file(name), options or ort.options())
    return Batched(session, session.dtypes, *_limits(model))


def _limits(model: Artifact) -> tuple[int, int]:
    """Smallest and largest batch a model was exported for."""
    export = model.config["export"]
    return int(export["batch_min"]), int(export["batch_max"])


def _digests(inputs: Arrays) -> list[bytes]:
    """One digest a row, over all inputs in the order of their names."""
    arrays = [np.ascontiguousarray(inputs[name]) for name in sorted(inputs)]
    return [
        hashlib.sha256(b"\0".join(array[row].tobytes() for array in arrays)).digest()
        for row in range(len(arrays[0]))
    ]
