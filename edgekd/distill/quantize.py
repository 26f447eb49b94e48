"""Static symmetric fake quantization, with the 2:4 mask in the same function.

A planned layer trains on exactly the numbers that ship::

    w_hat = dequantize(quantize(w * mask, s_w)),  s_w = scale_from_amax(max |w * mask| per row)
    x_hat = dequantize(quantize(x, s_x)),         s_x from calibration, fixed

The forward pass is ONNX's QuantizeLinear/DequantizeLinear to the bit (division, round half to even,
saturate); gradients pass straight through inside the range (Bengio et al., arXiv 1308.3432) and are
zero where the value saturates. Weight scales follow the weights while they train: a frozen amax
clips weights that grow, which is what Model Optimizer's QAT does. Or both scales are learned (see
`edgekd.distill.lsq`). Scales are values that float16 holds, so the fp16 and the fp32 graph ship the
same ones (see `edgekd.quant`).

Weights of fewer than 8 bits are research; the input stays INT8 and the scale stays one a row. Of 4
bits: -8..7 with amax / 7. Of 2: ternary weight networks (arXiv 1605.04711, section 2.2), as teacher
intervention uses them::

    w_hat = s * sign(w) where |w| > 0.7 mean|w| else 0,  s = mean of the |w| above that

over the weights that the mask keeps; its gradient passes everywhere. A learned ternary scale is
LSQ's with the range -1..1, and starts from that s.

The mask and the weight quantizer are one torch parametrization of ``weight``; the input quantizer
is a child module with a forward pre-hook. Both work on any subclass of Linear or Conv2d. Layers
that hold one parameter hold it still, under two parametrizations with equal masks, so the integers
are equal too; each has an input scale of its own (see `edgekd.distill.calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgekd import sparse24
from edgekd.distill import lsq
from edgekd.distill.sparsify import as_matrix
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.quant import INT8_MAX, INT8_MIN, SCALE_OF_ZERO
from edgekd.weights import state

# Bits of a weight -> smallest and largest integer.
RANGES: Mapping[int, tuple[int, int]] = {8: (INT8_MIN, INT8_MAX), 4: (-8, 7), 2: (-1, 1)}
_TERNARY_THRESHOLD = 0.7


class FakeQuant(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes straight through where nothing saturates.

    `scale` is float32[] or broadcast against x (float32[n, 1, ...]); no gradient goes to it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        """``clamp(round(x / scale), low, high) * scale``."""
        q = torch.round(x / scale)
        ctx.save_for_backward((q >= low) & (q <= high))
        return q.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient times the indicator of the representable range."""
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None


class Ternary(torch.autograd.Function):
    """``scale * sign(x)`` where |x| is above the row's threshold, else 0; straight-through."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
        """Ternary values, same shape."""
        return x.sign() * (x.abs() > threshold) * scale

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient as it came."""
        return grads[0], None, None


class WeightQuantizer(nn.Module):
    """Parametrization of ``weight``: 2:4 mask (when there is one), then per-row quantization."""

    mask: Tensor | None
    learned: lsq.LearnedScale | None

    def __init__(self, mask: Tensor | None, bits: int = 8) -> None:
        """Keep the mask, bool[weight shape] or None for a dense layer, and the width, 8, 4 or 2."""
        super().__init__()
        self.register_buffer("mask", mask)
        self.bits = bits
        self.learned = None

    def forward(self, weight: Tensor) -> Tensor:
        """Masked and fake-quantized weight, same shape."""
        masked = weight if self.mask is None else weight * self.mask
        low, high = RANGES[self.bits]
        if self.learned is not None:
            kept = masked[0].numel() if self.mask is None else _rows(self.mask.sum, self.mask)
            return lsq.fake_quant(masked, self.learned(), low, high, kept)
        if self.bits == 2:
            return Ternary.apply(masked, *ternary(masked, self.mask))  # type: ignore[no-any-return, no-untyped-call]
        return fake_quant(masked, weight_scale(masked, high), low, high)

    def scale(self, masked: Tensor) -> Tensor:
        """The scale that ships with a masked weight, float32[n, 1, ...]."""
        if self.learned is not None:
            return self.learned.shipped()
        if self.bits == 2:
            return ternary(masked, self.mask)[0]
        return weight_scale(masked, RANGES[self.bits][1])


