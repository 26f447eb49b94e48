"""Real handwritten digits that every installation of scikit-learn carries.

1797 grey images of 8 x 8 pixels with values 0 to 16 (UCI Optical Recognition of Handwritten Digits,
test part). The split is stratified and fixed: 1437 to train, 360 to evaluate; one evaluation image
is 0.28 percentage points.
"""

from __future__ import annotations

import numpy as np

from edgekd.data import IO, ArraySplit, Data, Image, Tensor


def load() -> Data:
    """The digits as float32[n, 1, 8, 8] in [-1, 1], labels int64[n] in 0..9."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images.astype(np.float32) / 16.0 - 0.5) / 0.5
    train, evaluation = train_test_split(
        np.arange(len(pixels)), test_size=360, random_state=0, stratify=digits.target
    )
    labels = digits.target.astype(np.int64)

    def split(rows: np.ndarray) -> ArraySplit:
        return ArraySplit({"pixel_values": pixels[rows, None]}, labels[rows])

    io = IO(
        inputs=[
            Tensor(
                name="pixel_values", dtype="float32", shape=["batch", 1, 8, 8], range=(-1.0, 1.0)
            )
        ],
        outputs=[Tensor(name="logits", dtype="float32", shape=["batch", 10])],
        labels=[str(digit) for digit in range(10)],
        # Of an image file, whose white is 255 where the data's is 16.
        preprocess=Image(channels="grey", resize=(8, 8), rescale=1 / 255, mean=[0.5], std=[0.5]),
    )
    return Data(train=split(train), evaluation=split(evaluation), io=io)
