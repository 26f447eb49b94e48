"""The layer table of an engine, and the proof that it runs what was planned.

An engine's output cannot show in which precision it ran: a weight that TensorRT widened to fp16
before the multiplication gives bit for bit the answer of one multiplied in INT8. So the proof reads
the engine's own layer table. A planned linear is INT8 where a gemm or a convolution holds an *Int8
weight* and takes an *Int8 input*. The input alone proves nothing (a fused cast widens it), and an
Int8 constant alone proves nothing either (a pointwise kernel may hold it only to widen it).

Two texts carry the table: TensorRT-RTX prints it in its verbose build log under ``Layers:``, and
TensorRT has the engine inspector's JSON (developer guide, "Engine Inspector", and the 10.x to 11.x
migration guide). A layer lists the ONNX nodes it came from as ``[ONNX Layer: name]``, and planned
linears are found by that exact name, so each needs a name of its own. Left out: strides, formats
and tensor names, which neither the proof nor the report reads.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekd.errors import ArtifactError, ContractError, ToolchainError

NOT_SHOWN = "not shown"

_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_DUMP_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>.*?), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"(?:TacticName: (?P<tactic>.*?)|Para.*?), StreamId: -?\d+, (?:EventId: \d+, )?"
    r"Metadata: (?P<metadata>.*)"
)
_DUMP_TENSOR = re.compile(r"\{ Name: .*?, Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_DTYPE = re.compile(
    r"\b(BFloat16|BF16|Bool|Float|FP16|FP32|FP4|FP8|Half|Int32|Int4|Int64|Int8|UInt8)\b"
)
_DTYPE_ALIAS = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16"}
# TensorRT 10 lists a compiled layer's constants among its inputs, told apart only by their names.
_CONSTANT_NAME = re.compile(r"dconst|_const(ant)?|_(alpha|beta)\b")
_SOFTMAX_KERNEL = re.compile(r"softmax|Maxr\w*Exp\w*Sum", re.IGNORECASE)
_FUSED_ATTENTION_KERNEL = re.compile("mha", re.IGNORECASE)
_MULTIPLIES = re.compile(r"(?i)gemm|correlation|((cask|cu)\w*)?(convolution|matrix_?multiply)")
_INT8_KERNEL = "i8i32"  # operands and accumulator, as in sm80_xmma_gemm_i8f16_i8i32_f32_...


@dataclass(frozen=True)
class Tensor:
    """An operand: TensorRT's name of its type (Int8, Half, Float) and its sizes, -1 if dynamic."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements, 0 where a size is dynamic."""
        return 0 if any(size < 0 for size in self.dims) else math.prod(self.dims)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's name; merged ONNX nodes are joined by ``+``.
        type: Its kind: gemm, correlation, kgen (a generated pointwise kernel), runtime_fusion, ...
        onnx_nodes: Names of the ONNX nodes it computes at least a part of.
        inputs: Tensors that other layers produce, the activation first.
        outputs: Tensors it produces.
        constants: Weights, biases and scales it holds.
        tactic: The kernel; TensorRT-RTX chooses gemms on the device and shows a stub here.
    """

    name: str
    type: str
    onnx_nodes: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    tactic: str

    @property
    def multiplies(self) -> bool:
        """Whether it is a matrix multiplication or a convolution of TensorRT's own."""
        return bool(_MULTIPLIES.fullmatch(self.type))

    @property
    def is_fused_attention(self) -> bool:
        """Whether one kernel computes a whole attention: both products and the softmax."""
        return bool(_FUSED_ATTENTION_KERNEL.search(self.tactic))


@dataclass(frozen=True)
class Planned:
    """What must run in INT8: its name in the model, its ONNX node, elements of its weight."""

    layer: str
    node: str
    weight_count: int


@dataclass(frozen=True)
class Ran:
    """What one planned linear became.

    Attributes:
        layer: Its name in the model.
        node: Its ONNX node.
        engine_layer: The engine layer that multiplies; empty where no layer names the node.
        type: That layer's type; ``kgen + gemm`` where a kgen held the weight and widened it first.
        weight_dtype: Type of the weight as it enters the multiplication.
        weight_count: Elements of that weight, with all that was merged into it; 0 if not shown.
        input_dtype: Type of the activation.
        output_dtype: Type of the result.
        int8: Whether this proves the planned INT8 multiplication.
    """

    layer: str
    node: str
    engine_layer: str
    type: str
    weight_dtype: str
    weight_count: int
    input_dtype: str
    output_dtype: str
    int8: bool


def to_json(layers: Sequence[EngineLayer]) -> str:
    """Write a layer table as the text of an Engine artifact's ``layers.json``."""
    return json.dumps([asdict(layer) for layer in layers], indent=1) + "\n"


def from_json(text: str) -> list[EngineLayer]:
    """Read what `to_json` wrote, else `ArtifactError`."""
    try:
        return [
            EngineLayer(
                name=row["name"],
                type=row["type"],
                tactic=row["tactic"],
                inputs=_tensors(row["inputs"]),
                outputs=_tensors(row["outputs"]),
                constants=_tensors(row["constants"]),
                onnx_nodes=tuple(row["onnx_nodes"]),
            )
            for row in json.loads(text)
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"the layer table is not the JSON that build writes ({type(error).__name__}: {error}): "
            "build the engine again"
        ) from error


