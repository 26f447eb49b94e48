"""Our quantizer against NumPy's contract and Model Optimizer's; its gradient; its guards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import data, forms, models
from tiny.recipes import plan
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgekd import quant, sparse24
from edgekd.distill import quantize, sparsify
from edgekd.distill.calibrate import calibrate
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.models import run

Feed = Callable[[nn.Module], None]


def feed(model: nn.Module) -> None:
    examples = data.vectors()
    run(model, examples.train.take(np.arange(32))[0], examples.io)


def student() -> tuple[nn.Module, list[LayerPlan], dict[str, Tensor], dict[str, Tensor]]:
    """A network with everything attached: network, plan, masks, input scales."""
    torch.manual_seed(0)
    model = models.mlp()
    rows = plan(model)
    masks = sparsify.masks(model, rows)
    scales = calibrate(model, rows, masks, feed)
    quantize.attach(model, rows, masks, scales)
    return model, rows, masks, scales


def oracle(amax: Tensor, axis: int | None = None) -> nn.Module:
    """Model Optimizer's static INT8 quantizer."""
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=8, axis=axis))
    quantizer.amax = amax
    return quantizer


class TestFakeQuant:
    def test_by_hand(self) -> None:
        x = torch.tensor([0.0, 0.25, 0.75, 1.25, -0.26, 63.5, 70.0, -64.0, -64.3, -90.0])
        # Half to even: 0.25 / 0.5 is a tie to 0, 0.75 / 0.5 one to 2, 1.25 / 0.5 one to 2.
        wanted = [0.0, 0.0, 1.0, 1.0, -0.5, 63.5, 63.5, -64.0, -64.0, -64.0]
        assert quantize.fake_quant(x, torch.tensor(0.5)).tolist() == wanted

    @given(amax=st.floats(1e-6, 6e4), seed=st.integers(0, 2**32 - 1))
    def test_equals_the_integer_contract_to_the_bit(self, amax: float, seed: int) -> None:
        scale = quant.scale_from_amax(amax)
        x = np.random.default_rng(seed).standard_normal(500).astype(np.float32) * np.float32(amax)
        x[:100] = (np.arange(100, dtype=np.float32) + 0.5) * scale  # ties
        found = quantize.fake_quant(torch.from_numpy(x), torch.tensor(scale))
        wanted = quant.dequantize(quant.quantize(x, scale), scale)
        assert (found.numpy() == wanted).all()

    def test_gradient_passes_inside_the_range_and_is_zero_where_it_saturates(self) -> None:
        x = torch.tensor(
            [0.2, 63.5, 63.74, 63.75, 80.0, -64.0, -64.25, -64.26, -90.0], requires_grad=True
        )
        upstream = torch.arange(1.0, 10.0)
        (quantize.fake_quant(x, torch.tensor(0.5)) * upstream).sum().backward()
        # 63.74 still rounds to 127, 63.75 is a tie to 128 and saturates; -64.25 ties to -128.
        assert x.grad is not None
        assert x.grad.tolist() == [1, 2, 3, 0, 0, 6, 7, 0, 0]

    def test_no_gradient_goes_to_the_scale(self) -> None:
        scale = torch.tensor(0.5, requires_grad=True)
        x = torch.randn(4, requires_grad=True)
        quantize.fake_quant(x, scale).sum().backward()
        assert scale.grad is None

    def test_nan_is_not_hidden(self) -> None:
        assert quantize.fake_quant(torch.tensor([torch.nan]), torch.tensor(0.5)).isnan().all()


