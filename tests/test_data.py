"""Data is checked once, where it enters, and says which example is wrong."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd import data
from edgekd.data import IO, ArraySplit, Data, Tensor
from edgekd.errors import ConfigError

PIXELS = Tensor(name="pixels", dtype="float32", shape=["batch", 1, 2], range=(0.0, 1.0))


def images(n: int = 3) -> NDArray[Any]:
    return np.linspace(0, 1, n * 2, dtype=np.float32).reshape(n, 1, 2)


def describe(*inputs: Tensor) -> IO:
    logits = Tensor(name="logits", dtype="float32", shape=["batch", 3])
    return IO(inputs=list(inputs), outputs=[logits], labels=["a", "b", "c"])


def whole(**changes: Any) -> Data:
    good = ArraySplit({"pixels": images()}, np.array([0, 1, 2]))
    fields: dict[str, Any] = {"train": good, "evaluation": good, "io": describe(PIXELS)}
    return Data(**{**fields, **changes})


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads data through a module a recipe could name."""
    (tmp_path / "some_data.py").write_text("made = None\n\ndef load():\n    return made\n")
    monkeypatch.syspath_prepend(tmp_path)
    import some_data  # type: ignore[import-not-found]

    def through_the_module(made: Any) -> Data:
        monkeypatch.setattr(some_data, "made", made)
        return data.load("python:some_data:load")

    return through_the_module


def test_load_returns_what_the_callable_made(load: Any) -> None:
    made = whole()
    assert load(made) is made


def test_rows_are_taken_by_index_inputs_and_labels_together() -> None:
    split = ArraySplit({"x": np.arange(10.0), "y": np.arange(20).reshape(10, 2)}, np.arange(10) % 3)
    inputs, labels = split.take(np.array([7, 2, 2]))
    assert len(split) == 10
    assert inputs["x"].tolist() == [7.0, 2.0, 2.0]
    assert inputs["y"].tolist() == [[14, 15], [4, 5], [4, 5]]
    assert labels.tolist() == [1, 2, 2]


def test_rows_and_labels_must_agree() -> None:
    with pytest.raises(
        ConfigError, match="input 'pixels' has 3 rows, labels has 4: give one label"
    ):
        ArraySplit({"pixels": images()}, np.zeros(4, np.int64))


def test_another_type_is_told(load: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape("returned tuple, expected edgekd.data.Data")):
        load((1, 2))


def changed(pixels: NDArray[Any], labels: Any = (0, 1, 2)) -> ArraySplit:
    return ArraySplit({"pixels": pixels}, np.asarray(labels))


NAN = np.where(np.arange(6).reshape(3, 1, 2) == 3, np.nan, images()).astype(np.float32)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (changed(images(0), np.zeros(0, np.int64)), "holds 0 examples, expected at least 1"),
        (changed(images(), [0, 3, -1]), "example 1 has label 3, expected 0 to 2 (3 classes)"),
        (changed(images(), [0, 1, -1]), "example 2 has label -1, expected 0 to 2 (3 classes)"),
        (
            changed(images(), [0.0, 1.0, 2.0]),
            "labels of 3 examples are float64[3], expected int64[3]",
        ),
        (
            changed(images(), [[0], [1], [2]]),
            "labels of 3 examples are int64[3, 1], expected int64[3]",
        ),
        (
            changed(images().astype(np.float64)),
            "input 'pixels' is float64[1, 2] an example, expected float32[1, 2]",
        ),
        (
            changed(images().reshape(3, 2)),
            "input 'pixels' is float32[2] an example, expected float32[1, 2]",
        ),
        (
            changed(np.zeros((3, 1, 4), np.float32)),
            "input 'pixels' is float32[1, 4] an example, expected float32[1, 2]",
        ),
        (changed(NAN), "input 'pixels' holds NaN or infinity: clean the data"),
        (changed(np.full_like(images(), np.inf)), "input 'pixels' holds NaN or infinity"),
        (
            ArraySplit({"image": images(), "mask": images()}, np.zeros(3, np.int64)),
            "input 'pixels' is missing; found image, mask",
        ),
    ],
)
def test_each_problem_is_one_sentence(load: Any, split: ArraySplit, expected: str) -> None:
    for name in ("train", "evaluation"):
        with pytest.raises(ConfigError) as caught:
            load(whole(**{name: split}))
        said = str(caught.value)
        assert said.startswith(f"data.source 'python:some_data:load', {name} split: {expected}")
        assert "\n" not in said


