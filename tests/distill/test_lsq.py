"""Learned scales: the paper's gradient, what ships, and that learning them pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs, forms, models
from tiny.recipes import StopAt, plan, stored, tiny
from torch import Tensor, nn

from edgekd import models as networks
from edgekd import qdq, quant, sources
from edgekd.distill import calibrate, loop, lsq, quantize, sparsify
from edgekd.distill.prepare import prepare
from edgekd.distill.student import distill
from edgekd.export.model import export

LEARNED = {"calibration_samples": 32, "convolutions": True, "scales": "learned"}
FAMILIES = pytest.mark.parametrize(
    ("config", "data"),
    [(configs.VIT, "images"), (configs.BERT, "tokens"), (configs.RESNET, "images")],
    ids=["vit", "bert", "resnet"],
)


def learned(model: nn.Module, bits: int = 8) -> nn.Module:
    from dataclasses import replace

    rows = [replace(row, bits=bits) for row in plan(model)]
    scales = {row.layer: torch.tensor(0.0625) for row in rows if row.int8}
    quantize.attach(model, rows, sparsify.masks(model, rows), scales, learned=True)
    return model


class TestGradient:
    """By the paper's equations 3 and 5, element by element, and by autograd."""

    @pytest.mark.parametrize(("low", "high"), [(-128, 127), (-8, 7), (-1, 1)])
    def test_equals_the_papers_equations(self, low: int, high: int) -> None:
        torch.manual_seed(0)
        scale = torch.tensor([[0.5], [0.0625], [0.25]], requires_grad=True)
        x = (torch.randn(3, 40) * high * scale.detach() * 0.8).requires_grad_()
        upstream = torch.randn(3, 40)
        (lsq.fake_quant(x, scale, low, high, 40) * upstream).sum().backward()
        to_scale, to_x = np.zeros((3, 1)), np.zeros((3, 40))
        for i in range(3):
            for j in range(40):
                ratio = x[i, j].item() / scale[i].item()
                if ratio <= low:
                    slope = float(low)
                elif ratio >= high:
                    slope = float(high)
                else:
                    slope = round(ratio) - ratio  # Python rounds half to even, as ONNX does
                    to_x[i, j] = float(upstream[i, j])
                to_scale[i] += float(upstream[i, j]) * slope / (40 * high) ** 0.5
        assert (to_x == 0).any()
        assert scale.grad is not None
        assert x.grad is not None
        assert np.allclose(scale.grad.numpy(), to_scale, rtol=1e-4, atol=1e-6)
        assert np.array_equal(x.grad.numpy(), to_x.astype(np.float32))

    def test_is_autograds_with_rounding_passed_straight_through(self) -> None:
        torch.manual_seed(1)
        x = (torch.randn(200) * 4).requires_grad_()
        s = torch.tensor(0.5, requires_grad=True)
        ratio = (x / s).clamp(-8, 7)
        ((ratio + (ratio.round() - ratio).detach()) * s).square().sum().backward()
        wanted = [x.grad, s.grad]
        x.grad = s.grad = None
        lsq.fake_quant(x, s, -8, 7, 1).square().sum().backward()
        assert torch.allclose(x.grad, wanted[0], rtol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(s.grad * 7**0.5, wanted[1], rtol=1e-4)  # type: ignore[arg-type, operator]

    def test_counts_what_shares_a_scale(self) -> None:
        """N is the weights that the mask keeps, or one example's features."""
        model = learned(models.mlp())
        mask = quantize.mask_of(model.stem)
        assert mask is not None
        seen: list[object] = []
        real = lsq.fake_quant
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lsq, "fake_quant", lambda *args: seen.append(args[4]) or real(*args))
            model.stem(torch.randn(5, 3, 32))
        assert seen[0] == 96  # 3 tokens of 32 features; torch calls the input's hook first
        assert isinstance(seen[1], Tensor)
        assert (seen[1] == 16).all()


