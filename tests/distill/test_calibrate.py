"""Input scales, and every input that has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs, data, forms, models
from tiny.recipes import tiny
from torch import nn

from edgekd import quant, structure
from edgekd.distill import quantize, sparsify
from edgekd.distill.calibrate import calibrate, calibration
from edgekd.distill.student import distill
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


def outliers() -> nn.Module:
    """An MLP whose blocks see one channel that is far larger than the others."""
    torch.manual_seed(0)
    model = models.mlp()
    with torch.no_grad():
        model.stem.weight[5] *= 40
    return model


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_methods_that_clip_give_no_larger_scale_that_float16_holds(method: str) -> None:
    model = outliers()
    rows = plan(model)
    found = calibration(model, rows, {}, feed, Quantization(calibration=method))  # type: ignore[arg-type]
    largest = calibrate(model, rows, {}, feed)
    assert set(found.methods.values()) == {method}
    assert found.errors == {}
    for layer, scale in found.scales.items():
        assert largest[layer] / 17 < scale <= largest[layer]
        assert scale == float(np.float16(scale))
    # Of 1024 values one in 10,000 is none.
    clipped = any(scale < largest[layer] for layer, scale in found.scales.items())
    assert clipped == (method != "percentile")


def test_by_default_the_scales_are_max_calibrations() -> None:
    model = outliers()
    rows = plan(model)
    found = calibration(model, rows, {}, feed, Quantization())
    assert found.scales == calibrate(model, rows, {}, feed)
    assert found.methods == dict.fromkeys(found.scales, "max")
    assert (found.errors, found.same_input) == ({}, {})


def test_best_takes_each_layers_least_error(capsys: pytest.CaptureFixture[str]) -> None:
    model = outliers()
    rows = plan(model)
    masks = sparsify.masks(model, rows)
    found = calibration(model, rows, masks, feed, Quantization(calibration="best"))
    for layer, errors in found.errors.items():
        assert list(errors) == ["max", "percentile", "mse", "entropy"]
        assert errors[found.methods[layer]] == min(errors.values())
    assert len(set(found.methods.values())) > 1
    counts = [list(found.methods.values()).count(each) for each in errors]
    told = ", ".join(f"{n} {each}" for n, each in zip(counts, errors, strict=True))
    assert f"calibration: best of 5 layers: {told}" in capsys.readouterr().err


def test_best_ships_the_scale_of_the_method_it_tells() -> None:
    model = outliers()
    rows = plan(model)
    masks = sparsify.masks(model, rows)
    found = calibration(model, rows, masks, feed, Quantization(calibration="best"))
    alone = {
        method: calibration(model, rows, masks, feed, Quantization(calibration=method)).scales  # type: ignore[arg-type]
        for method in {"max", *found.methods.values()}
    }
    assert found.scales == {layer: alone[how][layer] for layer, how in found.methods.items()}
    assert any(scale < alone["max"][layer] for layer, scale in found.scales.items())


@pytest.mark.parametrize(
    ("config", "source"),
    [(configs.VIT, "images"), (configs.BERT, "tokens"), (configs.RESNET, "images")],
    ids=["vit", "bert", "resnet"],
)
def test_the_choice_and_its_errors_are_in_the_student(
    config: dict[str, Any], source: str, tmp_path: Path
) -> None:
    quantization = {"calibration_samples": 32, "convolutions": True, "calibration": "best"}
    student = distill(tiny(tmp_path, config, source, quantization=quantization), tmp_path / "out")
    stored = student.results["calibration"]
    planned = [row["layer"] for row in student.read_json("layers.json") if row["int8"]]
    assert sorted(stored["methods"]) == sorted(stored["errors"]) == sorted(planned)
    groups = [layer for layer in planned if layer.rpartition(".")[2] in ("q_proj", "query")]
    for layer in groups:
        for other in ("k_proj", "v_proj") if "q_proj" in layer else ("key", "value"):
            twin = layer.replace("q_proj", other).replace("query", other)
            assert stored["methods"][twin] == stored["methods"][layer]
    assert bool(groups) == (config is not configs.RESNET)
    alone = [layer for layer in planned if layer.endswith(("fc1", "fc2", "layer.1.convolution"))]
    alone += [layer for layer in planned if layer.endswith("output.dense")]
    assert len(alone) >= 2
    for layer in alone:
        errors = stored["errors"][layer]
        assert errors[stored["methods"][layer]] == min(errors.values())
