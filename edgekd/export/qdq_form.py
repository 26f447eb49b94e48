"""The form of a student that is exported: snapped weights and standard Q/DQ.

The plain network is rebuilt from the artifact; every planned layer gets its weight snapped to
``q * scale`` and a QuantizeLinear/DequantizeLinear pair on weight and input. Float weights under
Q/DQ, not int8 initializers: TensorRT's parser folds the former, while the latter makes a packed QKV
run in half precision in silence (see the folder's README). A weight that several layers hold
stays one parameter, snapped once: they have equal scales. Because weights are snapped and scales
are float16 values, Q gives back the very integers in the fp32 graph and in the fp16 graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgekd import quant
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError


class QDQ(torch.autograd.Function):
    """QuantizeLinear then DequantizeLinear: the same numbers in torch and, exported, in ONNX."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        """``clamp(round(x / scale), -128, 127) * scale``; scale is [], or [n] on axis 0."""
        spread = scale.reshape(-1, *[1] * (x.ndim - 1)) if scale.ndim else scale
        q = torch.round(x / spread).clamp(quant.INT8_MIN, quant.INT8_MAX)
        return q * spread

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any) -> Any:
        """Standard ONNX with zero point 0, per row (axis 0) where the scale has rows."""
        rows = scale.type().sizes()
        zero = g.op("Constant", value_t=torch.zeros(rows, dtype=torch.int8))
        axis = {"axis_i": 0} if rows else {}
        q = g.op("QuantizeLinear", x, scale, zero, **axis)
        return g.op("DequantizeLinear", q, scale, zero, **axis).setType(x.type())


class Quantizer(nn.Module):
    """Holds a scale and applies `QDQ`; as a parametrization of a weight, or on an input."""

    def __init__(self, scale: Tensor) -> None:
        """Keep the scale: float32[] for an input, float32[n] for a weight."""
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Quantized and dequantized x, same shape."""
        return QDQ.apply(x, self.scale)  # type: ignore[no-any-return, no-untyped-call]


def attach(model: nn.Module, rows: Sequence[LayerPlan], quantizers: Mapping[str, Tensor]) -> None:
    """Give every planned layer its shipped form, in place.

    Args:
        model: The plain network with the student's float (masked) weights.
        rows: The layer plan.
        quantizers: ``<layer>.weight_scale`` float32[n], ``<layer>.input_scale`` float32[] and, of
            a 2:4 layer, ``<layer>.mask`` bool[weight shape].

    Raises:
        ContractError: A planned layer lacks its scales, or its stored weight is not masked.
    """
    for row in rows:
        if not (row.int8 or row.sparse):
            continue
        module = model.get_submodule(row.layer)
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        mask = quantizers.get(f"{row.layer}.mask")
        if row.sparse and (mask is None or bool((weight.detach()[~mask] != 0).any())):
            raise ContractError(f"export: {row.layer} is planned for 2:4 but its mask was lost")
        if not row.int8:
            continue
        for side in ("weight_scale", "input_scale"):
            if f"{row.layer}.{side}" not in quantizers:
                raise ContractError(f"export: {row.layer} is planned for INT8 but has no {side}")
        # Copies: the stored ones are what the shipped files are compared with.
        scale = quantizers[f"{row.layer}.weight_scale"].clone()
        try:
            snapped = quant.snap(weight.detach().numpy(), scale.numpy(), axis=0)
        except ContractError as error:
            raise ContractError(f"export: the weight of {row.layer}: {error}") from error
        weight.data = torch.from_numpy(np.ascontiguousarray(snapped))
        parametrize.register_parametrization(module, "weight", Quantizer(scale), unsafe=True)
        scale = quantizers[f"{row.layer}.input_scale"].clone()
        try:
            quant.broadcast_scale(scale.numpy(), ())
        except ContractError as error:
            raise ContractError(f"export: the input of {row.layer}: {error}") from error
        module.add_module("input_quantizer", Quantizer(scale))
        module.register_forward_pre_hook(_quantize_input, with_kwargs=True)


def _quantize_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Quantize the input, given by position or by its name in torch's layers."""
    quantizer = module.input_quantizer
    assert isinstance(quantizer, Quantizer)
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": quantizer(kwargs["input"])}
