"""An image or a sentence in, classes or the user's own answers out, of any artifact that answers.

What is done to the input is read from the artifact's own ``io.json`` and done by
`edgekd.preprocess`, as it was for training, calibration and evaluation. Where Pillow or tokenizers
are not there, as on a device, the inputs come as arrays from an ``.npz``. What must be done with
the outputs outside the graph is run where ``io.json`` names the user's callable for it, and told
where it is a sentence or the callable is not on this machine.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import preprocess, runner
from edgekd.artifact import Artifact
from edgekd.data import IO, Arrays, python_module, python_object
from edgekd.errors import ConfigError, EdgekdError
from edgekd.io_json import IO_JSON, Text


def infer(
    model: Artifact, inputs: Sequence[str], top: int = 5, pair: bool = False
) -> list[dict[str, Any]]:
    """Ask a network.

    Args:
        model: A Teacher, a Student, an OnnxModel or an Engine.
        inputs: Image files, or sentences, or one ``.npz`` that holds the network's inputs by name,
            dtype[rows, ...].
        top: Classes to give for each.
        pair: The sentences are pairs: the first belongs to the second, the third to the fourth.

    Returns:
        One for each input, in order: ``input`` and, of a classifier, ``classes``, the likeliest
        first, each with ``label``, ``index`` and ``probability``; of other networks ``outputs``,
        each with ``shape``, ``min`` and ``max``. Where something is to be done after the graph,
        ``answer`` is what ``io.postprocess`` made of the row's outputs, or ``to_do`` says what is
        left.

    Raises:
        ConfigError: An input cannot be read or is not what the network takes; the user's
            postprocess failed, or returned something else than plain values.
        UnsupportedError: The artifact is evidence, which is never run.
        ToolchainError: What is needed to read the inputs, or to run the network, is not installed.
    """
    io = IO.model_validate(model.read_json(IO_JSON))
    arrays, names = _inputs(model, io, inputs, pair)
    with runner.open(model) as run:
        outputs = run(arrays)
    after = _postprocessed(outputs, io, len(names))
    return [
        {"input": name, **_answer({n: a[row] for n, a in outputs.items()}, io, top), **after[row]}
        for row, name in enumerate(names)
    ]


def _inputs(model: Artifact, io: IO, inputs: Sequence[str], pair: bool) -> tuple[Arrays, list[str]]:
    files = [given for given in inputs if given.endswith(".npz")]
    if files:
        if len(inputs) > 1:
            raise ConfigError(f"{files[0]}: is one of {len(inputs)} inputs, expected it alone")
        arrays = _load(Path(files[0]), io)
        rows = max(len(array) for array in arrays.values())
        return arrays, [f"{files[0]}, row {row}" for row in range(rows)]
    text = isinstance(io.preprocess, Text)
    pairs_only = isinstance(io.preprocess, Text) and io.preprocess.pair
    if pair != pairs_only:
        wanted = "pairs of sentences: add --pair" if pairs_only else "one input each: drop --pair"
        raise ConfigError(f"{model.path}: takes {wanted}")
    prepare = preprocess.open(model)
    if not pair:
        return prepare(inputs, None if text else inputs), list(inputs)
    if len(inputs) % 2:
        raise ConfigError(f"--pair: found {len(inputs)} sentences, expected two for each input")
    pairs = list(zip(inputs[::2], inputs[1::2], strict=True))
    return prepare(pairs), [f"{first} / {second}" for first, second in pairs]


def _load(path: Path, io: IO) -> Arrays:
    """The network's inputs from an ``.npz``; more names in it are left alone."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read as .npz: {error}") from error
    for tensor in io.inputs:
        name = tensor.name
        if name not in arrays:
            raise ConfigError(
                f"{path}: input {name!r} is missing; it holds {', '.join(sorted(arrays)) or 'none'}"
            )
        sizes, shape = tensor.shape[1:], arrays[name].shape[1:]
        fits = len(sizes) == len(shape) and all(
            isinstance(want, str) or want == have for want, have in zip(sizes, shape, strict=True)
        )
        if arrays[name].ndim == 0 or not fits:
            raise ConfigError(
                f"{path}: input {name!r} is {list(arrays[name].shape)}, expected {tensor.shape}"
            )
    return {tensor.name: arrays[tensor.name] for tensor in io.inputs}


def _answer(outputs: Arrays, io: IO, top: int) -> dict[str, Any]:
    """What one row of the outputs says."""
    first = outputs[io.outputs[0].name].astype(np.float64)
    if io.labels and first.shape == (len(io.labels),):
        probability = _softmax(first)
        best = np.argsort(-probability, kind="stable")[:top]
        classes = [
            {"label": io.labels[i], "index": int(i), "probability": float(probability[i])}
            for i in best
        ]
        return {"classes": classes}
    return {
        "outputs": {
            name: {"shape": list(array.shape), "min": float(array.min()), "max": float(array.max())}
            for name, array in outputs.items()
        }
    }


def _postprocessed(outputs: Arrays, io: IO, rows: int) -> list[dict[str, Any]]:
    """What is done after the graph, for each row: its answer, or what is left to do."""
    spec = io.postprocess
    if spec is None:
        return [{}] * rows
    module = python_module(spec)
    if module is None:
        return [{"to_do": spec}] * rows
    if not _installed(module):
        return [{"to_do": f"{spec}, whose module {module!r} is not installed here"}] * rows
    where = f"io.postprocess {spec!r}"
    run = python_object(spec, "io.postprocess")
    try:
        found = json.loads(json.dumps(list(run(outputs))))
    except EdgekdError:
        raise
    except Exception as error:  # whatever the user's code raises, or what JSON has no word for
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{where} failed: {type(error).__name__}: {reason}") from error
    if len(found) != rows:
        raise ConfigError(f"{where} returned {len(found)} answers, expected {rows}, one a row")
    return [{"answer": each} for each in found]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a package above it is missing
        return False


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    found: NDArray[np.float64] = powers / powers.sum()
    return found
