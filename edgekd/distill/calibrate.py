"""Input scales by max calibration: Model Optimizer's, on a copy; only its amax is taken.

The network is calibrated in float, under its 2:4 masks. A layer that runs several times gets the
largest amax of its runs. What no scale can hold is refused here, by the name of the layer. Methods
that clip start from these scales (see `edgekd.distill.observe`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import progress
from edgekd.distill import observe, quantize, watch
from edgekd.distill.sparsify import quiet
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.quant import scale_from_amax
from edgekd.recipe import Quantization


@dataclass(frozen=True)
class Calibration:
    """Input scales and where they come from.

    Attributes:
        scales: {layer: float32[]}, in float16's values.
        methods: {layer: the method its scale is by}.
        errors: {layer: {method: mean squared error of the layer's output}}; only of ``best``.
        same_input: {layer: the first layer that reads the same tensor}; empty unless it was needed.
    """

    scales: dict[str, Tensor]
    methods: dict[str, str]
    errors: dict[str, dict[str, float]]
    same_input: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """What the Student's manifest says of it."""
        return {"methods": self.methods, "errors": self.errors}


def calibration(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    masks: Mapping[str, Tensor],
    run: Callable[[nn.Module], None],
    settings: Quantization,
) -> Calibration:
    """Input scales of every planned layer by the recipe's method, of the masked float network.

    Args:
        model: The float network; not changed.
        rows: The layer plan.
        masks: 2:4 masks by layer.
        run: Passes the calibration batches through the network it is given.
        settings: Which method, and whether scales will be learned.

    Raises:
        ContractError: As `calibrate`.
    """
    scales = calibrate(model, rows, masks, run)
    method, planned = settings.calibration, list(scales)
    plain = method == "max" and settings.scales == "follow"
    if not planned or plain:
        return Calibration(scales, dict.fromkeys(planned, "max"), {}, {})
    twin = _masked(model, masks)
    with torch.no_grad():
        groups = observe.same_inputs(twin, planned, run)
        if method == "max":
            return Calibration(scales, dict.fromkeys(planned, "max"), {}, groups)
        counts = observe.histograms(twin, scales, run)
        wanted = observe.METHODS[1:] if method == "best" else (method,)
        candidates = {
            layer: {"max": scales[layer]}
            | {
                each: observe.scale_at(observe.clipped(each, counts[layer]), scales[layer])
                for each in wanted
            }
            for layer in planned
        }
        errors = {}
        chosen = dict.fromkeys(planned, str(method))
        if method == "best":
            errors = observe.errors(twin, rows, candidates, run)
            chosen = observe.best(errors, groups, rows)
            taken = [f"{list(chosen.values()).count(each)} {each}" for each in observe.METHODS]
            progress.say(f"calibration: best of {len(planned)} layers: {', '.join(taken)}")
    found = {layer: candidates[layer][chosen[layer]] for layer in planned}
    return Calibration(found, chosen, errors, groups)


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
    quantize.no_quantizers(model, "calibrate: the network")
    with quiet():
        import modelopt.torch.quantization as mtq

    twin = _masked(model, masks)
    config = _config(planned)
    with quiet(), torch.no_grad():
        try:
            twin = mtq.quantize(twin, {"quant_cfg": config, "algorithm": "max"}, run)
        except RuntimeError as error:  # none of the layers is of a class it converts
            reason = " ".join(str(error).split())[:200]
            raise ContractError(
                f"calibrate: Model Optimizer cannot quantize {', '.join(planned[:3])}: {reason}"
            ) from error
        except AssertionError as error:  # how it refuses an amax that is no number
            raise ContractError(_not_finite(model, planned, run)) from error
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


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network whose weights off the masks are zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, mask in masks.items():
            twin.get_submodule(layer).weight.mul_(mask)  # type: ignore[operator]
    return twin


def _config(planned: Sequence[str]) -> list[dict[str, Any]]:
    """Model Optimizer's rules: static INT8 on the planned layers, by name, and nothing else."""
    config: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for layer in planned:
        for side, axis in (("input", None), ("weight", 0)):
            name = f"{layer}.{side}_quantizer"
            config.append({"quantizer_name": name, "cfg": {"num_bits": 8, "axis": axis}})
    return config


def _not_finite(model: nn.Module, planned: Sequence[str], run: Callable[[nn.Module], None]) -> str:
    """A sentence about the first planned layer whose input is not finite."""
    found: list[str] = []

    def look(layer: str, _module: nn.Module, x: Tensor, _output: Tensor) -> None:
        if not bool(x.isfinite().all()):
            found.append(layer)

    watch.runs(model, planned, run, look)
    where = f"the input of {found[0]}" if found else "an input or a weight"
    return (
        f"calibrate: {where} holds NaN or infinity, expected finite numbers: look for bad values "
        "in the data, or for a layer before it that overflows"
    )


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
    if value / float(scale) < 0.5:
        raise ContractError(
            f"calibrate: the input of {layer} has amax {value:g}, which rounds to 0 at the "
            f"smallest scale that float16 holds, {float(scale):g}: rescale the network before it, "
            "or add the layer to quantization.exclude"
        )
    return torch.tensor(scale, dtype=torch.float32).reshape(())
