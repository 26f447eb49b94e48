"""The teacher: adopted from a checkpoint, found beside its configuration, or fitted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import configs, data
from tiny import models as tiny_models
from tiny.recipes import tiny

from edgekd import models
from edgekd.data import recorded
from edgekd.distill import loop
from edgekd.distill.teacher import question, teach
from edgekd.errors import ConfigError
from edgekd.weights import save_weights


def test_a_checkpoint_is_adopted_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = tiny_models.mlp().eval()
    save_weights(net, tmp_path / "w.safetensors")
    teacher = {"model": "python:tiny.models:mlp", "checkpoint": "w.safetensors"}
    recipe = tiny(tmp_path, teacher=teacher)
    found = teach(recipe, tmp_path / "out")
    stored = load_file(found.file("model.safetensors"))
    assert all(torch.equal(tensor, stored[n]) for n, tensor in net.state_dict().items())
    assert found.read_json("model.json") == {"spec": "python:tiny.models:mlp", "config": None}
    assert found.results["fitted"] is False
    assert found.results["parameters"] == sum(p.numel() for p in net.parameters())
    with np.load(found.file("samples.npz"), allow_pickle=False) as arrays:
        answers = recorded(arrays, "teacher")["logits"]
        wanted = net(torch.from_numpy(arrays["input.x"])).detach().numpy()
        assert np.array_equal(answers, wanted)
        assert found.results["accuracy"] == (wanted.argmax(1) == arrays["labels"]).mean()
    assert found.results["samples"] == 24


def test_weights_beside_a_transformers_configuration_are_found(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, configs.BERT, "tokens", teacher={"model": "hf:."})
    torch.manual_seed(1)
    net = models.build(models.describe("hf:.", tmp_path))
    save_weights(net, tmp_path / "model.safetensors")
    found = teach(recipe, tmp_path / "out")
    stored = load_file(found.file("model.safetensors"))
    assert all(torch.equal(tensor, stored[n]) for n, tensor in net.state_dict().items())


def test_a_fitted_teacher_is_the_same_every_time(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    one, two = teach(recipe, tmp_path / "a"), teach(recipe, tmp_path / "b")
    assert one.id == two.id
    curve = [json.loads(line) for line in one.file("losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [0, 1, 2]
    assert {"labels", "lr", "step"} == set(curve[0])
    assert one.results["fitted"] is True


def test_an_interrupted_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(tmp_path)
    whole = teach(recipe, tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    real, count = loop.batch_rows, iter(range(100))

    def stops(run: loop.Run, step: int) -> np.ndarray:
        if next(count) == 2:
            raise KeyboardInterrupt
        return real(run, step)

    monkeypatch.setattr(loop, "batch_rows", stops)
    with pytest.raises(KeyboardInterrupt):
        teach(recipe, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("teacher-*"))
    assert teach(recipe, tmp_path / "cut").id == whole.id
    assert not list((tmp_path / "cut").rglob(loop.CHECKPOINT))


def test_the_question_follows_the_weights_the_code_and_the_data(tmp_path: Path) -> None:
    net = tiny_models.mlp()
    save_weights(net, tmp_path / "w.safetensors")
    teacher = {"model": "python:tiny.models:mlp", "checkpoint": "w.safetensors"}
    recipe = tiny(tmp_path, teacher=teacher)
    first = question(recipe)
    assert set(first.sources) == {
        "edgekd", "tiny.models", "tiny.data", "checkpoint", "examples",
    }  # fmt: skip
    with torch.no_grad():
        net.head.bias += 1
    save_weights(net, tmp_path / "w.safetensors")
    assert question(recipe).key != first.key


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (
            {"model": "python:tiny.models:mlp"},
            "recipe tiny: the teacher 'python:tiny.models:mlp' has no weights: give "
            "teacher.checkpoint, a directory with model.safetensors, or a",
        ),
        (
            {"model": "python:tiny.models:mlp", "checkpoint": "absent.pt"},
            "checkpoint .*absent.pt: no such file",
        ),
        (
            {"model": "python:tiny.models:no_layer", "fit": {"steps": 1}},
            "model 'python:tiny.models:no_layer' does not take the data's inputs x: TypeError",
        ),
        (
            {"model": "python:tiny.models:five_classes", "fit": {"steps": 1}},
            r"output 'logits' is \[1, 5\] for 1 examples, the data's io says \['batch', 4\]",
        ),
        (
            {"model": "python:tiny.models:mlp", "fit": {"steps": 3, "learning_rate": 1e30}},
            "fit teacher: loss term 'labels' is nan at step 1 of 3 .* lower the learning_rate",
        ),
    ],
)
def test_teachers_that_cannot_be(tmp_path: Path, teacher: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        teach(tiny(tmp_path, teacher=teacher), tmp_path / "out")
    assert not list((tmp_path / "out").glob("teacher-*"))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    save_weights(tiny_models.wide(), tmp_path / "w.safetensors")
    teacher = {"model": "python:tiny.models:mlp", "checkpoint": "w.safetensors"}
    with pytest.raises(ConfigError, match=r"blocks.0.fc1.bias is \[96\], expected \[64\]"):
        teach(tiny(tmp_path, teacher=teacher), tmp_path / "out")


def test_data_of_the_wrong_network(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, configs.VIT, "tokens")
    with pytest.raises(ConfigError, match="does not take the data's inputs input_ids, attention"):
        teach(recipe, tmp_path / "out")
    assert data.tokens().io.inputs[0].name == "input_ids"


def test_weights_beside_the_config_and_a_fit_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "config.json").write_text(json.dumps(configs.VIT))
    (tmp_path / "dir" / "model.safetensors").write_bytes(b"")
    found = tiny(tmp_path, "mlp", "images",
                 teacher={"model": "hf:dir", "fit": {"steps": 1}})  # fmt: skip
    with pytest.raises(ConfigError, match=r"holds the teacher's weights and .teacher.fit."):
        teach(found, tmp_path / "out")
