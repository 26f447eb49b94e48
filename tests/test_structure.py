"""Layers, blocks and hidden products of every family, read from a real pass."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekd import models, structure
from edgekd.data import IO, Data
from edgekd.eligible import Facts, share_of_macs
from edgekd.errors import UnsupportedError
from edgekd.recipe import Quantization, Sparsity

sys.path.insert(0, str(Path(__file__).parent))
from tiny import configs
from tiny import data as tiny_data
from tiny import models as tiny_models

ATTENTION = torch.ops.aten.bmm  # of two activations; Linears are mm or addmm


def network(name: str) -> tuple[nn.Module, dict[str, Tensor], IO]:
    """A network of a family (upper case) or from tiny.models, one example, and its io."""
    torch.manual_seed(0)
    if name.isupper():
        description = {"spec": f"hf:{name}", "config": getattr(configs, name)}
        model = models.build(description)
        data: Data = tiny_data.tokens() if name == "BERT" else tiny_data.images()
    else:
        model, data = getattr(tiny_models, name)(), tiny_data.vectors()
    one = data.train.take(np.array([5]))[0]
    return model, models.tensors(one, model), data.io


def layers(name: str) -> list[Facts]:
    return structure.layers(*network(name))


def short(facts: Facts) -> tuple[Any, ...]:
    return facts.layer, facts.type, facts.n, facts.k, facts.macs


class TestLayers:
    def test_vit_in_forward_order(self) -> None:
        block = [  # 17 tokens: 16 patches of 4 x 4 and the class token
            ("attention.q_proj", "Linear", 32, 32, 17 * 32 * 32),
            ("attention.k_proj", "Linear", 32, 32, 17 * 32 * 32),
            ("attention.v_proj", "Linear", 32, 32, 17 * 32 * 32),
            ("attention.o_proj", "Linear", 32, 32, 17 * 32 * 32),
            ("mlp.fc1", "Linear", 64, 32, 17 * 64 * 32),
            ("mlp.fc2", "Linear", 32, 64, 17 * 32 * 64),
        ]
        assert [short(facts) for facts in layers("VIT")] == [
            ("vit.embeddings.patch_embeddings.projection", "Conv2d", 32, 48, 16 * 32 * 48),
            *((f"vit.layers.0.{name}", *rest) for name, *rest in block),
            *((f"vit.layers.1.{name}", *rest) for name, *rest in block),
            ("classifier", "Linear", 4, 32, 4 * 32),
        ]

    def test_convolutions_have_channels_per_group(self) -> None:
        found = {facts.layer: facts for facts in layers("CONVNEXT")}
        depthwise = found["convnext.encoder.stages.0.layers.0.dwconv"]
        assert (depthwise.n, depthwise.k, depthwise.k_group, depthwise.groups) == (16, 49, 1, 16)
        assert depthwise.macs == 8 * 8 * 16 * 49
        stem = found["convnext.embeddings.patch_embeddings"]
        assert (stem.n, stem.k, stem.k_group, stem.groups) == (16, 12, 3, 1)
        pointwise = found["convnext.encoder.stages.0.layers.0.pwconv1"]
        assert (pointwise.type, pointwise.n, pointwise.k, pointwise.k_group) == (
            "Linear",
            64,
            16,
            16,
        )

    @pytest.mark.parametrize(
        ("name", "count", "first", "output"),
        [
            ("VIT", 14, "vit.embeddings.patch_embeddings.projection", "classifier"),
            ("BERT", 14, "bert.encoder.layer.0.attention.self.query", "classifier"),
            ("SWIN", 21, "swin.embeddings.patch_embeddings.projection", "classifier"),
            ("CONVNEXT", 9, "convnext.embeddings.patch_embeddings", "classifier"),
            ("RESNET", 7, "resnet.embedder.embedder.convolution", "classifier.1"),
        ],
    )
    def test_every_family(self, name: str, count: int, first: str, output: str) -> None:
        model, inputs, io = network(name)
        found = structure.layers(model.train(), inputs, io)
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())
        assert (len(found), found[0].layer) == (count, first)
        assert [facts.layer for facts in found if facts.is_output] == [output]
        assert found[-1].layer == output
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(**inputs)
        flops = counter.get_flop_counts()["Global"]
        wanted = sum(n for op, n in flops.items() if op != ATTENTION)
        assert 2 * sum(facts.macs for facts in found) == wanted
        # Nothing else is multiplied by: no rows beyond the layers.
        assert len(structure.plan(model, inputs, io)) == count

    def test_macs_are_of_one_example(self) -> None:
        model, _, io = network("VIT")
        three = {"pixel_values": torch.randn(3, 3, 16, 16)}
        assert [short(f) for f in structure.layers(model, three, io)] == [
            short(f) for f in layers("VIT")
        ]

    def test_an_output_layer_is_known_through_a_view(self) -> None:
        class Viewed(tiny_models.MLP):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).reshape(-1, 2, 2).reshape(-1, 4)

        _, inputs, io = network("mlp")
        found = structure.layers(Viewed(), inputs, io)
        assert [facts.layer for facts in found if facts.is_output] == ["head"]

    @pytest.mark.parametrize("post", [torch.softmax, torch.Tensor.cumsum])
    def test_the_last_layer_is_it_where_the_answer_is_computed_further(self, post: Any) -> None:
        class Further(tiny_models.MLP):
            def forward(self, x: Tensor) -> Tensor:
                return post(super().forward(x) * 3, -1)

        _, inputs, io = network("mlp")
        found = structure.layers(Further(), inputs, io)
        assert [facts.layer for facts in found if facts.is_output] == ["head"]

    def test_a_layer_that_runs_twice_counts_twice(self) -> None:
        found = layers("shared")
        assert [(f.layer, f.runs, f.macs, f.is_output) for f in found] == [
            ("fc", 2, 2 * 32 * 32, False),
            ("head", 1, 32 * 4, True),
        ]

    def test_a_tied_weight_names_its_owner(self) -> None:
        ties = {facts.layer: (facts.tied_to, facts.runs) for facts in layers("tied")}
        assert ties["blocks.1.fc1"] == ("blocks.0.fc1", 1)
        assert [name for name, (tied_to, _) in ties.items() if tied_to] == ["blocks.1.fc1"]

    def test_a_layer_called_by_keyword_is_a_layer(self) -> None:
        assert [facts.layer for facts in layers("keyword")] == ["stem", "head"]

    def test_who_else_holds_a_weight(self) -> None:
        class Looked(tiny_models.MLP):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(32, 32)
                self.stem.weight = self.table.weight

        _, inputs, io = network("mlp")
        found = {f.layer: f.shared for f in structure.layers(Looked(), inputs, io)}
        assert found["stem"] == "table.weight"
        assert not found["head"]
        rows = structure.plan(Looked(), inputs, io, Sparsity(), Quantization())
        assert rows[0].int8_reason == "its weight is also read by table.weight: stays in float"
        assert rows[0].sparse_reason == "its weight is also read by table.weight: stays dense"
        assert [row.layer for row in rows].count("stem") == 1
        assert len(rows) == 6  # and no product of the embedding's

    def test_a_product_of_a_layers_weight_outside_of_it(self) -> None:
        class Transposed(tiny_models.MLP):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(nn.functional.linear(x, self.stem.weight.t()))

        _, inputs, io = network("mlp")
        rows = structure.plan(Transposed(), inputs, io, Sparsity(), Quantization())
        assert "also read by other code than its own" in rows[0].int8_reason
        assert (rows[-1].layer, rows[-1].macs, rows[-1].tied_to) == ("stem.weight", 1024, "stem")

    def test_the_head_of_several_outputs_is_an_output_layer_in_every_run(self) -> None:
        class Heads(tiny_models.MLP):
            def forward(self, x: Tensor) -> Tensor:
                self.kept = self.head(self.norm(self.stem(x)))
                self.head(x)
                return self.kept

        _, inputs, io = network("mlp")
        found = structure.layers(Heads(), inputs, io)
        assert [(f.layer, f.runs) for f in found if f.is_output] == [("head", 2)]

    def test_what_cannot_be_planned_layer_by_layer(self) -> None:
        model, inputs, io = network("weight_norm")
        with pytest.raises(UnsupportedError, match="layer stem computes its weight from other"):
            structure.layers(model, inputs, io)
        assert not any(module._forward_hooks for module in model.modules())
        two = tiny_models.MLP()
        two.blocks[1].fc1.weight = nn.Parameter(two.blocks[0].fc1.weight.data)
        with pytest.raises(
            UnsupportedError, match=r"layers blocks\.0\.fc1 and blocks\.1\.fc1 hold one piece"
        ):
            structure.layers(two, inputs, io)


class TestShares:
    """At least 95% of the operations of a Linear or Conv2d, at the sizes that are published."""

    @pytest.mark.parametrize(
        ("config", "shape", "blocks"),
        [
            (
                {
                    **configs.VIT,
                    "image_size": 224,
                    "patch_size": 16,
                    "hidden_size": 384,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 6,
                    "intermediate_size": 1536,
                    "num_labels": 1000,
                },
                (3, 224, 224),
                12 * 6,
            ),
            (
                {
                    **configs.BERT,
                    "vocab_size": 30522,
                    "max_position_embeddings": 512,
                    "hidden_size": 768,
                    "num_attention_heads": 12,
                    "intermediate_size": 3072,
                },
                (128,),
                2 * 6 + 1,
            ),
        ],
        ids=["ViT-S", "BERT-base, two blocks"],
    )
    def test_transformers(self, config: Any, shape: tuple[int, ...], blocks: int) -> None:
        model = models.build({"spec": "hf:config.json", "config": config})
        vision = len(shape) == 3
        one = torch.randn(1, *shape) if vision else torch.randint(0, 99, (1, *shape))
        io = tiny_data.images().io if vision else tiny_data.tokens().io
        inputs = {io.inputs[0].name: one}
        if not vision:
            inputs["attention_mask"] = torch.ones_like(one)
        rows = structure.plan(model, inputs, io, Sparsity(), Quantization())
        assert sum(row.int8 and row.sparse for row in rows) == blocks
        assert share_of_macs(rows, "int8") >= 0.95
        assert share_of_macs(rows, "sparse") >= 0.95


class TestProducts:
    def others(self, name: str) -> list[tuple[Any, ...]]:
        rows = structure.plan(*network(name), Sparsity(), Quantization())
        named = {facts.layer for facts in layers(name)}
        for row in rows:
            if row.layer not in named:
                assert not row.int8
                assert not row.sparse
                assert row.int8_reason == row.sparse_reason
                assert (
                    "other code than a Linear's or Conv2d's own: stays in float" in row.int8_reason
                )
        return [(r.layer, r.type, r.n, r.k, r.macs) for r in rows if r.layer not in named]

    def test_a_packed_attention_is_in_the_plan_with_its_reason(self) -> None:
        # Two tokens of width 16; the packed in_proj, and an out_proj that is never called.
        layer = "encoder.layers"
        assert self.others("attention") == [
            (f"{layer}.0.self_attn.in_proj_weight", "MultiheadAttention", 48, 16, 2 * 48 * 16),
            (f"{layer}.0.self_attn.out_proj.weight", "NonDynamicallyQuantizableLinear",
             16, 16, 2 * 16 * 16),
            (f"{layer}.1.self_attn.in_proj_weight", "MultiheadAttention", 48, 16, 2 * 48 * 16),
            (f"{layer}.1.self_attn.out_proj.weight", "NonDynamicallyQuantizableLinear",
             16, 16, 2 * 16 * 16),
        ]  # fmt: skip

    def test_the_linears_inside_torchs_encoder_are_planned(self) -> None:
        rows = structure.plan(*network("attention"), Sparsity(), Quantization())
        assert [row.layer for row in rows if row.int8] == [
            f"encoder.layers.{block}.linear{one}" for block in (0, 1) for one in (1, 2)
        ]

    def test_bare_parameters_and_conv1d_are_found_and_factors_are_not(self) -> None:
        assert self.others("doubtful") == [
            ("mix", "Doubtful", 8, 8, 4 * 8 * 8),
            ("conv1.weight", "Conv1d", 16, 24, 2 * 16 * 24),
        ]

    def test_recurrent_weights_are_found(self) -> None:
        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(8, 16, batch_first=True)
                self.head = nn.Linear(16, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.lstm(x.reshape(-1, 4, 8))[0][:, -1])

        _, inputs, io = network("mlp")
        rows = structure.plan(Recurrent(), inputs, io)
        assert [(row.layer, row.type, row.macs) for row in rows] == [
            ("head", "Linear", 16 * 4),
            ("lstm.weight_ih_l0", "LSTM", 4 * 64 * 8),
            ("lstm.weight_hh_l0", "LSTM", 4 * 64 * 16),
        ]


class TestBlocks:
    @pytest.mark.parametrize(
        ("name", "names"),
        [
            ("VIT", ["vit.layers.0", "vit.layers.1"]),
            ("BERT", ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
            ("SWIN", ["swin.encoder.layers.0", "swin.encoder.layers.1"]),
            ("CONVNEXT", ["convnext.encoder.stages.0", "convnext.encoder.stages.1"]),
            ("RESNET", ["resnet.encoder.stages.0", "resnet.encoder.stages.1"]),
            ("mlp", ["blocks.0", "blocks.1"]),
            ("attention", ["encoder.layers.0", "encoder.layers.1"]),
            ("excluded", []),
        ],
    )
    def test_every_family(self, name: str, names: list[str]) -> None:
        assert structure.blocks(network(name)[0]) == names

    def test_unlike_or_weightless_children_are_no_blocks(self) -> None:
        relus = nn.Sequential(nn.ReLU(), nn.ReLU())
        mixed = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        one = nn.ModuleList([nn.Linear(2, 2)])
        assert structure.blocks(nn.ModuleDict({"a": relus, "b": mixed, "c": one})) == []

    def test_the_outermost_of_nested_containers_counts(self) -> None:
        inner = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
        stages = nn.Sequential(*inner)
        assert structure.blocks(stages) == ["0", "1"]  # the network is itself the container
        assert structure.blocks(nn.ModuleDict({"a": stages})) == ["a.0", "a.1"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.ones(1), True),
        ((None, torch.ones(1)), True),
        ([torch.ones(1), torch.zeros(2)], True),
        ({"hidden": torch.ones(1)}, True),
        ((), False),
        (None, False),
        (3.0, False),
    ],
)
def test_the_first_tensor_in_what_a_block_returns(value: Any, found: bool) -> None:
    tensor = structure.first_tensor(value)
    assert tensor is not None if found else tensor is None
    if found:
        assert torch.equal(tensor, torch.ones(1))
