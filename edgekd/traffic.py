"""What a forward pass multiplies and moves: the counts a prediction is made of.

A real input goes through the network once. Hooks count the numbers each layer reads and writes, and
every operator below the modules is watched for attention: a product of two activations (Q K^T)
whose result reaches another product of two activations (P V) through element-wise, normalising and
shape operators alone. `edgekd.export.attention` counts the same on the exported graph, by the same
definition, so a plan can be held against the graph. Class names are never read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgekd.data import IO
from edgekd.models import Tensors, forward

LAYERS = (nn.Linear, nn.Conv2d)
# Fewest features of a head that a fused attention kernel took (TensorRT-RTX 1.7, measured).
FUSED_MIN = 9
_PRODUCTS = {"bmm", "baddbmm", "mm", "addmm", "matmul", "dot", "mv", "addmv"}
_WEIGHTED = {
    "convolution",
    "_convolution",
    "linear",
    "embedding",
    "mkldnn_rnn_layer",
    "lstm",
    "gru",
}


@dataclass(frozen=True)
class Moved:
    """Numbers that a layer reads and writes for one example, weights not counted."""

    read: int
    written: int


@dataclass(frozen=True)
class AttentionBlock:
    """Two products with a normalisation between them, for one example.

    Attributes:
        macs: Multiply-accumulates of both products.
        elements: Numbers in Q, K, V and the result: what a fused kernel reads and writes.
        k: Features of a head's queries and keys.
        n: Features of a head's values.
    """

    macs: int
    elements: int
    k: int
    n: int

    @property
    def unfused(self) -> str:
        """Why no kernel fuses it; empty where one should.

        TensorRT-RTX 1.7 fused heads of 9 to 256 features, with a bias and without; none of 4 or 8,
        and none whose values have another number of features than its keys.
        """
        if self.k == self.n:
            if self.k >= FUSED_MIN:
                return ""
            return (
                f"not fused: a head has {self.k} features, fused kernels take at least {FUSED_MIN}"
                "; it runs as two products and a softmax"
            )
        return (
            f"not fused: a head's keys have {self.k} features and its values {self.n}, fused "
            "kernels take equal ones; it runs as two products and a softmax"
        )


@dataclass(frozen=True)
class Traffic:
    """One pass through a network.

    Attributes:
        layers: Module name -> what it moves.
        attention: Attention blocks in forward order.
        operators: Names of all ATen operators that ran, for example ``bmm``.
    """

    layers: dict[str, Moved]
    attention: list[AttentionBlock]
    operators: frozenset[str]


def watch(model: nn.Module, inputs: Tensors, io: IO) -> Traffic:
    """Pass inputs through a network and count.

    Args:
        model: The plain float network; left as it was.
        inputs: One example or more; counts are for one.
        io: Names of the outputs.
    """
    examples = len(next(iter(inputs.values())))
    moved: dict[str, Moved] = {}
    handles = [
        module.register_forward_hook(_count(name, moved, examples), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    flow = _Flow({p.untyped_storage().data_ptr() for p in model.parameters()}, examples)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), flow:
            forward(model, inputs, io)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Traffic(moved, flow.attention, frozenset(flow.operators))


def forward_ns(model: nn.Module, inputs: Tensors, io: IO, passes: int = 3) -> int:
    """The shortest of a few forward passes, in nanoseconds; the first one only warms up."""
    training = model.training
    model.eval()
    times = []
    with torch.no_grad():
        for _ in range(passes + 1):
            started = time.perf_counter_ns()
            forward(model, inputs, io)
            times.append(time.perf_counter_ns() - started)
    model.train(training)
    return min(times[1:])


def _count(name: str, moved: dict[str, Moved], examples: int) -> Any:
    def hook(_module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        given = next(value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        before = moved.get(name, Moved(0, 0))
        read, written = given.numel() // examples, output.numel() // examples
        moved[name] = Moved(before.read + read, before.written + written)

    return hook


@dataclass(frozen=True)
class _Product:
    """A product of two activations: its size, and the numbers it reads and writes."""

    macs: int
    read: tuple[int, ...]
    written: int
    k: int


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the results of products of two activations from operator to operator.

    By the memory they lie in, known by a weak reference: it lets go of the numbers and keeps the
    name, so that a pass needs no more than it does unwatched, and no name is ever given twice.
    """

    def __init__(self, parameters: set[int], examples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention: list[AttentionBlock] = []
        self.operators: set[str] = set()
        self._parameters, self._examples = parameters, examples
        # memory -> the product that its numbers came from
        self._open: dict[StorageWeakRef | None, _Product] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operators.add(name)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        came = next((found for each in given if (found := self._open.get(_memory(each)))), None)
        if "scaled_dot_product" in name:
            self._fused(given[:3], made[0])
            came = None
        elif name in _WEIGHTED or (name in _PRODUCTS and self._weighs(given)):
            came = None
        elif name in _PRODUCTS:
            came = self._product(name, given, made[0], came)
        if name == "_native_multi_head_attention":
            came = None
        for memory in map(_memory, made):
            self._open.pop(memory, None)
            if came is not None and memory is not None:
                self._open[memory] = came
        return result

    def _weighs(self, given: Sequence[Tensor]) -> bool:
        return any(each.untyped_storage().data_ptr() in self._parameters for each in given)

    def _product(
        self, name: str, given: Sequence[Tensor], made: Tensor, came: _Product | None
    ) -> _Product | None:
        """The product itself where it may open a block; None where it closes one."""
        # The first argument of addmm and baddbmm is added, not multiplied.
        left, right = given[-2:] if name.startswith(("add", "badd")) else given[:2]
        macs = made.numel() * left.shape[-1] // self._examples
        sizes = (left.numel() // self._examples, right.numel() // self._examples)
        written = made.numel() // self._examples
        if came is None:
            return _Product(macs, sizes, written, left.shape[-1])
        # What goes into the second product beside the first one's result is V.
        scores = came.written
        first = sizes[0] >= scores or _memory(left) in self._open
        elements = sum(came.read) + sizes[first] + written
        features = made.shape[-1 if first else -2]
        self.attention.append(AttentionBlock(came.macs + macs, elements, came.k, features))
        return None

    def _fused(self, given: Sequence[Tensor], made: Tensor) -> None:
        query, key, value = given
        scores = query.numel() * key.shape[-2]
        read = query.numel() + key.numel() + value.numel()
        block = AttentionBlock(
            (scores + query.shape[-2] * value.numel()) // self._examples,
            (read + made.numel()) // self._examples,
            key.shape[-1],
            value.shape[-1],
        )
        self.attention.append(block)


def _memory(tensor: Tensor) -> StorageWeakRef | None:
    """What a dense tensor lies in; None for others, whose numbers are not followed."""
    if tensor.layout is not torch.strided:
        return None
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
