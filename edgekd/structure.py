"""What a network is made of, read from its structure and never from class names.

Layers are the Linear and Conv2d modules a real input passes through; the output layer is the one
whose result the network returns, or else the last; blocks are the repeated children of a container.
Weights that are multiplied by other code (a packed attention, a Conv1d, a bare parameter) are found
by watching every matrix product: nothing that costs time is missing from the plan in silence.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn, mkldnn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from edgekd import eligible
from edgekd.data import IO
from edgekd.eligible import Facts, LayerPlan
from edgekd.errors import UnsupportedError
from edgekd.models import Tensors, forward
from edgekd.recipe import Quantization, Sparsity

LAYERS = (nn.Linear, nn.Conv2d)


def plan(
    model: nn.Module,
    inputs: Tensors,
    io: IO,
    sparsity: Sparsity | None = None,
    quantization: Quantization | None = None,
) -> list[LayerPlan]:
    """The plan of every weight that is multiplied by: `eligible.plan`, then what it cannot take.

    Args:
        model: The plain float network; left as it was.
        inputs: One example or more.
        io: Names of the outputs.
        sparsity: The recipe's section, None where 2:4 is off.
        quantization: The recipe's section, None where INT8 is off.

    Raises:
        UnsupportedError: See `layers`.
        ConfigError: See `eligible.plan`.
        ContractError: See `eligible.plan`.
    """
    facts = layers(model, inputs, io)
    planned = {f"{row.layer}.weight" for row in facts}
    others = [row for row in products(model, inputs, io) if row.layer not in planned]
    # Without layers every pattern of the recipe would seem misspelt.
    return [*(eligible.plan(facts, sparsity, quantization) if facts else []), *others]


def layers(model: nn.Module, inputs: Tensors, io: IO) -> list[Facts]:
    """Every Linear and Conv2d that a real input passes through, in forward order.

    Args:
        model: The network; left as it was.
        inputs: One example or more.
        io: Names of the outputs, to know the output layer.

    Raises:
        UnsupportedError: A layer runs more than once in a pass, shares its weight with another,
            computes it from other tensors, or takes its input by keyword.
    """
    runs: dict[str, tuple[nn.Module, Tensor]] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if name in runs:
            raise UnsupportedError(
                f"layer {name} runs more than once in a forward pass: shared layers cannot be "
                "given one activation scale; build the network with separate layers"
            )
        if not args:
            raise UnsupportedError(
                f"layer {name} is called with its input by keyword, where no quantizer can take "
                "it; call it with the input first"
            )
        runs[name] = (module, output)

    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: note(name, module, args, output)
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
    _own_weights({name: module for name, (module, _) in runs.items()})
    storages = {tensor.untyped_storage().data_ptr() for tensor in outputs.values()}
    returned = {
        name
        for name, (_, output) in runs.items()
        if output.untyped_storage().data_ptr() in storages
    }
    # Where the answer is computed from a layer's result (a softmax, a pooling, a temperature), that
    # is the last one.
    last = returned or set(list(runs)[-1:])
    examples = len(next(iter(inputs.values())))
    return [
        _facts(name, module, output, examples, name in last)
        for name, (module, output) in runs.items()
    ]


def products(model: nn.Module, inputs: Tensors, io: IO) -> list[LayerPlan]:
    """Every parameter that a matrix product or convolution reads, as rows that plan nothing.

    A parameter is recognised by its memory, so views of it count (a slice, a transpose, a packed
    projection's parts) and copies do not.
    """
    matrices = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    watch = _Products({p.untyped_storage().data_ptr(): name for name, p in matrices.items()})
    training = model.training
    model.eval()
    try:
        with _plain_kernels(), torch.no_grad(), watch:
            forward(model, inputs, io)
    finally:
        model.train(training)
    examples = len(next(iter(inputs.values())))
    found = []
    for name, macs in watch.macs.items():
        owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
        reason = "read by other code than a Linear's or Conv2d's own: stays in float and dense"
        weight = matrices[name]
        row = LayerPlan(
            layer=name,
            type=owner,
            n=weight.shape[0],
            k=weight[0].numel(),
            macs=macs // examples,
            int8=False,
            int8_reason=reason,
            sparse=False,
            sparse_reason=reason,
        )
        found.append(row)
    return found


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without oneDNN and cuDNN, whose LSTM is one operator that hides its products."""
    with warnings.catch_warnings(), cudnn.flags(enabled=False):
        warnings.simplefilter("ignore")  # of a flag for Intel GPUs that it also sets
        with mkldnn.flags(enabled=False):
            yield


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-accumulates that read each parameter, whoever asks for them."""

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = parameters
        self.macs: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            # The first argument of addmm and baddbmm is added, not multiplied.
            read = args[1:] if "add" in func.overloadpacket.__name__ else args
            for tensor in tree_leaves(read):
                name = self._name(tensor)
                if name is not None:
                    macs = count(*args, **(kwargs or {}), out_val=result) // 2
                    self.macs[name] = self.macs.get(name, 0) + macs
        return result

    def _name(self, value: Any) -> str | None:
        if not isinstance(value, Tensor):
            return None
        return self._parameters.get(value.untyped_storage().data_ptr())


def blocks(model: nn.Module) -> list[str]:
    """Names of the repeated blocks, in order: where block features are compared.

    They are the children of the containers (ModuleList or Sequential) with at least two children of
    one class that hold weights; where such containers nest, the outermost counts.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        if any(f"{name}.".startswith(f"{block}.") for block in found):
            continue
        children = list(module.named_children())
        classes = {type(child) for _, child in children}
        weighty = all(any(True for _ in child.parameters()) for _, child in children)
        if len(children) >= 2 and len(classes) == 1 and weighty:
            found += [f"{name}.{child}" if name else child for child, _ in children]
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


def _own_weights(modules: Mapping[str, nn.Module]) -> None:
    """Every layer holds a weight of its own, as a parameter."""
    owners: dict[int, str] = {}
    for name, module in modules.items():
        if not isinstance(module.weight, nn.Parameter):
            raise UnsupportedError(
                f"layer {name} computes its weight from other tensors (weight norm, a "
                "parametrization): bake it in before edgekd takes the network"
            )
        owner = owners.setdefault(module.weight.untyped_storage().data_ptr(), name)
        if owner != name:
            raise UnsupportedError(
                f"layers {owner} and {name} share one weight: shared layers cannot be planned one "
                "by one; build the network with separate weights"
            )


def _facts(name: str, module: nn.Module, output: Tensor, examples: int, is_output: bool) -> Facts:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
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
