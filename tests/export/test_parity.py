"""The comparison itself: what it measures, and that each of its limits can be crossed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from tiny import data
from torch import nn

from edgekd import models
from edgekd.artifact import Artifact
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError, ToolchainError
from edgekd.export import parity, qdq_form, to_onnx
from edgekd.recipe import Range
from edgekd.weights import load_weights

IO = data.vectors().io
INPUTS = data.vectors().train.take(np.arange(40))[0]
Shipped = tuple[nn.Module, Path, Path]


@pytest.fixture(scope="module")
def shipped(
    student: Callable[[str], Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Shipped:
    """The MLP student in its shipped form, and its two graphs."""
    source = student("mlp")
    folder = tmp_path_factory.mktemp("graphs")
    model = models.build(source.read_json("model.json"))
    load_weights(model, source.file("model.safetensors"))
    rows = [LayerPlan(**row) for row in source.read_json("layers.json")]
    qdq_form.attach(model.eval(), rows, load_file(source.file("quantizers.safetensors")))
    path, half = folder / "ort.onnx", folder / "trt.onnx"
    two = models.tensors({n: a[:2] for n, a in INPUTS.items()}, model)
    to_onnx.export_float32(model, two, IO, to_onnx.Form(), path)
    to_onnx.convert_float16(path, half)
    return model, path, half


def changed(path: Path, to: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A copy of a graph with changed initializers."""
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            numpy_helper.from_array(change(tensor.name, array).astype(array.dtype), tensor.name)
        )
    to.mkdir(exist_ok=True)
    onnx.save(graph, to / path.name)
    return to / path.name


def test_what_it_measures(shipped: Shipped) -> None:
    model, path, half = shipped
    found = parity.measure(model, path, half, INPUTS, IO)
    results, outputs = found["parity"], found["outputs"]
    wanted = models.run(model, INPUTS, IO)["logits"]
    gap = outputs["logits"] - wanted
    assert results["samples"] == 40
    assert results["relative"] == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(wanted))
    assert results["largest_difference"] == pytest.approx(np.abs(gap).max())
    assert results["argmax_differs"] == 0.0
    # Five layers of 32 or 64 inputs, on the first 8 samples.
    assert results["integers_compared"] == 8 * (32 + 2 * (32 + 64))
    assert results["integers_largest_step"] <= 1
    assert results["layers_relative"] < 1e-5
    assert 0 < results["float16_layers_relative"] < 0.01
    assert results["float16_integers_largest_step"] <= 1
    assert 0 < results["noise"] < 0.01
    variation = np.std(wanted, axis=0).mean() / np.abs(wanted).mean()
    assert results["output_variation"] == pytest.approx(variation, rel=1e-5)
    assert sorted(each.name for each in path.parent.iterdir()) == ["ort.onnx", "trt.onnx"]


def test_a_network_without_int8_has_no_integers_to_compare(tmp_path: Path) -> None:
    from tiny import models as tiny_models

    model = tiny_models.mlp().eval()
    two = models.tensors({n: a[:2] for n, a in INPUTS.items()}, model)
    path, half = tmp_path / "ort.onnx", tmp_path / "trt.onnx"
    to_onnx.export_float32(model, two, IO, to_onnx.Form(), path)
    to_onnx.convert_float16(path, half)
    found = parity.measure(model, path, half, INPUTS, IO)["parity"]
    assert found["integers_compared"] == 0
    assert "integers_differ" not in found
    assert found["noise"] < 1e-5
    assert 1e-4 < found["float16_noise"] < 0.01


