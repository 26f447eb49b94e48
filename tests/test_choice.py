"""How a student is exported is decided by the engine that comes of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs
from tiny.recipes import tiny

from edgekd import choice as choices
from edgekd import recipe, run, target
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.engine import build
from edgekd.errors import ContractError, ToolchainError, install
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
            raise ContractError(
                "1 of 12 planned linears are not an INT8 gemm (whole layer table: "
                f"{out / '.work' / 'layers.json'})"
            )
        return real(model, judge, out)

    return evidence


def test_the_first_way_that_is_proven_is_kept_and_no_other_is_tried(student: Artifact) -> None:
    out = student.path.parent
    choice = choices.choose(student, Export(), A100, out)
    assert choice.kind == "ExportChoice"
    assert choice.manifest.parents == {"source": student.id}
    kept = choice.results
    graph = choices._export(student, choices.way(Export(), kept["exporter"], kept["weights"]), out)
    assert (kept["exporter"], kept["weights"], kept["model"]) == ("torchscript", "int8", graph.id)
    assert kept["tried"] == [
        {
            "exporter": "torchscript",
            "weights": "int8",
            "model": graph.id,
            "graph_bytes": graph.file("trt.onnx").stat().st_size,
            "counted": {
                "int8": 12,
                "planned_int8": 12,
                "fused_attention": 2,
                "attention_blocks": 2,
            },
            "refused": "",
        }
    ]
    assert choice.read_json("choice.json") == kept


def test_what_is_not_proven_is_said_and_kept_and_a_cached_choice_asks_no_builder(
    student: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "evidence", fails(("torchscript", "int8")))
    choice = choices.choose(student, Export(), A100, tmp_path / "out")
    first, second = choice.results["tried"]
    assert (first["weights"], second["weights"]) == ("int8", "float")
    said = "1 of 12 planned linears are not an INT8 gemm (whole layer table: "
    assert first["refused"] == f"{said}.work/layers.json)"
    assert (first["counted"], second["refused"]) == (None, "")
    assert first["graph_bytes"] > 0
    assert first["model"] != second["model"] == choice.results["model"]
    assert (
        f"export: torchscript with int8 weights is not kept: {said}{tmp_path}/out/.work/"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(build, "evidence", fails(*choices.WAYS))
    again = choices.choose(student, Export(), A100, tmp_path / "out")
    assert (again.id, capsys.readouterr().err) == (choice.id, "")


@pytest.mark.parametrize("tool", ["tensorrt-rtx", "onnxscript", "nvidia-modelopt"])
def test_a_choice_for_want_of_a_tool_is_made_anew_once_it_is_installed(
    tool: str, student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version
    answers = [choices.Candidate("dynamo", "float"), choices.Candidate("torchscript", "int8")]
    monkeypatch.setattr(choices, "_first_proven", lambda *_: [answers.pop(0)])

    def without(name: str) -> str:
        if name == tool:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    kept = []
    for version in (without, real, real, without):
        monkeypatch.setattr(importlib.metadata, "version", version)
        kept.append(choices.choose(student, Export(), A100, tmp_path).results["exporter"])
    assert kept == ["dynamo", "torchscript", "torchscript", "dynamo"]


def test_an_export_that_fails_is_told_without_a_graph(
    student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = choices._export

    def export(source: Artifact, settings: Export, out: Path) -> Artifact:
        if settings.exporter == "torchscript":
            raise ToolchainError("export: cannot be traced")
        return real(source, settings, out)

    monkeypatch.setattr(choices, "_export", export)
    (row, _) = choices.choose(student, Export(weights="float"), A100, tmp_path).results["tried"]
    assert (row["model"], row["graph_bytes"], row["counted"]) == ("", None, None)
    assert row["refused"] == "export: cannot be traced"


def test_no_way_at_all_is_one_sentence(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "evidence", fails(*choices.WAYS))
    settings = Export(exporter="torchscript")
    with pytest.raises(ContractError) as caught:
        choices.choose(student, settings, A100, student.path.parent)
    assert "none of 2 ways gives an engine that is INT8 and fused as planned" in str(caught.value)
    assert "torchscript with int8: 1 of 12 planned" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({}, list(choices.WAYS)),
        ({"exporter": "dynamo"}, [("dynamo", "int8"), ("dynamo", "float")]),
        ({"weights": "float"}, [("torchscript", "float"), ("dynamo", "float")]),
        ({"exporter": "dynamo", "weights": "int8"}, [("dynamo", "int8")]),
    ],
)
def test_a_recipe_leaves_fewer_ways(asked: dict[str, Any], left: list[tuple[str, str]]) -> None:
    assert choices._ways(Export(**asked)) == left


def test_who_judges(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = recipe.load("digits-vit")
    fixed = asked.model_copy(update={"export": Export(exporter="dynamo", weights="float")})
    cpu = target.load("cpu")
    assert choices.judge(asked, [cpu, A100]) == A100
    assert choices.judge(asked, [ORIN]) == target.load(choices.STAND_IN)
    assert choices.judge(asked, [cpu]) is None
    assert choices.judge(fixed, [A100]) is None
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert choices.judge(asked, [A100]) is None
    said = capsys.readouterr().err
    assert "tensorrt-rtx is not installed" in said
    assert f"float weights are taken ({install('rtx')}, or set export.exporter" in said


def test_a_run_keeps_the_choice_for_every_arm(tmp_path: Path) -> None:
    changed = tiny(tmp_path, configs.VIT, "images")
    result = run.run(changed, [A100], tmp_path / "out")
    ways = {
        made.config["arm"]: (made.config["export"]["exporter"], made.config["export"]["weights"])
        for made in result.artifacts
        if made.kind == "OnnxModel"
    }
    assert ways == dict.fromkeys(("sparse", "dense", "fp16"), ("torchscript", "int8"))
    (choice,) = (made for made in result.artifacts if made.kind == "ExportChoice")
    assert [each["refused"] for each in choice.results["tried"]] == [""]
    page = result.report.read_text()
    assert "Exporters tried" in page
    assert "2:4 INT8, decided by an engine for a100-sxm4-80gb-trt11.4" in page
    again = run.run(changed, [A100], tmp_path / "out")
    assert [made.id for made in again.artifacts] == [made.id for made in result.artifacts]
    assert again.report.read_text() == page
