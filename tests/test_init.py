"""A recipe for somebody's model: it is written once, commented, and runs as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import configs

from edgekd import models, recipe, target, weights
from edgekd.errors import ConfigError, UnsupportedError
from edgekd.init import init
from edgekd.recipe import Recipe

A100 = target.load("a100-sxm4-80gb-trt11.4")
CPU = target.load("cpu")


def _directory(base: Path, config: dict[str, Any], weighted: bool = True) -> Path:
    place = base / "My_Model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    if weighted:
        model = models.build(models.describe(f"hf:{place}", Path()))
        weights.save_weights(model, place / "model.safetensors")
    return place


def _written(base: Path, model: str, **splits: Path) -> tuple[Recipe, str]:
    path = init(model, A100, base / "recipe.toml", **splits)
    return recipe.load(path), path.read_text()


def test_a_directory_with_weights_is_a_recipe_that_names_it_relatively(tmp_path: Path) -> None:
    place = _directory(tmp_path, configs.VIT)
    found, text = _written(tmp_path / "recipes", f"hf:{place}")
    assert found.name == "my-model"
    assert found.teacher.model == "hf:../My_Model"
    assert found.teacher.fit is None
    assert found.data.source == "random"
    assert found.distill.steps == 0
    assert f"edgekd plan {tmp_path / 'recipes' / 'recipe.toml'} --target {A100.name}" in text


def test_without_weights_the_recipe_says_where_they_go(tmp_path: Path) -> None:
    place = _directory(tmp_path, configs.RESNET, weighted=False)
    found, text = _written(tmp_path, f"hf:{place}")
    assert found.teacher.fit is not None
    assert found.teacher.fit.steps == 0
    assert '# checkpoint = "weights.safetensors"' in text


def test_tensors_in_another_file_are_the_checkpoint(tmp_path: Path) -> None:
    place = _directory(tmp_path, configs.VIT, weighted=False)
    (place / "pytorch_model.bin").write_bytes(b"tensors")
    found, _ = _written(tmp_path, f"hf:{place}/config.json")
    assert found.teacher.model == "hf:My_Model/config.json"
    assert found.teacher.checkpoint == "My_Model/pytorch_model.bin"
    assert found.teacher.fit is None


def test_examples_bring_training(tmp_path: Path) -> None:
    place = _directory(tmp_path, configs.VIT)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    found, _ = _written(
        tmp_path, f"hf:{place}", train=tmp_path / "train", evaluation=tmp_path / "test"
    )
    assert (found.data.source, found.data.train, found.data.evaluation) == (
        "hf:imagefolder",
        "train",
        "test",
    )
    assert found.distill.steps > 0


def test_a_network_without_repeated_blocks_gets_no_block_loss(tmp_path: Path) -> None:
    found, text = _written(tmp_path, "python:tiny.models:excluded")
    assert found.distill.losses.blocks == 0
    assert "no repeated blocks" in text


def test_the_recipe_runs_unedited(tmp_path: Path) -> None:
    from edgekd.run import run

    place = _directory(tmp_path, configs.VIT)
    path = init(f"hf:{place}", CPU, tmp_path / "recipe.toml")
    result = run(recipe.load(path), [CPU], tmp_path / "out")
    kinds = [made.kind for made in result.artifacts]
    assert kinds.count("Engine") == 3
    assert "AccuracyReport" in kinds
    assert "random inputs" in result.report.read_text()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("hf:absent", ["no such file", "absent"]),
        ("resnet50", ["found 'resnet50'", "hf:<directory or config.json>"]),
        ("hf:", ["expected hf:<directory"]),
    ],
)
def test_a_model_that_is_none_is_refused(tmp_path: Path, model: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        init(model, A100, tmp_path / "recipe.toml")
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        init(f"hf:{_directory(tmp_path, configs.VIT)}", A100, path)
    assert path.read_text() == "mine"


def test_data_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    model = f"hf:{_directory(tmp_path, configs.VIT)}"
    text, table = tmp_path / "notes.doc", tmp_path / "a.csv"
    for file in (text, table):
        file.touch()
    (tmp_path / "images").mkdir()
    cases = [
        ((table, None), "only train is given"),
        ((None, table), "only evaluation is given"),
        ((text, table), "ends in '.doc'"),
        ((tmp_path / "absent", table), "no such file or directory"),
        ((tmp_path / "images", table), "of two forms"),
    ]
    for (train, evaluation), words in cases:
        with pytest.raises(ConfigError, match=words):
            init(model, A100, tmp_path / "recipe.toml", train, evaluation)
        assert not (tmp_path / "recipe.toml").exists()


def test_what_the_target_cannot_run_is_not_written(tmp_path: Path) -> None:
    wrong = A100.model_copy(update={"parser": target.Parser(opset_max=12)})
    model = f"hf:{_directory(tmp_path, configs.VIT)}"
    with pytest.raises((UnsupportedError, ConfigError), match="opset"):
        init(model, wrong, tmp_path / "recipe.toml")
    assert not (tmp_path / "recipe.toml").exists()