class TestLimits:
    def refused(self, shipped: Shipped, path: Path | None = None, half: Path | None = None) -> str:
        model, good, good_half = shipped
        with pytest.raises(ContractError) as caught:
            parity.measure(model, path or good, half or good_half, INPUTS, IO)
        return str(caught.value)

    def test_an_output_layer_that_computes_something_else(
        self, shipped: Shipped, tmp_path: Path
    ) -> None:
        for index, which in enumerate(("ort.onnx", "trt.onnx")):
            wrong = changed(
                shipped[1 + index], tmp_path, lambda name, a: a + 1 if name == "head.bias" else a
            )
            paths = (wrong, shipped[2]) if index == 0 else (shipped[1], wrong)
            found = self.refused(shipped, *paths)
            assert f"given the student's integers at every layer, {which} answers" in found
            assert f"expected at most {(0.01, 0.05)[index]}" in found
            assert "the graph itself is wrong behind the last quantized layer" in found

    def test_a_float_graph_that_computes_something_else(self, tmp_path: Path) -> None:
        from tiny import models as tiny_models

        model = tiny_models.mlp().eval()
        two = models.tensors({n: a[:2] for n, a in INPUTS.items()}, model)
        to_onnx.export_float32(model, two, IO, to_onnx.Form(), tmp_path / "ort.onnx")
        to_onnx.convert_float16(tmp_path / "ort.onnx", tmp_path / "trt.onnx")
        good = (model, tmp_path / "ort.onnx", tmp_path / "trt.onnx")
        for index, (which, most) in enumerate((("ort.onnx", "0.0001"), ("trt.onnx", "0.01"))):
            wrong = changed(
                good[1 + index], tmp_path / "w", lambda n, a: a + 1 if n == "head.bias" else a
            )
            found = self.refused(good, *((wrong, good[2]) if index == 0 else (good[1], wrong)))
            assert f"{which} differs from the student by" in found
            assert f"expected at most {most} (largest difference" in found
            assert "rounding alone moves the student by" in found
            assert "it does not compute the student" in found

    def test_a_wrong_scale_behind_outputs_that_hardly_show_it(
        self, shipped: Shipped, tmp_path: Path
    ) -> None:
        """An input scale a tenth too large loses precision, not the answer; the integers tell."""
        wrong = changed(
            shipped[1], tmp_path, lambda name, a: a * 1.1 if name.endswith("input_scale") else a
        )
        got, wanted = parity.run(wrong, INPUTS, IO), models.run(shipped[0], INPUTS, IO)
        assert parity._difference("", got, wanted)["relative"] < parity.FLOAT32_LIMIT
        found = self.refused(shipped, path=wrong)
        assert "ort.onnx quantizes the input of stem to other ones" in found
        assert "expected at most 0.01" in found
        assert not (tmp_path / "ort.cut.onnx").exists()

    def test_at_other_sizes_too_each_layer_is_compared(
        self, shipped: Shipped, tmp_path: Path
    ) -> None:
        model, path, half = shipped
        sizes = {"batch": Range(min=1, opt=5, max=5)}
        found = parity.at_other_sizes(model, path, half, INPUTS, IO, sizes)
        assert list(found) == ["sizes", "float16_sizes"]
        assert all(list(each) == ["batch 1", "batch 5"] for each in found.values())
        assert 0 < max(found["sizes"].values()) < 1e-4 < max(found["float16_sizes"].values()) < 0.1
        for index, file in enumerate((path, half)):
            wrong = changed(file, tmp_path, lambda n, a: a * 1.1 if "input_scale" in n else a)
            graphs = (wrong, half) if index == 0 else (path, wrong)
            with pytest.raises(ContractError) as caught:
                parity.at_other_sizes(model, *graphs, INPUTS, IO, sizes)
            assert "at batch 1 the graph does not compute the network" in str(caught.value)
            assert f"{file.name} quantizes the input of stem to other ones" in str(caught.value)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_answers_that_are_no_numbers(
        self, shipped: Shipped, tmp_path: Path, value: float
    ) -> None:
        wrong = changed(
            shipped[2], tmp_path, lambda name, a: a * value if name == "head.bias" else a
        )
        found = self.refused(shipped, half=wrong)
        assert "trt.onnx answers NaN or infinity at 'logits': it overflows there" in found

    def test_a_student_that_answers_no_numbers_passes_no_comparison(self) -> None:
        got = {"logits": np.ones((2, 4), np.float32)}
        with pytest.raises(ContractError, match="the network itself answers NaN or infinity"):
            parity._difference("ort.onnx", got, {"logits": np.full((2, 4), np.nan)})

    def test_a_file_that_onnx_runtime_cannot_open(self, tmp_path: Path) -> None:
        (tmp_path / "ort.onnx").write_bytes(b"garbage")
        with pytest.raises(ToolchainError, match=r"ONNX Runtime cannot open ort\.onnx: "):
            parity.run(tmp_path / "ort.onnx", INPUTS, IO)


