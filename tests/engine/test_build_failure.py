"""What a failed build leaves, named in its sentence: the layer table or the builder's log."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from edgekd import target
from edgekd.artifact import Artifact
from edgekd.engine import layers
from edgekd.engine.build import build
from edgekd.errors import ContractError, EdgekdError, UnsupportedError

Models = Callable[..., Artifact]
A100 = target.load("a100-sxm4-80gb-trt11.4")


def named(error: type[EdgekdError], model: Artifact, out: Path, pattern: str) -> tuple[str, Path]:
    """The sentence with which a build fails, and the one file it names."""
    with pytest.raises(error) as caught:
        build(model, A100, out)
    sentence = str(caught.value)
    (path,) = re.findall(pattern, sentence)
    assert not list(out.glob("bundle-*"))
    assert not list(out.glob("engine-*"))
    return sentence, Path(path)


def test_a_broken_proof_leaves_the_layer_table(onnx_model: Models, tmp_path: Path) -> None:
    sentence, table = named(
        ContractError,
        onnx_model(head_int8=True),
        tmp_path / "out",
        r"\(whole layer table: (\S+)\): 1 of 2 planned linears are not an INT8 gemm",
    )
    assert table.parent.parent == tmp_path / "out" / ".work"
    assert table.parent.name.startswith("engine-")
    kept = layers.from_json(table.read_text(encoding="utf-8"))
    nodes = {node for layer in kept for node in layer.onnx_nodes}
    assert {"/fc/MatMul", "/head/MatMul"} <= nodes
    assert "head ran as" in sentence


def with_unique(model: onnx.ModelProto) -> None:
    """A node that is legal ONNX and that the parser of TensorRT-RTX refuses."""
    element = model.graph.input[0].type.tensor_type.elem_type
    model.graph.node.append(helper.make_node("Unique", ["h"], ["odd"], "/odd/Unique"))
    model.graph.output.append(helper.make_tensor_value_info("odd", element, ["count"]))


def test_a_failed_builder_leaves_its_whole_log(onnx_model: Models, tmp_path: Path) -> None:
    sentence, log = named(
        UnsupportedError,
        onnx_model(graph=with_unique),
        tmp_path / "out",
        r"\(the builder's log: (\S+)\)$",
    )
    assert log.name == "build.log"
    assert log.parent.parent == tmp_path / "out" / ".work"
    text = log.read_text(encoding="utf-8")
    assert "ERROR: " in text
    assert "/odd/Unique" in text
    assert "/odd/Unique" in sentence
    assert len(text.splitlines()) > 3  # all it said, not the last line alone
    assert any(line.startswith(("INFO: ", "VERBOSE: ")) for line in text.splitlines())
