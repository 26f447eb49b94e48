"""Files become examples in a known order, through the teacher's own preprocessing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgekd import data, preprocess, recipe, sources
from edgekd.data import Data, Image
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent))
from tiny import files

Maker = Callable[..., Recipe]
SENTENCES = [["a good film", "good"], ["a bad film", "bad"], ["good plot", "good"]]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`datasets` writes its tables where the tests end."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """A recipe in a directory, with the sections that a test is about."""

    def made(
        model: str = "hf:vit.json", losses: dict[str, Any] | None = None, **section: Any
    ) -> Recipe:
        document = {
            "name": "test",
            "teacher": {"model": model, "fit": {"steps": 0}},
            "data": section,
            "distill": {"steps": 0, "losses": losses or {}},
        }
        found = recipe.parse(document, "test.toml")
        found._base = tmp_path
        return found

    files.config(tmp_path / "vit.json", files.VIT)
    files.vocabulary(files.config(tmp_path / "bert" / "config.json", files.BERT).parent)
    return made


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    files.imagefolder(tmp_path / "train", 4)
    files.imagefolder(tmp_path / "test", 2)
    return tmp_path


def images(make: Maker, **more: Any) -> Data:
    section = {"source": "hf:imagefolder", "train": "train", "evaluation": "test", **more}
    return sources.load(make(**section))


def sentences(make: Maker, suffix: str = "csv", **more: Any) -> Data:
    section = {"source": "hf:csv", "train": f"t.{suffix}", "evaluation": f"e.{suffix}", **more}
    return sources.load(make("hf:bert", **section))


def everything(split: Any) -> Any:
    return split.take(np.arange(len(split)))


def test_an_imagefolder_is_its_sorted_files(make: Maker, folders: Path) -> None:
    found = images(make)
    assert found.io.labels == ["blue", "green", "red"]
    inputs, labels = everything(found.train)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    steps = found.io.preprocess
    assert isinstance(steps, Image)
    assert (steps.resize, steps.mean) == ((16, 16), [0.5] * 3)
    wanted = preprocess.image(folders / "train" / "green" / "02.png", steps, "it")
    assert np.array_equal(inputs["pixel_values"][6], wanted)
    assert found.io.inputs[0].range == (-1.0, 1.0)
    assert found.io.inputs[0].shape == ["batch", 3, 16, 16]


def test_rows_are_taken_in_any_order(make: Maker, folders: Path) -> None:
    assert folders
    found = images(make)
    whole, labels = everything(found.train)
    rows = np.array([9, 0, 9, 4])
    inputs, picked = found.train.take(rows)
    assert np.array_equal(inputs["pixel_values"], whole["pixel_values"][rows])
    assert picked.tolist() == labels[rows].tolist()


def test_a_broken_image_is_told_when_it_is_taken(make: Maker, folders: Path) -> None:
    broken = folders / "train" / "red" / "01.png"
    broken.write_bytes(broken.read_bytes()[:60])
    found = images(make)
    found.train.take(np.array([8]))
    with pytest.raises(
        ConfigError, match=r"train split, row 9 \(.*red/01.png\): cannot be read as"
    ):
        found.train.take(np.array([8, 9]))


def test_the_networks_own_names_decide_the_numbers(make: Maker, folders: Path) -> None:
    names = {"0": "red", "1": "blue", "2": "green", "3": "black"}
    files.config(folders / "vit.json", files.VIT, id2label=names)
    found = images(make)
    assert found.io.labels == ["red", "blue", "green", "black"]
    assert everything(found.evaluation)[1].tolist() == [1, 1, 2, 2, 0, 0]
    files.config(folders / "vit.json", files.VIT, id2label={"0": "red", "1": "blue"})
    with pytest.raises(
        ConfigError, match="1 of 3 classes are not the network's own, first 'green'"
    ):
        images(make)


def test_the_content_hash_is_that_of_the_files(make: Maker, folders: Path) -> None:
    first = data.content_hash(images(make))
    assert data.content_hash(images(make)) == first
    one, other = (folders / "train" / name / "00.png" for name in ("red", "blue"))
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    os.utime(one, ns=(1, 1))
    changed = data.content_hash(images(make))
    one.write_bytes(before)
    os.utime(one, ns=(2, 2))
    assert data.content_hash(images(make)) == first
    files.config(folders / "vit.json", files.VIT, image_size=20)
    assert len({first, changed, data.content_hash(images(make))}) == 3


def parquet(path: Path, folder: Path, **columns: Any) -> None:
    cells = [{"bytes": file.read_bytes(), "path": None} for file in sorted(folder.rglob("*.png"))]
    numbers = list(range(len(cells)))
    table = {"picture": cells, "class": [n // (len(cells) // 3) for n in numbers], **columns}
    pq.write_table(pa.table(table), path)


def test_parquet_holds_the_same_images(make: Maker, folders: Path) -> None:
    for split in ("train", "test"):
        parquet(folders / f"{split}.parquet", folders / split)
    section = {"source": "hf:parquet", "train": "train.parquet", "evaluation": ["test.parquet"]}
    found = sources.load(make(**section))
    assert found.io.labels == ["0", "1", "2"]
    wanted, labels = everything(images(make).train)
    inputs, numbers = everything(found.train)
    assert np.array_equal(inputs["pixel_values"], wanted["pixel_values"])
    assert np.array_equal(numbers, labels)


def test_a_training_split_needs_no_labels_where_nobody_reads_them(
    make: Maker, tmp_path: Path
) -> None:
    files.table(tmp_path / "t.csv", ["text"], [["a good film"], ["a film"]])
    files.table(tmp_path / "e.csv", ["text", "label"], SENTENCES)
    losses = {"labels": 1.0, "labels_from": "teacher"}
    section = {"text": "text", "label": "label", "losses": losses}
    found = sentences(make, **section)
    assert found.io.labels == ["bad", "good"]
    assert everything(found.train)[1].tolist() == [0, 0]
    assert everything(found.evaluation)[1].tolist() == [1, 0, 1]
    files.table(tmp_path / "e.csv", ["words", "label"], SENTENCES)
    with pytest.raises(ConfigError, match=r"train split: has columns text, expected 'words' too"):
        sentences(make, **{**section, "text": "words"})


def test_no_column_that_could_be_a_label(make: Maker, tmp_path: Path) -> None:
    for name in ("t.csv", "e.csv"):
        files.table(tmp_path / name, ["text"], [["a good film"], ["a film"]])
    with pytest.raises(ConfigError) as caught:
        sentences(make, text="text")
    for word in ("which column is the label", "training split alone", "labels_from = 'teacher'"):
        assert word in str(caught.value)


def test_labels_that_nobody_reads_may_be_wrong(make: Maker, tmp_path: Path) -> None:
    files.table(tmp_path / "t.csv", ["text", "label"], [["a film", "?"], ["a plot", ""]])
    files.table(tmp_path / "e.csv", ["text", "label"], SENTENCES)
    section = {"text": "text", "label": "label", "losses": {"labels_from": "teacher"}}
    found = sentences(make, **section)
    assert (found.io.labels, everything(found.train)[1].tolist()) == (["bad", "good"], [0, 0])


def test_columns_that_are_not_clear_are_to_be_named(make: Maker, folders: Path) -> None:
    for split, count in (("train", 12), ("test", 6)):
        parquet(folders / f"{split}.parquet", folders / split, number=[0, 1, 2] * (count // 3))
    section = {"source": "hf:parquet", "train": "train.parquet", "evaluation": "test.parquet"}
    listed = r"Columns: picture \(image\), class \(integer\), number \(integer\)"
    with pytest.raises(ConfigError, match=f"which column is the label .* data.label. {listed}"):
        sources.load(make(**section))
    found = sources.load(make(**section, label="number"))
    assert everything(found.evaluation)[1].tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ConfigError, match=r"no column 'numer'\. Did you mean .number."):
        sources.load(make(**section, label="numer"))
    with pytest.raises(ConfigError, match=f"'class' holds integer, expected image. {listed}"):
        sources.load(make(**section, label="number", image="class"))


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_sentences_become_ids(make: Maker, suffix: str, tmp_path: Path) -> None:
    files.table(tmp_path / f"t.{suffix}", ["text", "mood"], SENTENCES)
    files.table(tmp_path / f"e.{suffix}", ["text", "mood"], SENTENCES[:2])
    found = sentences(make, suffix, label="mood", max_length=8)
    assert found.io.labels == ["bad", "good"]
    inputs, labels = everything(found.train)
    assert labels.tolist() == [1, 0, 1]
    # [CLS] a good film [SEP], by the line numbers of vocab.txt
    assert inputs["input_ids"][0].tolist() == [2, 5, 6, 8, 3, 0, 0, 0]
    assert inputs["attention_mask"][0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert [tensor.range for tensor in found.io.inputs] == [(0, 31), (0, 1), (0, 1)]
    assert list(found.files) == ["tokenizer.json"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_words_in_a_column_called_label(make: Maker, suffix: str, tmp_path: Path) -> None:
    """What people have: ``text,label``, both words; a number beside them is not taken for it."""
    rows = [["a good film", "pos", 7], ["a bad film", "neg", 9], ["good plot", "pos", 8]]
    files.table(tmp_path / f"t.{suffix}", ["text", "label", "id"], rows)
    files.table(tmp_path / f"e.{suffix}", ["text", "label", "id"], rows[:1])
    found = sentences(make, suffix, max_length=8)
    assert found.io.labels == ["neg", "pos"]
    assert everything(found.train)[1].tolist() == [1, 0, 1]
    assert everything(found.evaluation)[1].tolist() == [1]
    assert found.train.take(np.array([1]))[0]["input_ids"][0].tolist() == [2, 5, 7, 8, 3, 0, 0, 0]


def test_the_networks_own_names_decide_the_numbers_of_words(make: Maker, tmp_path: Path) -> None:
    files.table(tmp_path / "t.csv", ["text", "label"], SENTENCES)
    files.table(tmp_path / "e.csv", ["text", "label"], [["a plot", "mixed"]])
    names = {"0": "good", "1": "mixed", "2": "bad"}
    files.config(tmp_path / "bert" / "config.json", files.BERT, id2label=names)
    found = sentences(make)
    assert found.io.labels == ["good", "mixed", "bad"]
    assert everything(found.train)[1].tolist() == [0, 2, 0]
    assert everything(found.evaluation)[1].tolist() == [1]


def test_a_label_that_training_never_saw(make: Maker, tmp_path: Path) -> None:
    files.table(tmp_path / "t.csv", ["text", "label"], SENTENCES)
    files.table(tmp_path / "e.csv", ["text", "label"], [["a plot", "bad"], ["a film", "god"]])
    with pytest.raises(ConfigError) as caught:
        sentences(make)
    for words in (
        "evaluation split: row 1 has label 'god', which neither the training split nor the",
        'leave the row out. Did you mean "good"? There are: bad, good',
    ):
        assert words in str(caught.value)


def test_an_empty_cell_is_no_label(make: Maker, tmp_path: Path) -> None:
    files.table(tmp_path / "t.csv", ["text", "label"], [*SENTENCES, ["a film", ""]])
    files.table(tmp_path / "e.csv", ["text", "label"], SENTENCES)
    with pytest.raises(ConfigError, match="train split: row 3 has no 'label': give it a label"):
        sentences(make)


def test_labels_are_read_a_few_rows_at_a_time(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.table(tmp_path / "t.csv", ["text", "label"], [*SENTENCES, ["a plot", "odd"]])
    files.table(tmp_path / "e.csv", ["text", "label"], SENTENCES)
    whole = everything(sentences(make).train)[1].tolist()
    monkeypatch.setattr(sources, "CHUNK", 3)
    assert everything(sentences(make).train)[1].tolist() == whole == [1, 0, 1, 2]


def test_a_tab_separated_file_has_no_quotes_and_words_are_words(
    make: Maker, tmp_path: Path
) -> None:
    rows = [['"good film', "NA"], ["null", "bad"]]
    for name in ("t.tsv", "e.tsv"):
        files.table(tmp_path / name, ["text", "mood"], rows)
    found = sentences(make, "tsv", label="mood", text="text")
    assert found.io.labels == ["NA", "bad"]
    assert everything(found.train)[1].tolist() == [0, 1]


def test_pairs_of_sentences(make: Maker, tmp_path: Path) -> None:
    rows = [["a film", "good", 0], ["a plot", "bad", 1]]
    for name in ("t.csv", "e.csv"):
        files.table(tmp_path / name, ["first", "second", "same"], rows)
    found = sentences(make, text="first", text_pair="second", max_length=8)
    inputs, labels = everything(found.train)
    assert labels.tolist() == [0, 1]
    assert inputs["input_ids"][0].tolist() == [2, 5, 8, 3, 6, 3, 0, 0]
    assert inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    with pytest.raises(ConfigError, match="which column is the text is not clear, name it as data"):
        sentences(make)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"train": "none*.csv"}, "data.train: 'none\\*.csv' names no file below "),
        ({"train": "empty"}, "data.train: 'empty' names directories without files"),
        ({"train": ["t.csv", "t.tsv"]}, "names .tsv files and others, expected one kind"),
        ({"train": "broken.csv"}, r"cannot be read \(ParserError: .*line 3, saw 3"),
        ({"label": "score"}, "column 'score' holds float64, expected class names or numbers"),
        ({"label": "gap"}, "row 1 has no 'gap': give it a label"),
        ({"label": "number"}, "example 2 has label -1, expected 0 to 1"),
        ({"max_length": 99}, "data.max_length is 99, .* take at most 24: lower it"),
    ],
)
def test_what_is_wrong_with_files_and_columns_is_told(
    section: dict[str, Any], words: str, make: Maker, tmp_path: Path
) -> None:
    header = ["text", "mood", "score", "number"]
    rows = [["a", "x", 0.5, 0], ["b", "y", 0.5, 1], ["c", "x", 0.25, -1]]
    for name in ("t.csv", "e.csv", "t.tsv"):
        files.table(tmp_path / name, header, rows)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.csv").write_text("text,mood\na,b\na,b,c\n")
    if section.get("label") == "gap":
        table = {"text": ["a", "b"], "gap": [0, None]}
        for name in ("t.parquet", "e.parquet"):
            pq.write_table(pa.table(table), tmp_path / name)
        section = {**section, "source": "hf:parquet", "train": "t.parquet",
                   "evaluation": "e.parquet"}  # fmt: skip
    whole = {"source": "hf:csv", "train": "t.csv", "evaluation": "e.csv", "text": "text",
             "label": "mood", **section}  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        sources.load(make("hf:bert", **whole))


def test_splits_with_other_columns_are_told(make: Maker, tmp_path: Path) -> None:
    files.table(tmp_path / "t.csv", ["text", "mood"], SENTENCES)
    files.table(tmp_path / "e.csv", ["sentence", "mood"], SENTENCES)
    with pytest.raises(ConfigError, match=r"data.source 'hf:csv'.*: "):
        sentences(make, text="text", label="mood")


def test_a_metric_travels_in_io(make: Maker, folders: Path) -> None:
    assert folders
    assert images(make).io.metric is None
    assert images(make, metric="python:json:dumps").io.metric == "python:json:dumps"
    with pytest.raises(ConfigError, match=r"data.metric: module 'json' has no callable 'score'"):
        images(make, metric="python:json:score")


@pytest.mark.slow
def test_real_images_and_sentences(make: Maker, real_data: Path) -> None:
    """CIFAR-10 in parquet and SST-2 in tsv."""
    paths = {s: str(real_data / "cifar10" / f"{s}.parquet") for s in ("train", "test")}
    section = {"source": "hf:parquet", "train": paths["train"], "evaluation": paths["test"]}
    cifar = sources.load(make(**section))
    assert len(cifar.io.labels) == 10
    inputs, labels = cifar.train.take(np.arange(len(cifar.train))[::-199])
    assert np.isfinite(inputs["pixel_values"]).all()
    assert len(np.unique(labels)) == 10
    paths = {s: str(real_data / "sst2" / f"{s}.tsv") for s in ("train", "dev")}
    section = {"source": "hf:csv", "train": paths["train"], "evaluation": paths["dev"]}
    sst2 = sources.load(make("hf:bert", **section))
    assert (len(sst2.evaluation), sst2.io.labels) == (872, ["0", "1"])
    with (real_data / "sst2" / "dev.tsv").open(encoding="utf-8") as stream:
        wanted = [int(line.rstrip("\n").split("\t")[1]) for line in list(stream)[1:]]
    assert everything(sst2.evaluation)[1].tolist() == wanted
    assert everything(sst2.train)[0]["attention_mask"].any(axis=1).all()
