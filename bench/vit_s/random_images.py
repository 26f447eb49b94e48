"""Images of noise: enough to calibrate scales and to feed a clock, and nothing else."""

from __future__ import annotations

import numpy as np

from edgekd.data import IO, ArraySplit, Data, Tensor

CLASSES = 1000


def load() -> Data:
    """32 images float32[32, 3, 224, 224], standard normal, with labels 0."""
    noise = np.random.default_rng(0).standard_normal((32, 3, 224, 224), dtype=np.float32)
    split = ArraySplit({"pixel_values": noise}, np.zeros(32, np.int64))
    io = IO(
        inputs=[Tensor(name="pixel_values", dtype="float32", shape=["batch", 3, 224, 224])],
        outputs=[Tensor(name="logits", dtype="float32", shape=["batch", CLASSES])],
        labels=[str(label) for label in range(CLASSES)],
    )
    return Data(train=split, evaluation=split, io=io)