class TestWhatShips:
    def test_a_scale_is_rounded_up_to_float16(self) -> None:
        rng = np.random.default_rng(0)
        s = np.exp2(rng.uniform(-24, 8.9, 2000)).astype(np.float32)
        s[:500] = s[:500].astype(np.float16)
        found = lsq.float16_above(torch.from_numpy(s)).numpy()
        nearest = s.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf))
        wanted = np.where(nearest.astype(np.float64) < s, above, nearest).astype(np.float32)
        assert (found == wanted).all()
        assert (found[:500] == s[:500]).all()

    @pytest.mark.parametrize("log", [-1e3, -1.0, 1.0, 1e3])
    def test_it_stays_positive_and_in_range_wherever_training_goes(self, log: float) -> None:
        scale = lsq.LearnedScale(torch.tensor(0.01))
        with torch.no_grad():
            scale.log_scale.fill_(log)
        shipped = float(scale.shipped())
        assert lsq.SCALE_MIN <= shipped <= lsq.SCALE_MAX
        assert shipped == float(np.float16(shipped))

    @pytest.mark.parametrize("bits", [8, 4])
    def test_the_first_step_computes_what_calibrated_scales_do(self, bits: int) -> None:
        from dataclasses import replace

        torch.manual_seed(0)
        model, frozen = models.mlp(), models.mlp()
        frozen.load_state_dict(model.state_dict())
        rows = [replace(row, bits=bits) for row in plan(model)]
        scales = {row.layer: torch.tensor(0.0625) for row in rows if row.int8}
        masks = sparsify.masks(model, rows)
        quantize.attach(frozen, rows, masks, scales)
        quantize.attach(model, rows, masks, scales, learned=True)
        x = torch.randn(7, 32)
        assert torch.equal(model.eval()(x), frozen.eval()(x))

    @FAMILIES
    def test_the_exported_graph_carries_the_learned_scales_of_an_equalised_student(
        self, config: dict[str, Any], data: str, tmp_path: Path
    ) -> None:
        """Export compares the graph's answers with the Student's itself."""
        recipe = tiny(
            tmp_path,
            config,
            data,
            quantization={**LEARNED, "smooth": 0.5},
            distill={"steps": 6, "batch_size": 16, "learning_rate": 5e-3},
        )
        student = distill(recipe, tmp_path / "out")
        weights, scales = stored(student, "model"), stored(student, "quantizers")
        graph = export(student, tmp_path / "out")
        rows = [row["layer"] for row in student.read_json("layers.json") if row["int8"]]
        assert len(rows) > 4
        for file in ("ort.onnx", "trt.onnx"):
            shipped = {w.layer: w for w in qdq.quantized_weights(qdq.load(graph.file(file)))}
            for layer in rows:
                wanted = scales[f"{layer}.weight_scale"].numpy()
                assert (np.ravel(shipped[layer].scale) == wanted).all()
                assert shipped[layer].input_scale == scales[f"{layer}.input_scale"].numpy()
                largest = np.abs(weights[f"{layer}.weight"].numpy()).reshape(len(wanted), -1)
                moved = wanted != quant.scale_from_amax(largest.max(axis=1))
                assert moved.mean() > 0.5, layer  # not what the weight's largest values say
        assert not any("log_scale" in name or "quantizer" in name for name in weights)
        assert student.results["equalised"]
        assert all(row["scaled"] for row in student.results["equalised"])
        assert graph.results["layers_sparse"] == student.results["layers_sparse"] > 4

    def test_layers_that_read_one_tensor_learn_one_scale(self, tmp_path: Path) -> None:
        distill_ = {"steps": 3, "batch_size": 16, "learning_rate": 1e-2}
        recipe = tiny(tmp_path, configs.VIT, "images", quantization=LEARNED, distill=distill_)
        scales = stored(distill(recipe, tmp_path / "out"), "quantizers")
        inputs = {n: float(t) for n, t in scales.items() if n.endswith("input_scale")}
        block = [inputs[n] for n in sorted(inputs) if ".0." in n and any(p in n for p in "qkv")]
        assert len(block) >= 3
        by_layer = {n: v for n, v in inputs.items() if any(p in n for p in ("q_proj", "query"))}
        assert by_layer
        for name, value in by_layer.items():
            for other in ("k_proj", "v_proj") if "q_proj" in name else ("key", "value"):
                twin = name.replace("q_proj", other).replace("query", other)
                assert inputs[twin] == value
        assert len(set(inputs.values())) > 4

    def test_layers_of_one_weight_learn_one_scale(self) -> None:
        torch.manual_seed(0)
        model = learned(forms.tied())
        optimizer = torch.optim.AdamW(lsq.groups(model, 0.1), lr=1e-2)
        for _ in range(3):
            model(torch.randn(16, 32)).square().sum().backward()
            optimizer.step()
        one, two = (quantize.shipped_weight_scale(m) for m in (model.encoder, model.decoder))
        assert torch.equal(one, two)
        assert torch.equal(model.encoder.weight, model.decoder.weight)
        names = [n for n, _ in model.named_parameters() if n.endswith("log_scale")]
        assert len(names) == 3  # one weight, and two inputs