@pytest.mark.parametrize(
    ("count", "batches"), [(1, [1]), (3, [1, 2]), (4, [1, 3]), (70, [1, 3, 64, 2])]
)
def test_batches_of_several_sizes_are_run(
    monkeypatch: pytest.MonkeyPatch, count: int, batches: list[int]
) -> None:
    seen: list[int] = []

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_inputs(self) -> list[Any]:
            return []

        def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            seen.append(len(feed["x"]))
            return [feed["x"] * 2 for _ in names]

    monkeypatch.setattr(parity.ort, "InferenceSession", Session)
    x = np.arange(count, dtype=np.float32)[:, None]
    found = parity.run(Path("ort.onnx"), {"x": x}, IO)
    assert seen == batches
    assert np.array_equal(found["logits"], 2 * x)


def test_tokens_first_networks_are_compared_token_by_token(tmp_path: Path) -> None:
    """The batch is the second axis inside: batches must be those of the torch side."""

    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)
            self.head = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.fc(x.reshape(-1, 2, 16).transpose(0, 1)).relu().mean(0))

    torch.manual_seed(0)
    model = TokensFirst().eval()
    scale = torch.tensor(np.float32(np.float16(4 / 127)))
    weights = {"fc.weight_scale": torch.full((16,), 2.0**-8), "fc.input_scale": scale}
    row = LayerPlan("fc", "Linear", 16, 16, 1, True, "", False, "")
    qdq_form.attach(model, [row], weights)
    two = models.tensors({n: a[:2] for n, a in INPUTS.items()}, model)
    path, half = tmp_path / "ort.onnx", tmp_path / "trt.onnx"
    to_onnx.export_float32(model, two, IO, to_onnx.Form(), path)
    to_onnx.convert_float16(path, half)
    found = parity.measure(model, path, half, INPUTS, IO)["parity"]
    assert found["integers_differ"] < 1e-3


