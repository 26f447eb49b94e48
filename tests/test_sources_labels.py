"""Which column the labels are in, and which number each of them becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgekd import interface, recipe, sources
from edgekd.data import Data
from edgekd.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from tiny import files

Load = Callable[..., Data]
SENTENCES = [["a good film", "good"], ["a bad film", "bad"], ["good plot", "good"]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`datasets` writes its tables where the tests end; what is said once may be said again."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    interface._say_once.cache_clear()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The data of a table that is both splits, as a tiny BERT reads it."""

    def loaded(columns: dict[str, list[Any]], weights: bool = False, **section: Any) -> Data:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        document = {
            "name": "test",
            "teacher": {"model": "hf:bert", **({} if weights else {"fit": {"steps": 1}})},
            "data": {
                "source": "hf:parquet",
                "train": "t.parquet",
                "evaluation": "t.parquet",
                **section,
            },
            "distill": {"steps": 0},
        }
        if weights:
            (tmp_path / "bert" / "model.safetensors").write_bytes(b"")
        found = recipe.parse(document, "test.toml")
        found._base = tmp_path
        return sources.load(found)

    config = tmp_path / "bert" / "config.json"
    if not config.is_file():
        files.vocabulary(files.config(config, files.BERT).parent)
    return loaded


def named(directory: Path, *names: str) -> None:
    """Let the network name its classes."""
    own = {str(number): name for number, name in enumerate(names)}
    files.config(directory / "bert" / "config.json", files.BERT, id2label=own)


def test_a_name_of_two_classes_names_none(load: Load, tmp_path: Path) -> None:
    columns = {"text": ["a film", "a plot"], "label": ["bad", "crane"]}
    named(tmp_path, "crane", "bad", "crane")
    with pytest.raises(ConfigError) as caught:
        load(columns)
    assert "train split: row 1 has label 'crane', the name of 2 of the network's 3 classes" in str(
        caught.value
    )
    assert "give each its own in id2label" in str(caught.value)
    # One that the data do not have is no matter.
    found = load({**columns, "label": ["bad", "bad"]})
    assert found.train.take(np.arange(2))[1].tolist() == [1, 1]


def test_a_guessed_order_beside_given_weights_is_said_once(
    load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"text": ["a film"] * 4, "label": ["dog", "cat", "bird", "eel"]}
    load(columns)
    assert "labels:" not in capsys.readouterr().err
    for _ in range(2):
        load(columns, weights=True)
    assert capsys.readouterr().err.count("\n") == 1
    interface._say_once.cache_clear()
    load(columns, weights=True)
    assert capsys.readouterr().err == (
        "labels: numbered as they sort (bird, cat, dog, ...): the network names no classes; check "
        "that its checkpoint counts so\n"
    )


def test_an_order_that_is_known_is_not_said(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load({"text": ["a film", "a plot"], "label": [1, 0]}, weights=True)
    named(tmp_path, "dog", "cat")
    load({"text": ["a film", "a plot"], "label": ["dog", "cat"]}, weights=True)
    assert "labels:" not in capsys.readouterr().err


def test_classes_that_the_data_list_in_another_order_are_said_so(
    load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    feature = datasets.ClassLabel(names=["dog", "cat"])
    schema = datasets.Features({"text": datasets.Value("string"), "label": feature}).arrow_schema
    table = pa.table({"text": ["a film", "a plot"], "label": [1, 0]}, schema=schema)
    found = load(table, weights=True)
    assert found.io.labels == ["dog", "cat"]
    assert "labels: numbered as the data list them (dog, cat): " in capsys.readouterr().err


def test_a_column_called_label_is_never_passed_over(load: Load) -> None:
    """GLUE's STS-B: its label is a score, and a number beside it is no class."""
    columns = {"text": ["a film", "a plot"], "label": [2.5, 4.0], "idx": [0, 1]}
    with pytest.raises(ConfigError) as caught:
        load(columns)
    assert "column 'label' holds double" in str(caught.value) or "holds float64" in str(
        caught.value
    )
    assert "expected class names or numbers: name another as data.label" in str(caught.value)
    assert "Columns: text (text), label (float64), idx (integer)" in str(caught.value)
    assert load(columns, label="idx").io.labels == ["0", "1"]


def test_the_other_sentence_of_a_pair_is_found_or_asked_for(load: Load) -> None:
    columns = {"b": ["good", "bad"], "a": ["a film", "a plot"], "same": [0, 1]}
    found = load(columns, text_pair="b", max_length=8)
    # [CLS] a film [SEP] good [SEP], by the line numbers of vocab.txt
    assert found.train.take(np.arange(1))[0]["input_ids"][0].tolist() == [2, 5, 8, 3, 6, 3, 0, 0]
    with pytest.raises(ConfigError, match="which column is the text is not clear, name it as data"):
        load({**columns, "c": ["plot", "film"]}, text_pair="b")
