from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekd import artifact, kinds, target
from edgekd.artifact import Artifact
from edgekd.engine import build as build_module
from edgekd.engine import layers, ort, trt, wheel
from edgekd.engine.build import build, find_device
from edgekd.errors import ArtifactError, ContractError, ToolchainError, UnsupportedError, install

Models = Callable[..., Artifact]
CPU = target.load("cpu")
A100 = target.load("a100-sxm4-80gb-trt11.4")
ORIN = target.load("jetson-agx-orin-64gb-jp6.2")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks an index for wheels: a Bundle without them is made as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


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


class Driver:
    """Stands for libcuda: no machine with a device was at hand."""

    def __init__(self, name: str, attributes: dict[int, int], count: int = 1) -> None:
        self.name, self.attributes, self.count = name, attributes, count

    def cuInit(self, _: int) -> int:
        return 0 if self.count else 100

    def cuDeviceGetCount(self, number: Any) -> int:
        number._obj.value = self.count
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, _: Any) -> int:
        buffer.value = self.name.encode()[: size - 1]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceGetAttribute(self, value: Any, index: int, _: Any) -> int:
        value._obj.value = self.attributes[index]
        return 0


ORIN_DRIVER = Driver("Orin", {75: 8, 76: 7, 16: 16})


def test_a_device_is_described_as_its_driver_does() -> None:
    device = find_device(ORIN_DRIVER)  # type: ignore[arg-type]
    assert device == build_module.Device("Orin", [8, 7], 16, 12060)
    assert find_device(Driver("none", {}, count=0)) is None  # type: ignore[arg-type]


def test_here_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find_device() is None


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver, str], None]:
    """Pretends that a device and a TensorRT are present; TensorRT-RTX stands in for the builder."""

    def pretend(driver: Driver, version: str) -> None:
        device = find_device(driver)  # type: ignore[arg-type]
        module = types.ModuleType("tensorrt")
        module.__version__ = version  # type: ignore[attr-defined]
        module.__spec__ = importlib.util.spec_from_loader("tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(build_module, "find_device", lambda: device)

    return pretend


@pytest.mark.parametrize(
    "driver",
    [Driver("Orin", {75: 8, 76: 7, 16: 8}), Driver("NVIDIA H200", {75: 9, 76: 0, 16: 132})],
    ids=["an Orin NX", "H200"],
)
def test_another_device_than_the_targets_makes_a_bundle(
    onnx_model: Models,
    tmp_path: Path,
    on_a_device: Callable[[Driver, str], None],
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_a_device(driver, "10.3.0.30")
    monkeypatch.setattr(wheel, "device_wheels", lambda _: wheel.Wheels({}, ()))
    made = build(onnx_model(), ORIN, tmp_path / "out")
    assert made.kind == "Bundle"
    assert made.config["reason"] == "no such device here"


def test_another_tensorrt_on_the_targets_device_is_refused(
    onnx_model: Models, tmp_path: Path, on_a_device: Callable[[Driver, str], None]
) -> None:
    on_a_device(ORIN_DRIVER, "10.7.0")
    with pytest.raises(UnsupportedError) as caught:
        build(onnx_model(), ORIN, tmp_path / "out")
    assert "has TensorRT 10.3, this Orin has 10.7.0" in str(caught.value)
    assert "`edgekd build --bundle`" in str(caught.value)


def test_on_the_device_the_same_verb_builds_the_engine(
    onnx_model: Models,
    tmp_path: Path,
    on_a_device: Callable[[Driver, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_a_device(ORIN_DRIVER, "10.3.0.30")
    real, asked = trt.build_plan, []

    def stand_in(path: Path, **options: Any) -> trt.Plan:
        asked.append(options)
        return real(path, **{**options, "runtime": "tensorrt-rtx", "compute_capability": (8, 0)})

    monkeypatch.setattr(trt, "build_plan", stand_in)
    engine = build(onnx_model(), ORIN, tmp_path / "out")
    assert (engine.kind, engine.config["runtime"]) == ("Engine", "tensorrt")
    assert engine.results["evidence"] is False
    assert engine.config["device"]["multiprocessors"] == 16
    assert engine.config["version"] == "10.3.0.30"
    assert asked[0]["runtime"] == "tensorrt"
    assert asked[0]["compute_capability"] is None
    assert np.load(engine.file("outputs.npz"))["logits"].shape == (20, 10)


def test_the_next_arm_is_built_with_the_timings_of_the_last(
    onnx_model: Models,
    tmp_path: Path,
    on_a_device: Callable[[Driver, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, given = trt.build_plan, []

    def stand_in(path: Path, **options: Any) -> trt.Plan:
        given.append(options["timing_cache"])
        changes = {"runtime": "tensorrt-rtx", "compute_capability": (8, 0), "timing_cache": b""}
        timings = {"timing_cache": given[-1] + b"timed ", "timings_given": bool(given[-1])}
        return replace(real(path, **{**options, **changes}), **timings)

    monkeypatch.setattr(trt, "build_plan", stand_in)
    on_a_device(ORIN_DRIVER, "10.3.0.30")
    made = [build(onnx_model(arm=arm), ORIN, tmp_path / "out") for arm in ("dense", "sparse")]
    assert given == [b"", b"timed "]
    assert [engine.results["timings_given"] for engine in made] == [False, True]
    on_a_device(ORIN_DRIVER, "10.3.0.31")
    build(onnx_model(), ORIN, tmp_path / "out")
    assert given[2] == b""  # another version takes none of them


def test_on_the_device_a_bundle_is_still_made_on_request(
    onnx_model: Models, tmp_path: Path, on_a_device: Callable[[Driver, str], None]
) -> None:
    on_a_device(ORIN_DRIVER, "10.3.0.30")
    assert build(onnx_model(), ORIN, tmp_path / "out", bundle=True).kind == "Bundle"


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
