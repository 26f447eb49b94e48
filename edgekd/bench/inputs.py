"""What the engines of a run are asked, and what they ought to answer.

All engines get the same inputs, or a ratio would compare two workloads. A latency of a wrong answer
is no result, so each answer is held against a reference: what ONNX Runtime was recorded to answer
at export, where the inputs are those of the engine's own Samples; else the engine's own answers in
its first repetition, which finds an engine that does not answer the same twice, and no more. The
report says which it was.

An engine keeps its recorded answers, but not the inputs they answer: those are in its Samples. They
are looked for by id, beside the engine and beside the Samples that were given, as a Bundle's arms
are built into folders of their own while their Samples stay together in the Bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import artifact, kinds, runner
from edgekd.artifact import Artifact
from edgekd.data import IO, Arrays, Tensor, inputs_of
from edgekd.errors import ArtifactError, ConfigError

SEED = 0
ROWS = 64  # generated, where there are no Samples

RECORDED = "what ONNX Runtime was recorded to answer at export"
OWN = "the engine's own answers in its first repetition: nothing was recorded for these inputs"


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run.

    Attributes:
        arrays: {name: array[rows, ...]}.
        source: Where they come from, in words.
        references: For each engine {name: array[rows, ...]}, or None where nothing was recorded.
    """

    arrays: Arrays
    source: str
    references: tuple[Arrays | None, ...]


def default_samples(engine: Artifact) -> Artifact | None:
    """The Samples an engine was exported with, where they lie beside it.

    Raises:
        ArtifactError: They do, and were altered.
    """
    return _samples_in(engine.path.parent, engine)


def choose(engines: Sequence[Artifact], samples: Artifact | None) -> Inputs:
    """Inputs for some engines, from Samples or, without any, within the ranges of io.json.

    Args:
        engines: At least one Engine.
        samples: Samples.

    Raises:
        ArtifactError: The Samples are empty.
        ConfigError: The Samples do not hold an engine's inputs, or there are none and an input of
            whole numbers has no range.
    """
    io = IO.model_validate(engines[0].read_json("io.json"))
    if samples is None:
        arrays = {tensor.name: _generate(tensor, engines[0]) for tensor in io.inputs}
        source = f"{ROWS} rows generated within io.json's ranges, seed {SEED}"
        return Inputs(arrays, source, (None,) * len(engines))
    arrays = inputs_of(runner.samples(samples))
    for engine in engines:
        wanted = {t.name for t in IO.model_validate(engine.read_json("io.json")).inputs}
        if wanted != set(arrays):
            raise ConfigError(
                f"{samples.path}: holds inputs {', '.join(sorted(arrays))}, the engine "
                f"{engine.path.name} takes {', '.join(sorted(wanted))}: give the Samples of these "
                "engines"
            )
    rows = len(next(iter(arrays.values())))
    if rows == 0:
        raise ArtifactError(
            f"{samples.path}: holds 0 samples, expected at least 1: export it again"
        )
    references = tuple(_reference(engine, samples, arrays) for engine in engines)
    return Inputs(arrays, f"{rows} rows of Samples {samples.id[:12]}, in turn", references)


def _reference(engine: Artifact, samples: Artifact, arrays: Arrays) -> Arrays | None:
    """Recorded answers to these inputs; two arms have Samples of their own with equal inputs."""
    own: Artifact | None = samples
    if engine.manifest.parents.get("samples") != samples.id:
        own = default_samples(engine) or _samples_in(samples.path.parent, engine)
    if own is None:
        return None
    asked = inputs_of(runner.samples(own))
    same = set(asked) == set(arrays) and all(np.array_equal(asked[n], arrays[n]) for n in arrays)
    return runner.outputs(engine) if same else None


def _samples_in(folder: Path, engine: Artifact) -> Artifact | None:
    """The engine's own Samples, where they lie in a folder."""
    wanted = engine.manifest.parents.get("samples")
    for path in sorted(folder.iterdir()):
        try:
            found = artifact.read_manifest(path).id
        except ArtifactError:  # somebody else's directory
            continue
        if found == wanted:
            return artifact.load(path, kinds.SAMPLES)
    return None


def _generate(tensor: Tensor, engine: Artifact) -> NDArray[Any]:
    """Rows of one input: uniform within its range; floats without one lie within -1 and 1."""
    random = np.random.default_rng(SEED)
    dtype = np.dtype(tensor.dtype)
    sizes = tensor.shape[1:]
    if any(isinstance(size, str) for size in sizes):
        raise ConfigError(
            f"{engine.path}: input {tensor.name!r} has shape {tensor.shape}, only its first size "
            "may be open: measure with Samples"
        )
    shape = (ROWS, *(int(size) for size in sizes))
    if dtype.kind == "f":
        low, high = tensor.range or (-1.0, 1.0)
        return random.uniform(low, high, shape).astype(dtype)
    if tensor.range is None:
        raise ConfigError(
            f"{engine.path}: input {tensor.name!r} is {dtype} and io.json gives no range for it, "
            "so no inputs can be generated: measure with Samples"
        )
    low, high = (int(end) for end in tensor.range)
    return random.integers(low, high, shape, endpoint=True).astype(dtype)