def parse_dump(log_text: str) -> list[EngineLayer]:
    """Read the table that TensorRT-RTX prints in its verbose log, at DETAILED verbosity.

    The section ends at its first empty line; the layers are listed in the order they run.

    Raises:
        ToolchainError: There is no such section, more than one, or a line has another form.
    """
    sections = re.split(r"^Layers:\n", log_text, flags=re.MULTILINE)[1:]
    if len(sections) != 1:
        raise ToolchainError(
            f'the build log holds {len(sections)} "Layers:" sections, expected 1: build with '
            "profiling verbosity DETAILED and a logger that takes VERBOSE messages"
        )
    return [_parse_dump_line(line) for line in sections[0].split("\n\n")[0].splitlines()]


def parse_inspector(json_text: str) -> list[EngineLayer]:
    """Read the engine inspector's JSON of TensorRT 10.x or 11.x, at DETAILED verbosity.

    Raises:
        ToolchainError: The text is not such JSON, or lists bare layer names.
    """
    try:
        rows = json.loads(json_text)["Layers"]
    except (ValueError, TypeError, KeyError) as error:
        raise ToolchainError(
            f'the engine inspector\'s text has no JSON list "Layers" ({type(error).__name__}): '
            "this TensorRT writes another form, report its version"
        ) from error
    if any(not isinstance(row, dict) for row in rows):
        raise ToolchainError(
            "the engine inspector lists bare layer names: build with profiling verbosity DETAILED"
        )
    return [_parse_inspector_row(row) for row in rows]


def ran(layers: Sequence[EngineLayer], planned: Sequence[Planned]) -> list[Ran]:
    """Say for every planned linear what the engine runs for it, whether or not that is INT8.

    Where TensorRT merged several into one layer, its Int8 weight must be as large as all of theirs
    together; else none of them counts. Rows come in the order of ``planned``.
    """
    rows = [_row(linear, layers) for linear in planned]
    needed: dict[str, int] = defaultdict(int)
    for row, linear in zip(rows, planned, strict=True):
        needed[row.engine_layer] += linear.weight_count
    return [
        replace(row, int8=False)
        if row.int8 and 0 < row.weight_count < needed[row.engine_layer]
        else row
        for row in rows
    ]


def prove(
    layers: Sequence[EngineLayer],
    planned: Sequence[Planned],
    attention_blocks: int,
    where: str,
    unfused: int = 0,
) -> list[Ran]:
    """Prove that every planned linear runs in INT8 and every attention block in one kernel.

    That is: as many fused kernels as blocks, no softmax or product of two activations left over.

    Args:
        layers: The engine's layer table.
        planned: The linears and convolutions that must run in INT8.
        attention_blocks: Attention blocks of the model; 0 where its softmaxes are its own affair.
        where: What was built, to begin the message with.
        unfused: Further blocks that stay two products and a softmax each.

    Returns: The rows of `ran`.

    Raises:
        ContractError: Names every linear and attention layer that fails, and how it ran.
    """
    problems, rows = [], ran(layers, planned)
    failed = [_ran_as(row) for row in rows if not row.int8]
    if failed:
        problems.append(
            f"{len(failed)} of {len(rows)} planned linears are not an INT8 gemm or convolution "
            f"(Int8 weight and Int8 input): {'; '.join(failed)}. Keep the weight in float behind "
            "QuantizeLinear and DequantizeLinear, or take the layer out of the plan"
        )
    fused = sum(layer.is_fused_attention for layer in layers)
    left = _unfused_attention(layers, planned)
    if not attention_blocks:  # a softmax may then be the model's own; two activations may not meet
        left = [each for each in left if not each.startswith("softmax")]
    if fused > attention_blocks:
        problems.append(
            f"{fused} fused attention kernels, but {attention_blocks} attention blocks were "
            "recognised in the graph: write attention as MatMul, Softmax, MatMul"
        )
    elif fused != attention_blocks or len(left) > 3 * unfused:
        problems.append(
            f"{fused} fused attention kernels, expected {attention_blocks}, and left unfused: "
            f"{', '.join(left) or 'nothing'}. Fusing needs one Softmax, fp16 around INT8 linears "
            "and heads of at least 9 features"
        )
    if problems:
        raise ContractError(f"{where}: {'; and '.join(problems)}")
    return rows


