"""The TorchScript exporter: trace the network, keep module paths in every node's name.

It is torch's older exporter, and a tracer: it follows one example. Where the network's code decides
something by its data, it keeps the example's decision and warns among many harmless warnings
(comparisons of sizes). `reads_data` tells them apart: a line that the tracer warned of and that
also reads a tensor's value when nothing is traced.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from edgekd.data import IO


def trace(
    model: nn.Module, inputs: Sequence[Tensor], io: IO, opset: int, folder: Path
) -> tuple[ir.Model, list[tuple[str, int]]]:
    """Trace a network that takes tensors by position.

    Args:
        model: In its shipped form, on the CPU, in eval mode.
        inputs: One example, batch of at least 2.
        io: Names, and which sizes are symbols.
        opset: ONNX operator set.
        folder: Where the exporter's own files may lie until the graph is saved.

    Returns:
        The graph, whose weights may lie in `folder`, and the (file, line) of every place where the
        tracer met a tensor used as a Python value.
    """
    axes: Mapping[str, dict[int, str]] = {
        tensor.name: {i: size for i, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in [*io.inputs, *io.outputs]
    }
    path = Path(tempfile.mkdtemp(dir=folder)) / "traced.onnx"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracerWarning)
        torch.onnx.export(
            model,
            tuple(inputs),
            str(path),
            input_names=[tensor.name for tensor in io.inputs],
            output_names=[tensor.name for tensor in io.outputs],
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    places = [
        (each.filename, each.lineno) for each in caught if issubclass(each.category, TracerWarning)
    ]
    return ir.load(path), places
