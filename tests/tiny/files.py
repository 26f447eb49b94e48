"""Small folders of images, tables of sentences, and the networks that read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VIT = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "image_size": 16,
       "patch_size": 4, "num_channels": 3, "hidden_size": 32, "num_hidden_layers": 2,
       "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 3}  # fmt: skip
BERT = {"architectures": ["BertForSequenceClassification"], "model_type": "bert",
        "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 24}  # fmt: skip
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "plot"]
COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


def config(path: Path, values: dict[str, Any], **more: Any) -> Path:
    """Write a transformers configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**values, **more}))
    return path


def vocabulary(directory: Path) -> Path:
    """A tokenizer's directory that holds ``vocab.txt`` alone."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return directory


def imagefolder(directory: Path, each: int = 4) -> Path:
    """Images of one colour each, a folder a colour, of odd and different sizes."""
    random = np.random.default_rng(each)
    for name, colour in COLOURS.items():
        (directory / name).mkdir(parents=True)
        for index in range(each):
            size = (int(random.integers(17, 40)), int(random.integers(17, 40)))
            Image.new("RGB", size, colour).save(directory / name / f"{index:02}.png")
    return directory


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """A csv file, separated by tabs and without quotes where it ends in ``.tsv``."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        if path.suffix == ".tsv":
            stream.writelines("\t".join(map(str, row)) + "\n" for row in [header, *rows])
        else:
            csv.writer(stream).writerows([header, *rows])
    return path