class TestRounding:
    """A limit that grows with what rounding alone does, and no further."""

    def test_it_is_the_mantissa_that_is_rounded(self) -> None:
        """A module whose output is known: 1 + 2^-11 + 2^-12 keeps eleven bits as 1 + 2^-10."""

        class Ramp(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(1, 1)
                nn.init.ones_(self.fc.weight)
                nn.init.zeros_(self.fc.bias)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.fc(x)

        x = np.full((2, 1), 1 + 2**-11 + 2**-12, np.float32)
        model = Ramp().eval()
        found = parity.rounding_noise(model, {"x": x}, {"logits": x}, IO, 11)
        assert found == pytest.approx(2**-12 / x[0, 0], rel=1e-6)
        assert parity.rounding_noise(model, {"x": x}, {"logits": x}, IO, 23) == 0
        huge = np.full((2, 1), 3e38, np.float32)  # what is beyond the trick's range stays
        assert parity.rounding_noise(model, {"x": huge}, {"logits": huge}, IO, 11) == 0

    @pytest.mark.parametrize(("noise", "limit"), [(0.0, 0.05), (0.01, 0.05), (0.04, 0.12)])
    def test_the_limit(self, noise: float, limit: float) -> None:
        assert parity.limit(0.05, noise) == pytest.approx(limit)
        gap = {"largest_difference": 1.0, "relative": 0.99 * limit}
        parity._require("ort.onnx", gap, noise, 0.05)
        with pytest.raises(ContractError, match=r"by 0\.\d+ of its size, .* it does not compute"):
            parity._require("ort.onnx", {**gap, "relative": 1.01 * limit}, noise, 0.05)

    def test_a_network_that_rounding_drives_is_refused_as_such(self) -> None:
        gap = {"largest_difference": 1.0, "relative": 0.4}
        with pytest.raises(ContractError) as caught:
            parity._require("trt.onnx", gap, 0.3, 0.1)
        found = str(caught.value)
        assert "rounding noise grows to 0.3 of the outputs' size in this network" in found
        assert "expected at most 0.25" in found
        assert "trt.onnx, which computes each layer as the student does, ends 0.4 away" in found
        assert "not compute" not in found


class Chaotic(nn.Module):
    """Sixteen INT8 layers, each of which stretches what it is given until nothing is left of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(16))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(4 * layer(x))
        return self.head(x)


@pytest.fixture(scope="module")
def chaotic(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    torch.manual_seed(0)
    model = Chaotic().eval()
    rows, scales = [], {}
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=0.5)
        name = f"layers.{index}"
        scales[f"{name}.weight_scale"] = torch.full((32,), 2.0**-6)
        scales[f"{name}.input_scale"] = torch.tensor(
            2.0**-5 if index == 0 else 2.0**-7 * (1 + index / 64)
        )
        rows.append(LayerPlan(name, "Linear", 32, 32, 1, True, "", False, ""))
    qdq_form.attach(model, rows, scales)
    folder = tmp_path_factory.mktemp("chaos")
    path, half = folder / "ort.onnx", folder / "trt.onnx"
    two = models.tensors({n: a[:2] for n, a in INPUTS.items()}, model)
    to_onnx.export_float32(model, two, IO, to_onnx.Form(), path)
    to_onnx.convert_float16(path, half)
    return model, path, half


class TestChaos:
    """Where rounding grows to the answers' own size, a graph is still judged layer by layer."""

    def refused(self, chaotic: Shipped, path: Path) -> str:
        with pytest.raises(ContractError) as caught:
            parity.measure(chaotic[0], path, chaotic[2], INPUTS, IO)
        return str(caught.value)

    def test_the_refusal_names_rounding_and_not_the_graph(self, chaotic: Shipped) -> None:
        found = self.refused(chaotic, chaotic[1])
        assert "rounding noise grows to" in found
        assert "not reproducible to better than that" in found

    def test_each_layer_agrees_all_the_same(self, chaotic: Shipped) -> None:
        found = parity._layers(*chaotic, INPUTS, IO)
        assert found["integers_differ"] < 1e-3
        assert found["integers_largest_step"] <= 1

    @pytest.mark.parametrize("index", [0, 7, 15])
    def test_a_wrong_scale_in_it_is_named(
        self, chaotic: Shipped, tmp_path: Path, index: int
    ) -> None:
        """A fiftieth too large; end to end it is lost in the noise."""
        name = f"layers.{index}.input_scale"
        wrong = changed(chaotic[1], tmp_path, lambda n, a: a * 1.02 if n == name else a)
        found = self.refused(chaotic, wrong)
        assert f"ort.onnx quantizes the input of layers.{index} to other ones" in found
        assert "the graph itself is wrong there" in found

    @pytest.mark.parametrize("index", [3, 14])
    def test_a_wrong_weight_shows_at_the_next_layer(
        self, chaotic: Shipped, tmp_path: Path, index: int
    ) -> None:
        def zeroed(name: str, array: np.ndarray) -> np.ndarray:
            if name == f"layers.{index}.weight":
                array = array.copy()
                array[:, 0] = 0
            return array

        found = self.refused(chaotic, changed(chaotic[1], tmp_path, zeroed))
        assert f"quantizes the input of layers.{index + 1} to other ones" in found
