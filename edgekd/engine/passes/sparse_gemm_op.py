"""The ONNX operator ``edgekd::SparseGemmS8``, and what it means in standard operators.

A node carries the weights in their canonical 2:4 form (`sparse24.compress`), never in the order a
kernel reads them, so the file does not depend on a kernel's layout. Beside the node travels a
function body: a runtime that has no kernel inlines it and computes the same numbers. What they are
is said by `edgekd.sparse_gemm`: equal for ``s32``, ``s8`` and ``f16``; at most one step apart after
GELU, whose erf every runtime has its own.

    X         int8[..., k]
    values    int8[n, k/2]     of `sparse24.compress`
    metadata  int32[n, k/32]   of `sparse24.compress`
    scale     float32[n]       input scale x weight scale; not given for s32
    bias      float32[n]       not given for s32
    extra     float32[]        scale of an int8 output; for f16 the residual, float16[..., n]
    Y         int32, float16 or int8 [..., n], as the attribute `output` says

One function cannot give four types, so there is one for each output and for the residual, told
apart by ONNX's `overload` (IR version 10, onnx 1.16, ONNX Runtime 1.20 was run): the operator's
name stays one, which is what a TensorRT plugin is looked up by. Its parser before 10.7 prefers a
function to a plugin of that name (TensorRT #4113) and does not know overloads, so what such a
parser is given must have its functions removed.

Two things in the body are there for exactness. The product is of *unsigned* bytes, both sides
moved by 128 and given zero points of 128: without VNNI, x86 multiplies unsigned by signed bytes in
pairs that saturate at 16 bits (ONNX Runtime's quantization guide, "When and why do I need to try
U8U8?"). And nothing divides a negative word: metadata is made unsigned by a modulus first. Weights
are constants, so a runtime that folds constants decompresses them once, on loading.

Left out: checks of the metadata, which ONNX has no operator for (`sparse24.decompress` has them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgekd.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

DOMAIN, OP_TYPE, VERSION = "edgekd", "SparseGemmS8", 1
IR_VERSION = 10  # the first with overloads
MIN_OPSET = 13  # ReduceSum takes its axes as an input from here on
# An output of sparse_gemm, and f16 once more, with a residual.
Overload = Literal["s32", "f16", "f16_residual", "s8", "gelu_s8"]

_SUMS = """
    modulus = Constant <value = int64 {4294967296}> ()
    powers = Constant <value = int64[16] {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144,
        1048576, 4194304, 16777216, 67108864, 268435456, 1073741824}> ()
    four = Constant <value = int64 {4}> ()
    columns = Constant <value = int64[4] {0, 1, 2, 3}> ()
    by_word = Constant <value = int64[3] {0, -1, 1}> ()
    by_kept = Constant <value = int64[4] {0, -1, 2, 1}> ()
    by_row = Constant <value = int64[2] {0, -1}> ()
    kept_axis = Constant <value = int64[1] {2}> ()
    none = Constant <value = int32 {0}> ()
    offset = Constant <value = int32 {128}> ()
    zero_point = Constant <value = uint8 {128}> ()

    signed = Cast <to = 7> (metadata)
    words = Mod (signed, modulus)
    words3 = Reshape (words, by_word)
    shifted = Div (words3, powers)
    indices = Mod (shifted, four)
    indices4 = Reshape (indices, by_kept)
    here = Equal (indices4, columns)
    wide = Cast <to = 6> (values)
    wide4 = Reshape (wide, by_kept)
    spread = Where (here, wide4, none)
    groups = ReduceSum <keepdims = 0> (spread, kept_axis)
    weights = Reshape (groups, by_row)
    weights_up = Add (weights, offset)
    weights_u8 = Cast <to = 2> (weights_up)
    weights_t = Transpose <perm = [1, 0]> (weights_u8)
    x = Cast <to = 6> (X)
    x_up = Add (x, offset)
    x_u8 = Cast <to = 2> (x_up)
"""
_PRODUCT = "{} = MatMulInteger (x_u8, weights_t, zero_point, zero_point)"
_SCALED = """
    acc_float = Cast <to = 1> (acc)
    scaled = Mul (acc_float, scale)
    y = Add (scaled, bias)
"""
_GELU = """
    root = Constant <value = float {1.4142135381698608}> ()
    one = Constant <value = float {1.0}> ()
    half = Constant <value = float {0.5}> ()
    y_root = Div (y, root)
    erf = Erf (y_root)
    erf_one = Add (erf, one)
    y_erf = Mul (y, erf_one)
    gelu = Mul (y_erf, half)
"""
_ZERO = "    zero = Constant <value = int8 {0}> ()\n"
_ENDS: dict[Overload, tuple[str, str]] = {
    "s32": ("", _PRODUCT.format("Y")),
    "f16": ("scale, bias", f"{_PRODUCT.format('acc')}{_SCALED}    Y = Cast <to = 10> (y)"),
    "f16_residual": (
        "scale, bias, extra",
        f"{_PRODUCT.format('acc')}{_SCALED}    residual = Cast <to = 1> (extra)\n"
        "    sum = Add (y, residual)\n    Y = Cast <to = 10> (sum)",
    ),
    "s8": (
        "scale, bias, extra",
        f"{_PRODUCT.format('acc')}{_SCALED}{_ZERO}    Y = QuantizeLinear (y, extra, zero)",
    ),
    "gelu_s8": (
        "scale, bias, extra",
        f"{_PRODUCT.format('acc')}{_SCALED}{_GELU}{_ZERO}"
        "    Y = QuantizeLinear (gelu, extra, zero)",
    ),
}


def function(overload: Overload, opset: int) -> onnx.FunctionProto:
    """The body of the operator for one output.

    Args:
        overload: The output, and whether there is a residual.
        opset: Of the graph it is added to; ONNX wants both to agree.

    Raises:
        UnsupportedError: The opset is too old.
    """
    from onnx import parser

    if opset < MIN_OPSET:
        raise UnsupportedError(
            f"{DOMAIN}::{OP_TYPE}: the graph has opset {opset}, expected at least {MIN_OPSET}:"
            " export it again with a newer one"
        )
    more, end = _ENDS[overload]
    inputs = ", ".join(name for name in ("X, values, metadata", more) if name)
    return parser.parse_function(
        f'<domain: "{DOMAIN}", overload: "{overload}", opset_import: ["" : {opset}]>\n'
        f"{OP_TYPE} <output> ({inputs}) => (Y)\n{{{_SUMS}    {end}\n}}"
    )


def node(overload: Overload, inputs: list[str], output: str, name: str) -> onnx.NodeProto:
    """A node of the operator.

    Args:
        overload: Which function stands for it; its attribute `output` names what it writes.
        inputs: As many tensor names, in the module's order, as the overload has.
        output: Name of the tensor it gives.
        name: Of the node.
    """
    from onnx import helper

    made: onnx.NodeProto = helper.make_node(
        OP_TYPE, inputs, [output], name, domain=DOMAIN, output=overload.removesuffix("_residual")
    )
    made.overload = overload
    return made


def add_functions(model: onnx.ModelProto) -> None:
    """Give a model what its nodes name and it lacks: functions, and what a checker wants then."""
    from onnx import helper

    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    wanted = {each.overload for each in model.graph.node if each.domain == DOMAIN}
    if not wanted:
        return
    held = {each.overload for each in model.functions if each.domain == DOMAIN}
    model.functions.extend(function(each, opset) for each in _ENDS if each in wanted - held)
    if all(each.domain != DOMAIN for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    model.ir_version = max(model.ir_version, IR_VERSION)
