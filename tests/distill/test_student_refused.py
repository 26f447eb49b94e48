"""Every way in which a Student must not come to be, and the sentence that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.recipes import NO_BLOCKS, StopAt, tiny
from torch import Tensor

from edgekd import eligible
from edgekd.artifact import Artifact
from edgekd.distill import loop, quantize, sparsify
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill
from edgekd.errors import ConfigError, ContractError, EdgekdError, UnsupportedError


def refused(recipe: Any, out: Path, error: type[EdgekdError], arm: Any = "sparse") -> str:
    with pytest.raises(error) as caught:
        distill(recipe, out, arm)
    assert not list(out.glob("student-*"))
    return str(caught.value)


def test_a_layer_the_library_skips_although_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mask of all ones must not pass for a sparse layer."""
    monkeypatch.setattr(eligible, "_sparse_reason", lambda *_: "")
    found = refused(tiny(tmp_path), tmp_path / "out", ContractError)
    assert "sparsify: head is planned for 2:4 but Model Optimizer gave it an all-ones" in found


def test_quantizers_before_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sparsify.masks

    def late(model: Any, rows: Any, *more: Any) -> Any:
        scales = {row.layer: torch.tensor(1.0) for row in rows if row.int8}
        quantize.attach(model, [r for r in rows if r.int8 and not r.sparse], {}, scales)
        dense = [eligible.LayerPlan(**{**r.as_json(), "sparse": False}) for r in rows]
        quantize.attach(model, dense, {}, scales)
        return real(model, rows, *more)

    monkeypatch.setattr(sparsify, "masks", late)
    found = refused(tiny(tmp_path), tmp_path / "out", ContractError)
    assert "sparsify: the network is already quantized (5 quantizers" in found


def test_one_object_for_teacher_and_student(tmp_path: Path) -> None:
    found = refused(tiny(tmp_path, "the_same_twice"), tmp_path / "out", ContractError)
    assert "verify: the teacher carries 5 quantizers, expected none: stem." in found
    assert "in an object of its own" in found


def test_a_layer_that_calibration_leaves_at_zero(tmp_path: Path) -> None:
    found = refused(tiny(tmp_path, "unreached"), tmp_path / "out", ContractError)
    assert "calibrate: the input of stem has amax 0.0, expected a positive number" in found


def test_a_library_that_quantizes_more_than_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modelopt.torch.quantization as mtq

    real = mtq.quantize

    def greedy(model: Any, config: Any, run: Any) -> Any:
        first = {"quantizer_name": "*", "cfg": {"num_bits": 8, "axis": None}}
        return real(model, {**config, "quant_cfg": [*config["quant_cfg"], first]}, run)

    monkeypatch.setattr(mtq, "quantize", greedy)
    found = refused(tiny(tmp_path), tmp_path / "out", ContractError)
    assert "expected 10; missing: none; not planned: " in found
    assert "head.input_quantizer" in found


