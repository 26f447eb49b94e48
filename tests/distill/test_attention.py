"""Which calls are attention, which layers its parts come from, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny import attention as tiny_attention
from tiny import configs, packed
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.data import Tensor as TensorFacts
from edgekd.distill import attention
from edgekd.distill.attention import Call
from edgekd.errors import ConfigError

LOGITS = IO(
    inputs=[], outputs=[TensorFacts(name="logits", dtype="float32", shape=["batch", 4])], labels=[]
)
IMAGE = {"pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
SENTENCE = {
    "input_ids": torch.arange(8)[None],
    "attention_mask": torch.tensor([[1] * 6 + [0] * 2]),  # the last two are padding
}
X = {"x": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}


def network(config: dict[str, Any], kind: str) -> nn.Module:
    facts = dict(config)
    architecture = getattr(transformers, facts.pop("architectures")[0])
    parsed = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts)
    model: nn.Module = architecture._from_config(parsed, attn_implementation=kind)
    return model


def whole(call: Call) -> tuple[list[str], list[str]]:
    """Layers of queries and keys, and of values, every feature of each."""
    for cuts in (call.queries, call.values):
        assert all(bool(features.all()) for features in cuts.values())
    return sorted(call.queries), sorted(call.values)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
class TestThreeLayers:
    def test_vit(self, kind: str) -> None:
        found = attention.find(network(configs.VIT, kind), IMAGE, LOGITS)
        names = [f"vit.layers.{block}.attention" for block in (0, 1)]
        assert [call.module for call in found.calls] == names
        assert [whole(call) for call in found.calls] == [
            ([f"{name}.k_proj", f"{name}.q_proj"], [f"{name}.v_proj"]) for name in names
        ]
        # A block's scores, map and context: 16 patches and the class token, two heads of 16.
        assert [(call.softmax, call.product) for call in found.calls] == [(1, 2), (4, 5)]
        assert found.events == 6
        assert {call.map for call in found.calls} == {(1, 2, 17, 17)}
        assert {call.context for call in found.calls} == {(1, 2, 17, 16)}

    def test_bert_with_padding(self, kind: str) -> None:
        found = attention.find(network(configs.BERT, kind), SENTENCE, LOGITS)
        names = [f"bert.encoder.layer.{block}.attention.self" for block in (0, 1)]
        assert [whole(call) for call in found.calls] == [
            ([f"{name}.key", f"{name}.query"], [f"{name}.value"]) for name in names
        ]
        assert {call.map for call in found.calls} == {(1, 2, 8, 8)}


def test_a_packed_projection_is_told_apart_by_its_features() -> None:
    found = attention.find(packed.vit(), X, LOGITS)
    third = torch.arange(48) // 16
    assert [call.module for call in found.calls] == ["blocks.0.attn", "blocks.1.attn"]
    for block, call in enumerate(found.calls):
        assert list(call.queries) == list(call.values) == [f"blocks.{block}.attn.qkv"]
        assert torch.equal(call.queries[f"blocks.{block}.attn.qkv"], third < 2)
        assert torch.equal(call.values[f"blocks.{block}.attn.qkv"], third == 2)
        assert call.shared == ""
    assert bool(found.cuts("context")["blocks.0.attn.qkv"].all())
    assert torch.equal(found.cuts("map")["blocks.0.attn.qkv"], third < 2)


def test_windows_and_a_bias_that_is_a_parameter() -> None:
    found = attention.find(network(configs.SWIN, "eager"), IMAGE, LOGITS)
    assert [call.map for call in found.calls] == [(16, 2, 4, 4)] * 2 + [(4, 2, 4, 4)]
    assert all("_proj" in layer for call in found.calls for layer in whole(call)[0])


@pytest.mark.parametrize("mix", ["eager", "sdpa", "einsum"])
def test_each_way_to_write_it(mix: str) -> None:
    (call,) = attention.find(tiny_attention.network(getattr(tiny_attention, mix)), X, LOGITS).calls
    assert whole(call) == (["k", "q"], ["v"])
    assert call.module == "the network itself"


def test_weights_of_zero_are_seen_too() -> None:
    """Queries of zero have no gradient from scores of their own; the structure still has."""
    model = tiny_attention.network(tiny_attention.eager)
    for name in ("q", "k", "v"):
        nn.init.zeros_(model.get_submodule(name).weight)
        nn.init.zeros_(model.get_submodule(name).bias)
    (call,) = attention.find(model, X, LOGITS).calls
    assert whole(call) == (["k", "q"], ["v"])


def test_the_network_and_the_random_numbers_are_left_as_they_were() -> None:
    model = packed.vit().train()
    model.norm.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    attention.find(model, X, LOGITS)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


class TestRefused:
    @pytest.mark.parametrize(
        ("mix", "why"),
        [
            ("linear", "found no softmax"),
            ("relu", "found no softmax"),
            ("exp_sum", "found no softmax"),
            ("bilinear", "found no softmax"),
            ("squeeze_excite", "the softmax in the network itself is not of a product of two"),
            ("difference", "the softmax in the network itself is mixed with another before it"),
            ("scores_used_twice", "enters 2 products with values, expected 1"),
            ("shared_kv", "in the network itself, k feeds both the scores and the values"),
        ],
    )
    def test_what_is_no_softmax_of_qk_times_v(self, mix: str, why: str) -> None:
        model = tiny_attention.network(getattr(tiny_attention, mix))
        found = attention.find(model, X, LOGITS)
        with pytest.raises(ConfigError) as caught:
            attention.require(found, "student", "context", model)
        told = str(caught.value)
        assert why in told
        assert "mode 'context' needs attention, softmax(Q K) V" in told
        assert "in the student (Mixed)" in told
        assert 'use mode = "output"' in told

    def test_a_convolutional_network(self) -> None:
        model = network(configs.RESNET, "eager")
        found = attention.find(model, IMAGE, LOGITS)
        with pytest.raises(
            ConfigError, match=r"student \(ResNetForImageClassification\): found no"
        ):
            attention.require(found, "student", "map", model)

    def test_projections_that_are_no_layers(self) -> None:
        """The hidden state itself then reaches both, and no layer could be cut."""

        class Bare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
                self.weight = nn.Parameter(torch.randn(24, 8))

            def forward(self, x: Tensor) -> Tensor:
                x = self.stem(x.reshape(-1, 4, 8))
                q, k, v = nn.functional.linear(x, self.weight).chunk(3, -1)
                return self.head((q @ k.mT).softmax(-1) @ v).mean(1)

        model = Bare()
        found = attention.find(model, X, LOGITS)
        with pytest.raises(ConfigError, match="stem feeds both the scores and the values"):
            attention.require(found, "student", "map", model)
        attention.require(found, "teacher", "map", model)  # whose gradients nobody asks for

    def test_torchs_packed_attention(self) -> None:
        class Torchs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
                self.head = nn.Linear(8, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = x.reshape(-1, 4, 8)
                return self.head(self.attention(x, x, x)[0]).mean(1)

        model = Torchs()
        found = attention.find(model, X, LOGITS)
        with pytest.raises(ConfigError, match="attention runs torch's attention with packed wei"):
            attention.require(found, "student", "map", model)