def test_a_split_that_returns_other_rows_than_asked_is_told(load: Any) -> None:
    class Wrong(ArraySplit):
        """Gives every image whatever rows are asked for."""

        def take(self, rows: NDArray[np.int64]) -> Any:
            return {"pixels": images(5)}, self.labels[rows]

    with pytest.raises(ConfigError, match="input 'pixels' has 5 rows for 3 examples"):
        load(whole(train=Wrong({"pixels": images()}, np.array([0, 1, 2]))))


def test_a_wrong_example_past_the_first_chunk_is_counted_from_the_start(load: Any) -> None:
    labels = np.zeros(5000, np.int64)
    labels[4500] = 9
    with pytest.raises(ConfigError, match="example 4500 has label 9"):
        load(whole(train=ArraySplit({"pixels": images(5000)}, labels)))


def test_sizes_that_vary_may_vary(load: Any) -> None:
    tokens = Tensor(name="tokens", dtype="int64", shape=["batch", "length"])
    split = ArraySplit({"tokens": np.zeros((3, 7), np.int64)}, np.array([0, 1, 2]))
    load(whole(train=split, evaluation=split, io=describe(tokens)))


@pytest.mark.parametrize(
    "spec",
    ["some_data:load", "hf:some_data:load", "python:some_data", "python::load", "python:os:", ""],
)
def test_a_spec_of_another_form_is_told(spec: str) -> None:
    expected = f"data.source: found {spec!r}, expected python:<module>:<callable>"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        data.load(spec)


def test_a_relative_module_is_told() -> None:
    with pytest.raises(ConfigError, match=re.escape("found 'python:.x:load', expected python:")):
        data.python_object("python:.x:load", "teacher.model")


def test_what_cannot_be_imported_is_told() -> None:
    expected = (
        "teacher.model: cannot import 'no_such_module': ModuleNotFoundError: No module named "
        "'no_such_module'"
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        data.python_object("python:no_such_module:net", "teacher.model")


@pytest.mark.parametrize("name", ["no_such_name", "__name__"])
def test_what_is_no_callable_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=f"m: module 'json' has no callable '{name}'"):
        data.python_object(f"python:json:{name}", "m")


def test_python_object_returns_the_callable() -> None:
    assert data.python_object("python:edgekd.data:load", "m") is data.load


def test_python_module_names_the_module_or_none() -> None:
    assert data.python_module("python:a.b:c") == "a.b"
    assert data.python_module("hf:a:b") is None
    assert data.python_module("python:a") is None


