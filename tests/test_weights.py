"""Checkpoints: what loads to the bit, and every file that must not load."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekd import models, weights
from edgekd.errors import ConfigError
from edgekd.weights import load_weights, save_weights

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs


class Touch:
    """What a hostile checkpoint does when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


class TestWeights:
    def net(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def test_saved_and_loaded_weights_are_the_same(self, tmp_path: Path) -> None:
        one, two = self.net(1), self.net(2)
        save_weights(one, tmp_path / "w.safetensors")
        load_weights(two, tmp_path / "w.safetensors")
        torch.save(one.state_dict(), tmp_path / "w.pt")
        three = self.net(3)
        load_weights(three, tmp_path / "w.pt")
        for other in (two, three):
            for name, tensor in one.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name])

    def test_tied_weights_are_stored_under_both_names(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        save_weights(net, tmp_path / "w.safetensors")
        stored = load_file(tmp_path / "w.safetensors")
        assert torch.equal(stored["0.weight"], stored["1.weight"])

    def test_half_precision_weights_become_float32(self, tmp_path: Path) -> None:
        half = {
            n: t.bfloat16() if t.is_floating_point() else t
            for n, t in self.net().state_dict().items()
        }
        save_file(half, tmp_path / "w.safetensors")
        net = self.net(1)
        load_weights(net, tmp_path / "w.safetensors")
        assert net[0].weight.dtype == torch.float32
        assert torch.equal(net[0].weight, half["0.weight"].float())

    def wrong(self, path: Path) -> str:
        net = self.net()
        before = {n: t.clone() for n, t in net.state_dict().items()}
        with pytest.raises(ConfigError) as caught:
            load_weights(net, path)
        assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
        assert str(caught.value).startswith(f"checkpoint {path}: ")
        return str(caught.value)

    def test_no_file_and_unknown_formats(self, tmp_path: Path) -> None:
        assert "no such file" in self.wrong(tmp_path / "absent.safetensors")
        (tmp_path / "w.h5").write_bytes(b"")
        found = self.wrong(tmp_path / "w.h5")
        assert "unknown format '.h5', expected .safetensors, the .safetensors.index.json" in found

    def test_names_and_shapes_that_do_not_fit(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        good = dict(self.net().state_dict())
        renamed = {n.replace("0.", "fc."): t for n, t in good.items()}
        save_file(renamed, path)
        found = self.wrong(path)
        assert "2 weights of the network are missing (first: 0.bias)" in found
        assert "2 are unknown to it (first: fc.bias)" in found
        save_file({**good, "0.weight": torch.zeros(2, 4)}, path)
        assert "0.weight is [2, 4], expected [2, 3]" in self.wrong(path)

    def test_nan_is_not_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file({**self.net().state_dict(), "0.bias": torch.tensor([0.0, torch.nan])}, path)
        assert "0.bias holds NaN or infinity" in self.wrong(path)

    @pytest.mark.parametrize("size", [0, 7, 40, 200])
    def test_a_truncated_safetensors_file(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "w.safetensors"
        save_weights(self.net(), path)
        path.write_bytes(path.read_bytes()[:size])
        assert "is not a safetensors file" in self.wrong(path)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (
                {"state_dict": {}, "epoch": 3},
                "state_dict is of type dict, expected tensors by name",
            ),
            ([torch.zeros(1)], "the whole file is of type list"),
            ({"0.weight": 1.0}, "0.weight is of type float"),
        ],
    )
    def test_a_pt_file_of_something_else(self, tmp_path: Path, content: Any, words: str) -> None:
        torch.save(content, tmp_path / "w.pt")
        assert words in self.wrong(tmp_path / "w.pt")

    @pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin"])
    def test_a_pickle_that_runs_code_is_refused_and_nothing_ran(
        self, tmp_path: Path, name: str
    ) -> None:
        marker = tmp_path / "ran"
        hostile = {"0.weight": torch.zeros(2, 3), "0.bias": Touch(marker)}
        pickle.loads(pickle.dumps(Touch(marker))).close()
        assert marker.is_file()  # the trap works
        marker.unlink()
        torch.save(hostile, tmp_path / name)
        found = self.wrong(tmp_path / name)
        assert "cannot be read as tensors only (UnpicklingError)" in found
        assert "convert it to safetensors where you trust it" in found
        assert not marker.exists()

    def test_a_pt_file_that_is_garbage(self, tmp_path: Path) -> None:
        (tmp_path / "w.pt").write_bytes(b"\x80\x02garbage")
        assert "cannot be read as tensors only" in self.wrong(tmp_path / "w.pt")


class TestNames:
    def test_a_checkpoint_of_transformers_under_its_older_names(self, tmp_path: Path) -> None:
        """`save_pretrained` still writes them: encoder.layer.0.attention.attention.query."""
        torch.manual_seed(0)
        description = {"spec": "hf:config.json", "config": configs.VIT}
        one, two = models.build(description), models.build(description)
        one.save_pretrained(tmp_path)
        assert set(load_file(tmp_path / "model.safetensors")) != set(one.state_dict())
        load_weights(two, tmp_path / "model.safetensors")
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name]), name

    def test_a_name_that_nothing_translates_is_still_unknown(self, tmp_path: Path) -> None:
        model = models.build({"spec": "hf:config.json", "config": configs.VIT})
        state = {**weights.state(model), "vit.adapter.weight": torch.zeros(1)}
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=r"1 are unknown to it \(first: vit\.adapter\.weight"):
            load_weights(model, tmp_path / "w.safetensors")

    def tied(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        return net

    @pytest.mark.parametrize("name", ["0.weight", "1.weight"])
    def test_a_tied_weight_may_be_stored_once(self, tmp_path: Path, name: str) -> None:
        save_file({name: torch.eye(3)}, tmp_path / "w.safetensors")
        net = self.tied()
        load_weights(net, tmp_path / "w.safetensors")
        assert torch.equal(net[0].weight, torch.eye(3))
        assert net[0].weight is net[1].weight

    def test_two_values_for_one_weight(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file({"0.weight": torch.eye(3), "1.weight": torch.zeros(3, 3)}, path)
        with pytest.raises(
            ConfigError, match=r"0\.weight and 1\.weight differ but are one weight in the network"
        ):
            load_weights(self.tied(), path)

    def test_who_holds_what(self) -> None:
        assert weights.holders(self.tied()) == [["0.weight", "1.weight"]]
        assert weights.holders(nn.Linear(2, 2)) == [["weight"], ["bias"]]
