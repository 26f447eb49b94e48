"""The whole stage: two graphs of one student, proven; and what breaks between them is caught."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from tiny.recipes import UNTRAINED, Breaks, Students, tiny
from tiny.recipes import export_refused as refused

from edgekd import artifact, kinds, models, qdq, quant, sparse24
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.errors import ContractError, EdgekdError, ToolchainError
from edgekd.export import model, parity, to_onnx
from edgekd.export.model import export
from edgekd.recipe import Export
from edgekd.weights import save_weights

FAMILIES = {"vit": (12, 14, 2), "bert": (13, 14, 2), "resnet": (5, 7, 0)}


@pytest.fixture(scope="module")
def exported(student: Students) -> Students:
    """The OnnxModel of a Student, beside it."""
    made: dict[str, Artifact] = {}

    def get(name: str) -> Artifact:
        if name not in made:
            made[name] = export(student(name), student(name).path.parent)
        return made[name]

    return get


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_what_it_says(self, exported: Students, name: str) -> None:
        int8, layers, attention = FAMILIES[name]
        results = exported(name).results
        assert results["quantized"]
        assert results["sparse"]
        assert (results["layers_int8"], results["layers_sparse"]) == (int8, int8)
        assert results["layers"] == layers
        assert results["attention_blocks"] == attention

    def test_both_graphs_are_legal_and_hold_the_students_integers(
        self, exported: Students, student: Students, name: str
    ) -> None:
        weights = load_file(student(name).file("model.safetensors"))
        quantizers = load_file(student(name).file("quantizers.safetensors"))
        graphs = [
            {w.layer: w for w in qdq.quantized_weights(qdq.load(exported(name).file(file)))}
            for file in ("ort.onnx", "trt.onnx")
        ]
        assert len(graphs[0]) == len(graphs[1]) == FAMILIES[name][0]
        for layer, one in graphs[0].items():
            two = graphs[1][layer]
            scale = quantizers[f"{layer}.weight_scale"].numpy()
            q = quant.quantize(weights[f"{layer}.weight"].numpy(), scale, axis=0)
            wanted = sparse24.conv_as_matrix(q) if q.ndim == 4 else q
            for found in (one, two):
                assert np.array_equal(found.integers, wanted)
                assert np.array_equal(found.scale, scale)
                assert found.input_scale == quantizers[f"{layer}.input_scale"]
                assert not found.folded
            assert sparse24.violations(wanted) == 0
            assert (wanted == 0).mean() >= 0.5

    def test_the_half_graph_is_half_throughout(self, exported: Students, name: str) -> None:
        graph = onnx.shape_inference.infer_shapes(onnx.load(exported(name).file("trt.onnx"))).graph
        used = {name for node in graph.node for name in [*node.input, *node.output]}
        values = [v for v in [*graph.input, *graph.output, *graph.value_info] if v.name in used]
        types = {value.type.tensor_type.elem_type for value in values}
        assert len(values) > len(graph.node) / 2
        assert onnx.TensorProto.FLOAT16 in types
        assert onnx.TensorProto.FLOAT not in types

    def test_any_batch_gives_the_same_rows(self, exported: Students, name: str) -> None:
        found = exported(name)
        with np.load(artifact.parent(found, "samples").file("samples.npz")) as arrays:
            inputs = {n.removeprefix("input."): arrays[n] for n in arrays if n.startswith("input.")}
        recorded = np.load(found.file("outputs.npz"))["logits"]
        running = session(found.file("ort.onnx"))
        for rows in ([0], [4, 9, 2], list(range(24))):
            feed = {n: a[rows] for n, a in inputs.items()}
            (answers,) = running.run(["logits"], feed)
            assert np.allclose(answers, recorded[rows], rtol=1e-3, atol=1e-3)
        half = session(found.file("trt.onnx"))
        feed = {
            n: a[:3].astype(np.float16) if a.dtype == np.float32 else a[:3]
            for n, a in inputs.items()
        }
        assert half.run(["logits"], feed)[0].shape == (3, 4)

    def test_parity_lies_below_its_limits_and_is_not_vacuous(
        self, exported: Students, name: str
    ) -> None:
        found = exported(name).results["parity"]
        assert found["samples"] == 24
        assert found["relative"] < 0.01 < parity.FLOAT32_LIMIT
        assert found["float16_relative"] < 0.06 < parity.FLOAT16_LIMIT
        assert found["integers_compared"] > 1000
        assert found["integers_differ"] < 1e-3
        assert found["integers_largest_step"] <= 1
        assert found["output_variation"] > 0.1
        assert not found["vacuous"]

    def test_every_planned_layer_names_its_node(self, exported: Students, name: str) -> None:
        rows = exported(name).read_json("layers.json")
        nodes = {n.name: n for n in onnx.load(exported(name).file("trt.onnx")).graph.node}
        for row in rows:
            assert bool(row["node"]) == row["int8"]
            if row["int8"]:
                assert nodes[row["node"]].op_type in {"MatMul", "Gemm", "Conv"}

    def test_no_hook_or_wrapper_of_training_is_left(self, exported: Students, name: str) -> None:
        graph = onnx.load(exported(name).file("ort.onnx")).graph
        assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
        names = [tensor.name for tensor in graph.initializer]
        assert not [n for n in names if "parametrizations" in n or "mask" in n.split(".")[-1]]
        assert not [n for n in names if n.startswith(to_onnx.WRAPPER)]
        assert [v.name for v in graph.output] == ["logits"]


def test_classifier_norms_and_residuals_stay_in_float(exported: Students) -> None:
    """Q/DQ stand before the planned layers and their weights, and nowhere else."""
    graph = onnx.load(exported("vit").file("ort.onnx")).graph
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    consumed = {
        op
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        for op in users[node.output[0]]
    }
    assert consumed <= {"MatMul", "Gemm", "Transpose"}
    assert "classifier" in qdq.float_weights(onnx.load(exported("vit").file("ort.onnx")))
    count = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    assert count == 2 * FAMILIES["vit"][0]


def test_inputs_of_whole_numbers_stay_whole(exported: Students) -> None:
    for file in ("ort.onnx", "trt.onnx"):
        graph = onnx.load(exported("bert").file(file)).graph
        assert [v.name for v in graph.input] == ["input_ids", "attention_mask"]
        for value in graph.input:
            assert value.type.tensor_type.elem_type == onnx.TensorProto.INT64
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_at_other_sizes_each_graph_is_allowed_the_noise_of_its_own_type(
    student: Students, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, given = parity.at_other_sizes, []

    def watched(*args: Any) -> Any:
        *_, noise = args
        given.append(noise)
        return real(*args)

    monkeypatch.setattr(parity, "at_other_sizes", watched)
    found = export(student("mlp"), tmp_path).results["parity"]
    assert given == [(found["noise"], found["float16_noise"])]
    assert 0 < found["noise"] < found["float16_noise"] / 100


def test_a_teacher_is_exported_in_float(student: Students, tmp_path: Path) -> None:
    teacher = artifact.parent(student("vit"), "teacher", kinds.TEACHER)
    found = export(teacher, tmp_path)
    assert found.config["arm"] == "fp16"
    assert not found.results["quantized"]
    assert found.results["attention_blocks"] == 2
    assert found.results["parity"]["integers_compared"] == 0
    assert found.results["parity"]["float16_relative"] < 0.01
    rows = found.read_json("layers.json")
    assert {row["int8_reason"] for row in rows} == {"INT8 is off in this arm"}
    graph = onnx.load(found.file("ort.onnx")).graph
    assert not [n for n in graph.node if n.op_type == "QuantizeLinear"]
    with np.load(found.file("outputs.npz")) as ours, np.load(teacher.file("samples.npz")) as his:
        assert np.allclose(ours["logits"], his["teacher.logits"], atol=1e-4)


def test_torchs_own_encoder_goes_the_whole_way(student: Students, exported: Students) -> None:
    """Packed attention is unpacked: all of it 2:4 and INT8, the attention still recognised.

    Its heads are too narrow for a fused kernel, and that is said.
    """
    found = exported("attention").results
    assert (found["layers"], found["layers_int8"], found["layers_sparse"]) == (13, 12, 12)
    assert found["attention_blocks"] == 0
    narrow = "not fused: a head has 8 features"
    assert [text[: len(narrow)] for text in found["attention_unfused"]] == [narrow, narrow]
    assert student("attention").results["layers"] == 13


def test_a_network_whose_part_is_called_network(exported: Students) -> None:
    names = {w.layer for w in qdq.quantized_weights(qdq.load(exported("inner").file("ort.onnx")))}
    assert names == {"network.stem", *(f"network.blocks.{b}.fc{i}" for b in (0, 1) for i in (1, 2))}


class TestCaught:
    """Break one thing between the artifact and the graph; read our sentence."""

    def test_another_network_than_was_trained(
        self, student: Students, tmp_path: Path, breaks: Breaks
    ) -> None:
        def change(network: Any) -> None:
            network.head.bias.data += 1.0  # float, so no integer shows it

        breaks(change)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "the network answers 'logits'" in found
        assert "away from what it answered when it was trained" in found
        assert "at most 0.05 of it expected" in found

    def test_another_network_without_int8_than_was_trained(
        self, student: Students, tmp_path: Path, breaks: Breaks
    ) -> None:
        """A thousandth off, which INT8 may be and floats may not."""

        def change(network: Any) -> None:
            network.head.weight.data *= 1.001

        breaks(change)
        teacher = artifact.parent(student("mlp"), "teacher", kinds.TEACHER)
        found = refused(teacher, tmp_path, ContractError)
        assert "the network answers 'logits'" in found
        assert "at most 0.0001 of it expected" in found

    def test_answers_that_are_no_numbers(
        self, student: Students, tmp_path: Path, breaks: Breaks
    ) -> None:
        def change(network: Any) -> None:
            network.head.bias.data += torch.nan

        breaks(change)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "the network answers 'logits' nan away" in found

    def test_a_planned_layer_without_scales(
        self, student: Students, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = model.load_file

        def forgets(path: Path) -> Any:
            return {n: t for n, t in real(path).items() if n != "stem.input_scale"}

        monkeypatch.setattr(model, "load_file", forgets)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "stem is planned for INT8 but has no input_scale" in found

    def test_overflow_in_float16(self, tmp_path: Path) -> None:
        made = distill(
            tiny(tmp_path, "overflows", distill=UNTRAINED),
            tmp_path / "out",
        )
        found = refused(made, tmp_path / "out", ContractError)
        assert "trt.onnx answers NaN or infinity at 'logits': it overflows there" in found

    @pytest.mark.parametrize(
        ("name", "error", "words"),
        [
            (
                "untraceable",
                ToolchainError,
                "torch.onnx could not trace the network: ONNX has no operator for aten::",
            ),
            ("fixed_batch", ContractError, "it was traced with 2 and must take any"),
            ("repeats_batch", ContractError, "it was traced with 2 and must take any"),
        ],
    )
    def test_networks_that_cannot_be_traced(
        self, tmp_path: Path, name: str, error: type[EdgekdError], words: str
    ) -> None:
        recipe = tiny(tmp_path, name, distill=UNTRAINED)
        made = distill(recipe, tmp_path / "out")
        assert words in refused(made, tmp_path / "out", error)

    def test_one_row_that_comes_back_as_two(self, tmp_path: Path) -> None:
        recipe = tiny(
            tmp_path,
            "repeats_batch",
            data="vectors",
            distill=UNTRAINED,
        )
        document = recipe.model_dump()
        document["data"]["samples"] = 1
        made = distill(type(recipe).model_validate(document), tmp_path / "out")
        found = refused(made, tmp_path / "out", ContractError)
        assert "ort.onnx answers 'logits' of shape [2, 4], expected [1, 4]" in found
        assert "it keeps the batch it was traced with" in found

    def test_a_vacuous_comparison_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tiny(tmp_path, "hardly_varies", distill=UNTRAINED)
        found = export(distill(recipe, tmp_path / "out"), tmp_path / "out")
        assert found.results["parity"]["vacuous"]
        assert found.results["parity"]["output_variation"] < parity.VARIATION_FLOOR
        assert "this proves little: the outputs vary by" in capsys.readouterr().err


class TestSameAnswer:
    def test_twice_and_in_a_fresh_process(
        self, student: Students, exported: Students, tmp_path: Path
    ) -> None:
        source = student("vit")
        assert export(source, tmp_path / "again").id == exported("vit").id
        code = (
            "import sys; from pathlib import Path; from edgekd import artifact\n"
            "from edgekd.export.model import export\n"
            "print(export(artifact.load(Path(sys.argv[1])), Path(sys.argv[2])).id)"
        )
        paths = [str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
        done = subprocess.run(
            [sys.executable, "-c", code, str(source.path), str(tmp_path / "fresh")],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == exported("vit").id  # and nothing else on stdout

    def test_other_settings_are_another_question(self, student: Students, tmp_path: Path) -> None:
        source = student("mlp")
        one = export(source, tmp_path, Export(opset=17))
        two = export(source, tmp_path, Export(opset=18))
        assert one.manifest.key != two.manifest.key
        assert [v.version for v in onnx.load(two.file("ort.onnx")).opset_import] == [18]

    def test_samples_are_an_artifact_of_their_own(self, exported: Students) -> None:
        samples = artifact.parent(exported("vit"), "samples", kinds.SAMPLES)
        source = artifact.parent(exported("vit"), "source", kinds.STUDENT)
        assert samples.manifest.parents == {"source": source.id}
        assert samples.file("samples.npz").read_bytes() == source.file("samples.npz").read_bytes()


def test_an_output_channel_of_zeros(tmp_path: Path) -> None:
    """Pruned away or never trained: its scale is legal in float16, its integers are zeros."""
    zeros = tiny(tmp_path, "forms:zeros", distill=UNTRAINED)
    torch.manual_seed(0)
    network = models.build({"spec": zeros.teacher.model, "config": None})
    save_weights(network, tmp_path / "zeros.safetensors")
    teacher = {"model": zeros.teacher.model, "checkpoint": "zeros.safetensors"}
    student = distill(tiny(tmp_path, "forms:zeros", teacher=teacher, distill=UNTRAINED), tmp_path)
    dead = ~network.blocks[0].fc2.weight.detach().numpy().any(axis=1)
    assert 0 < dead.sum() < dead.size
    graph = export(student, tmp_path)
    for file in ("ort.onnx", "trt.onnx"):
        held = {w.layer: w for w in qdq.quantized_weights(qdq.load(graph.file(file)))}
        found = held["blocks.0.fc2"]
        assert np.array_equal(~found.integers.any(axis=1), dead)
        assert (found.scale[dead] == quant.SCALE_OF_ZERO).all()
        assert (found.scale.astype(np.float16) >= np.finfo(np.float16).smallest_normal).all()
        assert sparse24.violations(found.integers) == 0
        assert not held["blocks.0.fc1"].integers.any()
    assert graph.results["parity"]["relative"] < parity.FLOAT32_LIMIT
    assert graph.results["parity"]["float16_relative"] < parity.FLOAT16_LIMIT
    assert not graph.results["parity"]["vacuous"]