@pytest.mark.parametrize(
    ("due", "every", "ran"), [("CHECKPOINT_SECONDS", 0.0, 2), ("CHECK_STEPS", 3, 3)]
)
def test_a_mask_that_is_lost_stops_the_run_at_the_next_check(
    due: str, every: float, ran: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a checkpoint or between two; the end of the run, where it would be refused, is far."""
    monkeypatch.setattr(loop, due, every)
    real, steps = Objective.__call__, []

    def opens(self: Objective, inputs: Any, target: Tensor) -> Any:
        steps.append(len(steps))
        if len(steps) == 2:
            self._student.stem.parametrizations.weight[0].mask.fill_(True)
        return real(self, inputs, target)

    monkeypatch.setattr(Objective, "__call__", opens)
    recipe = tiny(tmp_path, distill={"steps": 20, "batch_size": 16})
    found = refused(recipe, tmp_path / "out", ContractError)
    assert "verify: the 2:4 mask of stem was lost or changed" in found
    assert len(steps) == ran


def test_a_checkpoint_with_another_mask(tmp_path: Path, stop_at: StopAt) -> None:
    """It fits in every shape, so it is loaded; the mask is then not the one that was chosen."""
    recipe = tiny(tmp_path, distill={"steps": 3, "batch_size": 16})
    stop_at(2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, tmp_path / "out")
    path = next((tmp_path / "out" / ".work").glob("student-*/" + loop.CHECKPOINT))
    tensors = load_file(path)
    name = "model.stem.parametrizations.weight.0.mask"
    tensors[name] = ~tensors[name]
    save_file(tensors, path)
    assert "the 2:4 mask of stem was lost or changed" in refused(
        recipe, tmp_path / "out", ContractError
    )


def test_a_checkpoint_that_is_garbage_starts_anew(
    tmp_path: Path, made: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "out" / ".work" / made.path.name
    keep.mkdir(parents=True)
    (keep / loop.CHECKPOINT).write_bytes(b"not safetensors")
    assert distill(tiny(tmp_path), tmp_path / "out").id == made.id
    assert "is not a checkpoint of this run" in capsys.readouterr().err


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    settings = {"steps": 4, "batch_size": 16, "learning_rate": 1e30, "warmup": 0.0}
    found = refused(tiny(tmp_path, distill=settings), tmp_path / "out", ConfigError)
    assert found.startswith("distill sparse: loss term 'logits' is nan at step 1 of 4 (learning")
    assert "lower the learning_rate of 1e+30" in found


NOT_FINITE = "calibrate: the input of stem holds NaN or infinity, expected finite"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("models:five_classes", ConfigError, "output 'logits' is [1, 5] for 1 examples"),
        ("models:wide", ConfigError, "a student block gives [16, 48], its teacher's [16, 32]"),
        ("models:excluded", ConfigError, "the student has no repeated blocks to compare; set it"),
        ("models:no_layer", ConfigError, "does not take the data's inputs x: TypeError"),
        ("models:fails", ConfigError, "cannot be built: KeyError: 'width'"),
        ("forms:infinite", ContractError, NOT_FINITE),
        ("forms:not_a_number", ContractError, NOT_FINITE),
        (
            "forms:huge",
            ContractError,
            "calibrate: the input of stem: amax is 1000000.0, expected a value in 0..",
        ),
    ],
)
def test_students_that_do_not_fit(
    tmp_path: Path, name: str, error: type[EdgekdError], words: str
) -> None:
    recipe = tiny(tmp_path, student={"model": f"python:tiny.{name}"})
    assert words in refused(recipe, tmp_path / "out", error)


def test_a_weight_that_other_tensors_make(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "weight_norm", distill=NO_BLOCKS)
    found = refused(recipe, tmp_path / "out", UnsupportedError)
    assert "layer stem computes its weight from other tensors" in found


@pytest.mark.parametrize(("arm", "what"), [("sparse", "INT8 or 2:4"), ("dense", "INT8")])
def test_a_plan_of_nothing(tmp_path: Path, arm: str, what: str) -> None:
    section = {"calibration_samples": 32, "exclude": ["*"]}
    recipe = tiny(tmp_path, quantization=section, sparsity={"exclude": ["*"]})
    found = refused(recipe, tmp_path / "out", ContractError, arm)
    assert f"recipe tiny: no layer of the {arm} student can be {what}; blocks.0.fc1: in " in found
    assert "in quantization.exclude; widen quantization.include or choose another" in found


def test_an_input_that_float16_cannot_scale(tmp_path: Path) -> None:
    found = refused(tiny(tmp_path, "forms:denormal"), tmp_path / "out", ContractError)
    assert "calibrate: the input of stem has amax " in found
    assert "which rounds to 0 at the smallest scale that float16 holds, 5.96046e-08" in found
    assert "add the layer to quantization.exclude" in found


def test_a_network_without_layers(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "only_norm", distill=NO_BLOCKS)
    assert "recipe tiny: the student has no Linear or Conv2d layer" in refused(
        recipe, tmp_path / "out", ContractError
    )


def test_a_layer_named_for_2_4_that_cannot_be(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "odd", sparsity={"include": ["stem"]})
    found = refused(recipe, tmp_path / "out", ContractError)
    assert (
        "sparsity.include names stem (n=32, k=20), which cannot be 2:4: k per group is 20" in found
    )


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, sparsity={"exclude": ["blocks.7.*"]})
    found = refused(recipe, tmp_path / "out", ConfigError)
    assert "sparsity.exclude: 'blocks.7.*' matches no Linear or Conv2d" in found
    assert "blocks.0.fc1" in found
