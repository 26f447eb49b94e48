"""INT4 and ternary weights against numbers by hand and slow loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import data, models
from tiny.recipes import plan
from torch import nn

from edgekd.distill import quantize, sparsify
from edgekd.distill.calibrate import calibrate
from edgekd.models import run


def feed(model: nn.Module) -> None:
    examples = data.vectors()
    run(model, examples.train.take(np.arange(32))[0], examples.io)


def test_int4_by_hand() -> None:
    quantizer = quantize.WeightQuantizer(None, 4)
    weight = torch.tensor([[3.5, -3.5, 0.25, 0.75, 1.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    # 3.5 / 7 = 0.5 a step; 0.25 and 0.75 are ties, to even.
    assert quantizer(weight)[0].tolist() == [3.5, -3.5, 0.0, 1.0, 1.0]
    assert quantizer(weight)[1].tolist() == [0.0] * 5
    assert quantizer.scale(weight).flatten().tolist() == [0.5, 2.0**-14]


def test_int4_gradient_passes_from_minus_8_to_7() -> None:
    x = torch.tensor([-8.4, -8.6, 7.4, 7.6], requires_grad=True)
    quantize.fake_quant(x, torch.tensor(1.0), -8, 7).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0, 1, 0]


def test_ternary_by_hand() -> None:
    quantizer = quantize.WeightQuantizer(None, 2)
    weight = torch.tensor([[1.0, -0.5, 0.25, -0.25]], requires_grad=True)
    # mean 0.5, threshold 0.35, mean of the kept 0.75
    found = quantizer(weight)
    assert found.tolist() == [[0.75, -0.75, 0.0, 0.0]]
    found.sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 1).all()


def test_ternary_counts_the_weights_that_the_mask_keeps() -> None:
    mask = torch.tensor([[True, True, False, False]])
    weight = torch.tensor([[1.0, -0.5, 9.0, 9.0]])
    # mean 0.75 of two, threshold 0.525: over four it would be 0.2625 and keep both
    assert quantize.WeightQuantizer(mask, 2)(weight).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_ternary_equals_a_slow_loop() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 3, 3)
    found = quantize.WeightQuantizer(None, 2)(weight)
    for row, quantized in zip(weight, found, strict=True):
        values = row.flatten().tolist()
        threshold = 0.7 * sum(map(abs, values)) / len(values)
        kept = [abs(v) for v in values if abs(v) > threshold]
        scale = np.float16(sum(kept) / len(kept))
        if float(scale) < sum(kept) / len(kept):
            scale = np.nextafter(scale, np.float16(np.inf))
        wanted = [float(scale) * np.sign(v) * (abs(v) > threshold) for v in values]
        assert np.allclose(quantized.flatten().numpy(), wanted, rtol=1e-3)


@pytest.mark.parametrize(("bits", "levels"), [(4, 15), (2, 3)])
def test_a_student_trains_on_them_and_stays_2_4(bits: int, levels: int) -> None:
    torch.manual_seed(0)
    model = models.mlp()
    rows = [replace(row, bits=bits) for row in plan(model)]
    masks = sparsify.masks(model, rows)
    quantize.attach(model, rows, masks, calibrate(model, rows, masks, feed))
    quantize.verify(model, models.mlp(), rows, masks)
    row = model.stem.weight[0] / quantize.shipped_weight_scale(model.stem)[0]
    assert len(row.unique()) <= levels
    assert torch.equal(row, row.round())
