"""Inputs of noise for every family: enough to calibrate scales and to tell samples apart.

Each callable is what a recipe names as ``python:zoo.data:<name>``; the same rows come every time.
An image is noise on a coarse grid plus fine noise, so that patches and samples differ.
"""

from __future__ import annotations

import functools

import numpy as np

from edgekd.data import IO, ArraySplit, Data, Tensor

CLASSES, ROWS, EVALUATION = 8, 16, 8
VOCABULARY, LENGTH = 512, 64


def data(
    inputs: dict[str, np.ndarray],
    labels: np.ndarray | None = None,
    outputs: list[Tensor] | None = None,
) -> Data:
    """Split rows in two.

    Args:
        inputs: {name: dtype[rows, ...]}.
        labels: Of another task than naming a class; default: classes drawn at random.
        outputs: Default: the logits of a classifier.
    """
    rows = len(next(iter(inputs.values())))
    if labels is None:
        labels = np.random.default_rng(rows).integers(0, CLASSES, rows)
    found = labels

    def split(part: slice) -> ArraySplit:
        return ArraySplit({name: array[part] for name, array in inputs.items()}, found[part])

    io = IO(
        inputs=[
            Tensor(name=name, dtype=str(array.dtype), shape=["batch", *array.shape[1:]])
            for name, array in inputs.items()
        ],
        outputs=outputs
        or [Tensor(name="logits", dtype="float32", shape=["batch", CLASSES], role="logits")],
        labels=[] if outputs else [f"class {index}" for index in range(CLASSES)],
    )
    return Data(train=split(slice(EVALUATION, None)), evaluation=split(slice(EVALUATION)), io=io)


def pixels(size: int) -> np.ndarray:
    """float32[rows, 3, size, size]: eight by eight patches of colour under fine noise."""
    random = np.random.default_rng(size)
    coarse = random.standard_normal((ROWS + EVALUATION, 3, 8, 8)).astype(np.float32)
    fine = random.standard_normal((ROWS + EVALUATION, 3, size, size)).astype(np.float32)
    cells = np.arange(size) * 8 // size
    return coarse[:, :, cells][..., cells] + 0.5 * fine


def _images(size: int, name: str) -> Data:
    return data({name: pixels(size)})


def frames() -> Data:
    """``frames`` float32[n, 64, 80]: a sequence of features, as of sound."""
    noise = np.random.default_rng(5).standard_normal((ROWS + EVALUATION, LENGTH, 80))
    return data({"frames": noise.astype(np.float32)})


def tokens() -> Data:
    """``input_ids`` and ``attention_mask`` int64[n, 64] of sentences of 32 to 64 ids."""
    random = np.random.default_rng(6)
    ids = random.integers(5, VOCABULARY, (ROWS + EVALUATION, LENGTH))
    lengths = random.integers(LENGTH // 2, LENGTH + 1, (ROWS + EVALUATION, 1))
    mask = (np.arange(LENGTH) < lengths).astype(np.int64)
    # The filling is 1, which RoBERTa counts positions by and the others only mask.
    return data({"input_ids": np.where(mask > 0, ids, 1), "attention_mask": mask})


# Of transformers (``pixel_values``) and of timm (``x``), by edge length.
images56, images64, images96, images112 = (
    functools.partial(_images, size, "pixel_values") for size in (56, 64, 96, 112)
)
x64, x96, x112, x224 = (functools.partial(_images, size, "x") for size in (64, 96, 112, 224))