def _row(linear: Planned, layers: Sequence[EngineLayer]) -> Ran:
    """The engine layer that multiplies for one planned linear."""
    parts = [layer for layer in layers if linear.node in layer.onnx_nodes]
    if not parts:
        return Ran(linear.layer, linear.node, "", "", NOT_SHOWN, 0, NOT_SHOWN, NOT_SHOWN, False)

    def likeness(layer: EngineLayer) -> tuple[bool, bool, bool]:
        weighted = _weight(layer, linear.weight_count) is not None
        return layer.multiplies, weighted and bool(layer.inputs), linear.node in layer.name

    layer = max(parts, key=likeness)
    weight = _weight(layer, linear.weight_count) or Tensor(NOT_SHOWN, (0,))
    holders = [
        part.type
        for part in parts
        if part is not layer and any(c.count >= linear.weight_count for c in part.constants)
    ]
    input_dtype = layer.inputs[0].dtype if layer.inputs else NOT_SHOWN
    return Ran(
        layer=linear.layer,
        node=linear.node,
        engine_layer=layer.name,
        type=" + ".join([*holders, layer.type]),
        weight_dtype=weight.dtype,
        weight_count=weight.count,
        input_dtype=input_dtype,
        output_dtype=layer.outputs[0].dtype if layer.outputs else NOT_SHOWN,
        int8=layer.multiplies and weight.dtype == "Int8" and input_dtype == "Int8",
    )


def _weight(layer: EngineLayer, weight_count: int) -> Tensor | None:
    """The weight as multiplied: a constant, or made of one; else a kernel's name tells."""
    operands = layer.constants + layer.inputs[1:]
    weights = [tensor for tensor in operands if tensor.count >= weight_count]
    if weights:  # any of them may be the one that is multiplied: the widest speaks for all
        return next((tensor for tensor in weights if tensor.dtype != "Int8"), weights[0])
    if not layer.constants and layer.multiplies and _INT8_KERNEL in layer.tactic:
        return Tensor("Int8", (0,))
    return None


def _ran_as(row: Ran) -> str:
    if not row.engine_layer:
        return f"{row.layer} is in no engine layer (no layer names its ONNX node {row.node})"
    return (
        f"{row.layer} ran as {row.type} with weight {row.weight_dtype}[{row.weight_count}] "
        f"and input {row.input_dtype}"
    )


def _unfused_attention(layers: Sequence[EngineLayer], planned: Sequence[Planned]) -> list[str]:
    """Softmax kernels, and multiplications of two activations, outside fused attention."""
    nodes = {linear.node for linear in planned}
    found = []
    for layer in layers:
        if layer.is_fused_attention:
            continue
        # The name says what a generated kernel does; its ONNX nodes only what it was made from,
        # and a kernel that merely pads the operands of fused attention is made from Softmax too.
        if _SOFTMAX_KERNEL.search(f"{layer.type} {layer.tactic}"):
            found.append(f"softmax in {layer.name}")
        elif (
            layer.multiplies
            and len(layer.inputs) > 1
            and all(constant.count <= 1 for constant in layer.constants)
            and nodes.isdisjoint(layer.onnx_nodes)
        ):
            found.append(f"batched gemm {layer.name} ({layer.inputs[0].dtype})")
    return found


def _parse_dump_line(line: str) -> EngineLayer:
    match = _DUMP_LAYER.fullmatch(line)
    if match is None or len(_DUMP_TENSOR.findall(line)) != line.count("{ Name: "):
        raise ToolchainError(
            f'a line of the "Layers:" section has an unknown form, "{line[:120]}": this '
            "TensorRT-RTX prints another table than 1.7, install tensorrt-rtx==1.7.*"
        )
    return EngineLayer(
        name=match["name"],
        type=match["type"],
        onnx_nodes=tuple(_ONNX_NODE.findall(match["metadata"])),
        inputs=_dumped(match["inputs"]),
        outputs=_dumped(match["outputs"]),
        constants=_dumped(match["constants"] or ""),
        tactic=match["tactic"] or "",
    )


def _dumped(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(dtype, tuple(int(size) for size in dims.split(",") if size))
        for dims, dtype in _DUMP_TENSOR.findall(text)
    )


def _parse_inspector_row(row: Mapping[str, Any]) -> EngineLayer:
    inputs = row.get("Inputs", [])
    constants = row.get("Constants")
    if constants is None:
        constants = [t for t in inputs if _CONSTANT_NAME.search(t.get("Name", ""))]
        inputs = [t for t in inputs if t not in constants]
    # A convolution's own record gives its weight as type and count.
    weights = row.get("Weights")
    held = [Tensor(_dtype(weights["Type"]), (int(weights["Count"]),))] if weights else []
    return EngineLayer(
        name=row["Name"],
        type=row.get("LayerType", NOT_SHOWN),
        onnx_nodes=tuple(_ONNX_NODE.findall(row.get("Metadata", ""))),
        inputs=_inspected(inputs),
        outputs=_inspected(row.get("Outputs", [])),
        constants=(*held, *_inspected(constants)),
        tactic=row.get("TacticName", ""),
    )


def _inspected(tensors: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            _dtype(str(tensor.get("Datatype") or tensor.get("Format/Datatype", ""))),
            tuple(int(size) for size in tensor.get("Dimensions", ())),
        )
        for tensor in tensors
    )


def _dtype(text: str) -> str:
    """TensorRT's short name of a type out of "Half" or "Row major linear FP16 format"."""
    match = _DTYPE.search(text)
    return _DTYPE_ALIAS.get(match[1], match[1]) if match else NOT_SHOWN


def _tensors(rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(row["dtype"], tuple(row["dims"])) for row in rows)
