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
        model: str = "hf:vit.json",
        losses: dict[str, Any] | None = None,
        fit: int = 0,
        export: Any = None,
        **more: Any,
    ) -> Recipe:
        document = {
            "name": "test",
            "teacher": {"model": model, "fit": {"steps": fit}},
            "data": {"source": "random", **more},
            "distill": {"steps": 0, "losses": losses or {}},
            "export": export or {},
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
    mask = inputs["attention_mask"]
    assert mask[0::2].all()
    lengths = mask[1::2].sum(1)
    assert 1 <= lengths.min() < 4 < 9 < lengths.max() <= 12
    assert np.array_equal(mask[1::2], np.arange(12) < lengths[:, None])


def test_noise_for_a_network_with_its_tokenizer_says_how_a_sentence_is_read(
    make: Maker, tmp_path: Path
) -> None:
    files.vocabulary(files.config(tmp_path / "bert" / "config.json", files.BERT).parent)
    found = sources.load(make("hf:bert", max_length=12))
    assert found.io.preprocess.kind == "text"
    assert list(found.files) == ["tokenizer.json"]
    inputs, _ = found.train.take(np.arange(4))
    assert {name: array.shape for name, array in inputs.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (4, 12)
    )
    assert not inputs["token_type_ids"].any()


def test_noise_of_an_open_length_is_as_long_as_an_engine_takes(make: Maker, tmp_path: Path) -> None:
    files.vocabulary(files.config(tmp_path / "bert" / "config.json", files.BERT).parent)
    sizes = {"dynamic": {"sequence": {"min": 2, "opt": 8, "max": 9}}}
    # With its tokenizer, whatever else is asked for, and without.
    files.config(tmp_path / "bert.json", files.BERT)
    for spec, longest in (("hf:bert", 9), ("hf:bert", None), ("hf:bert.json", None)):
        found = sources.load(make(spec, export=sizes, max_length=longest))
        assert found.io.inputs[0].shape == ["batch", "sequence"]
        assert found.train.take(np.arange(2))[0]["input_ids"].shape == (2, 9)


def test_labels_of_noise_are_not_learned(make: Maker) -> None:
    with pytest.raises(ConfigError, match=r"data.source is random, whose labels mean nothing"):
        sources.load(make(losses={"labels": 1.0}))
    with pytest.raises(ConfigError, match=r"data.source is random, .* set teacher.fit.steps and"):
        sources.load(make(fit=3))
    teachers = {"labels": 1.0, "labels_from": "teacher"}
    assert len(sources.load(make(losses=teachers)).train) == 256
