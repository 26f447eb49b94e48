"""The cut: where a graph is opened, what goes in there, and what is said of a graph it misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tiny import data, models
from torch import Tensor, nn

from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.export import local, qdq_form
from edgekd.export.local import Run
from edgekd.export.to_onnx import Form, export_float32

IO = data.vectors().io
INPUTS = data.vectors().train.take(np.arange(8))[0]
X = {"x": torch.from_numpy(INPUTS["x"][:2])}


class Twice(nn.Module):
    """One layer runs twice, and a second one holds the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight = self.one.weight
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.one(x).relu()).relu()))


def shipped(model: nn.Module, *layers: str) -> nn.Module:
    """A network whose named layers are INT8, each with an input scale of its own."""
    scales, rows = {}, []
    for index, layer in enumerate(layers):
        scales[f"{layer}.weight_scale"] = torch.full((32,), 2.0**-9)
        scales[f"{layer}.input_scale"] = torch.tensor(2.0**-5 * (1 + index / 4))
        rows.append(LayerPlan(layer, "Linear", 32, 32, 1, True, "", False, ""))
    qdq_form.attach(model.eval(), rows, scales)
    return model


@pytest.fixture
def twice(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = shipped(Twice(), "one", "two")
    export_float32(model, X, IO, Form(), tmp_path / "ort.onnx")
    return model, tmp_path / "ort.onnx"


def test_the_student_says_which_integers_in_which_order(twice: tuple[nn.Module, Path]) -> None:
    runs, outputs = local.student(twice[0], INPUTS, IO)
    assert [run.layer for run in runs] == ["one", "one", "two"]
    wanted = np.clip(np.rint(INPUTS["x"] / np.float32(2.0**-5)), -128, 127)
    assert runs[0].integers.dtype == np.int8
    assert np.array_equal(runs[0].integers, wanted)
    assert outputs["logits"].shape == (8, 4)


def test_runs_of_one_weight_are_told_apart_and_fed(twice: tuple[nn.Module, Path]) -> None:
    """Each comes out as it was computed from what was put in before it, not from the sample."""
    model, path = twice
    runs, outputs = local.student(model, INPUTS, IO)
    names = local.places(path, model, runs)
    assert len(set(names)) == 3
    local.cut(path, path.with_name("cut.onnx"), runs, names)
    session = ort.InferenceSession(str(path.with_name("cut.onnx")))
    fed = {name + local.FED: run.integers for name, run in zip(names, runs, strict=True)}

    def judged(feed: dict[str, np.ndarray]) -> list[float]:
        got = dict(zip(names, session.run(names, {**INPUTS, **feed}), strict=True))
        return [
            local.judge("ort.onnx", [run], [name], got, 9.0)["integers_relative"]
            for run, name in zip(runs, names, strict=True)
        ]

    assert max(judged(fed)) < local.FLOAT32_LIMIT
    first, second, third = judged({**fed, names[1] + local.FED: 0 * runs[1].integers})
    assert max(first, second) < local.FLOAT32_LIMIT < third
    (answers,) = session.run(["logits"], {**INPUTS, **fed})
    assert np.allclose(answers, outputs["logits"], atol=1e-5)


def test_a_missing_quantizer(tmp_path: Path) -> None:
    model = shipped(models.mlp(), "stem")
    model.stem._forward_pre_hooks.clear()
    export_float32(model, X, IO, Form(), tmp_path / "ort.onnx")
    run = Run("stem", np.ones((2, 32), np.int8))
    with pytest.raises(
        ContractError,
        match=r"ort\.onnx quantizes the input of stem in 0 places, expected 1, as often as the",
    ):
        local.places(tmp_path / "ort.onnx", model, [run])


def test_a_layer_that_runs_more_often_than_the_graph_has_it(twice: tuple[nn.Module, Path]) -> None:
    runs, _ = local.student(twice[0], INPUTS, IO)
    with pytest.raises(ContractError, match="of one in 3 places, expected 4"):
        local.places(twice[1], twice[0], [*runs, runs[-1]])


def test_a_value_that_a_conversion_renamed(twice: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, path = twice
    runs, _ = local.student(model, INPUTS, IO)
    names = local.places(path, model, runs)
    with pytest.raises(ContractError) as caught:
        local.cut(path, tmp_path / "cut.onnx", runs, [names[0], "gone", names[2]])
    assert (
        "ort.onnx has no value gone, to which its float32 twin quantizes the input of one, though "
        "both quantize 3 inputs: the conversion to float16 renamed it" in str(caught.value)
    )


def test_a_quantizer_that_one_graph_lacks(twice: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, path = twice
    runs, _ = local.student(model, INPUTS, IO)
    names = local.places(path, model, runs)
    half = ir.load(path)
    (node,) = (node for node in half.graph if node.outputs[0].name == names[2])
    (dequantized,) = (use.outputs[0] for use, _ in node.outputs[0].uses())
    for use, index in list(dequantized.uses()):
        use.replace_input_with(index, node.inputs[0])
    half.graph.remove([dequantized.producer(), node], safe=True)
    ir.save(half, tmp_path / "trt.onnx")
    with pytest.raises(ContractError) as caught:
        local.cut(tmp_path / "trt.onnx", tmp_path / "cut.onnx", runs, names)
    for words in (
        "trt.onnx quantizes 2 inputs of products, its float32 twin 3",
        f"trt.onnx lacks the quantizer before two (value {names[2]})",
        "name the layer in quantization.exclude",
    ):
        assert words in str(caught.value)


def test_what_is_counted_and_who_is_named() -> None:
    ones = np.full((10, 10), 10, np.int8)
    flipped = ones.copy()
    flipped[0, 0] = 11
    runs, got = [Run("a", ones), Run("b", ones)], {"x": flipped, "y": ones}
    found = local.judge("ort.onnx", runs, ["x", "y"], got, 0.02)
    assert found == {
        "integers_compared": 200,
        "integers_differ": 1 / 200,
        "integers_largest_step": 1,
        "integers_relative": pytest.approx(0.01),  # 1 / (10 * sqrt(100))
    }
    far = {"x": flipped, "y": -ones}
    with pytest.raises(ContractError) as caught:
        local.judge("trt.onnx", runs, ["x", "y"], far, 0.02)
    assert (
        "given the student's integers everywhere else, trt.onnx quantizes the input of b to other "
        "ones: they differ by 2 of their size (100.0% of them, largest step 20), expected at most "
        "0.02: the graph itself is wrong there" in str(caught.value)
    )
