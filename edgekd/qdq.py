"""Read quantized weights out of an ONNX graph and prove promises on the file that ships.

A weight reaches its MatMul, Gemm or Conv as ``float -> Q -> DQ`` or as ``int8 -> DQ``, with
Transpose, Reshape, Cast and Identity anywhere between. Instead of following the channel axis
through these steps by rules, the few steps are *run*, on the weight and on its scales spread out
to one per element. What arrives at the node is laid out as [n, k], and all scales of a row must
agree. So a weight stored as [k, n], transB and an axis of any sign need no case of their own.

Float weights must be snapped: the initializer equals q * scale in its own dtype. Then q is what
any runtime computes, however it divides: the quotient is within 0.1 of an integer in float16 too.

Left out: weights inside If or Loop bodies or behind other operators (a proof calls them missing),
and repair: this module reads and refuses, it never rewrites.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd import quant, sparse24
from edgekd.errors import ArtifactError, ContractError

if TYPE_CHECKING:
    import onnx

QDQ = _Q, _DQ = "QuantizeLinear", "DequantizeLinear"
PASS_THROUGH = ("Transpose", "Reshape", "Cast", "Identity")
_PART = re.compile(r"(.+)@(\d+):(\d+)")  # rows of a layer that is split into several products


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """One INT8 weight [n, k] as its node sees it, k the reduction axis."""

    layer: str  # initializer name, a trailing ".weight" removed
    node: str  # the consuming node, by its first output where it has no name; parts by " + "
    op_type: str  # MatMul, Gemm or Conv
    integers: npt.NDArray[np.int8]  # [n, k], k contiguous; a Conv as sparse24.conv_as_matrix
    shape: tuple[int, ...]  # of the initializer in the file
    scale: npt.NDArray[np.float32]  # [n]
    input_scale: float | None  # of the Q/DQ on the other operand, None where that is float
    channels: int  # run along k that 2:4 groups must not cross: a Conv's input channels, else k
    folded: bool  # an int8 initializer, which can cost TensorRT the INT8 of a packed QKV


def quantized_weights(model: onnx.ModelProto) -> list[QuantizedWeight]:
    """Read every quantized MatMul, Gemm and Conv weight.

    Weights called ``<layer>@a:b`` are rows a to b of one layer, and are read as that layer.

    Args:
        model: A checked model with its external data loaded, see `load`.

    Returns:
        One entry per consuming node, in graph order.

    Raises:
        ContractError: A zero point is nonzero or not int8, an activation scale is per-channel,
            Q and its DQ disagree, scales vary along k, or a float weight is not snapped.
    """
    graph = _Graph(model)
    _check_symmetric(graph)
    return _joined([_read(graph, *weight) for weight in _weights(graph) if _qdq(weight[-1])])


def layer_of(weight: str) -> str:
    """The layer that an initializer's name belongs to, without its rows."""
    name = weight.removesuffix(".weight")
    part = _PART.fullmatch(name)
    return part[1] if part else name


def _joined(weights: Sequence[QuantizedWeight]) -> list[QuantizedWeight]:
    """The same weights, each layer that is split into rows as one, where its first rows stood."""
    parts: dict[str, list[tuple[int, int, QuantizedWeight]]] = {}
    for weight in weights:
        if match := _PART.fullmatch(weight.layer):
            parts.setdefault(match[1], []).append((int(match[2]), int(match[3]), weight))
    whole: list[QuantizedWeight] = []
    for weight in weights:
        layer = layer_of(weight.layer)
        if layer == weight.layer:
            whole.append(weight)
        elif layer in parts:
            whole.append(_in_order(layer, sorted(parts.pop(layer), key=lambda part: part[:2])))
    return whole


def _in_order(layer: str, parts: Sequence[tuple[int, int, QuantizedWeight]]) -> QuantizedWeight:
    """The parts of one layer, one below the other."""
    starts, ends = [start for start, _, _ in parts], [end for _, end, _ in parts]
    weights = [weight for _, _, weight in parts]
    inputs = {weight.input_scale for weight in weights}
    rows = [len(weight.integers) for weight in weights]
    if [0, *ends[:-1]] != starts or rows != [e - s for s, e in zip(starts, ends, strict=True)]:
        raise ContractError(
            f"{layer}: its parts hold the rows {[f'{s}:{e}' for s, e, _ in parts]}, expected each"
            f" row once from 0 on: export it again"
        )
    if len(inputs) > 1:
        raise ContractError(
            f"{layer}: its parts have {len(inputs)} input scales, {sorted(map(str, inputs))},"
            " expected 1: they multiply one input"
        )
    return replace(
        weights[0],
        layer=layer,
        node=" + ".join(weight.node for weight in weights),
        integers=np.concatenate([weight.integers for weight in weights]),
        shape=(sum(weight.shape[0] for weight in weights), *weights[0].shape[1:]),
        scale=np.concatenate([weight.scale for weight in weights]),
    )


