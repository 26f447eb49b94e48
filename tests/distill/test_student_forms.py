"""Shared, packed, grouped and normalised weights through the whole of distill and export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from tiny.recipes import tiny
from torch import Tensor

from edgekd import data, models, qdq, quant, sparse24
from edgekd.artifact import Artifact
from edgekd.distill import loop
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.export import model, proof
from edgekd.export.model import export
from edgekd.weights import save_weights

Made = Callable[[str], tuple[Artifact, Artifact]]
NO_BLOCKS = {"steps": 2, "batch_size": 16, "learning_rate": 1e-2, "losses": {"blocks": 0.0}}
DATA = {"convolutions": "images", "only_convolutions": "images", "resnext": "images",
        "language": "tokens"}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Student and OnnxModel of a network of tiny.forms, with INT8 convolutions."""
    found: dict[str, tuple[Artifact, Artifact]] = {}

    def get(name: str) -> tuple[Artifact, Artifact]:
        if name not in found:
            base = tmp_path_factory.mktemp(name)
            normed = name in ("convolutions", "resnext")
            settings = {**NO_BLOCKS, "batchnorm_warmup": 3 if normed else 0}
            recipe = tiny(base, f"forms:{name}", DATA.get(name, "vectors"), distill=settings)
            student = distill(recipe, base / "out")
            found[name] = student, export(student, base / "out")
        return found[name]

    return get


def stored(found: Artifact, name: str = "model") -> dict[str, Tensor]:
    return load_file(found.file(f"{name}.safetensors"))


def rows(found: Artifact) -> dict[str, dict]:
    return {row["layer"]: row for row in found.read_json("layers.json")}


@pytest.mark.parametrize("name", ["repeated", "aliased", "tied", "transposed", "language",
                                  "encoder", "convolutions", "resnext"])  # fmt: skip
def test_integers_and_parity_hold_in_both_graphs(made: Made, name: str) -> None:
    student, graph = made(name)
    results = graph.results
    assert results["layers_int8"] == student.results["layers_int8"] > 0
    assert results["parity"]["relative"] < 0.01
    assert results["parity"]["integers_differ"] < 0.01
    assert not results["parity"]["vacuous"]
    weights, scales = stored(student), stored(student, "quantizers")
    for file in ("ort.onnx", "trt.onnx"):
        nodes = {}
        for weight in qdq.quantized_weights(qdq.load(graph.file(file))):
            nodes.setdefault(weight.node, weight)
        for row in rows(graph).values():
            if not row["int8"]:
                continue
            q = quant.quantize(
                weights[f"{row['layer']}.weight"].numpy(),
                scales[f"{row['layer']}.weight_scale"].numpy(),
                axis=0,
            )
            wanted = sparse24.conv_as_matrix(q) if q.ndim == 4 else q
            assert not row["sparse"] or sparse24.violations(wanted) == 0
            if file == "trt.onnx":
                assert len(row["node"].split(" + ")) == row["runs"]
                for node in row["node"].split(" + "):
                    assert np.array_equal(nodes[node].integers, wanted), row["layer"]


@pytest.mark.parametrize("name", ["repeated", "aliased"])
def test_a_layer_that_runs_three_times(made: Made, name: str) -> None:
    student, graph = made(name)
    first = "blocks.0.fc1" if name == "aliased" else "blocks.fc1"
    row = rows(graph)[first]
    assert (row["runs"], row["macs"]) == (3, 3 * 32 * 64)
    assert row["int8"]
    assert row["sparse"]
    assert student.results["parameters"] == 32 * 32 + 2 * 32 * 64 + 32 * 4
    weights = stored(student)
    if name == "aliased":
        assert torch.equal(weights["blocks.2.fc1.weight"], weights["blocks.0.fc1.weight"])
        assert "blocks.2.fc1" not in rows(graph)
    assert not [n for n in weights if "parametrizations" in n or "quantizer" in n]


