from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from edgekd import artifact, kinds, target
from edgekd.artifact import Artifact
from edgekd.engine import build as build_module
from edgekd.engine import layers, ort, trt
from edgekd.engine.build import build
from edgekd.errors import ArtifactError, ContractError, ToolchainError, UnsupportedError, install

Models = Callable[..., Artifact]
CPU = target.load("cpu")
A100 = target.load("a100-sxm4-80gb-trt11.4")
ORIN = target.load("jetson-agx-orin-64gb-jp6.2")
pytestmark = pytest.mark.usefixtures("offline")


def altered_target(tmp_path: Path, **facts: Any) -> target.Target:
    path = tmp_path / "altered.json"
    path.write_text(json.dumps({**ORIN.as_json(), **facts}), encoding="utf-8")
    return target.load(path)


def test_cpu_engine_holds_the_graph_and_its_session_options(
    onnx_model: Models, tmp_path: Path
) -> None:
    model = onnx_model()
    engine = build(model, CPU, tmp_path / "out")
    assert engine.kind == "Engine"
    assert engine.file("model.onnx").read_bytes() == model.file("ort.onnx").read_bytes()
    assert engine.read_json("session.json") == ort.options()
    assert engine.read_json("io.json") == model.read_json("io.json")
    assert engine.read_json("layers.json")["planned"] == model.read_json("layers.json")
    assert engine.results["layer_table"] == "not shown by onnxruntime"
    assert engine.manifest.parents["model"] == model.id
    assert engine.manifest.parents["samples"] == model.manifest.parents["samples"]


