"""The whole stage: what a Student holds, and that it comes out the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import configs
from tiny import models as tiny_models
from tiny.recipes import NO_BLOCKS, StopAt, stored, tiny

from edgekd import artifact, models, quant, sparse24
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.weights import load_weights, save_weights

PLANNED = ["stem", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]


class TestStudent:
    def test_weights_are_masked_and_under_the_plain_names(self, made: Artifact) -> None:
        net = tiny_models.mlp()
        load_weights(net, made.file("model.safetensors"))
        quantizers = stored(made, "quantizers")
        assert sorted(quantizers) == sorted(
            f"{layer}.{what}"
            for layer in PLANNED
            for what in ("input_scale", "mask", "weight_scale")
        )
        for layer in PLANNED:
            weight = net.get_submodule(layer).weight.detach().numpy()
            mask = quantizers[f"{layer}.mask"].numpy()
            assert (mask.reshape(-1, 4).sum(axis=1) == 2).all()
            assert not weight[~mask].any()
            scale = quantizers[f"{layer}.weight_scale"].numpy()
            assert (scale == quant.scale_from_amax(np.abs(weight).max(axis=1))).all()
            sparse24.check(quant.quantize(weight, scale, axis=0), layer)
            assert quantizers[f"{layer}.input_scale"].shape == ()

    def test_its_layers_and_results(self, made: Artifact) -> None:
        rows = made.read_json("layers.json")
        assert [row["layer"] for row in rows] == [*PLANNED, "head"]
        assert (
            [row["int8"] for row in rows] == [row["sparse"] for row in rows] == [True] * 5 + [False]
        )
        assert "output layer" in rows[-1]["int8_reason"]
        results = made.results
        assert (results["layers"], results["layers_int8"], results["layers_sparse"]) == (6, 5, 5)
        assert results["macs_share_int8"] == (1024 + 4 * 2048) / (1024 + 4 * 2048 + 128)
        assert results["samples"] == 24

    def test_the_curve_has_a_row_a_step(self, made: Artifact) -> None:
        curve = [json.loads(line) for line in made.file("losses.jsonl").read_text().splitlines()]
        assert [set(row) for row in curve] == [{"step", "lr", "logits", "blocks"}] * 2
        assert all(row["blocks"] > 0 for row in curve)  # taps on two networks, not on one

    def test_both_networks_answers_are_recorded(self, made: Artifact) -> None:
        teacher = artifact.parent(made, "teacher")
        with np.load(made.file("samples.npz")) as ours, np.load(teacher.file("samples.npz")) as his:
            assert np.array_equal(ours["teacher.logits"], his["teacher.logits"])
            assert not np.array_equal(ours["student.logits"], ours["teacher.logits"])

    def test_an_equal_network_starts_from_the_teachers_weights(self, tmp_path: Path) -> None:
        found = distill(tiny(tmp_path, distill={"steps": 0}), tmp_path / "out")
        teacher = stored(artifact.parent(found, "teacher"), "model")
        weights, quantizers = stored(found, "model"), stored(found, "quantizers")
        for name, tensor in teacher.items():
            mask = quantizers.get(name.replace(".weight", ".mask"))
            assert torch.equal(weights[name], tensor if mask is None else tensor * mask)

    def test_the_dense_arm_has_the_same_steps_and_no_masks(
        self, tmp_path: Path, made: Artifact
    ) -> None:
        dense = distill(tiny(tmp_path), tmp_path / "out", arm="dense")
        assert dense.results["layers_sparse"] == 0
        assert dense.results["layers_int8"] == 5
        assert not [name for name in stored(dense, "quantizers") if name.endswith("mask")]
        assert {row["sparse_reason"] for row in dense.read_json("layers.json")} == {
            "2:4 is off in this arm"
        }
        assert dense.id != made.id
        assert dense.manifest.parents == made.manifest.parents

    def test_another_network_may_be_the_student(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tiny(tmp_path, student={"model": "python:tiny.models:wide"}, distill=NO_BLOCKS)
        found = distill(recipe, tmp_path / "out")
        assert stored(found, "model")["stem.weight"].shape == (48, 32)
        assert "another network than its teacher, starts from random weights" in (
            capsys.readouterr().err
        )

    def test_names_that_libraries_leave_out_are_sparse_and_int8(self, tmp_path: Path) -> None:
        found = distill(tiny(tmp_path, "excluded", distill=NO_BLOCKS), tmp_path / "out")
        rows = {row["layer"]: row for row in found.read_json("layers.json")}
        for layer in ("vision_model.0", "proj_out", "router", "lm_head"):
            assert rows[layer]["int8"], layer
            assert rows[layer]["sparse"], layer

    def test_a_packed_attention_is_unpacked_sparse_and_int8(self, tmp_path: Path) -> None:
        found = distill(tiny(tmp_path, "attention"), tmp_path / "out")
        rows = {row["layer"]: row for row in found.read_json("layers.json")}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            row = rows[f"encoder.layers.1.self_attn.{part}"]
            assert row["int8"], part
            assert row["sparse"], part
        assert (found.results["layers"], found.results["layers_int8"]) == (13, 12)
        linears, attention = 4 * 1024, 2 * (1536 + 512)
        assert found.results["macs_share_int8"] == (linears + attention) / (
            linears + attention + 64
        )

    def test_a_layer_that_2_4_does_not_fit_stays_dense_with_its_reason(
        self, tmp_path: Path
    ) -> None:
        found = distill(tiny(tmp_path, "odd"), tmp_path / "out")
        stem = found.read_json("layers.json")[0]
        assert stem["int8"]
        assert not stem["sparse"]
        assert "k per group is 20, sparse kernels want a multiple of 16" in stem["sparse_reason"]

    def test_a_layer_may_be_sparse_without_int8(self, tmp_path: Path) -> None:
        section = {"calibration_samples": 32, "exclude": ["*fc1"]}
        found = distill(tiny(tmp_path, quantization=section), tmp_path / "out")
        quantizers = stored(found, "quantizers")
        assert "blocks.0.fc1.mask" in quantizers
        assert "blocks.0.fc1.input_scale" not in quantizers
        weight = stored(found, "model")["blocks.0.fc1.weight"]
        assert not weight[~quantizers["blocks.0.fc1.mask"]].any()
        assert (found.results["layers_int8"], found.results["layers_sparse"]) == (3, 5)


class TestSameAnswer:
    def test_in_another_directory(self, tmp_path: Path, made: Artifact) -> None:
        again = distill(tiny(tmp_path), tmp_path / "elsewhere")
        assert again.id == made.id
        assert again.manifest.files == made.manifest.files

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_interruption(
        self,
        tmp_path: Path,
        stop_at: StopAt,
        capsys: pytest.CaptureFixture[str],
        error: type[BaseException],
    ) -> None:
        settings = {"steps": 5, "batch_size": 16, "losses": {"labels": 0.5}}
        recipe = tiny(tmp_path, distill=settings)
        whole = distill(recipe, tmp_path / "whole")
        stop_at(3, error)
        with pytest.raises(error, match="stop"):
            distill(recipe, tmp_path / "cut")
        assert not list((tmp_path / "cut").glob("student-*"))
        capsys.readouterr()
        again = distill(recipe, tmp_path / "cut")
        assert "distill sparse: resumed at step 2 of 5" in capsys.readouterr().err
        for name in ("model", "quantizers"):
            one, two = stored(whole, name), stored(again, name)
            assert all(torch.equal(one[n], two[n]) for n in one), name
        assert again.file("losses.jsonl").read_text() == whole.file("losses.jsonl").read_text()
        assert again.id == whole.id


def test_a_convolutional_network_is_sparse_along_its_channels(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, configs.RESNET, "images")
    found = distill(recipe, tmp_path / "out")
    quantizers, weights = stored(found, "quantizers"), stored(found, "model")
    convolutions = [name for name in quantizers if name.endswith("mask")]
    assert len(convolutions) == 5
    for name in convolutions:
        mask = quantizers[name].numpy()
        assert (sparse24.conv_as_matrix(mask).reshape(-1, 4).sum(axis=1) == 2).all()
        weight = weights[name.replace(".mask", ".weight")].numpy()
        sparse24.check(sparse24.conv_as_matrix(weight), name)
        assert quantizers[name.replace("mask", "weight_scale")].shape == (len(weight),)


def test_a_student_with_weights_beside_its_config_starts_from_them(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(configs.VIT))
    torch.manual_seed(7)
    net = models.build(models.describe("hf:mine", tmp_path))
    save_weights(net, directory / "model.safetensors")
    found = tiny(
        tmp_path, configs.VIT, "images",
        student={"model": "hf:mine"}, distill={"steps": 0}, sparsity={"include": ["*"]},
    )  # fmt: skip
    made = distill(found, tmp_path / "out", "dense")
    weights = stored(made, "model")
    expected = net.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    save_weights(models.build(models.describe("hf:mine", tmp_path)),
                        directory / "model.safetensors")  # fmt: skip
    assert distill(found, tmp_path / "out", "dense").id != made.id
