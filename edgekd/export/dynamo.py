"""torch.export's exporter: the network's graph as torch's compiler sees it, lowered to ONNX.

Quantizers are swapped for modules that stand for QuantizeLinear and DequantizeLinear directly, for
the duration of the export: lowered from their arithmetic they would arrive as Div, Round, Clip and
Mul, which no engine takes for INT8. Its lowest operator set is 18.

Node names of this exporter say nothing of the network; `NameNodesPass` gives them the module's
path again, which is how an engine's layer is traced back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.errors import ContractError
from edgekd.export.qdq_form import Quantizer

CHANGING = (
    "take the batch size and every other changing size from the input's shape, and never turn it "
    "into a number"
)
OPSET_MIN = 18  # below it the exporter answers 18, with a warning


class _QDQ(Quantizer):
    """A quantizer as two ONNX operators; its answers mean nothing outside an export."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__(scale)
        self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """Stand for QuantizeLinear and DequantizeLinear."""
        axis: dict[str, Any] = {"axis": 0} if self.scale.ndim else {}
        q = _operator("QuantizeLinear", (x, self.scale, self.zero_point), axis, torch.int8, x)
        return _operator("DequantizeLinear", (q, self.scale, self.zero_point), axis, x.dtype, x)


def _operator(
    name: str, inputs: Sequence[Any], attrs: Mapping[str, Any], dtype: torch.dtype, like: Tensor
) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attrs=dict(attrs), dtype=dtype, shape=like.shape)


def trace(
    model: nn.Module,
    inputs: Sequence[Tensor],
    io: IO,
    opset: int,
    limits: Mapping[str, tuple[int, int]],
) -> ir.Model:
    """Export a network that takes tensors by position.

    Args:
        model: In its shipped form, on the CPU, in eval mode.
        inputs: One example, batch of at least 2.
        io: Names, and which sizes are symbols.
        opset: ONNX operator set, 18 where it is below.
        limits: Symbol -> smallest and largest size. An axis that changes serves any range, and
            only the engine keeps to it; torch.export's own range is made to hold the example too.
    """
    dims = _dims(inputs, io, limits)
    shapes = tuple(
        {i: dims[size] for i, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in io.inputs
    )
    with _swapped(model):
        program = torch.onnx.export(
            model,
            tuple(inputs),
            dynamo=True,
            input_names=[tensor.name for tensor in io.inputs],
            output_names=[tensor.name for tensor in io.outputs],
            dynamic_shapes=(shapes,),
            opset_version=max(opset, OPSET_MIN),
            verbose=False,
        )
    assert program is not None
    graph: ir.Model = program.model
    _require_symbols(graph, io)
    for ports, values in ((io.inputs, graph.graph.inputs), (io.outputs, graph.graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.shape = ir.Shape(port.shape)  # its own symbols have names of its own
    return graph


def _dims(
    inputs: Sequence[Tensor], io: IO, limits: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """A range for each symbol that holds its limits and the example, and more than one size.

    torch.export knows no range of one size, and refuses an example outside its range.
    """
    dims = {}
    for port, tensor in zip(io.inputs, inputs, strict=True):
        for symbol, size in zip(port.shape, tensor.shape, strict=True):
            if isinstance(symbol, str):
                low, high = limits[symbol]
                high = max(high, size, 2)
                # Down and not up: a network may have a largest size, of a table of positions.
                low = min(low, size, high - 1)
                dims[symbol] = torch.export.Dim(symbol, min=low, max=high)
    return dims


def _require_symbols(graph: ir.Model, io: IO) -> None:
    """Refuse an input whose changing size became a number: torch.export says nothing of it."""
    for port, value in zip(io.inputs, graph.graph.inputs, strict=True):
        for symbol, size in zip(port.shape, value.shape or (), strict=True):
            if isinstance(symbol, str) and isinstance(size, int):
                raise ContractError(
                    f"export: the network keeps a size of the example it was exported with "
                    f"({symbol} of {port.name!r} became {size}): {CHANGING}"
                )


@contextlib.contextmanager
def _swapped(model: nn.Module) -> Iterator[None]:
    """Replace every `Quantizer` by its ONNX operators, and put them back."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Quantizer)
    ]
    for parent, name, child in places:
        assert isinstance(child.scale, Tensor)
        parent.register_module(name, _QDQ(child.scale))
    try:
        yield
    finally:
        for parent, name, child in places:
            parent.register_module(name, child)
