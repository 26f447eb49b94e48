"""The layer table, read from real TensorRT-RTX dumps in tests/golden/layers.

Each golden is the ``Layers:`` section of a real SM80 build; its first two lines say of what.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgekd.engine.layers import (
    EngineLayer,
    Planned,
    Tensor,
    from_json,
    parse_dump,
    parse_inspector,
    prove,
    ran,
    to_json,
)
from edgekd.errors import ArtifactError, ContractError, ToolchainError

GOLDEN = Path(__file__).parents[1] / "golden" / "layers"

VIT = [
    Planned(f"vit.layers.{i}.{name}", f"/vit/layers.{i}/{name.replace('.', '/')}/MatMul", count)
    for i in (0, 1)
    for name, count in [
        ("attention.q_proj", 64 * 64),
        ("attention.k_proj", 64 * 64),
        ("attention.v_proj", 64 * 64),
        ("attention.o_proj", 64 * 64),
        ("mlp.fc1", 64 * 256),
        ("mlp.fc2", 256 * 64),
    ]
]
PACKED = [
    Planned(f"blocks.{i}.{name}", f"/blocks.{i}/{name.replace('.', '/')}/MatMul", count)
    for i in (0, 1)
    for name, count in [
        ("attn.qkv", 64 * 192),
        ("attn.proj", 64 * 64),
        ("fc1", 64 * 256),
        ("fc2", 256 * 64),
    ]
]
CONV = [
    Planned("conv1", "/conv1/Conv", 64 * 64 * 3 * 3),
    Planned("down", "/down/Conv", 128 * 64),
]


def golden(name: str) -> list[EngineLayer]:
    return parse_dump((GOLDEN / f"{name}.txt").read_text())


def layer(
    name: str,
    kind: str = "gemm",
    nodes: tuple[str, ...] = ("/fc/MatMul",),
    inputs: tuple[Tensor, ...] = (Tensor("Int8", (-1, 64)),),
    constants: tuple[Tensor, ...] = (Tensor("Int8", (64, 64)),),
    tactic: str = "",
) -> EngineLayer:
    return EngineLayer(name, kind, nodes, inputs, (Tensor("Half", (-1, 64)),), constants, tactic)


FC = [Planned("fc", "/fc/MatMul", 64 * 64)]


def test_dump_gives_each_layer_its_nodes_operands_and_kernel() -> None:
    table = golden("conv_fp16")
    assert [row.type for row in table].count("correlation") == 3
    conv1 = table[4]
    assert conv1 == EngineLayer(
        name="/conv1/Conv_myl0_4",
        type="correlation",
        onnx_nodes=(
            "/conv1/Conv",
            "/conv1/DequantizeLinear",
            "/conv1/DequantizeLinear_1",
            "/conv1/QuantizeLinear_1",
        ),
        inputs=(Tensor("Int8", (-1, 64, 16, 16)),),
        outputs=(Tensor("Float", (-1, 64, 16, 16)),),
        constants=(
            Tensor("Int8", (64, 64, 3, 3)),
            Tensor("Float", (1, 64, 1, 1)),
            Tensor("Float", (1, 64, 1, 1)),
        ),
        tactic="__myelin_CASK_STUB",
    )
    assert conv1.constants[0].count == 36864
    assert conv1.inputs[0].count == 0  # dynamic


def test_dump_lists_every_layer_of_the_section() -> None:
    counts = {name: len(golden(name)) for name in ("vit_fp16", "vit_fp32", "packed_qkv_folded")}
    assert counts == {"vit_fp16": 30, "vit_fp32": 40, "packed_qkv_folded": 30}


def test_dump_without_a_table_says_how_to_get_one() -> None:
    with pytest.raises(ToolchainError, match=r'holds 0 "Layers:" sections, expected 1.*DETAILED'):
        parse_dump("Building an engine\nDone\n")


def test_two_tables_are_refused() -> None:
    text = (GOLDEN / "conv_fp16.txt").read_text()
    with pytest.raises(ToolchainError, match=r'holds 2 "Layers:" sections, expected 1'):
        parse_dump(text + text)


@pytest.mark.parametrize(("old", "new"), [("LayerType: gemm", "Kind: gemm"), ("Datatype", "Type")])
def test_a_line_of_another_form_is_shown(old: str, new: str) -> None:
    text = (GOLDEN / "vit_fp16.txt").read_text()
    with pytest.raises(ToolchainError, match=r'unknown form, "Name: .*another table than 1\.7'):
        parse_dump(text.replace(old, new))


def test_int8_vit_is_proven() -> None:
    rows = prove(golden("vit_fp16"), VIT, 2, "demo")
    assert [row.layer for row in rows] == [linear.layer for linear in VIT]
    assert all(row.int8 for row in rows)
    q, k, v, _, fc1, _ = rows[:6]
    assert q.engine_layer == k.engine_layer == v.engine_layer  # one gemm runs all three
    assert (q.type, q.weight_dtype, q.weight_count) == ("gemm", "Int8", 3 * 64 * 64)
    assert fc1.engine_layer == "/vit/layers.0/mlp/fc1/MatMul_myl0_12"
    assert (fc1.weight_count, fc1.input_dtype, fc1.output_dtype) == (16384, "Int8", "Half")


def test_folded_packed_qkv_is_caught() -> None:
    with pytest.raises(ContractError) as caught:
        prove(golden("packed_qkv_folded"), PACKED, 2, "demo")
    message = str(caught.value)
    assert message.startswith("demo: 2 of 8 planned linears are not an INT8 gemm")
    for block in (0, 1):
        assert (
            f"blocks.{block}.attn.qkv ran as kgen + runtime_fusion with weight Half[12288] "
            "and input Int8"
        ) in message
    assert "proj" not in message
    assert "fused attention" not in message
    assert "float behind QuantizeLinear" in message


def test_rows_are_given_for_what_failed_too() -> None:
    rows = ran(golden("packed_qkv_folded"), PACKED)
    assert [row.layer for row in rows if not row.int8] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert rows[0].engine_layer.startswith("__myl_CastMulFc")


def test_unfused_attention_is_caught_although_all_linears_are_int8() -> None:
    table = golden("vit_fp32")
    assert all(row.int8 for row in ran(table, VIT))
    with pytest.raises(ContractError) as caught:
        prove(table, VIT, 2, "demo")
    message = str(caught.value)
    assert message.startswith("demo: 0 fused attention kernels, expected 2, and left unfused: ")
    assert message.count("softmax in ") == 2
    assert message.count("batched gemm ") == 4
    assert "batched gemm /vit/layers.1/attention/MatMul_1_myl0_30 (Float)" in message
    assert message.endswith("fp16 around INT8 linears and heads of at least 9 features")


def test_every_failure_is_in_one_sentence() -> None:
    planned = [*VIT, Planned("head", "/classifier/Gemm", 640), Planned("lost", "/lost/MatMul", 64)]
    with pytest.raises(ContractError) as caught:
        prove(golden("vit_fp16"), planned, 3, "demo")
    message = str(caught.value)
    assert "2 of 14 planned linears" in message
    assert "head ran as runtime_fusion with weight Half[640] and input Half" in message
    assert "lost is in no engine layer (no layer names its ONNX node /lost/MatMul)" in message
    assert "and 2 fused attention kernels, expected 3, and left unfused: nothing" in message


def test_int8_convolutions_are_proven_and_their_wide_output_is_told() -> None:
    rows = prove(golden("conv_fp16"), CONV, 0, "demo")
    assert [(r.type, r.weight_count, r.output_dtype) for r in rows] == [
        ("correlation", 36864, "Float"),
        ("correlation", 8192, "Float"),
    ]


def test_an_fp16_convolution_is_caught() -> None:
    stem = Planned("stem", "/stem/Conv", 64 * 3 * 3 * 3)
    with pytest.raises(ContractError, match=r"stem ran as correlation with weight Half\[2304\]"):
        prove(golden("conv_fp16"), [*CONV, stem], 0, "demo")


def test_a_merged_weight_smaller_than_its_linears_proves_none_of_them() -> None:
    def shrink(row: EngineLayer) -> EngineLayer:
        weight = Tensor("Int8", (64, 128))
        merged = "q_proj/MatMul_myl" in row.name and "layers.0" in row.name
        return dataclasses.replace(row, constants=(weight, *row.constants[1:])) if merged else row

    rows = ran([shrink(row) for row in golden("vit_fp16")], VIT)
    assert [row.layer for row in rows if not row.int8] == [
        f"vit.layers.0.attention.{name}" for name in ("q_proj", "k_proj", "v_proj")
    ]


@pytest.mark.parametrize(
    ("table", "how"),
    [
        (
            [layer("a", inputs=(Tensor("Half", (-1, 64)),))],
            r"gemm with weight Int8\[4096\] and inp",
        ),
        ([layer("a", constants=(Tensor("Half", (64, 64)),))], r"gemm with weight Half\[4096\]"),
        ([layer("a", kind="kgen")], r"kgen with weight Int8\[4096\] and input Int8"),
        ([layer("a", constants=(Tensor("Int8", (63, 64)),))], r"gemm with weight not shown\[0\]"),
        (
            [layer("a", constants=(), tactic="sm80_xmma_gemm_f16f16_f16f16_f16")],
            r"gemm with weight not",
        ),
    ],
)
def test_anything_less_than_int8_by_int8_is_caught(table: list[EngineLayer], how: str) -> None:
    with pytest.raises(ContractError, match=f"1 of 1 planned linears .*fc ran as {how}"):
        prove(table, FC, 0, "demo")


def test_an_integer_kernels_name_counts_where_no_constants_are_listed() -> None:
    tactic = "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize64x64x64_stage3"
    (row,) = prove([layer("a", constants=(), tactic=tactic)], FC, 0, "demo")
    assert (row.weight_dtype, row.weight_count) == ("Int8", 0)


def test_json_keeps_the_whole_table() -> None:
    table = golden("vit_fp16")
    text = to_json(table)
    assert from_json(text) == table
    assert json.loads(text)[8]["tactic"].startswith("_gemm_mha_v2_")


@pytest.mark.parametrize("text", ["", "{}{", "[1]", '[{"name": "a"}]', '{"name": "a"}'])
def test_another_json_is_refused(text: str) -> None:
    with pytest.raises(
        ArtifactError, match=r"not the JSON that build writes.*build the engine again"
    ):
        from_json(text)


# The inspector texts below are written from NVIDIA's documentation and public issue reports, not
# captured: no GPU with TensorRT was at hand. 11.x lists constants apart; 10.x lists them among the
# inputs of a compiled layer, and gives a convolution's weight as type and count.
INSPECTOR_11 = """{"Layers": [
 {"Name": "/fc/MatMul_myl0_2", "LayerType": "gemm",
  "Inputs": [{"Name": "__mye1_myl0", "Dimensions": [-1,64], "Datatype": "Int8",
              "Format": "(Linear) Row major linear format"}],
  "Constants": [{"Name": "__mye2_dconst_myl0", "Dimensions": [64,64], "Datatype": "Int8"},
                {"Name": "__mye3/fc/MatMul_alpha_myl0", "Dimensions": [1], "Datatype": "Float"}],
  "Outputs": [{"Name": "__mye4_myl0", "Dimensions": [-1,64], "Datatype": "Half"}],
  "TacticName": "sm80_xmma_sparse_gemm_i8f16_i8i32_f32_tn_n", "StreamId": 0,
  "Metadata": "[ONNX Layer: /fc/MatMul]\\u001e[ONNX Layer: /fc/DequantizeLinear]"}],
 "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Half"}]}"""
INSPECTOR_10 = """{"Layers": [
 {"Name": "/fc/MatMul_myl0_2", "LayerType": "gemm",
  "Inputs": [{"Name": "__mye1", "Dimensions": [8,64], "Format/Datatype": "Int8"},
             {"Name": "__mye595_dconst", "Dimensions": [64,64], "Format/Datatype": "Int8"},
             {"Name": "__mye574/fc/MatMul_alpha", "Dimensions": [1], "Format/Datatype": "Float"}],
  "Outputs": [{"Name": "__mye4", "Dimensions": [8,64], "Format/Datatype": "Half"}],
  "TacticName": "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n", "StreamId": 0,
  "Metadata": "[ONNX Layer: /fc/MatMul]"},
 {"Name": "/conv1/Conv", "LayerType": "CaskConvolution",
  "Inputs": [{"Name": "a", "Location": "Device", "Dimensions": [1,64,16,16],
              "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "Outputs": [{"Name": "b", "Location": "Device", "Dimensions": [1,64,16,16],
               "Format/Datatype": "Row major linear FP16 format"}],
  "ParameterType": "Convolution", "Kernel": [3,3], "OutMaps": 64, "Groups": 1,
  "Weights": {"Type": "Int8", "Count": 36864}, "Bias": {"Type": "Float", "Count": 64},
  "TacticName": "sm80_xmma_fprop_implicit_gemm_i8f16_i8i32_f32_nhwckrsc_nhwc",
  "StreamId": 0, "Metadata": "[ONNX Layer: /conv1/Conv]\\u001f[ONNX Layer: /conv1/Relu]"},
 {"Name": "copy", "LayerType": "Reformat",
  "Inputs": [{"Name": "b", "Dimensions": [-1,64], "Format/Datatype": "N/A due to dynamic shapes"}],
  "Outputs": [], "TacticValue": "0x0"}],
 "Bindings": ["x", "y"]}"""


def test_inspector_of_tensorrt_11() -> None:
    assert parse_inspector(INSPECTOR_11) == [
        EngineLayer(
            name="/fc/MatMul_myl0_2",
            type="gemm",
            onnx_nodes=("/fc/MatMul", "/fc/DequantizeLinear"),
            inputs=(Tensor("Int8", (-1, 64)),),
            outputs=(Tensor("Half", (-1, 64)),),
            constants=(Tensor("Int8", (64, 64)), Tensor("Float", (1,))),
            tactic="sm80_xmma_sparse_gemm_i8f16_i8i32_f32_tn_n",
        )
    ]


def test_inspector_of_tensorrt_10() -> None:
    gemm, conv, copy = parse_inspector(INSPECTOR_10)
    assert gemm.inputs == (Tensor("Int8", (8, 64)),)
    assert gemm.constants == (Tensor("Int8", (64, 64)), Tensor("Float", (1,)))
    assert conv.onnx_nodes == ("/conv1/Conv", "/conv1/Relu")
    assert conv.constants == (Tensor("Int8", (36864,)),)
    assert (conv.inputs[0].dtype, conv.outputs[0].dtype) == ("Int8", "Half")
    assert (copy.inputs[0].dtype, copy.onnx_nodes, copy.tactic) == ("not shown", (), "")
    rows = prove([gemm, conv, copy], [*FC, CONV[0]], 0, "demo")
    assert [row.type for row in rows] == ["gemm", "CaskConvolution"]


def test_inspector_with_names_only_says_what_to_build_with() -> None:
    with pytest.raises(ToolchainError, match=r"bare layer names.*DETAILED"):
        parse_inspector('{"Layers": ["/fc/MatMul"], "Bindings": []}')


@pytest.mark.parametrize("text", ["", "Layer(gemm): /fc/MatMul", "[]", "{}"])
def test_inspector_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ToolchainError, match=r'has no JSON list "Layers".*report its version'):
        parse_inspector(text)


def gemm(kind: str, inputs: list[tuple[str, int]], constants: list[tuple[str, int]]) -> EngineLayer:
    tensors = [tuple(Tensor(dtype, (n, 64)) for dtype, n in part) for part in (inputs, constants)]
    return EngineLayer("l", kind, ("fc",), tensors[0], (Tensor("Half", (8, 64)),), tensors[1], "")


@pytest.mark.parametrize(
    "layer",
    [
        gemm("gemm", [("Int8", 8), ("Int8", 64), ("Half", 64)], []),
        gemm("gemm", [("Int8", 8)], [("Int8", 64), ("Half", 64)]),
        gemm("kgen_conversion", [("Int8", 8)], [("Int8", 64)]),
    ],
    ids=["a residual before the weight", "two constants", "a conversion kernel"],
)
def test_an_int8_tensor_beside_the_weight_proves_nothing(layer: EngineLayer) -> None:
    assert not ran([layer], [Planned("fc", "fc", 64 * 64)])[0].int8
    good = gemm("gemm", [("Int8", 8)], [("Int8", 64)])
    assert ran([good], [Planned("fc", "fc", 64 * 64)])[0].int8


def test_two_activations_that_meet_unfused_are_refused_without_a_recognised_block() -> None:
    meeting = EngineLayer("qk", "gemm", ("m",), (Tensor("Half", (2, 8, 8)),) * 2, (), (), "t")
    with pytest.raises(ContractError, match=r"left unfused: batched gemm qk"):
        prove([meeting], [], 0, "model")
    mha = EngineLayer("a", "kgen", (), (), (), (), "_gemm_mha_v2")
    with pytest.raises(ContractError, match="1 fused attention kernels, but 0 "):
        prove([mha], [], 0, "model")


def test_an_unfused_block_is_let_pass_only_where_it_is_expected() -> None:
    scores = EngineLayer("qk", "gemm", (), (Tensor("Half", (-1, 49, 32)),) * 2, (), (), "")
    softmax = EngineLayer("__myl_MaxrSubExpSumDiv", "kgen", (), (), (), (), "MaxrSubExpSumDiv")
    table = [layer("fc"), scores, softmax, dataclasses.replace(scores, name="pv")]
    assert prove(table, FC, 0, "here", unfused=1)[0].int8
    with pytest.raises(ContractError, match="0 fused attention kernels, expected 0, and left"):
        prove(table, FC, 0, "here")


def test_signals_between_streams_are_read() -> None:
    line = (
        "Name: __mye7332_myl0_5, LayerType: signal, Inputs: [], Constants: [], Outputs: [], "
        "TacticName: , StreamId: 0, EventId: 1, Metadata: "
    )
    (row,) = parse_dump(f"Layers:\n{line}\n\n")
    assert (row.type, row.inputs, row.outputs, row.onnx_nodes) == ("signal", (), (), ())
