"""Building networks, reading weights of every doubtful origin, and naming outputs."""

from __future__ import annotations

import json
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekd import models
from edgekd.data import IO
from edgekd.data import Tensor as Port
from edgekd.distill.teacher import question
from edgekd.errors import ConfigError, ContractError

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs
from tiny.recipes import tiny

LOGITS = IO(
    inputs=[Port(name="x", dtype="float32", shape=["batch", 32])],
    outputs=[Port(name="logits", dtype="float32", shape=["batch", 4])],
    labels=["0", "1", "2", "3"],
    preprocess={},
)
TWO = LOGITS.model_copy(
    update={"outputs": [*LOGITS.outputs, Port(name="mask", dtype="float32", shape=["batch", 1])]}
)


def hf(base: Path, **changes: Any) -> dict[str, Any]:
    (base / "config.json").write_text(json.dumps({**configs.VIT, **changes}))
    return models.describe("hf:config.json", base)


class TestDescribe:
    def test_a_directory_and_a_file_describe_the_same(self, tmp_path: Path) -> None:
        by_file = hf(tmp_path)
        assert by_file == {"spec": "hf:config.json", "config": configs.VIT}
        assert models.describe("hf:.", tmp_path)["config"] == configs.VIT
        assert models.source_files("hf:.", tmp_path) == models.source_files(
            "hf:config.json", tmp_path
        )

    def test_python_has_no_configuration_and_no_files(self, tmp_path: Path) -> None:
        spec = "python:tiny.models:mlp"
        assert models.describe(spec, tmp_path) == {"spec": spec, "config": None}
        assert models.source_files(spec, tmp_path) == {}
        assert models.weights_beside(spec, tmp_path) is None

    def test_weights_beside_a_configuration_are_found(self, tmp_path: Path) -> None:
        assert models.weights_beside("hf:.", tmp_path) is None
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert models.weights_beside("hf:.", tmp_path) == tmp_path / "model.safetensors"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", ["config.json is not JSON", "line 1"]),
            (b"\xff\xfe{}", ["config.json is not JSON"]),
            ("[1]", ["holds a JSON list", "expected an object"]),
            ("{}", ["'model_type' = None", "expected a str"]),
            ('{"model_type": "vit"}', ["'architectures' = None", "expected a list"]),
            (
                '{"model_type": "vit", "architectures": "ViTModel"}',
                ["'architectures' = 'ViTModel'", "expected a list"],
            ),
        ],
    )
    def test_a_configuration_that_is_none(
        self, tmp_path: Path, text: str | bytes, words: list[str]
    ) -> None:
        raw = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "config.json").write_bytes(raw)
        with pytest.raises(ConfigError) as caught:
            models.describe("hf:.", tmp_path)
        for word in ["model 'hf:.'", *words]:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("timm:resnet18", "found 'timm:resnet18', expected hf:<directory or config.json> or"),
            ("hf:absent", "model 'hf:absent': no such file: .*absent"),
            ("python:tiny.models", "found 'python:tiny.models', expected python:<module>:"),
            ("python:tiny.models:resnet", "module 'tiny.models' has no callable 'resnet'"),
            ("python:tiny.absent:resnet", "cannot import 'tiny.absent'"),
        ],
    )
    def test_a_spec_that_names_nothing(self, tmp_path: Path, spec: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            models.describe(spec, tmp_path)


class TestBuild:
    def test_from_transformers_in_float32_with_eager_attention(self, tmp_path: Path) -> None:
        description = hf(tmp_path, dtype="float16")
        torch.manual_seed(3)
        model = models.build(description)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.config._attn_implementation == "eager"
        assert not torch.backends.mha.get_fastpath_enabled()
        torch.manual_seed(3)
        again = models.build(description)
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
        )
        assert description["config"]["model_type"] == "vit"  # still there for the next build

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"architectures": ["ViTForEverything"]}, "has no architecture 'ViTForEverything'"),
            ({"architectures": ["AutoTokenizer"]}, "has no architecture 'AutoTokenizer'"),
            ({"model_type": "vitt"}, "cannot be built: .*vitt"),
            ({"num_attention_heads": 0}, "cannot be built: ZeroDivisionError"),
            ({"hidden_size": "wide"}, "cannot be built: .*hidden_size"),
        ],
    )
    def test_what_transformers_does_not_take(
        self, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"model 'hf:config.json'.* {words}"):
            models.build(hf(tmp_path, **changes))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("not_a_module", "returned str, expected a torch.nn.Module"),
            ("fails", "cannot be built: KeyError: 'width'"),
            ("Block", "cannot be built: TypeError: .*width"),
            ("no_weights", "has no parameters: nothing to compress"),
        ],
    )
    def test_a_callable_that_makes_no_network(self, name: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            models.build({"spec": f"python:tiny.models:{name}", "config": None})


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
        models.save_weights(one, tmp_path / "w.safetensors")
        models.load_weights(two, tmp_path / "w.safetensors")
        torch.save(one.state_dict(), tmp_path / "w.pt")
        three = self.net(3)
        models.load_weights(three, tmp_path / "w.pt")
        for other in (two, three):
            for name, tensor in one.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name])

    def test_tied_weights_are_stored_under_both_names(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        models.save_weights(net, tmp_path / "w.safetensors")
        stored = load_file(tmp_path / "w.safetensors")
        assert torch.equal(stored["0.weight"], stored["1.weight"])

    def test_half_precision_weights_become_float32(self, tmp_path: Path) -> None:
        half = {
            n: t.bfloat16() if t.is_floating_point() else t
            for n, t in self.net().state_dict().items()
        }
        save_file(half, tmp_path / "w.safetensors")
        net = self.net(1)
        models.load_weights(net, tmp_path / "w.safetensors")
        assert net[0].weight.dtype == torch.float32
        assert torch.equal(net[0].weight, half["0.weight"].float())

    def wrong(self, path: Path) -> str:
        net = self.net()
        before = {n: t.clone() for n, t in net.state_dict().items()}
        with pytest.raises(ConfigError) as caught:
            models.load_weights(net, path)
        assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
        assert str(caught.value).startswith(f"checkpoint {path}: ")
        return str(caught.value)

    def test_no_file_and_unknown_formats(self, tmp_path: Path) -> None:
        assert "no such file" in self.wrong(tmp_path / "absent.safetensors")
        (tmp_path / "w.h5").write_bytes(b"")
        found = self.wrong(tmp_path / "w.h5")
        assert "unknown format '.h5', expected .safetensors, or .pt, .pth or .bin" in found

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
        models.save_weights(self.net(), path)
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


class Returns(nn.Module):
    """A network that returns whatever it is given to return."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 4)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return self.make(y, y.sum(1, keepdim=True))


class TestForward:
    @pytest.mark.parametrize(
        "make",
        [
            lambda y, m: (y, m),
            lambda y, m: [y, m, "more"],
            lambda y, m: {"mask": m, "logits": y, "hidden": None},
            lambda y, m: OrderedDict(logits=y, mask=m),
        ],
    )
    def test_outputs_are_named_as_io_does(self, make: Any) -> None:
        x = torch.randn(2, 32)
        model = Returns(make)
        found = models.forward(model, {"x": x}, TWO)
        assert list(found) == ["logits", "mask"]
        assert torch.equal(found["logits"], model.fc(x))
        assert found["mask"].shape == (2, 1)

    def test_a_lone_tensor_is_the_first_output(self) -> None:
        x = torch.randn(2, 32)
        model = Returns(lambda y, _: y)
        assert torch.equal(models.forward(model, {"x": x}, LOGITS)["logits"], model.fc(x))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda y, _: y, "returned logits, expected tensors logits, mask"),
            (lambda y, _: {"scores": y}, "returned scores, expected tensors logits, mask"),
            (lambda y, _: {"logits": y, "mask": None}, "returned logits, mask, expected tensors"),
            (lambda *_: None, "returned NoneType, expected tensors logits, mask as named in io"),
            (lambda *_: 3.0, "returned float, expected"),
        ],
    )
    def test_outputs_that_are_missing(self, make: Any, words: str) -> None:
        with pytest.raises(ContractError, match=f"the network {words}"):
            models.forward(Returns(make), {"x": torch.randn(2, 32)}, TWO)


class TestRun:
    def test_batches_are_joined_and_training_mode_is_kept(self) -> None:
        model = nn.Sequential(OrderedDict(drop=nn.Dropout(0.5), fc=nn.Linear(32, 4)))
        model.forward = lambda x: model.fc(model.drop(x))  # takes its input by name
        x = np.random.default_rng(0).standard_normal((70, 32)).astype(np.float32)
        found = models.run(model.train(), {"x": x}, LOGITS)["logits"]
        assert model.training
        assert found.shape == (70, 4)
        wanted = model.fc(torch.from_numpy(x)).detach().numpy()
        assert np.allclose(found, wanted, atol=1e-6)  # no dropout

    def test_arrays_with_negative_strides_are_taken(self) -> None:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
        found = models.tensors({"x": x}, nn.Linear(1, 1))["x"]
        assert found.tolist() == [[2, 1, 0], [5, 4, 3]]


class TestProbe:
    def test_a_network_that_fits_is_left_as_it_was(self) -> None:
        model = Returns(lambda y, _: y).train()
        models.probe(model, {"x": torch.randn(2, 32)}, LOGITS, "python:a:b")
        assert model.training
        assert model.fc.weight.grad is None

    @pytest.mark.parametrize(
        ("inputs", "words"),
        [
            ({"y": torch.randn(2, 32)}, r"does not take the data's inputs y: TypeError: .*'y'"),
            ({"x": torch.randn(2, 31)}, r"does not take the data's inputs x: RuntimeError: .*31"),
        ],
    )
    def test_data_that_does_not_fit_the_network(
        self, inputs: dict[str, Tensor], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"model 'python:a:b' {words}"):
            models.probe(Returns(lambda y, _: y), inputs, LOGITS, "python:a:b")

    def test_an_output_of_another_size_than_io_says(self) -> None:
        five = LOGITS.model_copy(
            update={"outputs": [Port(name="logits", dtype="float32", shape=["batch", 5])]}
        )
        with pytest.raises(ConfigError) as caught:
            models.probe(Returns(lambda y, _: y), {"x": torch.randn(2, 32)}, five, "python:a:b")
        assert "its output 'logits' is [2, 4] for 2 examples" in str(caught.value)
        assert "io says ['batch', 5]" in str(caught.value)

    def test_our_own_errors_pass_unchanged(self) -> None:
        with pytest.raises(ContractError, match="the network returned NoneType"):
            models.probe(Returns(lambda *_: None), {"x": torch.randn(2, 32)}, LOGITS, "python:a:b")


def test_a_helper_beside_a_users_module_is_in_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "my_blocks.py"
    helper.write_text("from torch import nn\nblock = nn.Linear(32, 4)\n")
    (tmp_path / "my_model.py").write_text("import my_blocks\nbuild = lambda: my_blocks.block\n")
    (tmp_path / "my_notes.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tiny(tmp_path, teacher={"model": "python:my_model:build", "fit": {"steps": 1}})
    first = question(recipe)
    assert "my_model" in first.sources
    (tmp_path / "my_notes.py").write_text("x = 1\n")
    assert question(recipe).key == first.key
    helper.write_text(helper.read_text() + "# edited\n")
    assert question(recipe).key != first.key