class InputQuantizer(nn.Module):
    """Per-tensor INT8 on a layer's input; the scale is calibrated once, and may go on learning."""

    calibrated: Tensor
    learned: lsq.LearnedScale | None

    def __init__(self, scale: Tensor) -> None:
        """Keep the scale, float32[]."""
        super().__init__()
        self.register_buffer("calibrated", scale)
        self.learned = None

    @property
    def scale(self) -> Tensor:
        """The scale that ships, float32[]."""
        return self.calibrated if self.learned is None else self.learned.shipped()

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized input, same shape."""
        if self.learned is None:
            return fake_quant(x, self.calibrated)
        features = x.numel() // len(x) if x.ndim > 1 else x.numel()
        return lsq.fake_quant(x, self.learned(), INT8_MIN, INT8_MAX, features)


def fake_quant(x: Tensor, scale: Tensor, low: int = INT8_MIN, high: int = INT8_MAX) -> Tensor:
    """Quantize and dequantize with a straight-through gradient; see `FakeQuant`."""
    return FakeQuant.apply(x, scale, low, high)  # type: ignore[no-any-return, no-untyped-call]


def weight_scale(weight: Tensor, high: int = INT8_MAX) -> Tensor:
    """Scale per output row, float32[n, 1, ...], bit-equal to `quant.scale_from_amax` at 127."""
    amax = _rows(weight.detach().abs().amax, weight)
    nearest = (amax.double() / high).half()
    rounded_down = nearest.double() * high < amax.double()
    # The next float16 above: positive floats order as their bits do.
    up = (nearest.view(torch.int16) + rounded_down.to(torch.int16)).view(torch.float16)
    return torch.where(amax > 0, up.float(), SCALE_OF_ZERO)


def ternary(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and threshold per output row of a masked weight, each float32[n, 1, ...]."""
    size = weight.detach().abs()
    kept = size.new_tensor(size[0].numel()) if mask is None else _rows(mask.sum, mask)
    threshold = _TERNARY_THRESHOLD * _rows(size.sum, size) / kept.clamp(min=1)
    above = size > threshold
    mean = _rows((size * above).sum, size) / _rows(above.sum, size).clamp(min=1)
    return torch.where(mean > 0, lsq.float16_above(mean), SCALE_OF_ZERO), threshold


def _rows(reduce: Callable[..., Tensor], like: Tensor) -> Tensor:
    """A reduction over all axes but the first, which keeps them."""
    return reduce(dim=tuple(range(1, like.ndim)), keepdim=True)


def attach(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    masks: Mapping[str, Tensor],
    input_scales: Mapping[str, Tensor],
    *,
    learned: bool = False,
    same_input: Mapping[str, str] | None = None,
) -> None:
    """Put masks and quantizers on every planned layer, in place.

    Args:
        model: The plain float network.
        rows: The layer plan.
        masks: 2:4 masks by layer.
        input_scales: Calibrated scales by layer, float32[].
        learned: Whether scales train. Layers of one weight then have one weight scale.
        same_input: Layer -> the first layer that reads the very tensor it reads; they learn one
            scale, so that a device still quantizes the tensor once.

    Raises:
        ContractError: A planned layer has no mask or scale, or the network carries quantizers.
    """
    no_quantizers(model, "attach: the network")
    for row in rows:
        if not (row.int8 or row.sparse):
            continue
        if row.sparse and row.layer not in masks:
            raise ContractError(f"attach: {row.layer} is planned for 2:4 but has no mask")
        if row.int8 and row.layer not in input_scales:
            raise ContractError(f"attach: {row.layer} is planned for INT8 but has no input scale")
        module = model.get_submodule(row.layer)
        device = original(module).device
        # Copies: `verify` compares with masks that no training step or checkpoint can touch.
        mask = masks[row.layer].clone().to(device) if row.sparse else None
        if row.int8:
            quantizer = WeightQuantizer(mask, row.bits)
            parametrize.register_parametrization(module, "weight", quantizer, unsafe=True)
            # CUDA divides by a scalar of the CPU's as a * (1 / b), which is not ONNX's division.
            scale = input_scales[row.layer].clone().to(device)
            module.add_module("input_quantizer", InputQuantizer(scale))
            module.register_forward_pre_hook(_quantize_input, with_kwargs=True)
        elif mask is not None:
            parametrize.register_parametrization(module, "weight", Mask(mask))
    for row in rows if learned else ():
        if row.int8:
            _learn(model, row, (same_input or {}).get(row.layer, row.layer))