def test_cpu_engine_is_asked_for_again_on_another_machine(
    onnx_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx_model()
    first = build(model, CPU, tmp_path / "out")
    assert build(model, CPU, tmp_path / "out").id == first.id
    monkeypatch.setattr(ort, "_cpu_model", lambda: "another processor")
    second = build(model, CPU, tmp_path / "out")
    assert second.manifest.key != first.manifest.key
    assert second.config["device"]["device"] == "another processor"


def test_the_a100_bundle_has_a_proven_plan_beside_it(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model()
    bundle = build(model, A100, tmp_path / "out")
    evidence = artifact.parent(bundle, "evidence", kinds.ENGINE)
    assert bundle.kind == "Bundle"
    assert evidence.config["runtime"] == "tensorrt-rtx"
    assert evidence.results["evidence"] is True
    assert "not the target's engine" in evidence.results["means"]
    assert "neither TensorRT's choices nor sparse kernels" in evidence.results["means"]
    assert (
        "parsed the graph, kept Int8 weights in 1 of 1 planned layers, and no attention block was "
        "recognised in it; it proves"
    ) in evidence.results["means"]
    assert (evidence.results["attention_blocks"], evidence.results["loose_products"]) == (0, 0)
    assert (evidence.results["planned_int8"], evidence.results["int8"]) == (1, 1)
    assert evidence.file("model.plan").stat().st_size > 10_000
    table = evidence.read_json("layers.json")
    (ran,) = table["ran"]
    assert (ran["layer"], ran["weight_dtype"], ran["weight_count"]) == ("fc", "Int8", 4096)
    read = layers.from_json(json.dumps(table["engine_layers"]))
    assert any("/fc/MatMul" in layer.onnx_nodes for layer in read)
    assert evidence.config["profiles"] == {"x": [[1, 64], [4, 64], [8, 64]]}


def test_every_arm_gets_evidence_and_a_float_one_makes_no_promise(
    onnx_model: Models, tmp_path: Path
) -> None:
    model = onnx_model()
    arms = {"fp16": onnx_model(arm="fp16"), "dense": onnx_model(arm="dense")}
    bundle = build(model, A100, tmp_path / "out", arms=arms)
    fp16 = artifact.parent(bundle, "evidence-fp16", kinds.ENGINE)
    assert (fp16.results["planned_int8"], fp16.results["layer_table"]) == (0, "kept")
    assert fp16.config["sparse_weights"] is False
    assert "parsed the graph, no layer was planned in INT8, and no att" in fp16.results["means"]
    assert artifact.parent(bundle, "evidence-dense").results["int8"] == 1
    assert artifact.parent(bundle, "evidence").config["sparse_weights"] is True


def test_a_planned_linear_that_ran_in_float_stops_the_stage(
    onnx_model: Models, tmp_path: Path
) -> None:
    with pytest.raises(ContractError) as caught:
        build(onnx_model(head_int8=True), A100, tmp_path / "out")
    sentence = str(caught.value)
    assert "1 of 2 planned linears are not an INT8 gemm" in sentence
    assert "head ran as" in sentence
    assert "Half" in sentence
    assert "with tensorrt-rtx 1." in sentence
    assert not list((tmp_path / "out").glob("bundle-*"))


def test_attention_that_is_not_fused_stops_the_stage(onnx_model: Models, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="0 fused attention kernels, expected 2"):
        build(onnx_model(attention_blocks=2), A100, tmp_path / "out")


def test_the_compute_capabilities_are_those_of_tensorrt_rtx() -> None:
    known = trt.load("tensorrt-rtx").ComputeCapability.__members__
    named = {f"SM{major}{minor}" for major, minor in build_module.RTX_COMPUTE_CAPABILITIES}
    assert named == {name for name in known if name.startswith("SM")}


def test_orin_has_no_evidence_and_says_why(onnx_model: Models, tmp_path: Path) -> None:
    bundle = build(onnx_model(), ORIN, tmp_path / "out")
    assert bundle.results["evidence"] == {"not built": "tensorrt-rtx has no SM87"}
    assert "evidence" not in bundle.manifest.parents


def test_a_bundle_for_cpu_is_made_on_request(onnx_model: Models, tmp_path: Path) -> None:
    bundle = build(onnx_model(), CPU, tmp_path / "out", bundle=True)
    assert bundle.kind == "Bundle"
    assert bundle.results["evidence"] == {"not built": "cpu has no CUDA device"}


def test_without_tensorrt_rtx_the_sentence_says_what_to_install(
    onnx_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(ToolchainError, match=re.escape(f"): {install('rtx')}")):
        build(onnx_model(), A100, tmp_path / "out")


def test_a_student_is_not_built(onnx_model: Models, tmp_path: Path) -> None:
    student = artifact.parent(onnx_model(), "source")
    with pytest.raises(ArtifactError, match="is a Student, expected an OnnxModel"):
        build(student, CPU, tmp_path / "out")


def test_a_graph_above_the_targets_opset(onnx_model: Models, tmp_path: Path) -> None:
    old = altered_target(tmp_path, parser={"opset_max": 18})
    with pytest.raises(UnsupportedError, match=r"has opset 19, .* takes at most 18: set export"):
        build(onnx_model(), old, tmp_path / "out")


def test_an_operator_the_targets_parser_refuses(onnx_model: Models, tmp_path: Path) -> None:
    def with_det(model: onnx.ModelProto) -> None:
        element = model.graph.input[0].type.tensor_type.elem_type
        model.graph.node.append(helper.make_node("Identity", ["h"], ["d"], "/odd/Identity"))
        model.graph.value_info.append(helper.make_tensor_value_info("h", element, ["batch", 64]))

    model = onnx_model(graph=with_det)
    strict = altered_target(tmp_path, parser={"unsupported": ["Identity"]})
    with pytest.raises(UnsupportedError) as caught:
        build(model, strict, tmp_path / "out")
    assert "1 of 9 nodes use operators" in str(caught.value)
    assert "first Identity in '/odd/Identity'" in str(caught.value)


def test_garbage_never_reaches_a_parser(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model()
    garbage = artifact.make(
        tmp_path / "out",
        artifact.Question(
            kinds.ONNX_MODEL,
            {**model.config, "garbage": True},
            {"samples": artifact.parent(model, "samples")},
        ),
        lambda work: _garbage(work, model),
    )
    with pytest.raises(ArtifactError, match=r"trt.onnx.*not"):
        build(garbage, A100, tmp_path / "out")


def _garbage(work: artifact.Work, model: Artifact) -> dict[str, Any]:
    for name in kinds.ONNX_MODEL.files:
        (work.scratch / name).write_bytes(model.file(name).read_bytes())
    (work.scratch / "trt.onnx").write_bytes(b"\x08\x09nothing here")
    return dict(model.results)


def test_only_the_batch_may_be_dynamic(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model()
    io = model.read_json("io.json")
    io["inputs"][0]["shape"] = ["batch", "length"]

    def write(work: artifact.Work) -> dict[str, Any]:
        for name in kinds.ONNX_MODEL.files:
            (work.scratch / name).write_bytes(model.file(name).read_bytes())
        (work.scratch / "io.json").write_text(json.dumps(io), encoding="utf-8")
        return dict(model.results)

    parents = {"samples": artifact.parent(model, "samples")}
    question = artifact.Question(kinds.ONNX_MODEL, {**model.config, "io": io}, parents)
    with pytest.raises(UnsupportedError, match=r"input 'x' has the changing size 'length'"):
        build(artifact.make(tmp_path / "out", question, write), A100, tmp_path / "out")


def test_the_device_side_builds_without_onnx(
    onnx_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx_model()
    monkeypatch.setitem(sys.modules, "onnx", None)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name)
    )
    assert build(model, CPU, tmp_path / "out").kind == "Engine"
