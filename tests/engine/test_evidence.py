"""What evidence says of attention: as much as export counted and the layer table shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgekd import target
from edgekd.artifact import Artifact
from edgekd.engine.build import evidence
from edgekd.errors import ContractError
from edgekd.export.attention import Attention, count_attention

Models = Callable[..., Artifact]
A100 = target.load("a100-sxm4-80gb-trt11.4")


def with_attention(*scores: str) -> Callable[[onnx.ModelProto], None]:
    """Puts attention blocks of 32 tokens, depth 16, one after another between linear and head.

    Args:
        *scores: Of each block. ``Einsum`` writes its products so, around a Softmax; ``Relu`` with
            MatMul.
    """

    def alter(model: onnx.ModelProto) -> None:
        graph = model.graph
        dtype = helper.tensor_dtype_to_np_dtype(graph.input[0].type.tensor_type.elem_type)
        random = np.random.default_rng(3)
        constants = {"parts": np.array([-1, 3, 32, 16]), "flat": np.array([-1, 512])}
        constants |= {f"at_{name}": np.array(index) for index, name in enumerate("qkv")}
        head = graph.node.pop()
        for block, kind in enumerate(scores):
            start = f"attention.{block}."
            for name, size in (("in", (64, 1536)), ("out", (512, 64))):
                constants[start + name] = random.normal(0, 0.1, size).astype(dtype)
            graph.node.extend(_attention(head.input[0], start, kind))
            head.input[0] = f"{start}y"
        graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
        graph.node.append(head)

    return alter


def _attention(x: str, start: str, scores: str) -> list[onnx.NodeProto]:
    """One block, x -> ``<start>y``; its weights are ``<start>in`` and ``<start>out``."""
    products = [("MatMul", {}), ("MatMul", {})]
    if scores == "Einsum":
        equations = ("bqd,bdk->bqk", "bqk,bkd->bqd")
        products = [("Einsum", {"equation": equation}) for equation in equations]

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [start + output], f"/{start}{output}", **attributes)

    packed, qkv, q, k, v, kt, dots, p, mixed, joined = (
        start + name
        for name in ("packed", "qkv", "q", "k", "v", "kt", "dots", "p", "mixed", "joined")
    )
    return [
        node("MatMul", [x, f"{start}in"], "packed"),
        node("Reshape", [packed, "parts"], "qkv"),
        *(node("Gather", [qkv, f"at_{name}"], name, axis=1) for name in "qkv"),
        node("Transpose", [k], "kt", perm=[0, 2, 1]),
        node(products[0][0], [q, kt], "dots", **products[0][1]),
        node("Relu" if scores == "Relu" else "Softmax", [dots], "p"),
        node(products[1][0], [p, v], "mixed", **products[1][1]),
        node("Reshape", [mixed, "flat"], "joined"),
        node("MatMul", [joined, f"{start}out"], "y"),
    ]


def test_attention_written_with_einsum_is_counted_and_fused(
    onnx_model: Models, tmp_path: Path
) -> None:
    model = onnx_model(attention_blocks=1, graph=with_attention("Einsum"))
    assert count_attention(ir.load(model.file("trt.onnx"))) == Attention(1, 0)
    engine = evidence(model, A100, tmp_path / "out")
    assert (engine.results["fused_attention"], engine.results["attention_blocks"]) == (1, 1)
    assert (
        "kept Int8 weights in 1 of 1 planned layers, fused attention in 1 of 1 blocks; it proves"
    ) in engine.results["means"]


def test_attention_of_relu_scores_is_counted_and_refused_as_nothing_fuses_it(
    onnx_model: Models, tmp_path: Path
) -> None:
    model = onnx_model(attention_blocks=1, graph=with_attention("Relu"))
    assert count_attention(ir.load(model.file("trt.onnx"))) == Attention(1, 0)
    with pytest.raises(ContractError) as caught:
        evidence(model, A100, tmp_path / "out")
    assert "0 fused attention kernels, expected 1, and left unfused: batched g" in str(caught.value)
    assert "Fusing needs one Softmax, fp16" in str(caught.value)


def test_a_block_stays_unfused_only_where_export_named_it(
    onnx_model: Models, tmp_path: Path
) -> None:
    """One block is fused, the other is not; export had counted the fused one alone."""
    options = {"attention_blocks": 1, "graph": with_attention("Einsum", "Relu")}
    with pytest.raises(ContractError) as caught:
        evidence(onnx_model(**options), A100, tmp_path / "out")
    assert "1 fused attention kernels, expected 1, and left unfused: batched g" in str(caught.value)
    named = onnx_model(**options, attention_unfused=["not fused: its scores have no Softmax"])
    engine = evidence(named, A100, tmp_path / "out")
    assert engine.results["fused_attention"] == 1
    assert engine.results["attention_unfused"] == ["not fused: its scores have no Softmax"]
    said = engine.results["means"]
    assert "fused attention in 1 of 2 blocks, no kernel fuses 1 of them; it proves" in said


def test_blocks_that_are_all_unfused_are_not_told_as_none(
    onnx_model: Models, tmp_path: Path
) -> None:
    named = ["not fused: its scores have no Softmax"]
    options = {"attention_blocks": 0, "attention_unfused": named}
    model = onnx_model(graph=with_attention("Relu"), **options)
    engine = evidence(model, A100, tmp_path / "out")
    assert "attention in 0 of 1 blocks, no kernel fuses 1 of them" in engine.results["means"]


@pytest.mark.parametrize(
    ("arm", "blocks", "said"),
    [
        ("Einsum", 1, "no layer was planned in INT8, fused attention in 1 of 1 blocks"),
        ("Einsum", 0, "planned in INT8, 1 fused attention kernels for 0 recognised blocks"),
        ("Relu", 1, "planned in INT8, fused attention in 0 of 1 blocks"),
    ],
)
def test_an_unjudged_arm_says_how_much_of_its_attention_is_fused(
    onnx_model: Models, tmp_path: Path, arm: str, blocks: int, said: str
) -> None:
    model = onnx_model(arm="fp16", attention_blocks=blocks, graph=with_attention(arm))
    engine = evidence(model, A100, tmp_path / "out")
    assert said in engine.results["means"]
