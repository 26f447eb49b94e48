"""Where weights are: shards with their index as transformers writes them, and a hub's snapshot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekd import artifact, models, weights
from edgekd.errors import ConfigError
from edgekd.weights import load_weights

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs

DESCRIPTION = {"spec": "hf:config.json", "config": configs.VIT}


@pytest.fixture
def shards(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    """A network, and the index of its shards."""
    torch.manual_seed(0)
    model: Any = models.build(DESCRIPTION)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    return model, tmp_path / "model.safetensors.index.json"


def test_shards_load_to_the_bit(shards: tuple[torch.nn.Module, Path]) -> None:
    model, index = shards
    assert models.weights_beside("hf:.", index.parent) == index
    found = models.build(DESCRIPTION)
    load_weights(found, index)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name


def test_one_file_goes_before_shards(shards: tuple[torch.nn.Module, Path]) -> None:
    model, index = shards
    weights.save_weights(model, index.with_name("model.safetensors"))
    assert weights.in_directory(index.parent) == index.with_name("model.safetensors")


def test_the_hash_is_that_of_the_index_and_of_every_shard(
    shards: tuple[torch.nn.Module, Path],
) -> None:
    index = shards[1]
    before = weights.content_hash(index)
    assert weights.content_hash(index) == before
    last = sorted(index.parent.glob("model-*.safetensors"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert weights.content_hash(index) != before
    last.write_bytes(whole)
    index.write_text(index.read_text() + "\n")
    assert weights.content_hash(index) != before
    assert weights.content_hash(last) != weights.content_hash(index)


def lose_a_shard(directory: Path, _: dict[str, str]) -> None:
    (directory / "model-00002-of-00003.safetensors").unlink()


def lose_a_tensor(directory: Path, _: dict[str, str]) -> None:
    path = directory / "model-00002-of-00003.safetensors"
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path)


def gain_a_tensor(directory: Path, _: dict[str, str]) -> None:
    path = directory / "model-00002-of-00003.safetensors"
    save_file({**load_file(path), "extra": torch.zeros(1)}, path)


def cut(directory: Path, _: dict[str, str]) -> None:
    path = directory / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:40])


def outside(directory: Path, places: dict[str, str]) -> None:
    name = min(places)
    (directory.parent / "other.safetensors").write_bytes(b"")
    places[name] = "../other.safetensors"


def absolute(directory: Path, places: dict[str, str]) -> None:
    places[min(places)] = str(directory / "model-00001-of-00003.safetensors")


def pickled(_: Path, places: dict[str, str]) -> None:
    places[min(places)] = "pytorch_model.bin"


def forget_a_tensor(_: Path, places: dict[str, str]) -> None:
    del places[min(places)]


def empty(_: Path, places: dict[str, str]) -> None:
    places.clear()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lose_a_shard,
            [
                ": names 3 shards, of which 2 lie beside it and 1 do not (first: model-000",
                "copy the directory again, whole",
            ],
        ),
        (lose_a_tensor, ["in model-00002-of-00003.safetensors 1 are missing there (first: "]),
        (gain_a_tensor, ["0 are missing there, and 1 others are (first: extra)"]),
        (cut, ["model-00002-of-00003.safetensors: is not a safetensors file"]),
        (outside, ["names '../other.safetensors' for ", "expected the bare name"]),
        (absolute, ["model-00001-of-00003.safetensors' for ", "expected the bare name"]),
        (pickled, ["names 'pytorch_model.bin' for ", ".safetensors file beside it"]),
        (forget_a_tensor, ["0 are missing there, and 1 others are (first: "]),
        (empty, ["names 0 shards, expected at least 1: copy the directory again"]),
    ],
)
def test_shards_that_are_not_whole_are_told(
    tmp_path: Path, break_it: Callable[[Path, dict[str, str]], None], words: list[str]
) -> None:
    directory = tmp_path / "model"
    model: Any = models.build(DESCRIPTION)
    model.save_pretrained(directory, max_shard_size="30KB")
    index = directory / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    assert len(set(document["weight_map"].values())) == 3
    break_it(directory, document["weight_map"])
    index.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        load_weights(models.build(DESCRIPTION), index)
    assert str(caught.value).startswith(f"checkpoint {directory}/model")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 1}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ConfigError, match=r'is no index of shards .*expected \{"weight_map": \{te'):
        load_weights(torch.nn.Linear(2, 2), index)
    with pytest.raises(ConfigError, match="is no index of shards"):
        weights.content_hash(index)


def test_a_path_goes_before_a_hub_and_a_wrong_one_in_a_directory_is_a_wrong_path(
    tmp_path: Path,
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert weights.place("hf:org/name", tmp_path) == tmp_path / "org" / "name"
    assert weights.place("hf:org/nome", tmp_path) == tmp_path / "org" / "nome"
    assert weights.place("hf:a/b/c", tmp_path) == tmp_path / "a" / "b" / "c"
    with pytest.raises(ConfigError, match=r"no such file: .*org/nome"):
        models.describe("hf:org/nome", tmp_path)


FIT = "[teacher.fit]\nsteps = 0"
RECIPE = """name = "hub"
[teacher]
model = "{model}"
{fit}
[data]
source = "{data}"
{splits}
[distill]
steps = 0
[distill.losses]
logits = 1.0
"""


def offline(
    tmp_path: Path, model: str, fit: str, data: str = "random", splits: str = ""
) -> subprocess.CompletedProcess[str]:
    """`edgekd distill` without network, on a machine with a hub cache of its own."""
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=model, fit=fit, data=data, splits=splits))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub-home")}
    command = "from edgekd.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, "distill", str(path), "--out", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_network_of_the_hub_that_cannot_be_had(tmp_path: Path) -> None:
    done = offline(tmp_path, "hf:someone/something", FIT)
    assert (done.returncode, done.stdout) == (3, "")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("edgekd: ")]
    assert f"model 'hf:someone/something': no such directory: {tmp_path}/someone/something" in said
    assert "the hub's 'someone/something' cannot be had (LocalEntryNotFoundError: " in said
    assert said.endswith("): copy it to a directory here, or correct the name")
    assert "Traceback" not in done.stderr


def test_a_network_in_the_hubs_cache_is_taken_from_there(tmp_path: Path) -> None:
    repository = tmp_path / "hub-home" / "hub" / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    model: Any = models.build(DESCRIPTION)
    model.save_pretrained(snapshot, max_shard_size="30KB")
    done = offline(tmp_path, "hf:someone/something", fit="")
    assert done.returncode == 0, done.stderr
    teacher = artifact.load(next((tmp_path / "out").glob("teacher-*")))
    found = models.build(teacher.read_json("model.json"))
    load_weights(found, teacher.file("model.safetensors"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    assert teacher.config["teacher"]["model"] == "hf:someone/something"
    last = sorted(snapshot.glob("model-*"))[-1]
    last.write_bytes(last.read_bytes()[:-4] + b"\0\0\0\0")
    assert offline(tmp_path, "hf:someone/something", fit="").returncode == 0
    assert len(list((tmp_path / "out").glob("teacher-*"))) == 2  # another shard, another teacher


def test_data_of_the_hub_that_cannot_be_had(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(configs.VIT))
    splits = 'train = "train[:10%]"\nevaluation = "validation"'
    done = offline(tmp_path, "hf:config.json", FIT, "hf:someone/something", splits)
    assert (done.returncode, done.stdout) == (3, "")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("edgekd: ")]
    assert said.startswith("edgekd: data.source 'hf:someone/something': cannot be read (")
    assert "Couldn't reach 'someone/something' on the Hub" in said
    assert "Traceback" not in done.stderr


class TestDerived:
    """What older libraries stored beside the weights, and what others left out."""

    @pytest.mark.parametrize(
        ("spec", "config", "names"),
        [
            ("hf:bert", configs.BERT, ["bert.embeddings.position_ids"]),
            (
                "hf:swin",
                configs.SWIN,
                ["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"],
            ),
            (
                "timm:swin_tiny_patch4_window7_224",
                {
                    "name": "swin_tiny_patch4_window7_224",
                    "arguments": {"img_size": 56, "embed_dim": 12, "depths": [2], "num_heads": [2]},
                },
                ["layers.0.blocks.0.attn.relative_position_index", "layers.0.blocks.1.attn_mask"],
            ),
        ],
        ids=["bert", "swin", "timm swin"],
    )
    def test_what_a_network_computes_for_itself_is_left_aside(
        self, spec: str, config: dict[str, Any], names: list[str], tmp_path: Path
    ) -> None:
        model = models.build({"spec": spec, "config": config})
        state = weights.state(model)
        assert not set(names) & set(state)
        stored = {**state, **{name: torch.arange(4) for name in names}}
        save_file(stored, tmp_path / "w.safetensors")
        other = models.build({"spec": spec, "config": config})
        weights.load_weights(other, tmp_path / "w.safetensors")
        assert all(torch.equal(other.state_dict()[name], state[name]) for name in state)
        save_file({**stored, "more.position_weight": torch.ones(1)}, tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=r"0 weights .* 1 are unknown .*more.position_weig"):
            weights.load_weights(other, tmp_path / "w.safetensors")

    def test_a_networks_own_list_is_asked(self, tmp_path: Path) -> None:
        model = nn.Linear(2, 2)
        save_file({**model.state_dict(), "old.table": torch.ones(1)}, tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=r"1 are unknown to it \(first: old.table\)"):
            weights.load_weights(model, tmp_path / "w.safetensors")
        model._keys_to_ignore_on_load_unexpected = [r"\.table$"]
        weights.load_weights(model, tmp_path / "w.safetensors")

    def test_a_stored_buffer_that_the_network_keeps_is_loaded(self, tmp_path: Path) -> None:
        model = nn.Linear(2, 2)
        model.register_buffer("position_ids", torch.zeros(3))
        save_file({**model.state_dict(), "position_ids": torch.ones(3)}, tmp_path / "w.safetensors")
        weights.load_weights(model, tmp_path / "w.safetensors")
        assert torch.equal(model.position_ids, torch.ones(3))

    def test_a_count_of_batches_may_be_missing_and_nothing_else(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        stored = {**model.state_dict(), "1.running_mean": torch.tensor([1.0, 2.0])}
        del stored["1.num_batches_tracked"]
        save_file(stored, tmp_path / "w.safetensors")
        weights.load_weights(model, tmp_path / "w.safetensors")
        assert model[1].running_mean.tolist() == [1, 2]
        assert int(model[1].num_batches_tracked) == 0
        del stored["1.running_var"]
        save_file(stored, tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=r"1 weights .* missing \(first: 1.running_var\)"):
            weights.load_weights(model, tmp_path / "w.safetensors")
