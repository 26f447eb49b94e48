"""How a student is exported is decided by the engine that comes of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs
from tiny.recipes import tiny

from edgekd import recipe, run, target
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.engine import build
from edgekd.errors import ContractError
from edgekd.recipe import Export

A100 = target.load("a100-sxm4-80gb-trt11.4")
ORIN = target.load("jetson-agx-orin-64gb-jp6.2")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    base = tmp_path_factory.mktemp("choice")
    return distill(tiny(base, configs.VIT, "images"), base / "out")


def fails(*ways: tuple[str, str]) -> Any:
    """An evidence build that fails for graphs made in these ways."""
    real = build.evidence

    def evidence(model: Artifact, judge: target.Target, out: Path) -> Artifact:
        made = model.config["export"]
        if (made["exporter"], made["weights"]) in ways:
            raise ContractError("1 of 12 planned linears are not an INT8 gemm")
        return real(model, judge, out)

    return evidence


def test_the_first_way_that_is_proven_is_kept_and_no_other_is_tried(student: Artifact) -> None:
    out = student.path.parent
    graph, tried = run._first_proven(student, Export(), A100, out)
    assert [(each.exporter, each.weights, each.refused) for each in tried] == [
        ("torchscript", "int8", "")
    ]
    assert tried[0].model == graph.path.name
    assert (graph.config["export"]["exporter"], graph.config["export"]["weights"]) == (
        "torchscript",
        "int8",
    )
    engine = build.evidence(graph, A100, out)
    assert (engine.results["int8"], engine.results["fused_attention"]) == (12, 2)


def test_what_is_not_proven_is_said_and_recorded(
    student: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "evidence", fails(("torchscript", "int8")))
    graph, tried = run._first_proven(student, Export(), A100, student.path.parent)
    assert [each.weights for each in tried] == ["int8", "float"]
    assert "planned linears are not an INT8 gemm" in tried[0].refused
    assert tried[0].model.startswith("onnx-model-")
    assert graph.path.name == tried[1].model != tried[0].model
    assert (
        "export: torchscript with int8 weights is not kept: 1 of 12 planned"
        in capsys.readouterr().err
    )


def test_no_way_at_all_is_one_sentence(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "evidence", fails(*run.WAYS))
    settings = Export(exporter="torchscript")
    with pytest.raises(ContractError) as caught:
        run._first_proven(student, settings, A100, student.path.parent)
    assert "none of 2 ways gives an engine that is INT8 and fused as planned" in str(caught.value)
    assert "torchscript with int8: 1 of 12 planned" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({}, list(run.WAYS)),
        ({"exporter": "dynamo"}, [("dynamo", "int8"), ("dynamo", "float")]),
        ({"weights": "float"}, [("torchscript", "float"), ("dynamo", "float")]),
        ({"exporter": "dynamo", "weights": "int8"}, [("dynamo", "int8")]),
    ],
)
def test_a_recipe_leaves_fewer_ways(asked: dict[str, Any], left: list[tuple[str, str]]) -> None:
    assert run._ways(Export(**asked)) == left


def test_who_judges(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = recipe.load("digits-vit")
    fixed = asked.model_copy(update={"export": Export(exporter="dynamo", weights="float")})
    cpu = target.load("cpu")
    assert run._judge(asked, [cpu, A100]) == A100
    assert run._judge(asked, [ORIN]) == target.load(run.STAND_IN)
    assert run._judge(asked, [cpu]) is None
    assert run._judge(fixed, [A100]) is None
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run._judge(asked, [A100]) is None
    assert "tensorrt-rtx is not installed" in capsys.readouterr().err


def test_a_run_keeps_the_choice_for_every_arm(tmp_path: Path) -> None:
    changed = tiny(tmp_path, configs.VIT, "images")
    result = run.run(changed, [A100], tmp_path / "out")
    ways = {
        made.config["arm"]: (made.config["export"]["exporter"], made.config["export"]["weights"])
        for made in result.artifacts
        if made.kind == "OnnxModel"
    }
    assert ways == dict.fromkeys(("sparse", "dense", "fp16"), ("torchscript", "int8"))
    assert [each.refused for each in result.candidates] == [""]
