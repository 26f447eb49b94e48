"""The whole stage: what a Student holds, and every way in which it must not come to be."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import configs
from tiny import models as tiny_models
from tiny.recipes import tiny
from torch import Tensor

from edgekd import artifact, eligible, models, quant, sparse24
from edgekd.artifact import Artifact
from edgekd.distill import loop, quantize, student
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill
from edgekd.errors import ConfigError, ContractError, EdgekdError, UnsupportedError
from edgekd.weights import load_weights, save_weights

PLANNED = ["stem", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]
NO_BLOCKS = {"steps": 2, "batch_size": 16, "losses": {"blocks": 0.0}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A Student of the MLP with dropout, two steps."""
    base = tmp_path_factory.mktemp("made")
    return distill(tiny(base), base / "out")


def stored(found: Artifact, name: str) -> dict[str, Tensor]:
    return load_file(found.file(f"{name}.safetensors"))


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
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        error: type[BaseException],
    ) -> None:
        settings = {"steps": 5, "batch_size": 16, "losses": {"labels": 0.5}}
        recipe = tiny(tmp_path, distill=settings)
        whole = distill(recipe, tmp_path / "whole")
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        real, count = Objective.__call__, iter(range(100))

        def stops(self: Objective, inputs: Any, target: Tensor) -> Any:
            if next(count) == 3:
                raise error("stop")
            return real(self, inputs, target)

        monkeypatch.setattr(Objective, "__call__", stops)
        with pytest.raises(error, match="stop"):
            distill(recipe, tmp_path / "cut")
        assert not list((tmp_path / "cut").glob("student-*"))
        capsys.readouterr()
        again = distill(recipe, tmp_path / "cut")
        assert "distill sparse: resumed at step 3 of 5" in capsys.readouterr().err
        for name in ("model", "quantizers"):
            one, two = stored(whole, name), stored(again, name)
            assert all(torch.equal(one[n], two[n]) for n in one), name
        assert again.file("losses.jsonl").read_text() == whole.file("losses.jsonl").read_text()
        assert again.id == whole.id

    def test_the_question_covers_every_module_that_decides(
        self, tmp_path: Path, made: Artifact
    ) -> None:
        """A change in what distill imports must not be answered from cache."""
        hashed: list[str] = []
        package = Path(student.__file__).parent
        imported: set[str] = set()
        for file in package.glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module == "edgekd":
                    imported |= {f"edgekd.{alias.name}" for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekd."):
                    imported.add(".".join(node.module.split(".")[:2]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(student, "source_hash", lambda *names: hashed.extend(names) or "x")
            student.question(tiny(tmp_path), artifact.parent(made, "teacher"), "sparse")
        # These decide nothing: how files are written, what is printed, what the config holds.
        apart = {f"edgekd.{name}" for name in ("artifact", "errors", "kinds", "progress", "recipe")}
        assert imported - apart <= set(hashed)


def refused(recipe: Any, out: Path, error: type[EdgekdError], arm: Any = "sparse") -> str:
    with pytest.raises(error) as caught:
        distill(recipe, out, arm)
    assert not list(out.glob("student-*"))
    return str(caught.value)


class TestRefused:
    def test_a_layer_the_library_skips_although_planned(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its mask of all ones must not pass for a sparse layer."""
        monkeypatch.setattr(eligible, "_sparse_reason", lambda *_: "")
        found = refused(tiny(tmp_path), tmp_path / "out", ContractError)
        assert "sparsify: head is planned for 2:4 but Model Optimizer gave it an all-ones" in found

    def test_quantizers_before_masks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = student.sparsify.masks

        def late(model: Any, rows: Any) -> Any:
            scales = {row.layer: torch.tensor(1.0) for row in rows if row.int8}
            quantize.attach(model, [r for r in rows if r.int8 and not r.sparse], {}, scales)
            dense = [eligible.LayerPlan(**{**r.as_json(), "sparse": False}) for r in rows]
            quantize.attach(model, dense, {}, scales)
            return real(model, rows)

        monkeypatch.setattr(student.sparsify, "masks", late)
        found = refused(tiny(tmp_path), tmp_path / "out", ContractError)
        assert "sparsify: the network is already quantized (5 quantizers" in found

    def test_one_object_for_teacher_and_student(self, tmp_path: Path) -> None:
        found = refused(tiny(tmp_path, "the_same_twice"), tmp_path / "out", ContractError)
        assert "verify: the teacher carries 5 quantizers, expected none: stem." in found
        assert "in an object of its own" in found

    def test_a_layer_that_calibration_leaves_at_zero(self, tmp_path: Path) -> None:
        found = refused(tiny(tmp_path, "unreached"), tmp_path / "out", ContractError)
        assert "calibrate: the input of stem has amax 0.0, expected a positive number" in found

    def test_a_library_that_quantizes_more_than_planned(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import modelopt.torch.quantization as mtq

        real = mtq.quantize

        def greedy(model: Any, config: Any, run: Any) -> Any:
            first = {"quantizer_name": "*", "cfg": {"num_bits": 8, "axis": None}}
            return real(model, {**config, "quant_cfg": [*config["quant_cfg"], first]}, run)

        monkeypatch.setattr(mtq, "quantize", greedy)
        found = refused(tiny(tmp_path), tmp_path / "out", ContractError)
        assert "expected 10; missing: none; not planned: " in found
        assert "head.input_quantizer" in found

    def test_a_mask_that_is_lost_between_checkpoints(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        real, count = Objective.__call__, iter(range(100))

        def opens(self: Objective, inputs: Any, target: Tensor) -> Any:
            if next(count) == 1:
                self._student.stem.parametrizations.weight[0].mask.fill_(True)
            return real(self, inputs, target)

        monkeypatch.setattr(Objective, "__call__", opens)
        found = refused(tiny(tmp_path), tmp_path / "out", ContractError)
        assert "verify: the 2:4 mask of stem was lost or changed" in found

    def test_a_checkpoint_with_another_mask(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It fits in every shape, so it is loaded; the mask is then not the one that was chosen."""
        recipe = tiny(tmp_path, distill={"steps": 3, "batch_size": 16})
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        real, count = Objective.__call__, iter(range(100))

        def stops(self: Objective, inputs: Any, target: Tensor) -> Any:
            if next(count) == 2:
                raise KeyboardInterrupt
            return real(self, inputs, target)

        monkeypatch.setattr(Objective, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            distill(recipe, tmp_path / "out")
        path = next((tmp_path / "out" / ".work").glob("student-*/" + loop.CHECKPOINT))
        tensors = load_file(path)
        name = "model.stem.parametrizations.weight.0.mask"
        tensors[name] = ~tensors[name]
        save_file(tensors, path)
        assert "the 2:4 mask of stem was lost or changed" in refused(
            recipe, tmp_path / "out", ContractError
        )

    def test_a_checkpoint_that_is_garbage_starts_anew(
        self, tmp_path: Path, made: Artifact, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keep = tmp_path / "out" / ".work" / made.path.name
        keep.mkdir(parents=True)
        (keep / loop.CHECKPOINT).write_bytes(b"not safetensors")
        assert distill(tiny(tmp_path), tmp_path / "out").id == made.id
        assert "is not a checkpoint of this run" in capsys.readouterr().err

    def test_a_loss_that_is_no_number(self, tmp_path: Path) -> None:
        settings = {"steps": 4, "batch_size": 16, "learning_rate": 1e30, "warmup": 0.0}
        found = refused(tiny(tmp_path, distill=settings), tmp_path / "out", ConfigError)
        assert found.startswith(
            "distill sparse: loss term 'logits' is nan at step 1 of 4 (learning"
        )
        assert "lower the learning_rate of 1e+30" in found

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("five_classes", "output 'logits' is [1, 5] for 1 examples"),
            ("wide", "a student block gives [16, 48], its teacher's [16, 32]"),
            ("excluded", "the student has no repeated blocks to compare; set it to 0"),
            ("no_layer", "does not take the data's inputs x: TypeError"),
            ("fails", "cannot be built: KeyError: 'width'"),
        ],
    )
    def test_students_that_do_not_fit(self, tmp_path: Path, name: str, words: str) -> None:
        recipe = tiny(tmp_path, student={"model": f"python:tiny.models:{name}"})
        assert words in refused(recipe, tmp_path / "out", ConfigError)

    def test_a_weight_that_other_tensors_make(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path, "weight_norm", distill=NO_BLOCKS)
        found = refused(recipe, tmp_path / "out", UnsupportedError)
        assert "layer stem computes its weight from other tensors" in found

    @pytest.mark.parametrize(("arm", "what"), [("sparse", "INT8 or 2:4"), ("dense", "INT8")])
    def test_a_plan_of_nothing(self, tmp_path: Path, arm: str, what: str) -> None:
        section = {"calibration_samples": 32, "exclude": ["*"]}
        recipe = tiny(tmp_path, quantization=section, sparsity={"exclude": ["*"]})
        found = refused(recipe, tmp_path / "out", ContractError, arm)
        assert f"recipe tiny: no layer of the {arm} student can be {what}; blocks.0.fc1: in " in (
            found
        )
        assert "in quantization.exclude; widen quantization.include or choose another" in found

    def test_an_input_that_float16_cannot_scale(self, tmp_path: Path) -> None:
        found = refused(tiny(tmp_path, "forms:denormal"), tmp_path / "out", ContractError)
        assert "calibrate: the input of stem has amax " in found
        assert "which rounds to 0 at the smallest scale that float16 holds, 5.96046e-08" in found
        assert "add the layer to quantization.exclude" in found

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("infinite", "calibrate: the input of stem holds NaN or infinity, expected finite"),
            ("not_a_number", "calibrate: the input of stem holds NaN or infinity, expected finite"),
            (
                "huge",
                "calibrate: the input of stem: amax is 1000000.0, expected a value in 0..",
            ),
        ],
    )
    def test_an_input_that_no_scale_holds(self, tmp_path: Path, name: str, words: str) -> None:
        recipe = tiny(tmp_path, student={"model": f"python:tiny.forms:{name}"})
        assert words in refused(recipe, tmp_path / "out", ContractError)

    def test_a_network_without_layers(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path, "only_norm", distill=NO_BLOCKS)
        assert "recipe tiny: the student has no Linear or Conv2d layer" in refused(
            recipe, tmp_path / "out", ContractError
        )

    def test_a_layer_named_for_2_4_that_cannot_be(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path, "odd", sparsity={"include": ["stem"]})
        found = refused(recipe, tmp_path / "out", ContractError)
        assert (
            "sparsity.include names stem (n=32, k=20), which cannot be 2:4: k per group is 20"
            in found
        )

    def test_a_pattern_that_matches_nothing(self, tmp_path: Path) -> None:
        recipe = tiny(tmp_path, sparsity={"exclude": ["blocks.7.*"]})
        found = refused(recipe, tmp_path / "out", ConfigError)
        assert "sparsity.exclude: 'blocks.7.*' matches no Linear or Conv2d" in found
        assert "blocks.0.fc1" in found


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
