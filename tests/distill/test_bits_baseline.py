"""The paper's quantized distillation (arXiv 1802.05668), as the README shows it, on each family."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs
from tiny.recipes import stored, tiny
from torch import Tensor

import edgekd
from edgekd import models, recipe, sources
from edgekd.data import Data
from edgekd.distill import loop, quantize
from edgekd.distill.prepare import Prepared, prepare
from edgekd.distill.student import distill
from edgekd.recipe import Recipe

FAMILIES = pytest.mark.parametrize(
    ("config", "source", "layers"),
    [(configs.VIT, "images", 12), (configs.BERT, "tokens", 13), (configs.RESNET, "images", 5)],
    ids=["vit", "bert", "resnet"],
)
LIMIT = 7  # of an INT4 weight


def baseline(base: Path, config: dict[str, Any], source: str, **training: Any) -> Recipe:
    """The README's recipe on a tiny network."""
    readme = (Path(edgekd.__path__[0]) / "distill" / "README.md").read_text()
    shown = re.search(r"```toml\n(# Quantized distillation.*?)```", readme, re.DOTALL)
    assert shown is not None
    document = recipe.tomllib.loads(shown[1])
    document["distill"] |= {"batch_size": 16, **training}
    document["quantization"] |= {"calibration_samples": 32, "convolutions": True}
    return tiny(base, config, source, **document)


@FAMILIES
def test_it_trains_all_layers_dense_at_4_bits_by_logits_and_labels(
    config: dict[str, Any], source: str, layers: int, tmp_path: Path
) -> None:
    asked = baseline(tmp_path, config, source, steps=2)
    assert asked.arms == ["dense"]
    known = asked.distill.losses
    assert (known.logits, known.labels, known.blocks, known.temperature) == (0.7, 0.3, 0.0, 2.0)
    student = distill(asked, tmp_path / "out", "dense")
    assert student.results["layers_sparse"] == 0
    assert student.results["layers_by_bits"] == {"4": layers}
    curve = [json.loads(row) for row in student.file("losses.jsonl").read_text().splitlines()]
    assert len(curve) == 2
    assert all({"logits", "labels"} <= set(row) and "blocks" not in row for row in curve)


def loss(prepared: Prepared, examples: Data) -> float:
    """Over the training examples, without dropout."""
    inputs, labels = examples.train.take(np.arange(64))
    batch = models.tensors(inputs, prepared.student)
    prepared.student.eval()
    with torch.no_grad():
        return sum(float(x) for x in prepared.loss(batch, torch.from_numpy(labels)).values())


def off_grid(weight: Tensor, scale: Tensor) -> float:
    """Share of weights that are further than a hundredth from a whole number of scales."""
    q = weight.flatten(1) / scale.reshape(-1, 1)
    assert float(q.abs().max()) <= LIMIT + 0.01
    return float(((q - q.round()).abs() > 0.01).float().mean())


@FAMILIES
def test_float_weights_learn_under_the_quantizer_and_quantized_ones_ship(
    config: dict[str, Any], source: str, layers: int, tmp_path: Path
) -> None:
    asked = baseline(tmp_path, config, source, steps=30, learning_rate=5e-3)
    examples = sources.load(asked)
    torch.manual_seed(3)
    teacher, student = (
        models.build(models.describe(asked.teacher.model, tmp_path)) for _ in range(2)
    )
    student.load_state_dict(teacher.state_dict())
    prepared = prepare(student, teacher, asked, "dense")
    untrained = loss(prepared, examples)
    split, settings = examples.train, asked.distill
    loop.train(loop.Run("baseline", student, prepared.loss, split, settings, 3, tmp_path))
    assert loss(prepared, examples) < 0.95 * untrained

    names = quantize.quantized_layers(student)
    assert len(names) == layers
    floats = {name: quantize.latent_weight(student.get_submodule(name)) for name in names}
    artifact = prepared.finish(tmp_path / "out")
    weights, scales = stored(artifact, "model"), stored(artifact, "quantizers")
    for name in names:
        scale = scales[f"{name}.weight_scale"]
        assert off_grid(floats[name], scale) > 0.9, name
        assert off_grid(weights[f"{name}.weight"], scale) == 0.0, name
