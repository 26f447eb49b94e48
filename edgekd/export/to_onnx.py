"""From a torch network to the two graphs that ship.

``ort.onnx`` keeps float32 outside the INT8 layers and is what ONNX Runtime runs; ``trt.onnx`` is
its float16 twin (see `float16`), because TensorRT fuses attention in half precision only. Two
exporters of torch make the first, and neither is always the better one: whose engine runs every
planned layer in INT8 and fuses every attention is seen only where an engine is built. Either way a
graph gets the network's own names, and its weights stay where a proof finds them.
"""

from __future__ import annotations

import contextlib
import io as streams
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekd import qdq
from edgekd.data import IO
from edgekd.errors import EdgekdError
from edgekd.export import dynamo, float16, refusals, storage, torchscript
from edgekd.export.passes.fold_weights import FoldWeightsPass
from edgekd.export.passes.name_nodes import NameNodesPass
from edgekd.export.passes.name_weights import WRAPPER, NameWeightsPass
from edgekd.export.passes.split_qkv import SplitQKVPass
from edgekd.models import Tensors, forward

Exporter = Literal["torchscript", "dynamo"]
Weights = Literal["float", "int8"]


@dataclass(frozen=True)
class Form:
    """How a graph is made: `limits` gives smallest and largest size of each symbol in io."""

    opset: int = 17
    exporter: Exporter = "torchscript"
    weights: Weights = "float"
    limits: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"batch": (1, 64)})


def export_float32(model: nn.Module, example: Tensors, io: IO, form: Form, path: Path) -> None:
    """Write a network as a checked ONNX file with symbolic axes as io names them.

    Args:
        model: In its shipped form, on the CPU.
        example: {name: tensor[batch, ...]}, batch of at least 2 so that no axis is taken for 1.
        io: Names, and for each input and output its shape with symbols.
        form: Exporter, opset and how quantized weights are stored.
        path: File to write; weights too large for it go to ``<path>.data``.

    Raises:
        ToolchainError: The exporter failed (control flow, an operator it does not know).
        ContractError: The network takes one batch size only, or what was written is not a legal
            graph.
    """
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole encoder: not ONNX's
    refusals.require_any_batch(model, example, io)
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        graph = _traced(model, example, io, form, folder)
        NameNodesPass()(graph)
        NameWeightsPass()(graph)
        if form.weights == "int8":
            SplitQKVPass()(graph)
            FoldWeightsPass()(graph)
        storage.save(graph, path)
        del graph
    finally:
        shutil.rmtree(folder)
    storage.release()
    qdq.load(path)


def convert_float16(source: Path, path: Path) -> None:
    """Write the float16 twin of a float32 graph, checked; raises as `float16.convert`."""
    with _quiet():
        float16.convert(source, path)
    qdq.load(path)


def _traced(model: nn.Module, example: Tensors, io: IO, form: Form, folder: Path) -> ir.Model:
    names = [tensor.name for tensor in io.inputs]
    inputs = [example[name] for name in names]
    wrapped = _Positional(model, io).eval()
    places: list[tuple[str, int]] = []
    try:
        with _quiet(), _as_it_was(model), torch.no_grad():
            if form.exporter == "dynamo":
                graph = dynamo.trace(wrapped, inputs, io, form.opset, form.limits)
            else:
                graph, places = torchscript.trace(wrapped, inputs, io, form.opset, folder)
    except (OSError, EdgekdError):  # a full disk and what we refuse have their own sentences
        raise
    except Exception as error:  # it runs the network's own code, which raises what it likes
        raise refusals.explained(error, model, example, io) from error
    refusals.require_no_reads(places, model, example, io)
    return graph


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Take back what tracing leaves in a network's attributes.

    transformers' Swin keeps its window's size there, which under the tracer is a tensor: the same
    network, run once more, would seem to decide by its data.
    """
    plain = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, values in plain:
            vars(module).clear()
            vars(module).update(values)


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
    """Keep the exporters' chatter off stdout; what matters in it is checked on the file.

    Of an operator it does not know, torch's C++ prints the whole graph past `sys.stdout`.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    stream = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        with contextlib.redirect_stdout(streams.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(stream, 1)
        os.close(stream)
        logging.disable(level)
