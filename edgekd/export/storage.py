"""Write a graph as one file, or with its weights beside it where one file cannot hold them.

A protobuf holds at most 2 GiB. Larger graphs keep their weights in ``<name>.onnx.data``, one file
in the same directory, named in the graph by that bare name: an artifact can then be moved whole,
and what names a file elsewhere is refused by ONNX's own reader.

Either way weights are written one after the other. The usual way holds a graph three times over:
as it is, as a protobuf, and as that one's bytes. But a message's bytes are those of its fields in
a row (protobuf encoding specification, "message structure"), so a weight can be written as soon as
it is read, and none need be held.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

# What a protobuf holds, less room for the nodes.
PROTOBUF_BYTES = 2**31 - 2**24
SMALL_BYTES = 8192  # what shape inference and autocast read stays in the graph

# Numbers of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data in onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def save(model: ir.Model, path: Path, limit_bytes: int | None = None) -> None:
    """Write a graph; its weights go to ``<path>.data`` where together they exceed the limit.

    Args:
        model: The graph; its weights may lie in memory or in files other than those written.
        path: File to write.
        limit_bytes: Weights above this many bytes go to a file of their own; default: what one
            protobuf can hold.
    """
    limit = PROTOBUF_BYTES if limit_bytes is None else limit_bytes
    if weight_bytes(model) > limit:
        beside = f"{path.name}.data"
        ir.save(model, path, external_data=beside, size_threshold_bytes=SMALL_BYTES)
        return
    initializers = model.graph.initializers
    large = {
        name: value
        for name, value in initializers.items()
        if value.const_value is not None and value.const_value.nbytes > SMALL_BYTES
    }
    try:
        for name in large:
            del initializers[name]
        proto = ir.to_proto(model)
    finally:
        for value in large.values():
            model.graph.register_initializer(value)
    nodes = proto.graph.SerializeToString()
    proto.ClearField("graph")
    tensors = [value.const_value for value in large.values() if value.const_value is not None]
    heads = [_head(tensor) for tensor in tensors]
    size = len(nodes) + sum(
        len(head) + tensor.nbytes for head, tensor in zip(heads, tensors, strict=True)
    )
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _field(_GRAPH, size) + nodes)
        for head, tensor in zip(heads, tensors, strict=True):
            file.write(head)
            file.write(tensor.tobytes())


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers together."""
    values = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in values if tensor is not None)


def files(path: Path) -> list[Path]:
    """The files of a graph that `save` wrote: itself, and its weights where they lie beside it."""
    beside = path.with_name(f"{path.name}.data")
    return [path, beside] if beside.is_file() else [path]


def release() -> None:
    """Free what nothing needs any more and give it back to the system.

    Each step of an export takes as much as all weights. A graph's nodes and values name each other,
    so Python frees it late; and glibc keeps what is freed.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _head(tensor: ir.TensorProtocol) -> bytes:
    """An initializer's bytes up to its data."""
    facts: bytes = onnx.TensorProto(
        name=tensor.name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy())
    ).SerializeToString()
    facts += _field(_RAW_DATA, tensor.nbytes)
    return _field(_INITIALIZER, len(facts) + tensor.nbytes) + facts


def _field(number: int, size: int) -> bytes:
    """What stands before a field of `size` bytes: its number and wire type 2, and the size."""
    return b"".join(bytes(_varint(value)) for value in (number << 3 | 2, size))


def _varint(value: int) -> Iterator[int]:
    """Seven bits a byte, the lowest first, the top bit where more follow."""
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
