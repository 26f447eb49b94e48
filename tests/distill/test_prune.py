"""The masks step in a whole distillation: what the recipe asks for is what the Student holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny.recipes import stored, tiny

from edgekd import artifact, sparse24
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.errors import ContractError

UNTRAINED = {"steps": 0, "batch_size": 16}
LAYERS = ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "stem"]


def teachers(student: Artifact) -> dict[str, torch.Tensor]:
    """The weights that the student started from."""
    (path,) = student.path.parent.glob("teacher-*")
    return stored(artifact.load(path), "model")


Tensors = dict[str, torch.Tensor]


def parts(student: Artifact) -> tuple[Tensors, Tensors, Tensors]:
    """The weights that a student started from, its own, and its masks."""
    return teachers(student), stored(student, "model"), stored(student, "quantizers")


@pytest.mark.parametrize("rows", [1, 8])
def test_magnitude_keeps_the_larger_weights_as_they_are(rows: int, tmp_path: Path) -> None:
    recipe = tiny(tmp_path, sparsity={"pattern_rows": rows}, distill=UNTRAINED)
    student = distill(recipe, tmp_path / "out")
    dense, weights, masks = parts(student)
    for layer in LAYERS:
        mask = masks[f"{layer}.mask"]
        weight = dense[f"{layer}.weight"]
        assert np.array_equal(mask.numpy(), sparse24.mask(weight.numpy(), rows))
        assert torch.equal(weights[f"{layer}.weight"], weight * mask)


def test_sparsegpt_ships_the_weights_that_make_up_for_what_went(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, sparsity={"method": "sparsegpt"}, distill=UNTRAINED)
    student = distill(recipe, tmp_path / "out")
    dense, weights, masks = parts(student)
    for layer in LAYERS:
        mask, weight = masks[f"{layer}.mask"], weights[f"{layer}.weight"]
        sparse24.check(weight.numpy(), layer)
        assert torch.equal(weight != 0, mask)
        assert not torch.equal(weight, dense[f"{layer}.weight"] * mask)
    assert torch.equal(weights["head.weight"], dense["head.weight"])


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_a_student_says_what_it_gained(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparsity = {"permute": True, "method": method, "pattern_rows": 4}
    student = distill(tiny(tmp_path, sparsity=sparsity), tmp_path / "out")
    told = student.results["permutation"]
    assert sorted(told["layers"]) == ["blocks.0.fc2", "blocks.1.fc2"]
    assert 0.5 < told["kept_before"] < told["kept_after"] < 1
    assert told["undone"] == []
    for key in ("accuracy_before", "accuracy_after"):
        assert 0 <= told[key] <= 1
    said = capsys.readouterr().err
    assert "permute: 2 layers reordered, kept magnitude" in said
    assert "accuracy right after masking" in said
    for layer in ("stem", "blocks.0.fc2"):
        mask = stored(student, "quantizers")[f"{layer}.mask"]
        assert torch.equal(mask[::4].repeat_interleave(4, dim=0), mask)
        assert (mask.reshape(-1, 4).sum(dim=1) == 2).all()


def test_a_student_that_does_not_ask_says_nothing_of_it(tmp_path: Path) -> None:
    assert "permutation" not in distill(tiny(tmp_path), tmp_path / "out").results


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("permuted", [False, True])
def test_rows_that_do_not_fall_into_patterns(method: str, permuted: bool, tmp_path: Path) -> None:
    asked = {"method": method, "permute": permuted, "pattern_rows": 3}
    with pytest.raises(ContractError, match="expected a multiple of pattern_rows, 3: exclude"):
        distill(tiny(tmp_path, sparsity=asked, distill=UNTRAINED), tmp_path / "out")