def _learn(model: nn.Module, row: LayerPlan, first: str) -> None:
    """Make both scales of a layer train, with those of another layer where they are one."""
    module, owner = (model.get_submodule(name) for name in (row.layer, row.tied_to or row.layer))
    mine, theirs = _weight_quantizer(module), _weight_quantizer(owner)
    if theirs.learned is None:
        theirs.learned = lsq.LearnedScale(theirs.scale(latent_weight(owner)))
    mine.learned = theirs.learned
    given, other = module.input_quantizer, model.get_submodule(first).input_quantizer
    assert isinstance(given, InputQuantizer)
    assert isinstance(other, InputQuantizer)
    if other.learned is None:
        other.learned = lsq.LearnedScale(other.calibrated)
    given.learned = other.learned


def attach_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Put 2:4 masks alone on their layers, in place, to train the float network under them."""
    for layer, mask in masks.items():
        module = model.get_submodule(layer)
        parametrize.register_parametrization(module, "weight", Mask(mask.clone()))


def bake_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Take the masks of `attach_masks` off again; what they hid is zero in the weights, in place.

    Raises:
        ContractError: A layer carries no mask, or not the given one.
    """
    for layer, mask in masks.items():
        module = model.get_submodule(layer)
        carried = mask_of(module)
        if carried is None or not torch.equal(carried, mask.to(carried.device)):
            raise ContractError(f"float training: the 2:4 mask of {layer} was lost or changed")
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


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
    no_quantizers(teacher, "verify: the teacher")
    for row in rows:
        if not row.sparse:
            continue
        module = student.get_submodule(row.layer)
        mask = mask_of(module)
        if mask is None or not torch.equal(mask.cpu(), masks[row.layer].cpu()):
            raise ContractError(f"verify: the 2:4 mask of {row.layer} was lost or changed")
        assert isinstance(module.weight, Tensor)
        sparse24.check(as_matrix(module.weight), f"verify: {row.layer}")
    for row in rows:
        if row.tied_to and (row.int8 or row.sparse):
            one, two = (student.get_submodule(name) for name in (row.tied_to, row.layer))
            if original(one) is not original(two) or not torch.equal(one.weight, two.weight):  # type: ignore[arg-type]
                raise ContractError(
                    f"verify: {row.layer} and {row.tied_to} were one weight and are two: the tie "
                    "was lost"
                )


def input_scale(module: nn.Module) -> Tensor:
    """The scale of a quantized layer's input that ships, float32[]."""
    scale = module.input_quantizer.scale  # type: ignore[union-attr]
    assert isinstance(scale, Tensor)
    return scale


def shipped_weight_scale(module: nn.Module) -> Tensor:
    """The scales of a quantized layer's weight that ship, float32[n]: learned, or of the weight."""
    return _weight_quantizer(module).scale(latent_weight(module)).flatten().clone()


def _weight_quantizer(module: nn.Module) -> WeightQuantizer:
    quantizer = module.parametrizations.weight[0]  # type: ignore[index, union-attr]
    assert isinstance(quantizer, WeightQuantizer)
    return quantizer


def mask_of(module: nn.Module) -> Tensor | None:
    """The 2:4 mask of a layer, None where it is dense."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    return getattr(module.parametrizations.weight[0], "mask", None)  # type: ignore[index, union-attr]


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the plain network's names: latent weights, no masks, no quantizers."""
    weights = state(model)
    for name, module in model.named_modules(remove_duplicate=False):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        hidden = (f"{name}.parametrizations.weight.", f"{name}.input_quantizer.")
        for key in [key for key in weights if key.startswith(hidden)]:
            del weights[key]
        weights[f"{name}.weight"] = latent_weight(module).clone().contiguous()
    return weights


def latent_weight(module: nn.Module) -> Tensor:
    """The float weight under the parametrization, masked where there is a mask."""
    weight = original(module)
    mask = mask_of(module)
    return weight.detach() if mask is None else weight.detach() * mask


def original(module: nn.Module) -> Tensor:
    """The parameter that trains, under the parametrization where there is one."""
    if parametrize.is_parametrized(module, "weight"):
        weight = module.parametrizations.weight.original  # type: ignore[union-attr]
    else:
        weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def no_quantizers(model: nn.Module, who: str) -> None:
    """No quantizer of anybody's is on the network; they all are children named so."""
    found = [name for name, _ in model.named_modules() if name.endswith("_quantizer")]
    if found:
        raise ContractError(
            f"{who} carries {len(found)} quantizers, expected none: {', '.join(found[:3])}"
            f"{', ...' if found[3:] else ''}; start from float weights, in an object of its own"
        )


def _quantize_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Quantize the input, given by position or by its name in torch's layers."""
    quantizer = module.input_quantizer
    assert isinstance(quantizer, InputQuantizer)
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": quantizer(kwargs["input"])}
