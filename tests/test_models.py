"""Building networks, reading weights of every doubtful origin, and naming outputs."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd import models
from edgekd.data import IO
from edgekd.data import Tensor as Port
from edgekd.distill.teacher import question
from edgekd.errors import ConfigError, ContractError, ToolchainError, install

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs
from tiny.recipes import tiny

LOGITS = IO(
    inputs=[Port(name="x", dtype="float32", shape=["batch", 32])],
    outputs=[Port(name="logits", dtype="float32", shape=["batch", 4])],
    labels=["0", "1", "2", "3"],
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

    def test_timm_arguments_are_literals_or_text(self, tmp_path: Path) -> None:
        spec = "timm:resnet18?layers=(1,1,1,1)&num_classes=4&act_layer=silu"
        assert models.describe(spec, tmp_path) == {
            "spec": spec,
            "config": {
                "name": "resnet18",
                "arguments": {"layers": [1, 1, 1, 1], "num_classes": 4, "act_layer": "silu"},
            },
        }
        assert models.source_files(spec, tmp_path) == {}
        assert models.weights_beside(spec, tmp_path) is None

    def test_timm_that_is_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ToolchainError, match="timm cannot be imported") as caught:
            models.describe("timm:resnet18", tmp_path)
        assert str(caught.value).endswith(f"): {install('timm')}")

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
                '{"model_type": "vit", "architectures": [null]}',
                ["'architectures' = [None]", "expected the name of a class first"],
            ),
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
            ("torch:resnet18", "found 'torch:resnet18', expected hf:<directory or config.json>, "),
            ("timm:resnet19", "has no model 'resnet19'; the nearest names are: resnet18, resnet"),
            ("timm:hf-hub:timm/resnet18", "has no model 'hf-hub:timm/resnet18'; the nearest"),
            ("timm:resnet18?layers", "found argument 'layers', expected <argument>=<value>"),
            ("timm:resnet18?pretrained=True", "found argument 'pretrained=True', .* a checkpoint"),
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

    def test_from_timm_through_json_in_plain_attention(self, tmp_path: Path) -> None:
        spec = "timm:vit_tiny_patch16_224?depth=1&num_classes=4&img_size=32"
        description = json.loads(json.dumps(models.describe(spec, tmp_path)))
        model = models.build(description)
        assert not model.blocks[0].attn.fused_attn
        assert model.head.out_features == 4

    def test_an_argument_that_timm_does_not_know(self, tmp_path: Path) -> None:
        spec = "timm:vit_tiny_patch16_224?dept=1"
        with pytest.raises(ConfigError, match=r"cannot be built: TypeError: .*'dept'"):
            models.build(models.describe(spec, tmp_path))

    def test_a_folded_structure(self) -> None:
        spec = {"spec": "python:tiny.forms:only_convolutions", "config": None}
        model = models.build({**spec, "folded": [["body", "norm"]]})
        assert isinstance(model.norm, nn.Identity)
        with pytest.raises(ConfigError, match=r"says that norm9 is folded into body: .*norm9"):
            models.build({**spec, "folded": [["body", "norm9"]]})

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


class TestVisionOperators:
    """torchvision built for CUDA beside a CPU torch does not import without them."""

    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "version.py").write_text(f"__version__ = '{version}'\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)

    def test_a_build_for_cuda_gets_schemas(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.site(tmp_path, monkeypatch, "0.28.0+cu130")
        monkeypatch.setattr(torch.version, "cuda", None)
        assert models._define_vision_operators() is not None
        assert torch.ops.torchvision.nms.default._schema.arguments[2].name == "iou_threshold"
        assert models._define_vision_operators() is not None  # and once is enough

    @pytest.mark.parametrize(("version", "cuda"), [("0.28.0+cpu", None), ("0.28.0+cu130", "13.0")])
    def test_a_build_that_fits_is_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None
    ) -> None:
        self.site(tmp_path, monkeypatch, version)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert models._define_vision_operators() is None


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
