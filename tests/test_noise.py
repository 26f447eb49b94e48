"""Noise is drawn within the network's own sizes, the same every time, and never learned from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import recipe, sources
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent))
from tiny import files

Maker = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def made(
        model: str = "hf:vit.json", losses: dict[str, Any] | None = None, fit: int = 0, **more: Any
    ) -> Recipe:
        document = {
            "name": "test",
            "teacher": {"model": model, "fit": {"steps": fit}},
            "data": {"source": "random", **more},
            "distill": {"steps": 0, "losses": losses or {}},
        }
        found = recipe.parse(document, "test.toml")
        found._base = tmp_path
        return found

    files.config(tmp_path / "vit.json", files.VIT)
    return made


def test_noise_is_within_range_and_the_same_every_time(make: Maker) -> None:
    found = sources.load(make(samples=5))
    assert (len(found.train), len(found.evaluation), found.io.random) == (256, 5, True)
    assert found.io.labels == ["0", "1", "2"]
    inputs, labels = found.evaluation.take(np.arange(5))
    pixels = inputs["pixel_values"]
    assert (pixels.shape, pixels.dtype, labels.tolist()) == ((5, 3, 16, 16), np.float32, [0] * 5)
    assert -1 <= pixels.min() < -0.9
    assert 0.9 < pixels.max() <= 1
    again = sources.load(make(samples=5)).evaluation.take(np.array([3]))[0]
    assert np.array_equal(again["pixel_values"][0], pixels[3])
    assert not np.array_equal(found.train.take(np.array([3]))[0]["pixel_values"][0], pixels[3])


def test_noise_for_text_needs_no_tokenizer(make: Maker, tmp_path: Path) -> None:
    files.config(tmp_path / "bert.json", files.BERT)
    found = sources.load(make("hf:bert.json", max_length=12))
    inputs, _ = found.train.take(np.arange(64))
    assert inputs["input_ids"].shape == (64, 12)
    assert (inputs["input_ids"].min(), inputs["input_ids"].max()) == (0, 31)
    assert inputs["attention_mask"].all()


def test_labels_of_noise_are_not_learned(make: Maker) -> None:
    with pytest.raises(ConfigError, match=r"data.source is random, whose labels mean nothing"):
        sources.load(make(losses={"labels": 1.0}))
    with pytest.raises(ConfigError, match=r"data.source is random, .* set teacher.fit.steps and"):
        sources.load(make(fit=3))
    teachers = {"labels": 1.0, "labels_from": "teacher"}
    assert len(sources.load(make(losses=teachers)).train) == 256
