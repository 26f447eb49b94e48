"""What a network is made of, read from its structure and never from class names.

Layers are the Linear and Conv2d modules a real input passes through; blocks are the repeated
children of a container. An output's layers are the last ones on the ways to it: every result is
followed from operator to operator, and where no other layer on the way to that output reads it, its
layer is one. So each head of a detector is, and what ends in a residual sum is not unless it is the
last to write into it: all of a network's branches reach its end through that sum.
Weights that are multiplied by other code (a packed attention, a Conv1d, a bare parameter) are found
by watching every matrix product: nothing that costs time is missing from the plan in silence.

A layer may run several times in a pass, and several layers may hold one parameter: each run counts
in operations, the parameter is one. Who else reads it decides what it can be: a tied embedding is
looked up row by row and a transposed decoder sums along n, so what they share stays plain.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn, mkldnn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from edgekd import eligible
from edgekd.data import IO
from edgekd.eligible import Facts, LayerPlan
from edgekd.errors import UnsupportedError
from edgekd.models import Tensors, forward
from edgekd.recipe import Quantization, Sparsity
from edgekd.weights import holders

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
    names = {alias: held[0] for held in holders(model) for alias in held}
    own: Counter[str] = Counter()
    for fact in facts:
        own[names[f"{fact.layer}.weight"]] += fact.macs
    others = []
    for row in products(model, inputs, io):
        weight = names[row.layer]
        owner = next((f.layer for f in facts if names[f"{f.layer}.weight"] == weight), "")
        if row.macs > own[weight]:
            others.append(replace(row, macs=row.macs - own[weight], tied_to=owner))
            facts = [
                replace(each, shared=each.shared or "other code than its own")
                if names[f"{each.layer}.weight"] == weight
                else each
                for each in facts
            ]
    # Without layers every pattern of the recipe would seem misspelt.
    return [*(eligible.plan(facts, sparsity, quantization) if facts else []), *others]


@dataclass
class _Runs:
    """What one layer did in a forward pass: how many numbers each of its runs answered."""

    module: nn.Module
    answered: list[int]


def layers(model: nn.Module, inputs: Tensors, io: IO) -> list[Facts]:
    """Every Linear and Conv2d that a real input passes through, in forward order.

    Args:
        model: The network; left as it was.
        inputs: One example or more.
        io: Names of the outputs, to know the output layers.

    Raises:
        UnsupportedError: A layer computes its weight from other tensors, or two layers hold one
            piece of memory as two parameters.
    """
    runs: dict[str, _Runs] = {}
    flow = _Flow()

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        runs.setdefault(name, _Runs(module, [])).answered.append(output.numel())
        flow.ran(name, output)

    handles = [
        module.register_forward_hook(
            lambda module, _args, output, name=name: note(name, module, output)
        )
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), flow:
            outputs = forward(model, inputs, io)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    owners = _owners(model, {name: run.module for name, run in runs.items()})
    heads: dict[str, list[str]] = {}
    for output, tensor in outputs.items():
        for layer in flow.last(tensor):
            heads.setdefault(layer, []).append(output)
    # An answer that was computed outside of torch cannot be followed.
    heads = heads or {name: [] for name in list(runs)[-1:]}
    examples = len(next(iter(inputs.values())))
    return [
        replace(
            _facts(name, run, examples, owners[name]),
            is_output=name in heads,
            output_of=", ".join(heads.get(name, [])) if len(outputs) > 1 else "",
        )
        for name, run in runs.items()
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


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every layer's result from operator to operator, by the memory it lies in.

    Memory is known by a weak reference: it lets go of the numbers and keeps the name, so that a
    pass needs no more than it does unwatched, and no name is ever given twice.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers: list[str] = []  # of each run
        self._before: list[frozenset[int]] = []  # of each run, the runs whose results it read
        # memory -> the runs it was computed from
        self._from: dict[StorageWeakRef, frozenset[int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _strided((args, kwargs)), _strided(result)
        runs = frozenset[int]().union(*(self._from.get(_memory(each), ()) for each in given))
        # An operator that returns nothing writes into what it is given.
        for each in made or (given if func._schema.is_mutable else ()):
            self._from[_memory(each)] = runs
        return result

    def ran(self, layer: str, output: Tensor) -> None:
        """A layer answered: whatever reads the answer reads this run's, and not what it read."""
        self._before.append(self._from.get(_memory(output), frozenset()))
        self._from[_memory(output)] = frozenset({len(self._layers)})
        self._layers.append(layer)

    def last(self, output: Tensor) -> list[str]:
        """Layers on the way to an output whose results no other layer on that way reads."""
        way: set[int] = set()
        ahead = set(self._from.get(_memory(output), ()))
        while ahead:
            way |= ahead
            ahead = {run for each in ahead for run in self._before[each]} - way
        read = {run for each in way for run in self._before[each]}
        return list(dict.fromkeys(self._layers[run] for run in sorted(way - read)))


def _strided(values: Any) -> list[Tensor]:
    """The dense tensors in it that hold any numbers."""
    found = (value for value in tree_leaves(values) if isinstance(value, Tensor))
    return [value for value in found if value.layout is torch.strided and value.numel()]


def _memory(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


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


@dataclass(frozen=True)
class _Owner:
    """Whose weight a layer uses: the layer itself or the first that ran; and who else holds it."""

    layer: str
    shared: str


def _owners(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, _Owner]:
    """For every layer that ran, the one whose weight it uses; ties are by parameter."""
    aliases = {
        f"{alias}.weight": name
        for name, module in modules.items()
        for alias, other in model.named_modules(remove_duplicate=False)
        if other is module
    }
    held = {alias: names for names in holders(model) for alias in names}
    memory: dict[int, str] = {}
    found: dict[str, _Owner] = {}
    for name, module in modules.items():
        weight = module.weight
        if not isinstance(weight, nn.Parameter) or f"{name}.weight" not in held:
            raise UnsupportedError(
                f"layer {name} computes its weight from other tensors (weight norm, a "
                "parametrization): bake it in before edgekd takes the network"
            )
        names = held[f"{name}.weight"]
        first = memory.setdefault(weight.untyped_storage().data_ptr(), name)
        if first != name and f"{first}.weight" not in names:
            raise UnsupportedError(
                f"layers {first} and {name} hold one piece of memory as two parameters: give both "
                "the same nn.Parameter, so that they train as one weight"
            )
        others = [other for other in names if other not in aliases]
        found[name] = _Owner(first, others[0] if others else "")
    return found


def _facts(name: str, run: _Runs, examples: int, owner: _Owner) -> Facts:
    weight = run.module.weight
    assert isinstance(weight, nn.Parameter)
    n, k = weight.shape[0], weight[0].numel()
    return Facts(
        layer=name,
        type="Linear" if isinstance(run.module, nn.Linear) else "Conv2d",
        n=n,
        k=k,
        k_group=weight.shape[1],
        groups=getattr(run.module, "groups", 1),
        macs=sum(run.answered) * k // examples,
        is_output=False,
        runs=len(run.answered),
        tied_to="" if owner.layer == name else owner.layer,
        shared=owner.shared,
    )
