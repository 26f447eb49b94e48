"""Layers whose channels may be renumbered or rescaled together: found by watching a real pass.

A producer (Linear, Conv2d, or LayerNorm) makes channels; where they reach only the reduction axis
of some consumers (Linear, Conv2d), and each channel meets nothing but itself on the way, a channel
can be moved or multiplied in the producer and moved or divided back in the consumers. Channel
permutation (`edgekd.distill.permute`) and equalisation both live off such pairs.

Every tensor of the pass is followed by the channels it holds and on which axis. What keeps them: an
operator that torch tags as pointwise, with operands of one producer or such as have one value for
all channels; an operator that moves or pools elements, which is asked by giving it the channels'
numbers; and a module with parameters of its own for every channel (batch norm, a depthwise
convolution), which is listed as lying `between`. Whatever else reads a tensor (a sum with the
residual stream, a softmax, attention's products, the network's own output) ends the pair.

That is structure, and no proof: a Linear by class may compute something else. Who changes a network
by a pair compares its answers before and after, and undoes it where they differ.

What leaves a block is in no pair either: it is compared with the teacher's, channel by channel.

Left out: the residual stream, which many layers write and all read; values and output projection of
attention, whose channels are bound to heads; two producers that meet in a product (gated units).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from edgekd import models, structure
from edgekd.data import IO
from edgekd.distill import watch
from edgekd.weights import holders

# Operators of one tensor that move, repeat, average or pad elements: they may keep channels whole.
_MOVES = frozenset({
    "_adaptive_avg_pool2d", "_to_copy", "_unsafe_view", "alias", "avg_pool2d", "clone",
    "constant_pad_nd", "detach", "expand", "max_pool2d_with_indices", "mean", "permute", "roll",
    "select", "slice", "squeeze", "transpose", "unsqueeze", "upsample_nearest2d", "view",
})  # fmt: skip
# Pointwise, and not tagged so by torch 2.13.
_UNTAGGED = frozenset({"_prelu_kernel", "hardswish", "hardswish_"})


@dataclass(frozen=True)
class Pair:
    """Channels from where they are made to where they are summed over; all by module name.

    Attributes:
        producer: Linear or Conv2d (ungrouped), whose output rows are the channels, or a LayerNorm,
            whose weight and bias have one value for each.
        consumers: Linear or Conv2d (ungrouped), in forward order; the channels are axis 1 of their
            weights. They read these channels only, and nobody else does.
        between: Batch norms and depthwise convolutions on the way, in forward order; the channels
            are axis 0 of every parameter and buffer of theirs that has one.
        channels: How many.
    """

    producer: str
    consumers: tuple[str, ...]
    between: tuple[str, ...]
    channels: int


def pairs(model: nn.Module, inputs: models.Tensors, io: IO) -> list[Pair]:
    """Every pair of a network, in the order in which the producers ran.

    Modules that run more than once and parameters that several modules hold are in no pair.

    Args:
        model: The plain float network; left as it was.
        inputs: One example or more.
        io: Names of the outputs.
    """
    trace = _Trace(model)
    trace.returned(watch.traced(model, inputs, io, trace))
    own = {held[0] for held in holders(model) if len(held) == 1}
    blocks = structure.blocks(model)

    def usable(name: str) -> bool:
        parameters = model.get_submodule(name).named_parameters(recurse=False)
        return trace.runs[name] == 1 and all(f"{name}.{each}" in own for each, _ in parameters)

    return [
        Pair(stream.producer, tuple(stream.consumers), tuple(stream.between), stream.channels)
        for stream in trace.streams
        if stream.whole
        and stream.consumers
        and not _leaves_a_block(stream, blocks)
        and all(map(usable, (stream.producer, *stream.consumers, *stream.between)))
    ]


@dataclass
class _Stream:
    """Channels of one producer in one run, as far as they were followed."""

    producer: str
    channels: int
    consumers: list[str] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    whole: bool = True


def _leaves_a_block(stream: _Stream, blocks: Sequence[str]) -> bool:
    """Whether channels are made in a block and read outside of it."""
    for block in (f"{name}." for name in blocks):
        made = any(f"{name}.".startswith(block) for name in (stream.producer, *stream.between))
        if made and not all(f"{name}.".startswith(block) for name in stream.consumers):
            return True
    return False


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the channels of every producer through a pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.streams: list[_Stream] = []
        self.runs: Counter[str] = Counter()
        # Tensor, stream and axis counted from the end, by the tensor's identity; kept alive.
        self._held: dict[int, tuple[Tensor, _Stream, int]] = {}
        self._inside = 0
        self._layer_norms = {
            id(module.weight): name
            for name, module in model.named_modules()
            if isinstance(module, nn.LayerNorm) and isinstance(module.weight, nn.Parameter)
        }
        self._handles = []
        for name, module in model.named_modules():
            if isinstance(module, (*structure.LAYERS, _BatchNorm)):
                self._handles.append(
                    module.register_forward_pre_hook(
                        lambda module, args, kwargs, name=name: self._enters(
                            name, module, args[0] if args else kwargs.get("input")
                        ),
                        with_kwargs=True,
                        prepend=True,
                    )
                )
                self._handles.append(
                    module.register_forward_hook(
                        lambda module, args, kwargs, output, name=name: self._leaves(
                            name, module, args[0] if args else kwargs.get("input"), output
                        ),
                        with_kwargs=True,
                    )
                )

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def returned(self, outputs: Mapping[str, Tensor]) -> None:
        """Whoever calls the network reads its outputs."""
        memory = {tensor.untyped_storage().data_ptr() for tensor in outputs.values()}
        for tensor, stream, _axis in self._held.values():
            if tensor.untyped_storage().data_ptr() in memory:
                stream.whole = False

    def _enters(self, name: str, module: nn.Module, given: Any) -> None:
        self._inside += 1
        if self._inside > 1:
            return
        self.runs[name] += 1
        _tensor, stream, axis = self._held.get(id(given), (None, None, 0))
        if stream is None or _keeps_channels(module):
            return
        if axis == _input_axis(module, given) and getattr(module, "groups", 1) == 1:
            stream.consumers.append(name)
        else:
            stream.whole = False

    def _leaves(self, name: str, module: nn.Module, given: Any, output: Any) -> None:
        self._inside -= 1
        if self._inside or not isinstance(output, Tensor):
            return
        axis = _channel_axis(module, output)
        if _keeps_channels(module):
            _tensor, stream, before = self._held.get(id(given), (None, None, 0))
            if stream is not None:
                stream.between.append(name)
                stream.whole &= before == axis
                self._hold(output, stream, axis)
        elif getattr(module, "groups", 1) == 1:
            self._starts(name, output, axis)

    def _starts(self, name: str, output: Tensor, axis: int) -> None:
        self.streams.append(_Stream(name, output.shape[axis]))
        self._hold(output, self.streams[-1], axis)

    def _hold(self, tensor: Tensor, stream: _Stream, axis: int) -> None:
        self._held[id(tensor)] = (tensor, stream, axis)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._inside:
            return result
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        held = [self._held[id(each)] for each in read if id(each) in self._held]
        name = func.overloadpacket.__name__
        axis = None
        if held:
            if torch.Tag.pointwise in func.tags or name in _UNTAGGED:
                axis = self._pointwise(read)
            elif name in _MOVES and len(read) == 1:
                axis = _moved(func, args, kwargs, *held[0])
            if axis is None:
                for _tensor, stream, _axis in held:
                    stream.whole = False
            else:
                self._hold(_first(result), held[0][1], axis)
        if name == "native_layer_norm" and len(args) > 2 and id(args[2]) in self._layer_norms:
            norm = self._layer_norms[id(args[2])]
            self.runs[norm] += 1
            if len(args[1]) == 1:
                self._starts(norm, _first(result), -1)
        return result

    def _pointwise(self, read: Sequence[Tensor]) -> int | None:
        """The axis of the channels, where every operand has them there or does not tell them."""
        held = [self._held[id(each)] for each in read if id(each) in self._held]
        _tensor, stream, axis = held[0]
        if any(other is not stream or at != axis for _, other, at in held):
            return None
        plain = (each for each in read if id(each) not in self._held)
        if any(each.ndim >= -axis and each.shape[axis] != 1 for each in plain):
            return None
        return axis


def _keeps_channels(module: nn.Module) -> bool:
    """Whether a module takes each channel by itself, with parameters for each."""
    if isinstance(module, _BatchNorm):
        return True
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    return depthwise and module.out_channels == module.in_channels


def _input_axis(module: nn.Module, given: Tensor) -> int:
    return 1 - given.ndim if isinstance(module, nn.Conv2d) else -1


def _channel_axis(module: nn.Module, output: Tensor) -> int:
    return 1 - output.ndim if isinstance(module, (nn.Conv2d, _BatchNorm)) else -1


def _first(result: Any) -> Tensor:
    found = result if isinstance(result, Tensor) else result[0]
    assert isinstance(found, Tensor)
    return found


def _moved(
    func: Any, args: Any, kwargs: Any, tensor: Tensor, stream: _Stream, axis: int
) -> int | None:
    """Where an operator puts the channels, found by giving it their numbers; None if nowhere."""
    if stream.channels < 2:
        return None
    # In no order, so that one that sorts is not taken for one that leaves things where they are.
    order = torch.randperm(stream.channels, generator=torch.Generator().manual_seed(0)) + 1.0
    numbers = order.to(tensor.device).reshape(-1, *[1] * (-axis - 1))
    marked = numbers.expand(tensor.shape).clone()
    swapped = tree_map(lambda each: marked if each is tensor else each, (args, kwargs))
    result = _first(func(*swapped[0], **swapped[1])).float()
    for at in range(-result.ndim, 0):
        if result.shape[at] != stream.channels:
            continue
        wanted = order.to(tensor.device).reshape(-1, *[1] * (-at - 1))
        same = torch.isclose(result, wanted, rtol=1e-4, atol=0.0)
        if bool(same.any()) and bool((same | (result == 0)).all()):  # zeros are padding's
            return at
    return None
