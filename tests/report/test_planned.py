"""The text of a plan: what repeats is one line, and every number says that it is predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import configs
from tiny.recipes import tiny

from edgekd import plan as planning
from edgekd import target
from edgekd.report.planned import planned


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> planning.Plan:
    base = tmp_path_factory.mktemp("plan")
    a100 = target.load("a100-sxm4-80gb-trt11.4")
    return planning.plan(tiny(base, configs.VIT, "images"), a100)


def test_layers_that_repeat_are_one_line_and_others_keep_their_names(found: planning.Plan) -> None:
    text = planned(found)
    assert "2 x vit.layers.*.attention.q_proj" in text
    assert "2 x vit.layers.*.mlp.fc1" in text
    assert "2 x vit.layers.*.mlp.fc2" in text
    assert "2 x attention *" in text
    assert "\nclassifier " in text


def test_every_time_is_called_a_prediction(found: planning.Plan) -> None:
    lines = planned(found).splitlines()
    assert "times are predictions" in lines[0]
    assert "not measured" in lines[1]
    assert any(line.startswith("predicted in all: fp16 ") for line in lines)


def test_every_reason_is_said_once_with_the_number_of_its_layers(found: planning.Plan) -> None:
    text = planned(found)
    assert text.count("output layer: stays in float") == 1
    assert "classifier stays in float: output layer" in text


def test_attention_and_shares_are_told(found: planning.Plan) -> None:
    text = planned(found)
    assert "attention: 2 blocks, each expected as one fused kernel" in text
    assert f"{found.macs_share_int8:.1%} in INT8" in text


def test_a_student_without_int8_is_not_called_int8(tmp_path: Path) -> None:
    float_convolutions = {"calibration_samples": 32, "convolutions": False}
    recipe = tiny(tmp_path, configs.RESNET, "images", quantization=float_convolutions)
    text = planned(planning.plan(recipe, target.load("a100-sxm4-80gb-trt11.4")))
    assert "2:4 INT8" not in text
    assert ", 2:4 fp16 " in text.split("predicted in all: ")[1]


def test_where_sparsity_cannot_pay_is_told(found: planning.Plan) -> None:
    idle = [replace(row, pays=False) if row.sparse else row for row in found.rows]
    text = planned(replace(found, rows=idle))
    assert f"2:4 cannot pay in {sum(row.sparse for row in found.rows)} of" in text
    assert "bytes of their activations decide" in text


def test_without_facts_there_are_no_times(tmp_path: Path) -> None:
    text = planned(planning.plan(tiny(tmp_path), target.load("cpu")))
    assert "times: not predicted" in text
    assert " us" not in text


@pytest.mark.parametrize(("seconds", "words"), [(50.0, "about 50 s"), (600.0, "about 10 min")])
def test_training_time_is_an_estimate(found: planning.Plan, seconds: float, words: str) -> None:
    text = planned(replace(found, training_seconds=seconds))
    assert words in text
    assert "estimate" in text
