"""Synthetic data that a tiny network can learn a little from; made from a fixed seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.data import IO, ArraySplit, Data, Tensor

CLASSES = 4
_LOGITS = Tensor(name="logits", dtype="float32", shape=["batch", CLASSES])


def _data(inputs: list[Tensor], arrays: dict[str, np.ndarray], labels: np.ndarray) -> Data:
    def split(rows: slice) -> ArraySplit:
        return ArraySplit({name: array[rows] for name, array in arrays.items()}, labels[rows])

    io = IO(inputs=inputs, outputs=[_LOGITS], labels=[str(i) for i in range(CLASSES)])
    return Data(train=split(slice(0, 64)), evaluation=split(slice(64, None)), io=io)


def vectors() -> Data:
    """``x`` float32[n, 32] whose class is the quarter with the largest sum."""
    x = np.random.default_rng(0).standard_normal((96, 32)).astype(np.float32)
    labels = x.reshape(-1, CLASSES, 8).sum(axis=2).argmax(axis=1).astype(np.int64)
    return _data([Tensor(name="x", dtype="float32", shape=["batch", 32])], {"x": x}, labels)


def images() -> Data:
    """``pixel_values`` float32[n, 3, 16, 16], class by the brightest corner."""
    pixels = np.random.default_rng(1).standard_normal((96, 3, 16, 16)).astype(np.float32)
    corners = pixels.reshape(-1, 3, 2, 8, 2, 8).sum(axis=(1, 3, 5)).reshape(-1, CLASSES)
    shape: list[int | str] = ["batch", 3, 16, 16]
    return _data(
        [Tensor(name="pixel_values", dtype="float32", shape=shape)],
        {"pixel_values": pixels},
        corners.argmax(axis=1).astype(np.int64),
    )


def tokens() -> Data:
    """``input_ids`` and ``attention_mask`` int64[n, 16], class by the first token."""
    rng = np.random.default_rng(2)
    ids = rng.integers(1, 50, (96, 16))
    mask = (np.arange(16) < rng.integers(4, 17, (96, 1))).astype(np.int64)
    shape: list[int | str] = ["batch", 16]
    return _data(
        [Tensor(name=n, dtype="int64", shape=shape) for n in ("input_ids", "attention_mask")],
        {"input_ids": ids * mask, "attention_mask": mask},
        ids[:, 0] % CLASSES,
    )


def unlabelled() -> Data:
    """The vectors, and nothing that says what they are: no class names, labels of 0."""
    found = vectors()

    def bare(split: Any) -> ArraySplit:
        return ArraySplit(split.inputs, np.zeros(len(split), np.int64))

    io = found.io.model_copy(update={"labels": []})
    return Data(train=bare(found.train), evaluation=bare(found.evaluation), io=io)


def mislabelled() -> Data:
    """The vectors, of which every training label is wrong."""
    found = vectors()
    wrong = ArraySplit(found.train.inputs, (found.train.labels + 1) % CLASSES)
    return Data(train=wrong, evaluation=found.evaluation, io=found.io)


def named() -> Data:
    """The images under names, of which a network may know more and in another order."""
    found = images()
    io = found.io.model_copy(update={"labels": ["ox", "cat", "owl", "bat"]})
    return Data(train=found.train, evaluation=found.evaluation, io=io)
