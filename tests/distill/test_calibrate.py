"""Input scales, and every input that has none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import data, forms, models
from torch import nn

from edgekd import quant, structure
from edgekd.distill import quantize, sparsify
from edgekd.distill.calibrate import calibrate
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.models import run, tensors
from edgekd.recipe import Quantization, Sparsity

Feed = Callable[[nn.Module], None]


def feed(model: nn.Module) -> None:
    examples = data.vectors()
    run(model, examples.train.take(np.arange(32))[0], examples.io)


def plan(model: nn.Module) -> list[LayerPlan]:
    examples = data.vectors()
    one = tensors(examples.train.take(np.array([0]))[0], model)
    return structure.plan(model, one, examples.io, Sparsity(), Quantization())


def test_scales_are_the_contracts_of_the_largest_input() -> None:
    torch.manual_seed(0)
    model = models.mlp()
    rows = plan(model)
    masks = sparsify.masks(model, rows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scales = calibrate(model, rows, masks, feed)
    assert list(scales) == [row.layer for row in rows if row.int8]
    x = data.vectors().train.take(np.arange(32))[0]["x"]
    assert scales["stem"] == quant.scale_from_amax(np.abs(x).max())
    # The second layer's input is that of the masked network, not of the dense one.
    masked = torch.from_numpy(x) @ (model.stem.weight * masks["stem"]).T + model.stem.bias
    assert scales["blocks.0.fc1"] == quant.scale_from_amax(masked.abs().max().item())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(name.endswith("_quantizer") for name, _ in model.named_modules())


def test_names_its_default_leaves_out_are_quantized_and_norms_and_classifier_are_not() -> None:
    model = models.excluded()
    rows = plan(model)
    masks = sparsify.masks(model, rows)
    quantize.attach(model, rows, masks, calibrate(model, rows, masks, feed))
    assert quantize.quantized_layers(model) == [
        "vision_model.0", "proj_out", "router", "lm_head",
    ]  # fmt: skip
    assert [n for n, _ in model.named_modules() if n.endswith("_quantizer")] == [
        f"{layer}.input_quantizer" for layer in quantize.quantized_layers(model)
    ]


def test_nothing_planned_needs_no_calibration() -> None:
    assert calibrate(models.mlp(), [], {}, feed) == {}


@pytest.mark.parametrize(
    ("run", "amax"),
    [
        (lambda _: None, "nan"),
        (lambda model: model(torch.zeros(2, 32)), "0.0"),
    ],
)
def test_data_that_never_reach_a_layer_or_are_zero(run: Feed, amax: str) -> None:
    model = models.mlp()
    with pytest.raises(ContractError) as caught:
        calibrate(model, plan(model), {}, run)
    assert f"the input of stem has amax {amax}, expected a positive number" in str(caught.value)
    assert "never reached it, is all zero, or the network overflows" in str(caught.value)


def test_an_input_too_large_for_float16_names_the_layer() -> None:
    model = models.mlp()
    with pytest.raises(ContractError) as caught:
        calibrate(model, plan(model), {}, lambda m: m(torch.full((2, 32), 1e5)))
    assert "the input of stem: amax is 100000.0, expected a value in 0..64992.25" in str(
        caught.value
    )


def test_a_network_that_carries_quantizers_already() -> None:
    model = models.mlp()
    rows = plan(model)
    masks = sparsify.masks(model, rows)
    quantize.attach(model, rows, masks, calibrate(model, rows, masks, feed))
    with pytest.raises(ContractError) as caught:
        calibrate(model, rows, masks, feed)
    assert "calibrate: the network carries 5 quantizers, expected none" in str(caught.value)
    assert "stem.input_quantizer, blocks.0.fc1.input_quantizer" in str(caught.value)


def test_layers_it_does_not_convert() -> None:
    model = models.mlp()
    model.stem = models.OwnForward(32, 32)
    rows = plan(model)
    with pytest.raises(ContractError) as caught:
        calibrate(model, rows, {}, feed)
    assert "enabled 8 quantizers, expected 10; missing: stem.input_quantizer, " in str(caught.value)
    assert "torch's own forward only, add others to quantization.exclude" in str(caught.value)
    with pytest.raises(ContractError) as caught:
        calibrate(model, rows[:1], {}, feed)
    assert "Model Optimizer cannot quantize stem: The quantization config asks" in str(caught.value)


def test_a_layer_that_runs_thrice_has_the_largest_amax_of_its_runs() -> None:
    torch.manual_seed(0)
    model = forms.repeated()
    rows = plan(model)
    seen: list[float] = []
    handle = model.blocks.fc1.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].abs().max().item())
    )
    feed(model)
    handle.remove()
    assert len(set(seen)) == 3
    scale = calibrate(model, rows, {}, feed)["blocks.fc1"]
    assert scale == quant.scale_from_amax(max(seen))


def test_a_layer_called_by_keyword_is_calibrated_and_quantized() -> None:
    torch.manual_seed(0)
    model = models.keyword()
    rows = plan(model)
    masks = sparsify.masks(model, rows)
    scales = calibrate(model, rows, masks, feed)
    x = torch.randn(4, 32)
    quantize.attach(model, rows, masks, scales)
    quantized = quantize.fake_quant(x, scales["stem"])
    wanted = nn.functional.linear(quantized, model.stem.weight, model.stem.bias)
    assert torch.equal(model.stem(input=x), wanted)
    assert torch.equal(model.stem(x), wanted)
    assert not torch.equal(wanted, nn.functional.linear(x, model.stem.weight, model.stem.bias))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_input_that_is_no_number_names_its_layer(value: float) -> None:
    model = models.mlp()
    with torch.no_grad():
        model.stem.bias[3] = value
    with pytest.raises(ContractError, match=r"the input of blocks\.0\.fc1 holds NaN or infinity"):
        calibrate(model, plan(model), {}, feed)