def test_io_refuses_keys_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="layout"):
        IO.model_validate({**describe(PIXELS).model_dump(), "layout": "NCHW"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def load():\n    raise ValueError('no rows')\n", "failed: ValueError: no rows"),
        ("def load():\n    open('absent.npz')\n", "failed: FileNotFoundError: "),
        ("def load(:\n", "cannot import 'users_data': SyntaxError: "),
        ("1 / 0\n", "cannot import 'users_data': ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_a_users_data_code_raises_is_one_sentence(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_data.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_data", raising=False)
    with pytest.raises(ConfigError, match=re.escape(words)):
        data.load("python:users_data:load")


def test_the_content_hash_follows_every_example_and_io() -> None:
    io = IO(inputs=[], outputs=[], labels=["a", "b"])

    def made(pixel: float, label: int, facts: IO = io) -> str:
        split = ArraySplit({"x": np.array([[pixel]], np.float32)}, np.array([label], np.int64))
        return data.content_hash(data.Data(split, split, facts))

    first = made(1.0, 0)
    assert made(1.0, 0) == first
    other = io.model_copy(update={"labels": ["a", "c"]})
    assert len({first, made(2.0, 0), made(1.0, 1), made(1.0, 0, other)}) == 4


def test_labels_of_another_task_may_have_any_shape(load: Any) -> None:
    io = describe(PIXELS).model_copy(update={"labels": []})
    boxes = np.zeros((3, 5, 4), np.float32)
    split = ArraySplit({"pixels": images()}, boxes)
    load(whole(train=split, evaluation=split, io=io))

    class Short(ArraySplit):
        """Gives fewer labels than rows."""

        def take(self, rows: NDArray[np.int64]) -> Any:
            inputs, labels = super().take(rows)
            return inputs, labels[1:]

    wrong = Short({"pixels": images()}, boxes)
    with pytest.raises(ConfigError, match="train split: 2 labels for 3 examples: give one for eac"):
        load(whole(train=wrong, evaluation=split, io=io))


def test_a_source_may_say_what_decides_its_examples() -> None:
    io = IO(inputs=[], outputs=[], labels=["a"])

    def made(content: str, files: dict[str, bytes] | None = None) -> str:
        split = ArraySplit({"x": np.zeros((1, 1))}, np.zeros(1, np.int64))
        return data.content_hash(Data(split, split, io, files or {}, lambda: content))

    assert made("a") == made("a")
    assert len({made("a"), made("b"), made("a", {"t": b"1"}), made("a", {"t": b"2"})}) == 4


class Counting(ArraySplit):
    """Remembers how many rows were asked for at a time."""

    asked: ClassVar[list[int]] = []

    def take(self, rows: NDArray[np.int64]) -> Any:
        self.asked.append(len(rows))
        return super().take(rows)


def plain_hash(split: ArraySplit, io: IO) -> str:
    """The content hash as it always was, of two equal splits of at most 1024 rows."""
    digest = hashlib.sha256(io.model_dump_json().encode())
    for _ in range(2):
        for name in sorted(split.inputs):
            array = split.inputs[name]
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        digest.update(f"{split.labels.dtype} {split.labels.shape}".encode())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


def test_large_rows_are_read_a_few_at_a_time_and_hash_the_same(
    monkeypatch: pytest.MonkeyPatch, load: Any
) -> None:
    monkeypatch.setattr(Counting, "asked", [])
    io = IO(inputs=[], outputs=[], labels=["a", "b"])
    random = np.random.default_rng(0)
    inputs = {"b": random.random((100, 8)), "a": random.integers(0, 9, (100, 3))}
    split = Counting(inputs, np.arange(100) % 2)
    wanted = plain_hash(split, io)
    assert data.content_hash(Data(split, split, io)) == wanted
    assert Counting.asked == [1, 100] * 2
    Counting.asked.clear()
    # a row is 8 x 8 + 3 x 8 + 8 = 96 bytes
    monkeypatch.setattr(data, "READ_BYTES", 96 * 30)
    assert data.content_hash(Data(split, split, io)) == wanted
    assert max(Counting.asked) == 30
    Counting.asked.clear()
    monkeypatch.setattr(data, "READ_BYTES", 30 * (images(1).nbytes + 8))
    load(whole(train=Counting({"pixels": images(100)}, np.zeros(100, np.int64))))
    assert Counting.asked == [1, 30, 30, 30, 10]


def test_rows_whose_shape_depends_on_their_neighbours_hash_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Padded to the longest of what is taken together, inputs or labels."""

    class Ragged(ArraySplit):
        """Cuts the columns that are zero in all rows taken."""

        def take(self, rows: NDArray[np.int64]) -> Any:
            inputs, labels = super().take(rows)
            cut = {n: a[:, : int(np.flatnonzero(a.any(0))[-1]) + 1] for n, a in inputs.items()}
            return cut, labels[:, : int(np.flatnonzero(labels.any(0))[-1]) + 1]

    io = IO(inputs=[], outputs=[], labels=[])
    lower = np.tril(np.ones((9, 9)))
    for inputs, labels in ((lower, lower), (np.ones((9, 9)), lower), (lower, np.ones((9, 9)))):
        split = Ragged({"x": inputs}, labels)
        monkeypatch.setattr(data, "READ_BYTES", 64 << 20)
        wanted = data.content_hash(Data(split, split, io))
        assert wanted == plain_hash(ArraySplit({"x": inputs}, labels), io)
        monkeypatch.setattr(data, "READ_BYTES", 64)
        assert data.content_hash(Data(split, split, io)) == wanted
