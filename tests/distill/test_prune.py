"""The masks step in a whole distillation: what the recipe asks for is what the Student holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configs
from tiny.recipes import stored, tiny
from torch import Tensor

from edgekd import artifact, models, sparse24
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.errors import ContractError
from edgekd.weights import load_weights

UNTRAINED = {"steps": 0, "batch_size": 16}
LAYERS = ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "stem"]


Tensors = dict[str, Tensor]


def parts(student: Artifact) -> tuple[Tensors, Tensors, Tensors]:
    """The weights that a student started from, its own, and its masks."""
    teacher = stored(artifact.parent(student, "teacher"), "model")
    return teacher, stored(student, "model"), stored(student, "quantizers")


@pytest.mark.parametrize("rows", [1, 8])
def test_magnitude_keeps_the_larger_weights_as_they_are(rows: int, tmp_path: Path) -> None:
    recipe = tiny(tmp_path, sparsity={"pattern_rows": rows}, distill=UNTRAINED)
    student = distill(recipe, tmp_path / "out")
    dense, weights, masks = parts(student)
    for layer in LAYERS:
        mask = masks[f"{layer}.mask"]
        weight = dense[f"{layer}.weight"]
        assert np.array_equal(mask.numpy(), sparse24.mask(weight.numpy(), rows))
        assert torch.equal(weights[f"{layer}.weight"], weight * mask)


def test_sparsegpt_ships_the_weights_that_make_up_for_what_went(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, sparsity={"method": "sparsegpt"}, distill=UNTRAINED)
    student = distill(recipe, tmp_path / "out")
    dense, weights, masks = parts(student)
    for layer in LAYERS:
        mask, weight = masks[f"{layer}.mask"], weights[f"{layer}.weight"]
        sparse24.check(weight.numpy(), layer)
        assert torch.equal(weight != 0, mask)
        assert not torch.equal(weight, dense[f"{layer}.weight"] * mask)
    assert torch.equal(weights["head.weight"], dense["head.weight"])


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_a_student_says_what_it_gained(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparsity = {"permute": True, "method": method, "pattern_rows": 4}
    student = distill(tiny(tmp_path, sparsity=sparsity), tmp_path / "out")
    told = student.results["permutation"]
    assert sorted(told["layers"]) == ["blocks.0.fc2", "blocks.1.fc2"]
    assert 0.5 < told["kept_before"] < told["kept_after"] < 1
    assert told["undone"] == []
    for key in ("accuracy_before", "accuracy_after"):
        assert 0 <= told[key] <= 1
    said = capsys.readouterr().err
    assert "permute: 2 layers reordered, kept magnitude" in said
    assert "accuracy right after masking" in said
    for layer in ("stem", "blocks.0.fc2"):
        mask = stored(student, "quantizers")[f"{layer}.mask"]
        assert torch.equal(mask[::4].repeat_interleave(4, dim=0), mask)
        assert (mask.reshape(-1, 4).sum(dim=1) == 2).all()


# Network, data, and the ends of the names of what makes permuted channels and what takes them.
FAMILIES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "vit": (configs.VIT, "images", ".fc1", ".fc2"),
    "bert": (configs.BERT, "tokens", ".intermediate.dense", ".output.dense"),
    "resnet": (configs.RESNET, "images", ".layer.0.convolution", ".layer.1.convolution"),
}


@dataclass
class Permuted:
    """An untrained permuted Student.

    What makes the permuted channels is left dense, so that it ships whole.

    Attributes:
        student: The artifact.
        pairs: What takes permuted channels: what makes them.
    """

    student: Artifact
    pairs: dict[str, str]

    @cached_property
    def told(self) -> dict[str, Any]:
        return dict(self.student.results["permutation"])

    @cached_property
    def dense(self) -> Tensors:
        """Weights of the sparse layers as they were before anything."""
        dense, _, masks = parts(self.student)
        return {n: dense[f"{n}.weight"] for n in names(masks)}

    @cached_property
    def orders(self) -> Tensors:
        """Which of the teacher's channels came to each place, as the shipped rows show."""
        dense, weights, _ = parts(self.student)
        found = {}
        for takes, makes in self.pairs.items():
            old, new = (rows(each[f"{makes}.weight"]) for each in (dense, weights))
            found[takes] = (new @ old.T).argmax(dim=1)
            assert torch.allclose(old[found[takes]], new, atol=1e-5)
        return found

    def accuracy(self, masks: Mapping[str, Tensor]) -> float:
        """Of the teacher under masks, on the samples that travel."""
        teacher = artifact.parent(self.student, "teacher")
        net = models.build(teacher.read_json("model.json"))
        load_weights(net, teacher.file("model.safetensors"))
        with np.load(self.student.file("samples.npz")) as npz, torch.no_grad():
            given = {n.split(".")[1]: torch.from_numpy(npz[n]) for n in npz if "input." in n}
            for layer, mask in masks.items():
                net.get_submodule(layer).weight.mul_(mask)  # type: ignore[operator]
            answers = net.eval()(**given)["logits"].argmax(dim=-1)
            return float(np.mean(answers.numpy() == npz["labels"]))