class TestAgainstModelOptimizer:
    """It multiplies by 127 / amax and divides by that; we divide by the scale and multiply."""

    @pytest.mark.parametrize("power", [-12, -3, 0, 5])
    def test_equal_to_the_bit_where_the_scale_is_a_power_of_two_ties_included(
        self, power: int
    ) -> None:
        scale = torch.tensor(2.0**power)
        x = torch.arange(-300, 300) * scale / 2
        assert torch.equal(quantize.fake_quant(x, scale), oracle(scale * 127)(x))

    def test_equal_integers_at_any_scale_away_from_ties(self) -> None:
        rng = np.random.default_rng(0)
        for amax in np.exp2(rng.uniform(-10, 10, 50)):
            scale = torch.tensor(quant.scale_from_amax(amax))
            x = torch.from_numpy(rng.standard_normal(2000).astype(np.float32) * np.float32(amax))
            fraction = (x / scale).abs() % 1
            x = x[(fraction - 0.5).abs() > 1e-4]
            assert len(x) > 1900
            ours, theirs = quantize.fake_quant(x, scale), oracle(scale * 127)(x)
            assert torch.equal(torch.round(ours / scale), torch.round(theirs / scale))
            # What is left is their second rounding: q / (127 / amax) instead of q * scale.
            assert torch.allclose(ours, theirs, rtol=2**-22, atol=0)

    def test_per_row_on_a_weight(self) -> None:
        torch.manual_seed(0)
        weight = torch.randn(6, 32) * torch.logspace(-2, 2, 6)[:, None]
        scale = quantize.weight_scale(weight)
        ours = quantize.fake_quant(weight, scale)
        theirs = oracle(scale * 127, axis=0)(weight)
        assert torch.equal(torch.round(ours / scale), torch.round(theirs / scale))
        assert torch.allclose(ours, theirs, rtol=2**-22, atol=0)

    def test_on_a_tie_they_may_part_by_one_step_and_onnx_agrees_with_us(self) -> None:
        scale = torch.tensor(float(np.float16(0.1)))
        x = (torch.arange(-127, 127) + 0.5) * scale
        ours = torch.round(quantize.fake_quant(x, scale) / scale)
        theirs = torch.round(oracle(scale * 127)(x) / scale)
        parted = ours != theirs
        assert 0 < int(parted.sum()) < len(x)
        assert (ours - theirs).abs().max() == 1
        assert np.array_equal(ours.numpy(), quant.quantize(x.numpy(), float(scale)))


class TestWeightScale:
    @given(
        rows=st.lists(st.floats(0, 6.4e4, width=32), min_size=1, max_size=20),
        seed=st.integers(0, 99),
    )
    def test_equals_the_integer_contract_to_the_bit(self, rows: list[float], seed: int) -> None:
        amax = np.array(rows, dtype=np.float32)
        shrink = np.random.default_rng(seed).uniform(-1, 1, (len(rows), 3)).astype(np.float32)
        weight = np.concatenate([amax[:, None], amax[:, None] * shrink], axis=1)
        found = quantize.weight_scale(torch.from_numpy(weight))
        assert found.dtype == torch.float32
        assert (found.numpy()[:, 0] == quant.scale_from_amax(amax)).all()

    def test_at_every_float16_and_just_beside_it(self) -> None:
        half = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        scales = half[half <= 511.75]
        exact = scales * np.float32(127)
        for amax in (
            exact,
            np.nextafter(exact, np.float32(0)),
            np.nextafter(exact, np.float32(1e9)),
        ):
            amax = amax[amax <= quant._AMAX_MAX]
            found = quantize.weight_scale(torch.from_numpy(amax[:, None])).numpy()[:, 0]
            assert (found == quant.scale_from_amax(amax)).all()

    def test_a_convolution_has_one_scale_for_each_output_channel(self) -> None:
        weight = torch.zeros(2, 3, 5, 5)
        weight[1, 2, 4, 4] = -127.0
        assert quantize.weight_scale(weight).shape == (2, 1, 1, 1)
        assert quantize.weight_scale(weight).flatten().tolist() == [2.0**-14, 1.0]

    def test_it_follows_a_weight_that_grows(self) -> None:
        model, *_ = student()
        layer = model.stem
        before = layer.weight.detach().abs().max()
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(10)
        assert float(layer.weight.detach().abs().max()) == pytest.approx(
            float(10 * before), rel=2e-3
        )