class TestTraining:
    def test_weight_decay_acts_on_no_scale(self) -> None:
        model = learned(models.mlp())
        decayed, kept = lsq.groups(model, 0.3)
        assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
        assert len(kept["params"]) == 10  # weight and input of five layers
        assert len(decayed["params"]) == len(list(models.mlp().parameters()))
        with torch.no_grad():
            for parameter in kept["params"]:
                parameter.fill_(0.25)
        optimizer = torch.optim.AdamW([decayed, kept], lr=0.1)
        (0.0 * model(torch.randn(4, 32)).sum()).backward()
        optimizer.step()
        assert all((parameter == 0.25).all() for parameter in kept["params"])
        (alone,) = lsq.groups(models.mlp(), 0.3)
        assert alone["weight_decay"] == 0.3

    def test_a_killed_run_resumes_to_the_bit(self, tmp_path: Path, stop_at: StopAt) -> None:
        distill_ = {"steps": 4, "batch_size": 16, "learning_rate": 5e-3}
        recipe = tiny(tmp_path, quantization=LEARNED, distill=distill_)
        whole = distill(recipe, tmp_path / "whole")
        stop_at(2, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            distill(recipe, tmp_path / "cut")
        again = distill(recipe, tmp_path / "cut")
        for name in ("model", "quantizers"):
            one, two = stored(whole, name), stored(again, name)
            assert all(torch.equal(one[n], two[n]) for n in one), name
        assert again.id == whole.id

    @FAMILIES
    def test_beats_frozen_scales_that_calibration_made_too_wide(
        self, config: dict[str, Any], data: str, tmp_path: Path
    ) -> None:
        """One outlier in the calibration data, and the same steps, seed and start for both."""
        frozen, trained = (
            self.after_training(config, data, tmp_path / str(train), train)
            for train in (False, True)
        )
        assert frozen[0] == trained[0]
        assert trained[1] < 0.95 * frozen[1] < frozen[0]

    def after_training(
        self, config: dict[str, Any], data: str, base: Path, train: bool
    ) -> tuple[float, float]:
        """Loss over the training examples, before and after."""
        distill_ = {"steps": 60, "batch_size": 16, "learning_rate": 2e-3, "losses": {"blocks": 0.0}}
        recipe = tiny(base, config, data, quantization=LEARNED, distill=distill_)
        examples, spec = sources.load(recipe), recipe.teacher.model
        torch.manual_seed(3)
        teacher = networks.build(networks.describe(spec, base))
        student = networks.build(networks.describe(spec, base))
        student.load_state_dict(teacher.state_dict())
        real = calibrate.calibrate
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                calibrate, "calibrate", lambda *a: {n: 32 * s for n, s in real(*a).items()}
            )
            prepared = prepare(student, teacher, recipe, "dense")
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(train or not name.endswith("log_scale"))
        inputs, labels = examples.train.take(np.arange(64))

        def loss() -> float:
            student.eval()
            with torch.no_grad():
                terms = prepared.loss(networks.tensors(inputs, student), torch.from_numpy(labels))
            student.train()
            return sum(float(term) for term in terms.values())

        before = loss()
        settings, split = recipe.distill, examples.train
        loop.train(loop.Run("lsq", student, prepared.loss, split, settings, 3, base))
        return before, loss()


def test_a_student_of_ones_own_loop_is_named_by_its_scales_too(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, quantization=LEARNED)
    torch.manual_seed(0)
    teacher = models.mlp()
    found = []
    for log_scale in (0.0, 0.05):
        student = models.mlp()
        student.load_state_dict(teacher.state_dict())
        prepared = prepare(student, teacher, recipe)
        with torch.no_grad():
            student.stem.input_quantizer.learned.log_scale.fill_(log_scale)
        found.append(prepared.finish(tmp_path / "out"))
    first, second = (stored(each, "quantizers")["stem.input_scale"] for each in found)
    assert float(second / first) == pytest.approx(np.exp(0.5), rel=2e-3)
