"""A network that takes one example at a time is refused in one sentence, wherever it is met."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import data, models
from torch import Tensor, nn

from edgekd import recipe, target
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.distill.teacher import teach
from edgekd.errors import ContractError
from edgekd.export.model import export
from edgekd.models import probe
from edgekd.plan import plan
from edgekd.recipe import Recipe
from edgekd.run import run

IO = data.vectors().io
X = {"x": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}
MODULE = """
from tiny.models import MLP

class Net(MLP):
    def forward(self, x):
        y = super().forward(x)
        return y.reshape({rows}, 2, 2).flatten(1)
"""
ANY = (
    "; training, calibration and an engine take any batch: take the batch size from the input's "
    "shape there, x.shape[0] or -1, not the number 1"
)
Write = Callable[[str], Recipe]


class Reshaped(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, 4)


class Merged(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, -1)


class First(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:1]


def test_the_line_that_fails_is_named() -> None:
    model = Reshaped().train()
    with pytest.raises(ContractError) as caught:
        probe(model, X, IO, "python:a:b")
    line = Reshaped.forward.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"model 'python:a:b': takes a batch of 1 only: for 2 examples it fails in {__file__}, line "
        f"{line} (`return super().forward(x).reshape(1, 4)`) (RuntimeError: shape '[1, 4]' is "
        f"invalid for input of size 8){ANY}"
    )
    assert model.training


@pytest.mark.parametrize(("network", "found"), [(Merged, "[1, 8]"), (First, "[1, 4]")])
def test_an_answer_for_one_of_two_is_told(network: type[nn.Module], found: str) -> None:
    with pytest.raises(ContractError) as caught:
        probe(network(), X, IO, "python:a:b")
    assert str(caught.value) == (
        "model 'python:a:b': takes a batch of 1 only: for 2 examples its output 'logits' is "
        f"{found}, expected [2, 4]{ANY}"
    )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A recipe whose network reshapes to that many rows."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(rows: str) -> Recipe:
        monkeypatch.delitem(sys.modules, "one_row", raising=False)
        (tmp_path / "one_row.py").write_text(MODULE.format(rows=rows))
        document = {
            "name": "one-row",
            "threads": 1,
            "arms": ["sparse"],
            "teacher": {"model": "python:one_row:Net", "fit": {"steps": 0}},
            "data": {"source": "python:tiny.data:vectors", "samples": 8},
            "distill": {"steps": 0},
        }
        return recipe.parse(document, "one-row")

    return make


@pytest.mark.parametrize("verb", ["plan", "teach", "run"])
def test_every_verb_says_so_before_it_trains(verb: str, write: Write, tmp_path: Path) -> None:
    asked, out = write("1"), tmp_path / "out"
    verbs: dict[str, Callable[[], object]] = {
        "plan": lambda: plan(asked, target.load("cpu")),
        "teach": lambda: teach(asked, out),
        "run": lambda: run(asked, [target.load("cpu")], out),
    }
    with pytest.raises(ContractError) as caught:
        verbs[verb]()
    sentence = str(caught.value)
    assert sentence.startswith(
        "model 'python:one_row:Net': takes a batch of 1 only: for 2 examples it fails in "
        f"{tmp_path / 'one_row.py'}, line 7 (`return y.reshape(1, 2, 2).flatten(1)`)"
    )
    assert sentence.endswith(ANY)
    assert not list(out.glob("teacher-*"))


@pytest.mark.parametrize("made_by", [teach, distill])
def test_an_export_of_what_became_one_says_so(
    made_by: Callable[[Recipe, Path], Artifact], write: Write, tmp_path: Path
) -> None:
    """A network whose module was edited since its weights were trained."""
    made = made_by(write("len(x)"), tmp_path / "out")
    write("1")
    with pytest.raises(ContractError) as caught:
        export(made, tmp_path / "out")
    assert str(caught.value).startswith(
        "export: the network takes a batch of 1 only: on 2 rows it fails in "
        f"{tmp_path / 'one_row.py'}, line 7 (`return y.reshape(1, 2, 2).flatten(1)`)"
    )
    assert not list((tmp_path / "out").glob("onnx-model-*"))


def test_a_student_of_its_own_is_asked_too(write: Write, tmp_path: Path) -> None:
    asked = write("1")
    student = {**asked.model_dump(exclude_none=True), "student": {"model": "python:one_row:Net"}}
    student["teacher"]["model"] = "python:tiny.models:mlp"
    with pytest.raises(ContractError, match=r"'python:one_row:Net': takes a batch of 1 only"):
        distill(recipe.parse(student, "one-row"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("student-*"))


def test_the_batch_taken_from_the_input_is_no_number_1(write: Write, tmp_path: Path) -> None:
    assert teach(write("len(x)"), tmp_path / "out").kind == "Teacher"