class TestAttach:
    def test_a_layer_computes_on_its_shipped_numbers(self) -> None:
        model, _, masks, scales = student()
        plain = models.mlp()
        latent = model.stem.parametrizations.weight.original.detach()
        x = torch.randn(5, 32)
        masked = (latent * masks["stem"]).numpy()
        scale = quant.scale_from_amax(np.abs(masked).max(axis=1))
        weight = quant.snap(masked, scale, axis=0)
        sparse24.check(weight, "stem")
        assert (model.stem.weight.detach().numpy() == weight).all()
        wanted = nn.functional.linear(
            torch.from_numpy(quant.snap(x.numpy(), scales["stem"].numpy())),
            torch.from_numpy(weight),
            model.stem.bias,
        )
        assert torch.equal(model.stem(x), wanted)
        assert not torch.equal(plain.stem(x), wanted)

    def test_the_gradient_is_zero_where_the_mask_is(self) -> None:
        model, _, masks, _ = student()
        model(torch.randn(64, 32)).square().sum().backward()
        for layer, mask in masks.items():
            gradient = model.get_submodule(layer).parametrizations.weight.original.grad
            assert (gradient[~mask] == 0).all()
            assert (gradient[mask] != 0).float().mean() > 0.9

    def test_a_layer_outside_int8_may_still_be_sparse(self) -> None:
        torch.manual_seed(0)
        model = models.mlp()
        rows = [replace(r, int8=False) for r in plan(model)]
        masks = sparsify.masks(model, rows)
        quantize.attach(model, rows, masks, {})
        assert quantize.quantized_layers(model) == []
        weight = model.stem.weight
        assert torch.equal(weight, model.stem.parametrizations.weight.original * masks["stem"])
        assert torch.equal(quantize.latent_weight(model.stem), weight)
        quantize.verify(model, models.mlp(), rows, masks)

    @pytest.mark.parametrize("learned", [False, True])
    def test_scales_and_masks_go_where_the_weights_are(self, learned: bool) -> None:
        model = models.mlp()
        rows = plan(model)
        rows[1] = replace(rows[1], int8=False)
        masks = sparsify.masks(model, rows)
        scales = calibrate(model, rows, masks, feed)
        assert {tensor.device.type for tensor in (*masks.values(), *scales.values())} == {"cpu"}
        elsewhere = model.to("meta")
        quantize.attach(elsewhere, rows, masks, scales, learned=learned)
        found = {name: tensor.device.type for name, tensor in elsewhere.state_dict().items()}
        assert {"stem.input_quantizer.calibrated", "stem.parametrizations.weight.0.mask"} <= set(
            found
        )
        assert f"{rows[1].layer}.parametrizations.weight.0.mask" in found
        assert set(found.values()) == {"meta"}

    def test_missing_masks_and_scales(self) -> None:
        model = models.mlp()
        rows = plan(model)
        with pytest.raises(ContractError, match="attach: stem is planned for 2:4 but has no mask"):
            quantize.attach(model, rows, {}, {})
        dense = [replace(r, sparse=False) for r in rows]
        with pytest.raises(ContractError, match="stem is planned for INT8 but has no input scale"):
            quantize.attach(model, dense, {}, {})

    def test_twice_is_refused(self) -> None:
        model, rows, masks, scales = student()
        with pytest.raises(ContractError, match="attach: the network carries 5 quantizers"):
            quantize.attach(model, rows, masks, scales)


class TestTied:
    def tied(self) -> tuple[nn.Module, list[LayerPlan], dict[str, Tensor]]:
        torch.manual_seed(0)
        model = forms.tied()
        rows = plan(model)
        masks = sparsify.masks(model, rows)
        quantize.attach(model, rows, masks, calibrate(model, rows, masks, feed))
        return model, rows, masks

    def test_one_parameter_under_two_parametrizations(self) -> None:
        model, rows, masks = self.tied()
        assert quantize.original(model.encoder) is quantize.original(model.decoder)
        assert torch.equal(model.encoder.weight, model.decoder.weight)
        assert torch.equal(masks["encoder"], masks["decoder"])
        names = [name for name, _ in model.named_parameters()]
        assert len([name for name in names if name.endswith("weight.original")]) == 1
        quantize.verify(model, models.mlp(), rows, masks)

    def test_a_tie_that_was_lost(self) -> None:
        model, rows, masks = self.tied()
        held = model.decoder.parametrizations.weight
        held.original = nn.Parameter(held.original.detach().clone())
        with pytest.raises(ContractError, match="decoder and encoder were one weight and are two"):
            quantize.verify(model, models.mlp(), rows, masks)

    def test_masks_that_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = forms.tied()
        rows = plan(model)
        real = sparsify._by_model_optimizer
        monkeypatch.setattr(
            sparsify,
            "_by_model_optimizer",
            lambda *args: {
                layer: mask.roll(4 if layer == "decoder" else 0, 1)
                for layer, mask in real(*args).items()
            },
        )
        monkeypatch.setattr(sparsify, "_keeps_the_larger", lambda *_: None)
        with pytest.raises(ContractError, match="decoder and encoder are one weight but got two"):
            sparsify.masks(model, rows)

    def test_masks_are_baked_in_and_the_tie_stays(self) -> None:
        torch.manual_seed(0)
        model = forms.tied()
        masks = sparsify.masks(model, plan(model))
        quantize.attach_masks(model, masks)
        quantize.bake_masks(model, masks)
        assert model.encoder.weight is model.decoder.weight
        assert not model.encoder.weight[~masks["encoder"]].any()
        quantize.attach_masks(model, masks)
        model.decoder.parametrizations.weight[0].mask.fill_(True)
        with pytest.raises(ContractError, match="float training: the 2:4 mask of decoder was lost"):
            quantize.bake_masks(model, masks)


