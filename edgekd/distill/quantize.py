"""Static symmetric INT8 fake quantization, with the 2:4 mask in the same function.

A planned layer trains on exactly the numbers that ship::

    w_hat = dequantize(quantize(w * mask, s_w)),  s_w = scale_from_amax(max |w * mask| per row)
    x_hat = dequantize(quantize(x, s_x)),         s_x from calibration, fixed

The forward pass is ONNX's QuantizeLinear/DequantizeLinear to the bit (division, round half to even,
saturate); gradients pass straight through inside the range (Bengio et al., arXiv 1308.3432) and are
zero where the value saturates. Weight scales follow the weights while they train: a frozen amax
clips weights that grow, which is what Model Optimizer's QAT does. Scales are values that float16
holds, so the fp16 and the fp32 graph ship the same ones (see `edgekd.quant`).

The mask and the weight quantizer are one torch parametrization of ``weight``; the input quantizer
is a child module with a forward pre-hook. Both work on any subclass of Linear or Conv2d.
Calibration is Model Optimizer's, on a copy; only its amax is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgekd import sparse24
from edgekd.distill.sparsify import as_matrix, quiet
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.quant import INT8_MAX, INT8_MIN, SCALE_OF_ZERO, scale_from_amax


class FakeQuant(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes straight through where nothing saturates.

    `scale` is float32[] or broadcast against x (float32[n, 1, ...]); no gradient goes to it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        """``clamp(round(x / scale), -128, 127) * scale``."""
        q = torch.round(x / scale)
        ctx.save_for_backward((q >= INT8_MIN) & (q <= INT8_MAX))
        return q.clamp_(INT8_MIN, INT8_MAX).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient times the indicator of the representable range."""
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