def float_weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Find the MatMul, Gemm and Conv weights that are not quantized: what falls back to float.

    Args:
        model: A checked model with its external data loaded, see `load`.

    Returns:
        Layer name to shape in the file, in graph order.
    """
    graph = _Graph(model)
    return {
        name.removesuffix(".weight"): graph.constant(name).shape
        for _, _, name, path in _weights(graph)
        if not _qdq(path)
    }


def load(path: str | Path) -> onnx.ModelProto:
    """Load a model that passes ONNX's own checks, with its external data.

    TensorRT's parser answers True to an empty or garbage file and gives a network of zero layers;
    the file is refused here instead. It is checked by path, since a model with external data may
    be larger than the 2 GiB one protobuf can hold. ONNX itself refuses external data that are
    absent, cut short, linked or outside the model's directory.

    Args:
        path: The ``.onnx`` file.

    Returns:
        The model, external data read in.

    Raises:
        ArtifactError: The file is missing, empty, not ONNX or cut short, has no nodes, fails
            ``onnx.checker.check_model(full_check=True)``, or its external data are refused.
    """
    import onnx

    path = Path(path)
    size_bytes = path.stat().st_size if path.is_file() else 0
    if not size_bytes:
        found = "the file is empty" if path.is_file() else "no such file"
        raise ArtifactError(f"{path}: {found}, expected an ONNX model: export it again")
    invalid = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
    except (*invalid, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{path}: its {size_bytes} bytes are not a valid ONNX model: cut short, of another"
            f" kind, or without its data beside it ({reason}): copy it again or export it again"
        ) from error
    if not model.graph.node:
        raise ArtifactError(f"{path}: the graph has 0 nodes, expected a network: export it again")
    return model


class _Graph:
    """Who makes each tensor, and which tensors are constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self._producer = {name: node for node in self.nodes for name in node.output}
        self.constants: dict[str, Any] = {
            node.output[0]: node.attribute[0] for node in self.nodes if node.op_type == "Constant"
        }
        self.constants.update({tensor.name: tensor for tensor in model.graph.initializer})

    def trace(self, name: str) -> tuple[str, list[onnx.NodeProto]]:
        """Walk back through Q, DQ and pass-through operators: where it ends, and the path."""
        path: list[onnx.NodeProto] = []
        while (node := self._producer.get(name)) and node.op_type in (_Q, _DQ, *PASS_THROUGH):
            path.append(node)
            name = node.input[0]
        return name, path[::-1]

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Value of an initializer or of a Constant node's output."""
        from onnx import AttributeProto, helper, numpy_helper

        value = self.constants[name]
        if not isinstance(value, AttributeProto):
            return numpy_helper.to_array(value)
        if value.name == "value":
            return numpy_helper.to_array(value.t)
        dtype = np.float32 if "float" in value.name else np.int64
        return np.asarray(helper.get_attribute_value(value), dtype)

    def parameter(self, node: onnx.NodeProto, index: int, what: str) -> npt.NDArray[Any]:
        """Value of a scale, a zero point or a target shape, which must be constant."""
        name, path = self.trace(node.input[index])
        if name not in self.constants or _qdq(path):
            raise ContractError(
                f"{_name(node)}: its {what} is computed at run time, expected a constant: export"
                " with static quantization and static weight shapes"
            )
        value = self.constant(name)
        for step in path:
            value = self.run(step, value)
        return value

    def scale(self, node: onnx.NodeProto) -> tuple[npt.NDArray[Any], int]:
        """Scale of a Q or DQ, a scalar or [n], and the axis of the latter."""
        scale = self.parameter(node, 1, "scale")
        return scale.reshape(()) if scale.size == 1 else scale, int(_attribute(node, "axis", 1))

    def run(self, step: onnx.NodeProto, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Run a pass-through operator."""
        from onnx import helper

        if step.op_type == "Transpose":
            return np.transpose(array, _attribute(step, "perm", None))
        if step.op_type == "Reshape":
            lengths = self.parameter(step, 1, "shape").tolist()
            return array.reshape([n if n else array.shape[i] for i, n in enumerate(lengths)])
        if step.op_type == "Cast":
            return array.astype(helper.tensor_dtype_to_np_dtype(_attribute(step, "to", 0)))
        return array


def _weights(graph: _Graph) -> Iterator[tuple[onnx.NodeProto, int, str, list[onnx.NodeProto]]]:
    """Each node with a constant weight: node, its weight's input, the constant, the path."""
    # x @ W is the rule, W @ x exists; a Conv's weight is always its second input.
    sides = {"MatMul": (1, 0), "Gemm": (1, 0), "Conv": (1,)}
    for node in graph.nodes:
        for side in sides.get(node.op_type, ()):
            name, path = graph.trace(node.input[side])
            if name in graph.constants:
                yield node, side, name, path
                break


def _read(
    graph: _Graph, node: onnx.NodeProto, side: int, name: str, path: list[onnx.NodeProto]
) -> QuantizedWeight:
    layer = name.removesuffix(".weight")
    stored = graph.constant(name)
    q, spread = _run_weight(graph, stored, path, layer)
    integers, scales = (_as_matrix(node, side, layer, array) for array in (q, spread))
    if (scales != scales[:, :1]).any():
        raise ContractError(
            f"{_name(node)}: the scales of {layer} vary along the reduction axis k, expected one"
            f" for each of the {scales.shape[0]} outputs: quantize along the output axis"
        )
    inputs = _qdq(graph.trace(node.input[1 - side])[1])
    return QuantizedWeight(
        layer=layer,
        node=_name(node),
        op_type=node.op_type,
        integers=integers,
        shape=stored.shape,
        scale=scales[:, 0].copy(),
        input_scale=float(graph.scale(inputs[-1])[0]) if inputs else None,
        channels=q.shape[1] if node.op_type == "Conv" else integers.shape[1],
        folded=stored.dtype == np.int8,
    )


def _run_weight(
    graph: _Graph, stored: npt.NDArray[Any], path: list[onnx.NodeProto], layer: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Run a weight's path: its integers where they arrive, and their scales in the same shape."""
    value = stored
    arrived: list[npt.NDArray[Any]] = []  # integers and scales, once there are any
    for step in path:
        if step.op_type not in (_Q, _DQ):
            value = graph.run(step, value)
            if step.op_type != "Cast":
                arrived = [graph.run(step, array) for array in arrived]
            continue
        where = f"{_name(step)}, weight {layer}"
        scale, axis = graph.scale(step)
        try:
            scales = np.broadcast_to(quant.broadcast_scale(scale, value.shape, axis), value.shape)
            if step.op_type == _Q:
                # What float16 holds was rounded to it, also where a Cast widened it before Q.
                file_dtype = np.float16 if stored.dtype == np.float16 else value.dtype
                q = quant.quantize(value, scale, axis)
                _check_snapped(value.astype(file_dtype), q, scales)
                value = q
            else:
                q, value = value, quant.dequantize(value, scale, axis)
        except ContractError as error:
            raise ContractError(f"{where}: {error}") from error
        if arrived and (arrived[1] != scales).any():
            raise ContractError(
                f"{where}: Q and DQ disagree on the scale of {int((arrived[1] != scales).sum())} of"
                f" {scales.size} weights, expected 0: give both one scale and one axis"
            )
        arrived = [q, scales]
    return arrived[0], arrived[1]


def _check_snapped(
    value: npt.NDArray[Any], q: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> None:
    """Raise unless the value is q * scale, rounded to the value's own dtype."""
    with np.errstate(over="ignore"):
        snapped = (q * scales).astype(value.dtype)
    differ = snapped != value
    if differ.any():
        gap = np.abs(snapped.astype(np.float64) - value.astype(np.float64)).max()
        raise ContractError(
            f"{int(differ.sum())} of {differ.size} weights are not snapped, they differ from"
            f" q x scale by up to {gap:.6g}, expected 0: ship quant.snap(weights, scale)"
        )


def _check_symmetric(graph: _Graph) -> None:
    """Raise unless all Q and DQ are symmetric INT8 and those of activations per-tensor."""
    for node in _qdq(graph.nodes):
        if found := _wrong_zero_point(graph, node):
            raise ContractError(
                f"{_name(node)}: its zero point is {found}, expected int8 0: quantize"
                " symmetrically to signed INT8"
            )
        scale = graph.parameter(node, 1, "scale")
        if scale.size != 1 and graph.trace(node.input[0])[0] not in graph.constants:
            raise ContractError(
                f"{_name(node)}: an activation has {scale.size} scales, expected 1: quantize"
                " activations per tensor, TensorRT takes no other form"
            )


def _wrong_zero_point(graph: _Graph, node: onnx.NodeProto) -> str:
    """What a Q or DQ has instead of int8 zero; empty where it has that."""
    if len(node.input) > 2 and node.input[2]:
        zero_point = graph.parameter(node, 2, "zero point")
        # int32 is how some tools store a bias; it has no range to get wrong.
        types = (np.int8, np.int32) if node.op_type == _DQ else (np.int8,)
        right = zero_point.dtype in types and not zero_point.any()
        return "" if right else f"{zero_point.dtype} {np.unique(zero_point)[:4].tolist()}"
    # Without a zero point ONNX makes Q's output uint8 unless output_dtype is INT8, which is 3.
    output_dtype = _attribute(node, "output_dtype", 0)
    if node.op_type == _DQ or output_dtype == 3:
        return ""
    return f"of type {output_dtype}" if output_dtype else "absent, which means uint8"


def _as_matrix(
    node: onnx.NodeProto, side: int, layer: str, array: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Lay a weight out as [n, k], k contiguous, as the node multiplies it."""
    if node.op_type == "Conv":
        return np.ascontiguousarray(sparse24.conv_as_matrix(array))
    if array.ndim != 2:
        raise ContractError(
            f"{_name(node)}: weight {layer} has shape {list(array.shape)}, expected 2-D: keep"
            " batched constants in float"
        )
    transposed = _attribute(node, ("transA", "transB")[side], 0)
    return np.ascontiguousarray(array if side == transposed else array.T)


def _qdq(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [node for node in nodes if node.op_type in (_Q, _DQ)]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    values = (helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(values, default)


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]
