"""Noise for networks of published size: enough to calibrate scales and to tell samples apart."""

from __future__ import annotations

import numpy as np

from edgekd.data import IO, ArraySplit, Data, Tensor

TRAIN, EVALUATION, CLASSES = 8, 8, 1000
SIZE, LENGTH, VOCABULARY = 224, 128, 30522


def _data(arrays: dict[str, np.ndarray], ranges: dict[str, tuple[float, float]]) -> Data:
    labels = np.random.default_rng(1).integers(0, CLASSES, TRAIN + EVALUATION)
    inputs = [
        Tensor(
            name=name,
            dtype=str(array.dtype),
            shape=["batch", *array.shape[1:]],
            range=ranges.get(name),
        )
        for name, array in arrays.items()
    ]
    io = IO(
        inputs=inputs,
        outputs=[Tensor(name="logits", dtype="float32", shape=["batch", CLASSES])],
        labels=[str(label) for label in range(CLASSES)],
        random=True,
    )

    def split(rows: slice) -> ArraySplit:
        return ArraySplit({name: array[rows] for name, array in arrays.items()}, labels[rows])

    return Data(train=split(slice(TRAIN)), evaluation=split(slice(TRAIN, None)), io=io)


def images() -> Data:
    """``pixel_values`` float32[n, 3, 224, 224]: seven by seven patches of colour, fine noise."""
    random = np.random.default_rng(0)
    coarse = random.standard_normal((TRAIN + EVALUATION, 3, 7, 7), dtype=np.float32)
    fine = random.standard_normal((TRAIN + EVALUATION, 3, SIZE, SIZE), dtype=np.float32)
    return _data({"pixel_values": coarse.repeat(32, 2).repeat(32, 3) + 0.5 * fine}, {})


def tokens() -> Data:
    """``input_ids`` and ``attention_mask`` int64[n, 128] of sentences of 64 to 128 ids."""
    random = np.random.default_rng(0)
    lengths = random.integers(LENGTH // 2, LENGTH + 1, (TRAIN + EVALUATION, 1))
    mask = (np.arange(LENGTH) < lengths).astype(np.int64)
    ids = random.integers(1000, VOCABULARY, mask.shape) * mask
    ranges = {"input_ids": (0.0, VOCABULARY - 1.0), "attention_mask": (0.0, 1.0)}
    return _data({"input_ids": ids, "attention_mask": mask}, ranges)
