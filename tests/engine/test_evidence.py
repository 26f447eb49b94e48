"""What evidence says of attention: as much as export counted and the layer table shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgekd import artifact, target
from edgekd.artifact import Artifact
from edgekd.engine.build import build
from edgekd.errors import ContractError
from edgekd.export.attention import Attention, count_attention

Models = Callable[..., Artifact]
A100 = target.load("a100-sxm4-80gb-trt11.4")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index is asked for wheels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def with_attention(scores: str) -> Callable[[onnx.ModelProto], None]:
    """Puts one attention of 32 tokens, depth 16, between the linear and the head.

    Args:
        scores: ``Einsum`` writes its products so, around a Softmax; ``Relu`` with MatMul.
    """

    def alter(model: onnx.ModelProto) -> None:
        graph = model.graph
        element = graph.input[0].type.tensor_type.elem_type
        random = np.random.default_rng(3)
        sizes = {"in": (64, 1536), "out": (512, 64)}
        for name, size in sizes.items():
            values = random.normal(0, 0.1, size).astype(helper.tensor_dtype_to_np_dtype(element))
            graph.initializer.append(numpy_helper.from_array(values, f"attention.{name}"))
        for name, places in (("parts", [-1, 3, 32, 16]), ("flat", [-1, 512])):
            graph.initializer.append(numpy_helper.from_array(np.array(places), name))
        for index, name in enumerate("qkv"):
            graph.initializer.append(numpy_helper.from_array(np.array(index), f"at_{name}"))
        products = [("MatMul", {}), ("MatMul", {})]
        if scores == "Einsum":
            equations = ("bqd,bdk->bqk", "bqk,bkd->bqd")
            products = [("Einsum", {"equation": equation}) for equation in equations]
        node = helper.make_node
        made = [
            node("MatMul", ["r", "attention.in"], ["packed"], "/attention/in"),
            node("Reshape", ["packed", "parts"], ["qkv"]),
            *(node("Gather", ["qkv", f"at_{name}"], [name], axis=1) for name in "qkv"),
            node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
            node(products[0][0], ["q", "kt"], ["scores"], "/attention/qk", **products[0][1]),
            node("Relu" if scores == "Relu" else "Softmax", ["scores"], ["p"], "/attention/p"),
            node(products[1][0], ["p", "v"], ["mixed"], "/attention/pv", **products[1][1]),
            node("Reshape", ["mixed", "flat"], ["joined"]),
            node("MatMul", ["joined", "attention.out"], ["r2"], "/attention/out"),
        ]
        head = graph.node.pop()
        head.input[0] = "r2"
        graph.node.extend([*made, head])

    return alter


def test_attention_written_with_einsum_is_counted_and_fused(
    onnx_model: Models, tmp_path: Path
) -> None:
    model = onnx_model(attention_blocks=1, graph=with_attention("Einsum"))
    assert count_attention(ir.load(model.file("trt.onnx"))) == Attention(1, 0)
    evidence = artifact.parent(build(model, A100, tmp_path / "out"), "evidence")
    assert (evidence.results["fused_attention"], evidence.results["attention_blocks"]) == (1, 1)
    assert (
        "kept Int8 weights in 1 of 1 planned layers, fused attention in 1 of 1 blocks; it proves"
    ) in evidence.results["means"]


def test_attention_of_relu_scores_is_counted_and_refused_as_nothing_fuses_it(
    onnx_model: Models, tmp_path: Path
) -> None:
    model = onnx_model(attention_blocks=1, graph=with_attention("Relu"))
    assert count_attention(ir.load(model.file("trt.onnx"))) == Attention(1, 0)
    with pytest.raises(ContractError) as caught:
        build(model, A100, tmp_path / "out")
    assert "0 fused attention kernels, expected 1, and left unfused: batched g" in str(caught.value)
    assert "Fusing needs one Softmax, fp16" in str(caught.value)


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
    evidence = artifact.parent(build(model, A100, tmp_path / "out"), "evidence")
    assert said in evidence.results["means"]
