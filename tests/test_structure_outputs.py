"""Which layers are output layers, where a network has several outputs or ends in a sum."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from edgekd import data, models, structure
from edgekd.eligible import LayerPlan
from edgekd.recipe import Quantization, Sparsity

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs
from tiny import data as tiny_data
from tiny import models as tiny_models
from zoo import detector

X = {"x": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}
IN_FLOAT = "stays in float, its few operations decide the answer"


def io(*outputs: str) -> data.IO:
    shape: list[int | str] = ["batch", 4]
    return data.IO(
        inputs=tiny_data.vectors().io.inputs,
        outputs=[data.Tensor(name=name, dtype="float32", shape=shape) for name in outputs],
        labels=[],
    )


def heads(model: nn.Module, *outputs: str, inputs: Any = None) -> dict[str, str]:
    """Output layer -> names of the outputs it is the last layer of."""
    found = structure.layers(model, inputs or X, io(*(outputs or ("logits",))))
    assert not any(facts.output_of for facts in found if not facts.is_output)
    return {facts.layer: facts.output_of for facts in found if facts.is_output}


def planned(model: nn.Module, inputs: Any, named: data.IO) -> dict[str, LayerPlan]:
    int8 = Quantization.model_validate({"convolutions": True})
    rows = structure.plan(model, inputs, named, Sparsity(), int8)
    return {row.layer: row for row in rows}


class TestDetector:
    def rows(self) -> dict[str, LayerPlan]:
        scenes = detector.scenes()
        model = detector.detector()
        inputs = models.tensors(scenes.train.take(np.array([0]))[0], model)
        return planned(model, inputs, scenes.io)

    def test_every_head_is_an_output_layer_of_its_output(self) -> None:
        rows = self.rows()
        found = {name: row.int8_reason for name, row in rows.items() if "output" in row.int8_reason}
        assert found == {
            "classes": f"output layer of classes: {IN_FLOAT}",
            "sides": f"output layer of distances: {IN_FLOAT}",
            "center": f"output layer of centerness: {IN_FLOAT}",
        }
        assert all(rows[name].runs == 2 for name in found)

    def test_what_feeds_the_heads_is_int8(self) -> None:
        int8 = [name for name, row in self.rows().items() if row.int8]
        assert int8 == ["stage2.0", "stage3.0", "stage4.0", "tower.0"]


class TestBert:
    """Two heads, one of which is tied to the embedding."""

    def rows(self) -> dict[str, LayerPlan]:
        config = {**configs.BERT, "architectures": ["BertForPreTraining"]}
        model = models.build({"spec": "hf:bert", "config": config})
        examples = tiny_data.tokens()
        inputs = models.tensors(examples.train.take(np.array([3]))[0], model)
        return planned(model, inputs, io("prediction_logits", "seq_relationship_logits"))

    def test_each_head_stays_in_float_and_what_it_reads_is_int8(self) -> None:
        rows = self.rows()
        decoder = rows["cls.predictions.decoder"]
        pair = rows["cls.seq_relationship"]
        assert decoder.int8_reason == f"output layer of prediction_logits: {IN_FLOAT}"
        assert pair.int8_reason == f"output layer of seq_relationship_logits: {IN_FLOAT}"
        assert pair.sparse_reason == "n is 2, sparse kernels want a multiple of 8"
        assert not decoder.sparse
        assert [name for name, row in rows.items() if not row.int8] == [
            "cls.predictions.decoder",
            "cls.seq_relationship",
        ]
        assert {"bert.pooler.dense", "cls.predictions.transform.dense"} < set(rows)


class Several(tiny_models.MLP):
    """A second head, and what a test makes of the features."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.other = nn.Linear(32, 4)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.answer(self, x)


def _filled(net: Several, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 8)
    out[:, :4] = net.head(x)
    out[:, 4:].copy_(net.other(x))
    return out


@pytest.mark.parametrize(
    ("answer", "outputs", "found"),
    [
        (lambda net, x: net.head(x), ["a"], {"head": ""}),
        (lambda net, x: (net.head(x), net.other(x)), ["a", "b"], {"head": "a", "other": "b"}),
        # Later than its head and further computed, as a detector's boxes are.
        (
            lambda net, x: (net.other(x).exp() * 8, net.head(x).softmax(-1)),
            ["a", "b"],
            {"other": "a", "head": "b"},
        ),
        (lambda net, x: net.head(x).split(2, -1), ["a", "b"], {"head": "a, b"}),
        (lambda net, x: net.head(x) * net.other(x).sigmoid(), ["a"], {"head": "", "other": ""}),
        (lambda net, x: net.head(x) @ net.other(x).T, ["a"], {"head": "", "other": ""}),
        (_filled, ["a"], {"head": "", "other": ""}),
        (lambda net, x: net.head(x).add_(net.other(x)), ["a"], {"head": "", "other": ""}),
        # Class numbers carry no gradient and are followed all the same.
        (lambda net, x: net.head(x).argmax(-1, keepdim=True), ["a"], {"head": ""}),
        # A second head that no output names is none.
        (lambda net, x: (net.head(x), net.other(x)), ["a"], {"head": ""}),
        # Features beside the logits: the last branch that writes into them, no other.
        (lambda net, x: (net.head(x), x), ["a", "b"], {"blocks.1.fc2": "b", "head": "a"}),
        (lambda net, x: net.norm(x), ["a"], {"blocks.1.fc2": ""}),
        # An output that no layer computes has none, and the other keeps its own.
        (lambda net, x: (net.head(x), torch.ones(2, 4)), ["a", "b"], {"head": "a"}),
        # Out of torch and back: nothing tells, so the last layer that ran is taken.
        (
            lambda net, x: torch.from_numpy(np.exp(net.head(x).numpy())),
            ["a"],
            {"head": ""},
        ),
    ],
)  # fmt: skip
def test_the_last_layers_on_the_way_to_each_output(
    answer: Any, outputs: list[str], found: dict[str, str]
) -> None:
    assert heads(Several(answer), *outputs) == found


def test_a_tied_output_layer_takes_its_twin_with_it() -> None:
    model = Several(lambda net, x: (net.head(x), net.other(net.norm(x))))
    model.other = nn.Linear(32, 32)
    model.other.weight = model.stem.weight
    rows = planned(model, X, io("a", "b"))
    assert rows["other"].int8_reason == f"output layer of b: {IN_FLOAT}"
    assert rows["other"].sparse_reason == "output layer of b: stays dense"
    assert rows["stem"].int8_reason == (
        f"shares its weight with other: output layer of b: {IN_FLOAT}"
    )
    assert [name for name, row in rows.items() if not row.int8] == ["stem", "head", "other"]


def test_a_layer_inside_a_layer_is_on_the_way() -> None:
    """A Linear with an adapter in it: the adapter is read by the Linear, which answers."""

    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(32, 4)
            self.down, self.up = nn.Linear(32, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.up(self.down(x))

    model = tiny_models.MLP()
    model.head = Adapted()
    assert heads(model) == {"head": ""}


class Deep(nn.Module):
    """Notes after each step which of its results still hold memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 4)
        self.held: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        results: list[StorageWeakRef] = []
        for _ in range(6):
            x = self.first(x).relu() + 1
            results.append(StorageWeakRef(x.untyped_storage()))
            self.held.append(sum(not each.expired() for each in results))
        return self.last(x)


def test_what_is_followed_is_not_kept_in_memory() -> None:
    model = Deep()
    assert heads(model) == {"last": ""}
    assert model.held == [1] * 6