def names(masks: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(".mask") for name in masks if name.endswith(".mask")]


def rows(weight: Tensor) -> Tensor:
    """A row for each output, of length 1: a folded batch norm only stretches it."""
    return torch.nn.functional.normalize(weight.flatten(1))


def two_of_four(weight: Tensor) -> Tensor:
    """The mask of the two largest of every four along the input channels."""
    last = weight.abs().movedim(1, -1)
    fours = last.reshape(-1, 4)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter(1, fours.topk(2).indices, True)
    return mask.reshape(last.shape).movedim(-1, 1)


def kept(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    """Share of the magnitude that masks keep."""
    part = sum(float((weights[n] * masks[n]).abs().double().sum()) for n in weights)
    return part / sum(float(each.abs().double().sum()) for each in weights.values())


@pytest.fixture(scope="module", params=FAMILIES)
def permuted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Permuted:
    config, data, makes, takes = FAMILIES[request.param]
    base = tmp_path_factory.mktemp("permuted")
    sparsity = {"permute": True, "exclude": [f"*{makes}"]}
    recipe = tiny(base, config, data, seed=4, sparsity=sparsity, distill=UNTRAINED)
    student = distill(recipe, base / "out")
    layers = student.results["permutation"]["layers"]
    assert len(layers) == 2
    return Permuted(student, {layer: layer.replace(takes, makes) for layer in layers})


class TestPermuted:
    def test_the_student_ships_channels_in_the_new_order(self, permuted: Permuted) -> None:
        _, weights, masks = parts(permuted.student)
        for layer, order in permuted.orders.items():
            assert sorted(order.tolist()) == list(range(len(order)))
            assert order.tolist() != sorted(order.tolist())
            reordered = permuted.dense[layer][:, order]
            mask = masks[f"{layer}.mask"]
            assert torch.equal(mask, two_of_four(reordered))
            shipped = rows(weights[f"{layer}.weight"])
            assert torch.allclose(shipped, rows(reordered * mask), atol=1e-5)

    def test_the_masks_that_ship_keep_what_it_tells(self, permuted: Permuted) -> None:
        dense, told = permuted.dense, permuted.told
        masks = {n: stored(permuted.student, "quantizers")[f"{n}.mask"] for n in dense}
        after = dense | {n: dense[n][:, order] for n, order in permuted.orders.items()}
        before = {n: two_of_four(weight) for n, weight in dense.items()}
        assert told["kept_before"] == pytest.approx(kept(dense, before))
        assert told["kept_after"] == pytest.approx(kept(after, masks))
        assert told["kept_before"] < told["kept_after"]
        for layer in permuted.orders:
            one = kept({layer: after[layer]}, masks)
            assert told["layers"][layer]["kept_after"] == pytest.approx(one)

    def test_the_accuracies_it_tells_are_of_the_network_masked_without_and_with(
        self, permuted: Permuted
    ) -> None:
        without = {n: two_of_four(weight) for n, weight in permuted.dense.items()}
        masks = {n: stored(permuted.student, "quantizers")[f"{n}.mask"] for n in without}
        # The permuted network under its masks is the unpermuted one under theirs, put back.
        put_back = {n: masks[n][:, order.argsort()] for n, order in permuted.orders.items()}
        before, after = permuted.accuracy(without), permuted.accuracy(masks | put_back)
        assert before != after  # or each could stand for the other
        assert permuted.told["accuracy_before"] == pytest.approx(before)
        assert permuted.told["accuracy_after"] == pytest.approx(after)


def test_a_student_that_does_not_ask_says_nothing_of_it(tmp_path: Path) -> None:
    assert "permutation" not in distill(tiny(tmp_path), tmp_path / "out").results


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("permuted", [False, True])
def test_rows_that_do_not_fall_into_patterns(method: str, permuted: bool, tmp_path: Path) -> None:
    asked = {"method": method, "permute": permuted, "pattern_rows": 3}
    with pytest.raises(ContractError, match="expected a multiple of pattern_rows, 3: exclude"):
        distill(tiny(tmp_path, sparsity=asked, distill=UNTRAINED), tmp_path / "out")
