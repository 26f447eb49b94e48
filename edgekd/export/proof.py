"""What is proven about both graphs before they ship, read from the files themselves.

The graphs are compared with the student's own weights and scales, exactly: a mistake made on the
way (a scale of another layer, a lost mask, a weight transposed once too often) would otherwise be
in both graphs alike, and in the network they are compared with. An INT8 layer is proven on its
integers, and what stays in float, in the float16 graph, on its rounding. A layer that is 2:4 but
stays in float has no integers; the exporter may rename, transpose or scale its weight per output
(a folded batch norm), but never moves a zero: it is found by its zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekd import qdq, quant, sparse24
from edgekd.data import Arrays
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.export import integers
from edgekd.export.integers import Use
from edgekd.qdq import QuantizedWeight


def prove(path: Path, half: Path, rows: Sequence[LayerPlan], student: Arrays) -> list[LayerPlan]:
    """Prove both files against the plan and the student.

    Args:
        path: The float32 graph.
        half: The float16 graph.
        rows: The layer plan.
        student: ``<layer>.weight`` float32, and of planned layers ``<layer>.weight_scale``,
            ``<layer>.input_scale`` and ``<layer>.mask`` as the student stores them.

    Returns:
        The plan with each INT8 layer's node in the float16 graph; the nodes of one that runs
        several times are joined by " + ".

    Raises:
        ContractError: A planned layer is not INT8 or not exactly 2:4 in a file, the files differ,
            or they hold other integers or scales than the student.
    """
    int8 = {row.layer: row.runs for row in rows if row.int8}
    sparse = [row.layer for row in rows if row.sparse and row.int8]
    found: list[list[QuantizedWeight]] = []
    floats: list[dict[str, str]] = []
    for file in (path, half):
        model = qdq.load(file)
        try:
            weights = integers.assign(qdq.quantized_weights(model), _uses(rows, student))
            integers.prove(weights, int8, sparse)
        except ContractError as error:  # which of the two is wrong says where to look
            raise ContractError(f"export: {file.name}: {error}") from error
        _float_sparse(file.name, model, rows, student)
        found.append(weights)
        floats.append(_floats(model))
        del model  # or two are held while the next is read
    integers.same_integers(*found)
    _same_floats(*floats)
    for weight in found[0]:
        _same_as_student(weight, student)
    nodes: dict[str, list[str]] = {}
    for weight in found[1]:
        nodes.setdefault(weight.layer, []).append(weight.node)
    return [replace(row, node=" + ".join(nodes.get(row.layer, []))) for row in rows]


def _floats(model: onnx.ModelProto) -> dict[str, str]:
    """SHA-256 of every float initializer as float16 holds it, by name.

    The conversion to float16 may move what float16 holds badly: subnormal numbers count as 0 here,
    and numbers beyond its range as its ends.
    """
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            ends = np.finfo(np.float16)
            value = numpy_helper.to_array(tensor)
            rounded = np.asarray(np.clip(value, ends.min, ends.max), np.float16)
            rounded = np.where(np.abs(rounded) < ends.smallest_normal, np.float16(0), rounded)
            shape = str(rounded.shape).encode()
            found[tensor.name] = hashlib.sha256(shape + rounded.tobytes()).hexdigest()
    return found


def _same_floats(path: Mapping[str, str], half: Mapping[str, str]) -> None:
    """No weight or constant that stays in float differs by more than its rounding to float16."""
    differ = sorted(name for name, digest in half.items() if path.get(name, digest) != digest)
    if differ:
        raise ContractError(
            f"export: {differ[0]} is not ort.onnx's rounded to float16 in trt.onnx ({len(differ)} "
            "such tensors): export both from one student; converted once more, report it"
        )


def _uses(rows: Sequence[LayerPlan], student: Arrays) -> list[Use]:
    """The planned INT8 layers; those of equal weights (a tie, or chance) have equal contents."""
    uses = []
    for row in [row for row in rows if row.int8]:
        scale = student[f"{row.layer}.weight_scale"]
        q = quant.quantize(student[f"{row.layer}.weight"], scale, axis=0)
        held = integers.content(_matrix(q), scale)
        uses.append(Use(row.layer, held, float(student[f"{row.layer}.input_scale"]), row.runs))
    return uses


def _same_as_student(weight: QuantizedWeight, student: Arrays) -> None:
    layer = weight.layer
    scale = student[f"{layer}.weight_scale"]
    q = quant.quantize(student[f"{layer}.weight"], scale, axis=0)
    wanted: Mapping[str, NDArray[Any]] = {
        "integers": _matrix(q),
        "scales": scale,
        "input scale": student[f"{layer}.input_scale"],
    }
    got = {"integers": weight.integers, "scales": weight.scale, "input scale": weight.input_scale}
    for what, expected in wanted.items():
        differ = np.ravel(np.asarray(got[what])) != np.ravel(expected)
        if differ.any():
            raise ContractError(
                f"export: the {what} of {layer} in the graph differ from the student's in "
                f"{int(differ.sum())} of {differ.size} values, expected 0: the graph is not this "
                "student's"
            )


def _float_sparse(
    name: str, model: onnx.ModelProto, rows: Sequence[LayerPlan], student: Arrays
) -> None:
    """Each layer that is 2:4 in float has a weight in the graph with no nonzero off its mask."""
    planned = [row for row in rows if row.sparse and not row.int8]
    if not planned:
        return
    floats = qdq.float_weights(model)
    stored = [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name.removesuffix(".weight") in floats
    ]
    for row in planned:
        mask = _matrix(student[f"{row.layer}.mask"])
        if not any(_keeps_to(mask, array) for array in stored):
            raise ContractError(
                f"export: {name} holds no weight of {row.layer} ({row.n} x {row.k}, planned for "
                "2:4 in float) whose nonzeros keep to its mask: the mask was lost on the way"
            )


def _keeps_to(mask: NDArray[np.bool_], array: NDArray[Any]) -> bool:
    forms = [_matrix(array), array.T] if array.ndim == 2 else [_matrix(array)]
    return any(
        form.shape == mask.shape and not (form[~mask] != 0).any() and bool(form.any())
        for form in forms
    )


def _matrix(array: NDArray[Any]) -> NDArray[Any]:
    """A weight as [n, k], k as 2:4 runs."""
    return sparse24.conv_as_matrix(array) if array.ndim == 4 else array


def structure_hash(path: Path) -> str:
    """SHA-256 (hex) of a graph without its weights: initializers count by name, dtype and shape.

    Two students trained by different means ship the same structure, or a training aid was left in.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        facts = (tensor.name, tensor.data_type, list(tensor.dims))
        tensor.Clear()
        tensor.name, tensor.data_type = facts[0], facts[1]
        tensor.dims.extend(facts[2])
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
