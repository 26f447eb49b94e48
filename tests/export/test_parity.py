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
    # Five layers of 32 or 64 inputs, on the first 32 samples.
    assert results["integers_compared"] == 32 * (32 + 2 * (32 + 64))
    assert results["integers_largest_step"] <= 1
    variation = np.std(wanted, axis=0).mean() / np.abs(wanted).mean()
    assert results["output_variation"] == pytest.approx(variation, rel=1e-5)
    assert not path.with_name("tapped.onnx").exists()


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


class TestLimits:
    def refused(self, shipped: Shipped, path: Path | None = None, half: Path | None = None) -> str:
        model, good, good_half = shipped
        with pytest.raises(ContractError) as caught:
            parity.measure(model, path or good, half or good_half, INPUTS, IO)
        return str(caught.value)

    def test_a_graph_that_computes_something_else(self, shipped: Shipped, tmp_path: Path) -> None:
        wrong = changed(shipped[1], tmp_path, lambda name, a: a + 1 if name == "head.bias" else a)
        found = self.refused(shipped, path=wrong)
        assert "ort.onnx differs from the student by" in found
        assert "expected at most 0.05" in found
        assert "it does not compute the student" in found

    def test_a_half_graph_that_does(self, shipped: Shipped, tmp_path: Path) -> None:
        wrong = changed(shipped[2], tmp_path, lambda name, a: a + 1 if name == "head.bias" else a)
        found = self.refused(shipped, half=wrong)
        assert "trt.onnx differs from the student by" in found
        assert "expected at most 0.1" in found

    def test_a_wrong_scale_behind_outputs_that_hardly_show_it(
        self, shipped: Shipped, tmp_path: Path
    ) -> None:
        """An input scale a tenth too large loses precision, not the answer; the integers tell."""
        wrong = changed(
            shipped[1], tmp_path, lambda name, a: a * 1.1 if name.endswith("input_scale") else a
        )
        relative = parity._difference(
            "", parity.run(wrong, INPUTS, IO), models.run(shipped[0], INPUTS, IO), 1.0
        )["relative"]
        assert relative < parity.FLOAT32_LIMIT
        found = self.refused(shipped, path=wrong)
        assert "of their size (in all " in found
        assert "expected at most 0.05" in found
        assert not (tmp_path / "tapped.onnx").exists()

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
            parity._difference("ort.onnx", got, {"logits": np.full((2, 4), np.nan)}, 0.05)

    def test_a_file_that_onnx_runtime_cannot_open(self, tmp_path: Path) -> None:
        (tmp_path / "ort.onnx").write_bytes(b"garbage")
        with pytest.raises(ToolchainError, match=r"ONNX Runtime cannot open ort\.onnx: "):
            parity.run(tmp_path / "ort.onnx", INPUTS, IO)


@pytest.mark.parametrize(
    ("count", "inner", "batches"),
    [
        (1, (), [1]),
        (3, (), [1, 2]),
        (4, (), [1, 3]),
        (70, (), [1, 3, 64, 2]),
        (70, ("hidden",), [64, 6]),
    ],
)
def test_batches_of_several_sizes_are_run(
    monkeypatch: pytest.MonkeyPatch, count: int, inner: tuple[str, ...], batches: list[int]
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
    found = parity.run(Path("ort.onnx"), {"x": x}, IO, inner)
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
