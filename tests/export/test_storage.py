"""Graphs whose weights lie beside them: written so, and read by everything that reads a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgekd import artifact, kinds, qdq, runner, target
from edgekd.artifact import Artifact
from edgekd.engine.build import build
from edgekd.export import storage
from edgekd.export.model import export
from edgekd.recipe import Export

Students = Callable[[str], Artifact]


def graph(size: int) -> ir.Model:
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [size])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [size])],
            [onnx.numpy_helper.from_array(np.arange(size, dtype=np.float32), "w")],
        ),
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    return ir.from_proto(model)


def test_one_file_up_to_the_limit_and_two_above_it(tmp_path: Path) -> None:
    model, path = graph(3000), tmp_path / "g.onnx"
    storage.save(model, path, limit_bytes=12000)
    assert [file.name for file in storage.files(path)] == ["g.onnx"]
    storage.save(model, path, limit_bytes=11999)
    assert [file.name for file in storage.files(path)] == ["g.onnx", "g.onnx.data"]
    assert path.stat().st_size < 1000
    (weight,) = onnx.load(path).graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(weight), np.arange(3000, dtype=np.float32))
    (entry,) = onnx.load(path, load_external_data=False).graph.initializer
    assert {e.key: e.value for e in entry.external_data}["location"] == "g.onnx.data"


def test_the_limit_is_what_a_protobuf_holds() -> None:
    assert 2**31 - 2**25 < storage.PROTOBUF_BYTES < 2**31


@pytest.mark.slow
def test_more_than_a_protobuf_holds(tmp_path: Path) -> None:
    """2.4 GB of weights: written one after the other, and opened by what reads graphs."""
    count, size = 6, 100_000_000
    model, path = graph(size), tmp_path / "large.onnx"
    del model.graph.initializers["w"]
    (first,) = model.graph
    value = first.inputs[0]
    assert value is not None
    for number in range(count):
        tensor = ir.LazyTensor(
            lambda number=number: ir.Tensor(np.full(size, number, np.float32)),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape([size]),
            name=f"w{number}",
        )
        weight = ir.Value(
            name=tensor.name,
            shape=ir.Shape([size]),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=tensor,
        )
        model.graph.register_initializer(weight)
        node = ir.Node("", "Add", [value, weight], name=f"add{number}")
        model.graph.insert_before(first, node)
        value = node.outputs[0]
        value.name = f"sum{number}"
    first.replace_input_with(0, value)
    first.replace_input_with(1, value)
    storage.save(model, path)
    assert path.with_name("large.onnx.data").stat().st_size >= 4 * count * size > 2**31
    opened = ir.load(path)
    assert storage.weight_bytes(opened) >= 4 * count * size
    assert len(qdq.load(path).graph.initializer) == count
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(["y"], {"x": np.ones(size, np.float32)})
    assert answer[0] == answer[-1] == 2 * (1 + sum(range(count)))


@pytest.fixture(scope="module")
def both(student: Students) -> tuple[Artifact, Artifact]:
    """One student exported in single files, and with its weights beside the graphs."""
    source = student("vit")
    plain = export(source, source.path.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "PROTOBUF_BYTES", 10_000)
        beside = export(source, source.path.parent, Export(batch_opt=4))
    return plain, beside


def test_the_artifact_lists_the_files(both: tuple[Artifact, Artifact]) -> None:
    plain, beside = both
    more = {"ort.onnx.data", "trt.onnx.data"}
    assert set(beside.manifest.files) == set(plain.manifest.files) | more
    assert set(beside.results["graph_sha256"]) == {"ort.onnx", "trt.onnx"} | more
    files = {file.name for file in beside.path.iterdir()}
    assert files == {*beside.manifest.files, "manifest.json"}
    assert beside.results["structure_sha256"] == plain.results["structure_sha256"]
    assert beside.results["parity"] == plain.results["parity"]


def test_an_engine_of_onnx_runtime_opens_it(both: tuple[Artifact, Artifact]) -> None:
    plain, beside = both
    out = beside.path.parent
    engine = build(beside, target.load("cpu"), out)
    assert engine.file("ort.onnx.data").read_bytes() == beside.file("ort.onnx.data").read_bytes()
    with np.load(artifact.parent(beside, "samples").file("samples.npz")) as arrays:
        inputs = {"pixel_values": arrays["input.pixel_values"][:4]}
    answers = []
    for built in (engine, build(plain, target.load("cpu"), out)):
        with runner.open(built) as opened:
            answers.append(opened(inputs)["logits"])
    assert np.array_equal(*answers)


def test_tensorrt_rtx_opens_it_and_the_bundle_holds_it(
    both: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    beside = both[1]
    bundle = build(beside, target.load("a100-sxm4-80gb-trt11.4"), beside.path.parent)
    evidence = artifact.parent(bundle, "evidence", kinds.ENGINE)
    assert (evidence.results["int8"], evidence.results["fused_attention"]) == (12, 2)
    assert f"artifacts/{beside.path.name}/trt.onnx.data" in bundle.manifest.files
