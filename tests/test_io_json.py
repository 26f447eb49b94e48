"""``io.json`` says everything that decides a pixel or an id, and nothing else gets in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgekd import artifact, io_json, kinds
from edgekd.artifact import Question, Work
from edgekd.io_json import IO, Image, Nothing, Tensor, Text

PIXELS = Tensor(name="pixels", dtype="float32", shape=["batch", 1, 8, 8], range=(-1.0, 1.0))
LOGITS = Tensor(name="logits", dtype="float32", shape=["batch", 3])
BOXES = Tensor(name="boxes", dtype="float32", shape=["batch", 5, 4])
GREY = Image(channels="grey", resize=(8, 8), rescale=1 / 255, mean=[0.5], std=[0.5])
WORDS = Text(max_length=16, pad_id=0, pair=True)


@pytest.mark.parametrize("steps", [GREY, WORDS, Nothing()])
def test_every_kind_of_preprocessing_is_read_back_as_it_was_written(steps: Any) -> None:
    io = IO(inputs=[PIXELS], outputs=[LOGITS], labels=["a", "b", "c"], preprocess=steps)
    assert IO.model_validate_json(io.model_dump_json()) == io
    assert json.loads(io.model_dump_json())["preprocess"]["kind"] == steps.kind


def test_without_a_word_about_it_the_inputs_are_made_elsewhere() -> None:
    assert IO(inputs=[], outputs=[], labels=[]).preprocess == Nothing()


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({"kind": "image", "resize": 8, "rescale": 1, "mean": [0], "std": [1]}, "expected 3 of ea"),
        ({**GREY.model_dump(), "std": [0.0]}, "expected 1 of each, std not 0"),
        ({**GREY.model_dump(), "mean": [0.5, 0.5]}, "expected 1 of each"),
        ({**GREY.model_dump(), "scale": 2}, "scale"),
        ({**WORDS.model_dump(), "tokenizer": "../elsewhere.json"}, "tokenizer"),
        ({"layout": "NCHW"}, "kind"),
    ],
)
def test_steps_that_cannot_be_followed_are_refused(steps: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        IO.model_validate({"inputs": [], "outputs": [], "labels": [], "preprocess": steps})


def test_the_first_output_is_logits_the_others_are_values_unless_it_is_said() -> None:
    io = IO(inputs=[], outputs=[LOGITS, BOXES], labels=[])
    assert io.roles() == {"logits": "logits", "boxes": "values"}
    swapped = [BOXES.model_copy(update={"role": "values"}),
               LOGITS.model_copy(update={"role": "logits"})]  # fmt: skip
    assert IO(inputs=[], outputs=swapped, labels=[]).roles() == {
        "boxes": "values",
        "logits": "logits",
    }


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": b"{}"}])
def test_what_belongs_to_io_goes_with_it(files: dict[str, bytes], tmp_path: Path) -> None:
    io = IO(inputs=[PIXELS], outputs=[LOGITS], labels=["a"])

    def write(work: Work) -> dict[str, Any]:
        (work.scratch / "layers.json").write_text("[]")
        io_json.save(io, files, work.scratch)
        return {}

    source = artifact.make(tmp_path, Question(kinds.ENGINE, {"files": len(files)}), write)
    beside = tmp_path / "beside"
    beside.mkdir()
    io_json.copy(source, beside)
    assert {path.name for path in beside.iterdir()} == {"io.json", *files}
    assert IO.model_validate_json((beside / "io.json").read_text()) == io


def test_a_shortest_length_is_written_only_where_it_limits_something() -> None:
    """Whose hash was taken without it keeps that hash."""
    assert "min_length" not in WORDS.model_dump_json()
    limited = WORDS.model_copy(update={"min_length": 4})
    io = IO(inputs=[PIXELS], outputs=[LOGITS], labels=["a"], preprocess=limited)
    assert json.loads(io.model_dump_json())["preprocess"]["min_length"] == 4
    assert IO.model_validate_json(io.model_dump_json()) == io
