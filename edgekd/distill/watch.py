"""A network watched from outside while it runs, and left as it was: hooks come off in one place.

`traced` is one pass under a trace that is told of every call, for what is found by structure;
`runs` is every run of named layers, for what is measured on calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.models import Tensors, forward

Run = Callable[[nn.Module], None]
Look = Callable[[str, nn.Module, Tensor, Tensor], None]


class Trace(Protocol):
    """One of torch's modes that has hooks on a network too."""

    def __enter__(self) -> Any:
        """Be told of every call from now on."""

    def __exit__(self, *_: Any) -> Any:
        """Be told no more."""

    def remove(self) -> None:
        """Take the hooks off."""


def traced(model: nn.Module, inputs: Tensors, io: IO, trace: Trace) -> Tensors:
    """The outputs by name of one pass under a trace, in evaluation mode and without gradients.

    Args:
        model: The network; left as it was.
        inputs: One example or more.
        io: Names of the outputs.
        trace: Its hooks are on the network, and taken off here.
    """
    modes = [(module, module.training) for module in model.modules()]  # frozen layers among them
    model.eval()
    try:
        with torch.no_grad(), trace:
            return forward(model, inputs, io)
    finally:
        for module, training in modes:
            module.training = training
        trace.remove()


def runs(model: nn.Module, layers: Iterable[str], run: Run, look: Look) -> None:
    """Call `look` after each run of each layer: name, module, input and output.

    Args:
        model: The network; left as it was.
        layers: Names of modules that take one tensor and give one.
        run: Passes batches through the network it is given.
        look: Called without gradients.
    """

    def hook(layer: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        with torch.no_grad():
            look(layer, module, args[0] if args else kwargs["input"], output)

    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda module, args, kwargs, output, layer=layer: hook(
                layer, module, args, kwargs, output
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
