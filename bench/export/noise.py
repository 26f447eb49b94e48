"""Images of noise, enough to calibrate scales and to compare graphs."""

from __future__ import annotations

import numpy as np

from edgekd.data import IO, ArraySplit, Data, Tensor

CLASSES = 1000


def load() -> Data:
    """8 images float32[8, 3, 64, 64], standard normal, with labels 0."""
    noise = np.random.default_rng(0).standard_normal((8, 3, 64, 64), dtype=np.float32)
    split = ArraySplit({"pixel_values": noise}, np.zeros(8, np.int64))
    io = IO(
        inputs=[Tensor(name="pixel_values", dtype="float32", shape=["batch", 3, 64, 64])],
        outputs=[Tensor(name="logits", dtype="float32", shape=["batch", CLASSES])],
        labels=[str(label) for label in range(CLASSES)],
    )
    return Data(train=split, evaluation=split, io=io)
