"""From a torch network to the two graphs that ship.

``ort.onnx`` keeps float32 outside the INT8 layers and is what ONNX Runtime runs; ``trt.onnx`` is
the same graph with float16 outside them, strongly typed, because TensorRT fuses attention in half
precision only. Model Optimizer's autocast makes the second: of the ways tried it is the one whose
graph both checkers and both runtimes take (`.half()` before the export breaks LayerNorm's types).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekd import qdq
from edgekd.data import IO
from edgekd.errors import ContractError, ToolchainError
from edgekd.export.passes.name_weights import WRAPPER, NameWeightsPass
from edgekd.models import Tensors, forward


def export_float32(model: nn.Module, example: Tensors, io: IO, opset: int, path: Path) -> None:
    """Trace a network into a checked ONNX file with symbolic axes as io names them.

    Args:
        model: In its shipped form, on the CPU.
        example: {name: tensor[batch, ...]}, batch of at least 2 so that no axis is taken for 1.
        io: Names, and for each input and output its shape with symbols.
        opset: ONNX operator set.
        path: File to write.

    Raises:
        ToolchainError: The exporter failed (control flow, an operator it does not know).
        ContractError: What it wrote is not a legal graph.
    """
    names = [tensor.name for tensor in io.inputs]
    axes = {
        tensor.name: {i: size for i, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in [*io.inputs, *io.outputs]
    }
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                _Positional(model, io).eval(),
                tuple(example[name] for name in names),
                str(path),
                input_names=names,
                output_names=[tensor.name for tensor in io.outputs],
                dynamic_axes=axes,
                opset_version=opset,
                dynamo=False,
            )
    except OSError:  # a full disk has a sentence of its own
        raise
    except Exception as error:  # it runs the network's own code, which raises what it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ToolchainError(
            f"export: torch.onnx could not trace the network: {reason}; replace that operator or "
            "control flow by tensor operations"
        ) from error
    graph = ir.load(path)
    NameWeightsPass()(graph)
    ir.save(graph, path)
    qdq.load(path)


def convert_float16(source: Path, path: Path) -> None:
    """Write the float16 twin of a float32 graph, inputs and outputs included.

    Raises:
        ToolchainError: Autocast failed.
        ContractError: It kept float32 at an input, an output, a product or a softmax, where
            TensorRT would then not fuse attention, in silence.
    """
    with _quiet():
        try:
            from modelopt.onnx import autocast
        except ImportError as error:
            raise ToolchainError(
                f"export: Model Optimizer's autocast cannot be imported "
                f"({str(error).splitlines()[0]}): pip install 'edgekd[train]'"
            ) from error
        try:
            half = autocast.convert_to_f16(onnx.load(source), keep_io_types=False)
        except Exception as error:  # it raises plain exceptions among others
            reason = " ".join(str(error).split())[:300]
            raise ToolchainError(
                f"export: Model Optimizer could not convert {source.name} to float16: {reason}"
            ) from error
    onnx.save(half, path)
    kept = sorted(_float32_values(qdq.load(path)))
    if kept:
        raise ContractError(
            f"export: {path.name} kept float32 at {len(kept)} values, expected float16 at every "
            f"input, output, product and softmax: {', '.join(kept[:5])}"
        )


def _float32_values(model: onnx.ModelProto) -> set[str]:
    """Inputs, outputs and results of products and softmaxes that are float32."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    full = {
        value.name
        for value in [*graph.input, *graph.output, *graph.value_info]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    ends = {value.name for value in [*graph.input, *graph.output]}
    products = {"MatMul", "Gemm", "Conv", "Softmax"}
    results = {name for node in graph.node if node.op_type in products for name in node.output}
    return full & (ends | results)


class _Positional(nn.Module):
    """The network as the exporter wants it: tensors in, tensors out, by position."""

    def __init__(self, model: nn.Module, io: IO) -> None:
        super().__init__()
        # Under the prefix that NameWeightsPass takes off again.
        self.add_module(WRAPPER, model)
        self._io = io

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = [tensor.name for tensor in self._io.inputs]
        named = dict(zip(names, inputs, strict=True))
        return tuple(forward(self.get_submodule(WRAPPER), named, self._io).values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter off stdout; what matters in it is checked on the file."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
