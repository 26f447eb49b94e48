"""A network without classes: what fitting its teacher needs, and that no step needs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd import recipe, target
from edgekd.distill.teacher import teach
from edgekd.errors import ConfigError
from edgekd.plan import plan
from edgekd.recipe import Recipe
from edgekd.run import run

SOURCE = """
from dataclasses import replace
from tiny import data

def load():
    made = data.vectors()
    return replace(made, io=made.io.model_copy(update={"labels": []}))

def task(outputs, labels):
    return outputs["logits"].square().mean()
"""
CPU = target.load("cpu")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe whose data names no classes, by the teacher's steps and the task's loss."""
    (tmp_path / "no_classes.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(steps: int, **losses: Any) -> Recipe:
        document = {
            "name": "values",
            "threads": 1,
            "arms": ["sparse"],
            "teacher": {"model": "python:tiny.models:mlp", "fit": {"steps": steps}},
            "data": {"source": "python:no_classes:load", "samples": 8},
            "distill": {"steps": 0, "losses": {"blocks": 0.0, **losses}},
        }
        return recipe.parse(document, "values")

    return make


def test_no_steps_need_no_loss_of_the_task(asked: Any, tmp_path: Path) -> None:
    assert plan(asked(0), CPU).rows
    made = run(asked(0), [CPU], tmp_path / "out")
    kinds = [each.kind for each in made.artifacts]
    assert kinds[:4] == ["Teacher", "Student", "Samples", "OnnxModel"]
    assert "Engine" in kinds
    assert made.artifacts[0].results["accuracy"] is None


@pytest.mark.parametrize("verb", ["plan", "teach", "run"])
def test_steps_without_anything_to_learn_from_are_told(
    verb: str, asked: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError) as caught:
        {
            "plan": lambda: plan(asked(3), CPU),
            "teach": lambda: teach(asked(3), out),
            "run": lambda: run(asked(3), [CPU], out),
        }[verb]()
    assert str(caught.value) == (
        "recipe values: teacher.fit trains 3 steps on the labels, but data.source "
        "'python:no_classes:load' names 0 classes and distill.losses.task is not given: give "
        'distill.losses.task = "python:<module>:<callable>", a trained teacher as '
        "teacher.checkpoint, or teacher.fit.steps = 0 for random weights"
    )
    assert not list(out.glob("teacher-*"))


def test_the_tasks_own_loss_is_enough(asked: Any, tmp_path: Path) -> None:
    found = teach(asked(2, task="python:no_classes:task"), tmp_path / "out")
    assert len(found.file("losses.jsonl").read_text().splitlines()) == 2