class TestVerify:
    def wrong(self, change: Callable[[nn.Module, nn.Module], None]) -> str:
        model, rows, masks, _ = student()
        teacher = models.mlp()
        quantize.verify(model, teacher, rows, masks)
        change(model, teacher)
        with pytest.raises(ContractError) as caught:
            quantize.verify(model, teacher, rows, masks)
        return str(caught.value)

    def test_a_removed_quantizer(self) -> None:
        def change(model: nn.Module, _: nn.Module) -> None:
            del model.stem.input_quantizer

        found = self.wrong(change)
        assert "quantizers are on 4 layers, expected 5; missing: stem; not planned: none" in found

    def test_a_quantizer_whose_hook_was_taken_off_is_not_enabled(self) -> None:
        def change(model: nn.Module, _: nn.Module) -> None:
            model.blocks[1].fc2._forward_pre_hooks.clear()

        assert "missing: blocks.1.fc2" in self.wrong(change)

    def test_a_parametrization_that_was_baked_in(self) -> None:
        def change(model: nn.Module, _: nn.Module) -> None:
            parametrize.remove_parametrizations(model.stem, "weight")

        assert "missing: stem" in self.wrong(change)

    def test_a_quantizer_nobody_planned(self) -> None:
        def change(model: nn.Module, _: nn.Module) -> None:
            rows = [LayerPlan("head", "Linear", 4, 32, 1, True, "", False, "")]
            other = nn.ModuleDict({"head": model.head})
            quantize.attach(other, rows, {}, {"head": torch.tensor(0.5)})

        found = self.wrong(change)
        assert "on 6 layers, expected 5; missing: none; not planned: head" in found

    @pytest.mark.parametrize("name", ["input_quantizer", "k_bmm_quantizer"])
    def test_any_quantizer_in_the_teacher(self, name: str) -> None:
        def change(_: nn.Module, teacher: nn.Module) -> None:
            teacher.blocks[0].add_module(name, nn.Identity())

        found = self.wrong(change)
        assert f"verify: the teacher carries 1 quantizers, expected none: blocks.0.{name}" in found

    def test_a_mask_that_was_opened(self) -> None:
        def change(model: nn.Module, _: nn.Module) -> None:
            model.stem.parametrizations.weight[0].mask.fill_(True)

        assert "verify: the 2:4 mask of stem was lost or changed" in self.wrong(change)

    def test_a_mask_that_was_taken_away(self) -> None:
        def change(model: nn.Module, _: nn.Module) -> None:
            model.stem.parametrizations.weight[0].mask = None

        assert "verify: the 2:4 mask of stem was lost or changed" in self.wrong(change)

    def test_weights_that_broke_2_4_in_spite_of_the_mask(self) -> None:
        model, rows, masks, _ = student()
        masks["stem"][0, :4] = True
        model.stem.parametrizations.weight[0].mask[0, :4] = True
        with pytest.raises(
            ContractError, match=r"verify: stem: row 0, columns 0..3 hold 4 nonzero"
        ):
            quantize.verify(model, models.mlp(), rows, masks)


def test_a_copy_keeps_its_quantizers() -> None:
    model, rows, masks, _ = student()
    twin = copy.deepcopy(model)
    quantize.verify(twin, models.mlp(), rows, masks)
    x = torch.randn(3, 32)
    assert torch.equal(twin.eval()(x), model.eval()(x))