class WeightQuantizer(nn.Module):
    """Parametrization of ``weight``: 2:4 mask (when there is one), then per-row INT8."""

    mask: Tensor | None

    def __init__(self, mask: Tensor | None) -> None:
        """Keep the mask, bool[weight shape], or None for a dense layer."""
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Masked and fake-quantized weight, same shape."""
        masked = weight if self.mask is None else weight * self.mask
        return fake_quant(masked, weight_scale(masked))


class InputQuantizer(nn.Module):
    """Per-tensor INT8 on a layer's input; the scale is calibrated once."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        """Keep the scale, float32[]."""
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized input, same shape."""
        return fake_quant(x, self.scale)


def fake_quant(x: Tensor, scale: Tensor) -> Tensor:
    """Quantize and dequantize with a straight-through gradient; see `FakeQuant`."""
    return FakeQuant.apply(x, scale)  # type: ignore[no-any-return, no-untyped-call]


def weight_scale(weight: Tensor) -> Tensor:
    """Scale per output row, float32[n, 1, ...], bit-equal to `quant.scale_from_amax`."""
    amax = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    nearest = (amax.double() / INT8_MAX).half()
    rounded_down = nearest.double() * INT8_MAX < amax.double()
    # The next float16 above: positive floats order as their bits do.
    up = (nearest.view(torch.int16) + rounded_down.to(torch.int16)).view(torch.float16)
    return torch.where(amax > 0, up.float(), SCALE_OF_ZERO)


def calibrate(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    masks: Mapping[str, Tensor],
    run: Callable[[nn.Module], None],
) -> dict[str, Tensor]:
    """Input scales of every planned layer, by max calibration of the masked float network.

    Args:
        model: The float network; not changed.
        rows: The layer plan.
        masks: 2:4 masks by layer.
        run: Passes the calibration batches through the network it is given.

    Returns:
        {layer: float32[]}, in float16's values.

    Raises:
        ContractError: The network already carries quantizers, a planned layer has no enabled one,
            a layer outside the plan has one, or an amax is missing, zero, not finite or too large.
    """
    planned = [row.layer for row in rows if row.int8]
    if not planned:
        return {}
    _no_quantizers(model, "calibrate: the network")
    with quiet():
        import modelopt.torch.quantization as mtq

    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, mask in masks.items():
            twin.get_submodule(layer).weight.mul_(mask)  # type: ignore[operator]
    config: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for layer in planned:
        for side, axis in (("input", None), ("weight", 0)):
            name = f"{layer}.{side}_quantizer"
            config.append({"quantizer_name": name, "cfg": {"num_bits": 8, "axis": axis}})
    with quiet(), torch.no_grad():
        try:
            twin = mtq.quantize(twin, {"quant_cfg": config, "algorithm": "max"}, run)
        except RuntimeError as error:  # none of the layers is of a class it converts
            reason = " ".join(str(error).split())[:200]
            raise ContractError(
                f"calibrate: Model Optimizer cannot quantize {', '.join(planned[:3])}: {reason}"
            ) from error
    enabled = {
        name
        for name, module in twin.named_modules()
        if name.endswith("_quantizer") and getattr(module, "is_enabled", False)
    }
    wanted = {f"{layer}.{side}_quantizer" for layer in planned for side in ("input", "weight")}
    if enabled != wanted:
        raise ContractError(
            f"calibrate: Model Optimizer enabled {len(enabled)} quantizers, expected {len(wanted)}"
            f"; missing: {', '.join(sorted(wanted - enabled)) or 'none'}; not planned: "
            f"{', '.join(sorted(enabled - wanted)) or 'none'}; it converts a Linear or Conv2d with "
            "torch's own forward only, add others to quantization.exclude"
        )
    return {layer: _scale(layer, twin) for layer in planned}


def _scale(layer: str, twin: nn.Module) -> Tensor:
    """Input scale of a layer from the amax that calibration saw."""
    amax = getattr(twin.get_submodule(f"{layer}.input_quantizer"), "amax", None)
    value = float("nan") if amax is None else float(amax)
    if not 0.0 < value < float("inf"):
        raise ContractError(
            f"calibrate: the input of {layer} has amax {value}, expected a positive number: "
            "the calibration data never reached it, is all zero, or the network overflows"
        )
    try:
        scale = scale_from_amax(value)
    except ContractError as error:
        raise ContractError(f"calibrate: the input of {layer}: {error}") from error
    return torch.tensor(scale, dtype=torch.float32).reshape(())


def attach(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    masks: Mapping[str, Tensor],
    input_scales: Mapping[str, Tensor],
) -> None:
    """Put masks and quantizers on every planned layer, in place.

    Raises:
        ContractError: A planned layer has no mask or scale, or the network already carries
        quantizers.
    """
    _no_quantizers(model, "attach: the network")
    for row in rows:
        if not (row.int8 or row.sparse):
            continue
        if row.sparse and row.layer not in masks:
            raise ContractError(f"attach: {row.layer} is planned for 2:4 but has no mask")
        if row.int8 and row.layer not in input_scales:
            raise ContractError(f"attach: {row.layer} is planned for INT8 but has no input scale")
        module = model.get_submodule(row.layer)
        # Copies: `verify` compares with masks that no training step or checkpoint can touch.
        if row.int8:
            quantizer = WeightQuantizer(masks[row.layer].clone() if row.sparse else None)
            parametrize.register_parametrization(module, "weight", quantizer, unsafe=True)
            module.add_module("input_quantizer", InputQuantizer(input_scales[row.layer].clone()))
            module.register_forward_pre_hook(_quantize_input)
        elif row.sparse:
            parametrize.register_parametrization(module, "weight", Mask(masks[row.layer].clone()))


class Mask(nn.Module):
    """Parametrization of ``weight`` for a layer that is 2:4 but stays in float."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """Keep the mask, bool[weight shape]."""
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Masked weight, same shape."""
        return weight * self.mask


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the layers that carry our weight and input quantizers, both of them in use."""
    return [
        name
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight")
        and isinstance(module.parametrizations.weight[0], WeightQuantizer)
        and isinstance(getattr(module, "input_quantizer", None), InputQuantizer)
        and _quantize_input in module._forward_pre_hooks.values()
    ]


def verify(
    student: nn.Module,
    teacher: nn.Module,
    rows: Sequence[LayerPlan],
    masks: Mapping[str, Tensor],
) -> None:
    """Assert what must hold before, during and after training.

    Raises:
        ContractError: A quantizer is missing or where none is planned, the teacher carries one, a
            mask changed, or a planned layer's integers are not exactly 2:4.
    """
    planned = sorted(row.layer for row in rows if row.int8)
    found = sorted(quantized_layers(student))
    if found != planned:
        raise ContractError(
            f"verify: quantizers are on {len(found)} layers, expected {len(planned)}; missing: "
            f"{', '.join(sorted(set(planned) - set(found))) or 'none'}; not planned: "
            f"{', '.join(sorted(set(found) - set(planned))) or 'none'}"
        )
    _no_quantizers(teacher, "verify: the teacher")
    for row in rows:
        if not row.sparse:
            continue
        module = student.get_submodule(row.layer)
        mask = mask_of(module)
        if mask is None or not torch.equal(mask.cpu(), masks[row.layer].cpu()):
            raise ContractError(f"verify: the 2:4 mask of {row.layer} was lost or changed")
        assert isinstance(module.weight, Tensor)
        sparse24.check(as_matrix(module.weight), f"verify: {row.layer}")


def input_scale(module: nn.Module) -> Tensor:
    """Calibrated scale of a quantized layer's input, float32[]."""
    scale = module.input_quantizer.scale  # type: ignore[union-attr]
    assert isinstance(scale, Tensor)
    return scale


def mask_of(module: nn.Module) -> Tensor | None:
    """The 2:4 mask of a layer, None where it is dense."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    return getattr(module.parametrizations.weight[0], "mask", None)  # type: ignore[index, union-attr]


def latent_weight(module: nn.Module) -> Tensor:
    """The float weight under the parametrization, masked where there is a mask."""
    if not parametrize.is_parametrized(module, "weight"):
        weight = module.weight
    else:
        weight = module.parametrizations.weight.original  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    mask = mask_of(module)
    return weight.detach() if mask is None else weight.detach() * mask


def _no_quantizers(model: nn.Module, who: str) -> None:
    """No quantizer of anybody's is on the network; they all are children named so."""
    found = [name for name, _ in model.named_modules() if name.endswith("_quantizer")]
    if found:
        raise ContractError(
            f"{who} carries {len(found)} quantizers, expected none: {', '.join(found[:3])}"
            f"{', ...' if found[3:] else ''}; start from float weights, in an object of its own"
        )


def _quantize_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (module.input_quantizer(args[0]), *args[1:])  # type: ignore[operator]
