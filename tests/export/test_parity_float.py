"""Networks without INT8: outputs are the whole proof, and small mistakes in the graph must show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs, data
from tiny import models as tiny_models
from torch import nn

from edgekd import models
from edgekd.data import IO, Arrays
from edgekd.errors import ContractError
from edgekd.export import parity, to_onnx

IMAGES = data.images()
PIXELS = IMAGES.train.take(np.arange(24))[0]
Graphs = tuple[Path, Path]


def built(config: dict[str, Any], like: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = models.build({"spec": "hf:config.json", "config": config}).eval()
    if like is not None:
        model.load_state_dict(like.state_dict())
    return model


def exported(model: nn.Module, inputs: Arrays, io: IO, folder: Path) -> Graphs:
    folder.mkdir(exist_ok=True)
    two = models.tensors({n: a[:2] for n, a in inputs.items()}, model)
    to_onnx.export_float32(model, two, io, to_onnx.Form(), folder / "ort.onnx")
    to_onnx.convert_float16(folder / "ort.onnx", folder / "trt.onnx")
    return folder / "ort.onnx", folder / "trt.onnx"


def refused(model: nn.Module, graphs: Graphs) -> str:
    with pytest.raises(ContractError) as caught:
        parity.measure(model, *graphs, PIXELS, IMAGES.io)
    return str(caught.value)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Graphs]:
    model = built(configs.VIT)
    return model, exported(model, PIXELS, IMAGES.io, tmp_path_factory.mktemp("vit"))


def test_the_networks_own_graphs_lie_far_below_the_limits(vit: tuple[nn.Module, Graphs]) -> None:
    found = parity.measure(vit[0], *vit[1], PIXELS, IMAGES.io)["parity"]
    assert found["relative"] < 1e-5
    assert found["float16_relative"] < 3e-3
    assert not found["vacuous"]


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu_pytorch_tanh"])
def test_another_gelu_is_refused(
    vit: tuple[nn.Module, Graphs], tmp_path: Path, activation: str
) -> None:
    """x * sigmoid(1.702 x), or by tanh, for the GELU by erf."""
    other = built({**configs.VIT, "hidden_act": activation}, like=vit[0])
    found = refused(vit[0], exported(other, PIXELS, IMAGES.io, tmp_path))
    assert "ort.onnx differs from the student by" in found
    assert "expected at most 0.0001 (largest difference" in found


def with_eps(eps: float) -> nn.Module:
    model = built(configs.RESNET)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        norm.eps = eps
    return model


def test_another_batchnorm_eps_is_refused_in_either_graph(tmp_path: Path) -> None:
    model = with_eps(1e-5)
    good = exported(model, PIXELS, IMAGES.io, tmp_path / "good")
    wrong = exported(with_eps(1e-2), PIXELS, IMAGES.io, tmp_path / "wrong")
    parity.measure(model, *good, PIXELS, IMAGES.io)
    found = refused(model, (wrong[0], good[1]))
    assert "ort.onnx differs from the student by" in found
    assert "expected at most 0.0001" in found
    found = refused(model, (good[0], wrong[1]))
    assert "trt.onnx differs from the student by" in found
    assert "expected at most 0.01" in found


class Two(nn.Module):
    """Logits that vary, a box that hardly does, and a class that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny_models.mlp()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.body(x)
        return {"logits": logits, "box": 1 + 1e-5 * logits, "kind": 0 * logits.argmax(-1)}


def test_a_second_output_that_hardly_varies_makes_it_vacuous(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vectors = data.vectors()
    inputs, model = vectors.train.take(np.arange(24))[0], Two().eval()
    logits = vectors.io.outputs[0]
    kind = logits.model_copy(update={"name": "kind", "dtype": "int64", "shape": ["batch"]})
    box = logits.model_copy(update={"name": "box"})
    for outputs, vacuous in (([logits, kind], False), ([logits, box, kind], True)):
        io = vectors.io.model_copy(update={"outputs": outputs})
        graphs = exported(model, inputs, io, tmp_path)
        found = parity.measure(model, *graphs, inputs, io)["parity"]
        assert found["vacuous"] == vacuous
        assert (found["output_variation"] < parity.VARIATION_FLOOR) == vacuous
