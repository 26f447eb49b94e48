"""What is left to do after the graph: named in io.json, done by the user's own callable or told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny.recipes import tiny

from edgekd import recipe
from edgekd.artifact import Artifact
from edgekd.cli import main
from edgekd.distill.teacher import teach
from edgekd.errors import ConfigError
from edgekd.infer import infer

SOURCE = """
from dataclasses import replace
from tiny import data

def load():
    made = data.vectors()
    named = {**made.io.model_dump(), "postprocess": SPEC}
    return replace(made, io=data.IO.model_validate(named))
"""
AFTER = """
import numpy as np

def best(outputs):
    return [int(row.argmax()) for row in outputs["logits"]]

def one_for_all(outputs):
    return [1]

def arrays(outputs):
    return list(outputs["logits"])

def fails(outputs):
    return outputs["boxes"]
"""
Asked = Callable[[str], tuple[Artifact, str]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A Teacher whose data names something to do, and a file of two rows to ask it about."""
    rows = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=rows)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(spec: str) -> tuple[Artifact, str]:
        for name in ("left_source", "left_after"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / "left_source.py").write_text(f"SPEC = {spec!r}\n{SOURCE}")
        (tmp_path / "left_after.py").write_text(AFTER)
        document = {
            "name": "left",
            "teacher": {"model": "python:tiny.models:mlp", "fit": {"steps": 0}},
            "data": {"source": "python:left_source:load", "samples": 8},
            "distill": {"steps": 0},
        }
        teacher = teach(recipe.parse(document, "left"), tmp_path / "out")
        return teacher, str(tmp_path / "in.npz")

    return make


def test_a_callable_answers_every_row(asked: Asked) -> None:
    teacher, rows = asked("python:left_after:best")
    assert teacher.read_json("io.json")["postprocess"] == "python:left_after:best"
    for found in infer(teacher, [rows], top=1):
        assert found["answer"] == found["classes"][0]["index"]
        assert "to_do" not in found


def told(*words: object) -> str:
    found = CliRunner().invoke(main, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.output


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("python:left_after:best", ["  after the graph: 0", "  after the graph: 2"]),
        ("keep the best box", ["  left to do after the graph: keep the best box"] * 2),
    ],
)
def test_the_verbs_tell_it(asked: Asked, spec: str, words: list[str]) -> None:
    teacher, rows = asked(spec)
    lines = told("infer", teacher.path, rows, "--top", 1).splitlines()
    found = [line for line in lines if "after the graph" in line]
    assert [line.rstrip("0123") for line in found] == [word.rstrip("0123") for word in words]
    answers = json.loads(told("infer", teacher.path, rows, "--json"))
    assert all(("answer" in row) == spec.startswith("python:") for row in answers)
    assert told("inspect", teacher.path).endswith(f"\nafter the graph\n  {spec}\n")


def test_a_sentence_is_told_and_nothing_is_run(asked: Asked) -> None:
    teacher, rows = asked("suppress boxes that overlap by half")
    for found in infer(teacher, [rows]):
        assert found["to_do"] == "suppress boxes that overlap by half"
        assert "answer" not in found


def test_a_callable_that_is_not_on_this_machine_is_told(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, rows = asked("python:left_after:best")
    monkeypatch.delitem(sys.modules, "left_after")
    monkeypatch.delitem(sys.modules, "left_source")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    found = infer(teacher, [rows])
    assert [row["to_do"] for row in found] == [
        "python:left_after:best, whose module 'left_after' is not installed here"
    ] * 2


def test_without_a_word_nothing_is_left_to_do(tmp_path: Path) -> None:
    teacher = teach(tiny(tmp_path), tmp_path / "out")
    assert teacher.read_json("io.json")["postprocess"] is None
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 32), np.float32))
    (found,) = infer(teacher, [str(tmp_path / "in.npz")])
    assert set(found) == {"input", "classes"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_for_all", "returned 1 answers, expected 2, one a row"),
        ("arrays", "failed: TypeError: Object of type ndarray is not JSON serializable"),
        ("fails", "failed: KeyError: 'boxes'"),
    ],
)
def test_an_answer_that_is_none_is_told(asked: Asked, name: str, words: str) -> None:
    teacher, rows = asked(f"python:left_after:{name}")
    with pytest.raises(ConfigError) as caught:
        infer(teacher, [rows])
    assert str(caught.value) == f"io.postprocess 'python:left_after:{name}' {words}"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("python:left_after:bset", "module 'left_after' has no callable 'bset'"),
        ("python:left_afterwards:best", "cannot import 'left_afterwards': ModuleNotFoundError"),
        ("python:left_after", "found 'python:left_after', expected python:<module>:<callable>"),
        ("", "String should have at least 1 character"),
    ],
)
def test_a_name_that_is_not_there_is_told_before_training(
    asked: Asked, spec: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(spec)
    assert words in str(caught.value)
    assert "python:left_source:load" in str(caught.value)
    assert not list(tmp_path.glob("out/teacher-*"))