def test_more_nodes_than_the_plan_says(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proof.prove

    def once(path: Path, half: Path, plan: list[LayerPlan], student: data.Arrays) -> Any:
        return real(path, half, [replace(row, runs=1) for row in plan], student)

    monkeypatch.setattr(model, "prove", once)
    with pytest.raises(
        ContractError, match=r"blocks\.fc1 \(in 3 nodes, expected 1\), blocks\.fc2 "
    ):
        export(made("repeated")[0], tmp_path)


def test_layers_of_equal_values_that_are_not_tied(tmp_path: Path) -> None:
    """torch copies an encoder's layer: exporters store such weights once, the proof tells why."""
    base = tiny(tmp_path, "forms:encoder")
    torch.manual_seed(0)
    net = models.build({"spec": base.teacher.model, "config": None})
    assert torch.equal(net.encoder.layers[0].linear1.weight, net.encoder.layers[1].linear1.weight)
    save_weights(net, tmp_path / "fresh.safetensors")
    teacher = {"model": base.teacher.model, "checkpoint": "fresh.safetensors"}
    recipe = tiny(tmp_path, "forms:encoder", teacher=teacher, distill={"steps": 0})
    graph = export(distill(recipe, tmp_path / "out"), tmp_path / "out")
    found = rows(graph)
    assert graph.results["layers_int8"] == 12
    assert not any(row["tied_to"] for row in found.values())
    assert len({row["node"] for row in found.values()}) == len(found)


def test_two_layers_with_one_weight(made: Made) -> None:
    student, graph = made("tied")
    row = rows(graph)["decoder"]
    assert (row["tied_to"], row["runs"], row["macs"]) == ("encoder", 1, 1024)
    assert student.results["parameters"] == 1024 + 128
    weights, quantizers = stored(student), stored(student, "quantizers")
    assert torch.equal(weights["encoder.weight"], weights["decoder.weight"])
    assert torch.equal(quantizers["encoder.mask"], quantizers["decoder.mask"])
    assert torch.equal(quantizers["encoder.weight_scale"], quantizers["decoder.weight_scale"])
    assert quantizers["encoder.input_scale"] != quantizers["decoder.input_scale"]
    rebuilt = models.build(student.read_json("model.json"))
    assert rebuilt.decoder.weight is rebuilt.encoder.weight
    held = [t for t in onnx.load(graph.file("ort.onnx")).graph.initializer if len(t.dims) == 2]
    values = [onnx.numpy_helper.to_array(t) for t in held]
    assert len([v for v in values if v.shape == (32, 32)]) in (1, 2)


def test_a_weight_that_is_read_transposed_too_stays_plain(made: Made) -> None:
    row = rows(made("transposed")[1])
    assert row["encoder"]["int8_reason"] == (
        "its weight is also read by other code than its own: stays in float"
    )
    assert not row["encoder"]["sparse"]
    assert row["encoder.weight"]["macs"] == 16 * 32
    assert row["encoder.weight"]["tied_to"] == "encoder"


def test_a_tied_embedding_is_still_the_decoder_after_training(made: Made) -> None:
    student, graph = made("language")
    weights = stored(student)
    embedding = weights["lm.bert.embeddings.word_embeddings.weight"]
    assert torch.equal(embedding, weights["lm.cls.predictions.decoder.weight"])
    decoder = rows(graph)["lm.cls.predictions.decoder"]
    assert "output layer" in decoder["int8_reason"]
    assert not [name for name in rows(graph) if name.endswith("word_embeddings.weight")]
    assert graph.results["layers_int8"] == 13


def test_torchs_own_encoder_is_int8_and_sparse_throughout(made: Made) -> None:
    found = rows(made("encoder")[1])
    assert [name for name, row in found.items() if not row["int8"]] == ["head"]
    assert [name for name, row in found.items() if not row["sparse"]] == ["head"]
    assert sum(".self_attn." in name for name in found) == 8


def test_norms_are_folded_where_a_layer_stands_before_them(made: Made) -> None:
    student, graph = made("convolutions")
    assert student.results["batchnorm_folded"] == 4
    assert student.results["batchnorm_frozen"] == ["first", "summed"]
    assert student.read_json("model.json")["folded"] == [
        ["stem", "norm1"], ["grouped", "norm2"], ["pointwise", "norm3"], ["fc", "norm4"],
    ]  # fmt: skip
    weights = stored(student)
    assert not [name for name in weights if name.startswith(("norm1.", "norm2.", "norm3."))]
    assert weights["stem.bias"].abs().max() > 0
    found = rows(graph)
    assert {name for name, row in found.items() if row["int8"]} == {"grouped", "pointwise", "fc"}
    assert {name for name, row in found.items() if row["sparse"]} == {"grouped", "pointwise", "fc"}
    operators = [node.op_type for node in onnx.load(graph.file("ort.onnx")).graph.node]
    assert operators.count("BatchNormalization") <= 2


def test_statistics_move_in_the_warm_up_and_never_after_it(made: Made, tmp_path: Path) -> None:
    """The norm after a sum stays: whatever QAT does to the weights, its statistics stand still."""
    teacher = stored(_parent(made("convolutions")[0]))
    moved = stored(made("convolutions")[0])
    assert not torch.equal(moved["summed.running_mean"], teacher["summed.running_mean"])
    assert moved["summed.num_batches_tracked"] == teacher["summed.num_batches_tracked"] + 3
    recipe = tiny(tmp_path, "forms:convolutions", "images", distill={**NO_BLOCKS, "steps": 4})
    still = distill(recipe, tmp_path / "out")
    weights, teacher = stored(still), stored(_parent(still))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(weights[f"summed.{name}"], teacher[f"summed.{name}"]), name
    assert not torch.equal(weights["summed.weight"], teacher["summed.weight"])  # this one trains
    assert "norm1.running_mean" in teacher  # the teacher is never folded


def test_a_warm_up_that_is_cut_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**NO_BLOCKS, "steps": 3, "batchnorm_warmup": 4}
    recipe = tiny(tmp_path, "forms:convolutions", "images", distill=settings)
    whole = distill(recipe, tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    real, count = Objective.__call__, iter(range(100))

    def stops(self: Objective, inputs: dict, target: Tensor) -> dict:
        if next(count) in (2, 7):  # in the warm-up, then in the training after it
            raise KeyboardInterrupt
        return real(self, inputs, target)

    monkeypatch.setattr(Objective, "__call__", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(recipe, tmp_path / "cut")
    again = distill(recipe, tmp_path / "cut")
    said = capsys.readouterr().err
    assert "batchnorm warm-up: resumed at step 1 of 4" in said
    assert "batchnorm warm-up: resumed at step 4 of 4" in said
    assert again.id == whole.id


class TestConvolutionsInFloat:
    """The default: INT8 for Linears, 2:4 for both."""

    FLOAT: ClassVar = {"calibration_samples": 32}

    def test_a_student_may_be_sparse_and_hold_no_int8(self, tmp_path: Path) -> None:
        recipe = tiny(
            tmp_path, "forms:only_convolutions", "images",
            distill=NO_BLOCKS, quantization=self.FLOAT,
        )  # fmt: skip
        student = distill(recipe, tmp_path / "out")
        assert (student.results["layers_int8"], student.results["layers_sparse"]) == (0, 1)
        row = rows(student)["body"]
        assert "convolution: stays in float16, INT8 is opt-in" in row["int8_reason"]
        graph = export(student, tmp_path / "out")
        assert not graph.results["quantized"]
        assert graph.results["sparse"]
        assert graph.results["parity"]["relative"] < 1e-4

    def test_its_dense_arm_is_refused(self, tmp_path: Path) -> None:
        recipe = tiny(
            tmp_path, "forms:only_convolutions", "images",
            distill=NO_BLOCKS, quantization=self.FLOAT,
        )  # fmt: skip
        with pytest.raises(ContractError) as caught:
            distill(recipe, tmp_path / "out", "dense")
        assert (
            "recipe tiny: no layer of the dense student can be INT8; body: convolution: stays in "
            "float16, INT8 is opt-in (quantization.convolutions = true); leave 'dense' out of the "
            "recipe's arms, or set quantization.convolutions = true" in str(caught.value)
        )


def _parent(student: Artifact) -> Artifact:
    from edgekd import artifact

    return artifact.parent(student, "teacher")


def test_zeros_pass_every_proof(tmp_path: Path) -> None:
    """A layer of zeros, rows of zeros, groups of four with one weight."""
    base = tiny(tmp_path, "forms:zeros", distill={"steps": 0})
    torch.manual_seed(0)
    net = models.build({"spec": base.teacher.model, "config": None})
    save_weights(net, tmp_path / "zeros.safetensors")
    teacher = {"model": base.teacher.model, "checkpoint": "zeros.safetensors"}
    student = distill(
        tiny(tmp_path, "forms:zeros", teacher=teacher, distill={"steps": 0}), tmp_path
    )
    assert not stored(student)["blocks.0.fc1.weight"].any()
    scales = stored(student, "quantizers")["blocks.0.fc1.weight_scale"]
    assert (scales == quant.SCALE_OF_ZERO).all()
    graph = export(student, tmp_path)
    assert graph.results["layers_int8"] == graph.results["layers_sparse"] == 5
    assert graph.results["parity"]["relative"] < 0.01
