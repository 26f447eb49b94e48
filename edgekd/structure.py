"""What a network is made of, read from its structure and never from class names.

Layers are the Linear and Conv2d modules a real input passes through; the output layer is the one
whose result the network returns; blocks are the repeated children of a container.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.eligible import Facts
from edgekd.errors import UnsupportedError
from edgekd.models import Tensors, forward

LAYERS = (nn.Linear, nn.Conv2d)


def layers(model: nn.Module, inputs: Tensors, io: IO) -> list[Facts]:
    """Every Linear and Conv2d that a real input passes through, in forward order.

    Args:
        model: The network; left as it was.
        inputs: One example or more.
        io: Names of the outputs, to know the output layer.

    Raises:
        UnsupportedError: A layer runs more than once in a pass (shared weights).
    """
    runs: dict[str, tuple[nn.Module, Tensor]] = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        if name in runs:
            raise UnsupportedError(
                f"layer {name} runs more than once in a forward pass: shared layers cannot be "
                "given one activation scale; build the network with separate layers"
            )
        runs[name] = (module, output)

    handles = [
        module.register_forward_hook(
            lambda module, _, output, name=name: note(name, module, output)
        )
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = forward(model, inputs, io)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    storages = {tensor.untyped_storage().data_ptr() for tensor in outputs.values()}
    examples = len(next(iter(inputs.values())))
    return [
        _facts(name, module, output, examples, output.untyped_storage().data_ptr() in storages)
        for name, (module, output) in runs.items()
    ]


def blocks(model: nn.Module) -> list[str]:
    """Names of the repeated blocks, in order: where block features are compared.

    They are the children of the containers (ModuleList or Sequential) with at least two children of
    one class that hold weights; where such containers nest, the outermost counts.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        if any(name.startswith(block + ".") for block in found):
            continue
        children = list(module.named_children())
        classes = {type(child) for _, child in children}
        weighty = all(any(True for _ in child.parameters()) for _, child in children)
        if len(children) >= 2 and len(classes) == 1 and weighty:
            found += [f"{name}.{child}" for child, _ in children]
    return found


def first_tensor(value: Any) -> Tensor | None:
    """The tensor in what a block returned: itself, or the first of a sequence or mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return next(_tensors(value), None) if isinstance(value, (tuple, list)) else None


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))


def _facts(name: str, module: nn.Module, output: Tensor, examples: int, is_output: bool) -> Facts:
    weight = module.weight
    assert isinstance(weight, Tensor)
    n, k = weight.shape[0], weight[0].numel()
    return Facts(
        layer=name,
        type="Linear" if isinstance(module, nn.Linear) else "Conv2d",
        n=n,
        k=k,
        k_group=weight.shape[1],
        groups=getattr(module, "groups", 1),
        macs=output.numel() // examples * k,
        is_output=is_output,
    )
