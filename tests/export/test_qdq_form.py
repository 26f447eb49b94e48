"""The shipped form in torch: snapped weights, equal numbers, standard Q/DQ when traced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import forms, models
from torch import Tensor, nn

from edgekd import quant
from edgekd.distill import quantize
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.export import qdq_form


def row(layer: str, int8: bool = True, sparse: bool = False) -> LayerPlan:
    return LayerPlan(layer, "Linear", 32, 32, 1, int8, "", sparse, "")


def stored(model: nn.Module, layer: str, mask: Tensor | None = None) -> dict[str, Tensor]:
    weight = model.get_submodule(layer).weight.detach()
    found = {
        f"{layer}.weight_scale": quantize.weight_scale(weight).flatten(),
        f"{layer}.input_scale": torch.tensor(2.0**-5),
    }
    return found if mask is None else {**found, f"{layer}.mask": mask}


@given(amax=st.floats(1e-5, 1e4), seed=st.integers(0, 1000))
def test_the_numbers_are_the_contracts_and_the_students(amax: float, seed: int) -> None:
    scale = quant.scale_from_amax(amax)
    x = np.random.default_rng(seed).standard_normal(200).astype(np.float32) * np.float32(amax)
    found = qdq_form.QDQ.apply(torch.from_numpy(x), torch.tensor(scale))
    assert (found.numpy() == quant.snap(x, scale)).all()
    assert torch.equal(found, quantize.fake_quant(torch.from_numpy(x), torch.tensor(scale)))


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 2, 2)])
def test_a_scale_for_each_row(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, scale = torch.randn(shape), torch.tensor([0.5, 0.25, 2.0])
    found = qdq_form.QDQ.apply(x, scale)
    assert (found.numpy() == quant.snap(x.numpy(), scale.numpy(), axis=0)).all()


def test_weights_are_snapped_and_snapping_again_changes_nothing() -> None:
    torch.manual_seed(0)
    model = models.mlp()
    before = model.stem.weight.detach().clone()
    scales = stored(model, "stem")
    qdq_form.attach(model, [row("stem")], scales)
    snapped = model.stem.parametrizations.weight.original
    assert not torch.equal(snapped, before)
    wanted = quant.snap(before.numpy(), scales["stem.weight_scale"].numpy(), axis=0)
    assert (snapped.detach().numpy() == wanted).all()
    assert torch.equal(model.stem.weight, snapped)
    assert (snapped - before).abs().max() <= scales["stem.weight_scale"].max() / 2


def test_stored_scales_are_copied() -> None:
    """They are what the shipped files are compared with, so nothing may reach them."""
    model = models.mlp()
    scales = stored(model, "stem")
    kept = {name: tensor.clone() for name, tensor in scales.items()}
    qdq_form.attach(model, [row("stem")], scales)
    model.stem.input_quantizer.scale += 1
    model.stem.parametrizations.weight[0].scale += 1
    assert all(torch.equal(scales[name], kept[name]) for name in kept)


def test_unplanned_rows_are_left_alone_whatever_they_name() -> None:
    model = models.attention()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [row("encoder.layers.0.self_attn.in_proj_weight", int8=False), row("head", int8=False)]
    qdq_form.attach(model, rows, {})
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


class TestRefused:
    def test_no_scales(self) -> None:
        for side in ("weight_scale", "input_scale"):
            model = models.mlp()
            scales = stored(model, "stem")
            del scales[f"stem.{side}"]
            with pytest.raises(ContractError, match=f"stem is planned for INT8 but has no {side}"):
                qdq_form.attach(model, [row("stem")], scales)

    @pytest.mark.parametrize("int8", [True, False])
    @pytest.mark.parametrize("lost", ["no mask", "weight off the mask"])
    def test_a_lost_mask(self, int8: bool, lost: str) -> None:
        model = models.mlp()
        mask = torch.tensor([True, True, False, False]).repeat(32, 8)
        scales = stored(model, "stem", None if lost == "no mask" else mask)
        with pytest.raises(ContractError, match="stem is planned for 2:4 but its mask was lost"):
            qdq_form.attach(model, [row("stem", int8, sparse=True)], scales)


@pytest.mark.parametrize(
    ("value", "found"), [(0.0, "0.0"), (float("nan"), "nan"), (float("inf"), "inf"), (-1.0, "-1.0")]
)
@pytest.mark.parametrize("side", ["input", "weight"])
def test_scales_that_are_none(value: float, found: str, side: str) -> None:
    model = models.mlp()
    scales = stored(model, "stem")
    scales[f"stem.{side}_scale"].fill_(value)
    with pytest.raises(
        ContractError, match=rf"export: the {side} of stem: scale.* is {found}, expected a finite"
    ):
        qdq_form.attach(model, [row("stem")], scales)


def test_a_denormal_scale_is_a_scale() -> None:
    model = models.mlp()
    scales = stored(model, "stem")
    scales["stem.input_scale"].fill_(2.0**-24)
    qdq_form.attach(model, [row("stem")], scales)
    assert model.stem(torch.full((1, 32), 1e-6)).isfinite().all()


def test_a_tied_weight_stays_one_parameter() -> None:
    model = forms.tied()
    scales = {**stored(model, "encoder"), **stored(model, "decoder")}
    qdq_form.attach(model, [row("encoder"), row("decoder")], scales)
    one, two = (
        model.get_submodule(name).parametrizations.weight for name in ("encoder", "decoder")
    )
    assert one.original is two.original
    assert torch.equal(model.encoder.weight, model.decoder.weight)


def test_a_layer_called_by_keyword() -> None:
    model = models.keyword()
    qdq_form.attach(model, [row("stem")], stored(model, "stem"))
    x = torch.randn(2, 32)
    assert torch.equal(model.stem(input=x), model.stem(x))


def test_traced_it_is_standard_onnx_around_float_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    qdq_form.attach(model, [row("0")], stored(model, "0"))
    with torch.no_grad():
        torch.onnx.export(
            model.eval(), (torch.randn(2, 32),), str(tmp_path / "m.onnx"), opset_version=17,
            dynamo=False,
        )  # fmt: skip
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.op_type for node in graph.node if "Linear" in node.op_type] == [
        "QuantizeLinear", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear",
    ]  # fmt: skip
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    weight = next(tensor for tensor in graph.initializer if list(tensor.dims) == [32, 32])
    assert weight.data_type == onnx.TensorProto.FLOAT
    zero_points = {
        tuple(value.t.dims): value.t.data_type
        for node in graph.node
        if node.op_type == "Constant"
        for value in node.attribute
    }
    assert zero_points == {(): onnx.TensorProto.INT8, (32,): onnx.TensorProto.INT8}
    assert arrays
