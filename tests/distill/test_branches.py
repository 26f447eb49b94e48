"""Residual branches are found by structure, and which of them hold attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny import configs
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.data import Tensor as TensorFacts
from edgekd.distill.branches import Site, chosen_sites, residual_sites
from edgekd.errors import ConfigError

IMAGES = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
TOKENS = {
    "input_ids": torch.arange(16).reshape(2, 8),
    "attention_mask": torch.ones(2, 8, dtype=torch.long),
}
OUT = TensorFacts(name="logits", dtype="float32", shape=["batch", 4])
LOGITS = IO(inputs=[], outputs=[OUT], labels=[])


class Block(nn.Module):
    """A pre-norm block around torch's own attention, whose softmax no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.ffn(x)


def network(config: dict[str, Any], attention: str = "eager") -> nn.Module:
    facts = dict(config)
    architecture = getattr(transformers, facts.pop("architectures")[0])
    parsed = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts)
    model: nn.Module = architecture._from_config(parsed, attn_implementation=attention)
    return model.eval()


def sites(model: nn.Module, inputs: dict[str, Tensor]) -> list[tuple[str, bool]]:
    return [(site.module, site.attention) for site in residual_sites(model, inputs, LOGITS)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_closes_two_branches_a_block(attention: str) -> None:
    found = sites(network(configs.BERT, attention), TOKENS)
    assert found == [
        (f"bert.encoder.layer.{block}.{module}", softmax)
        for block in (0, 1)
        for module, softmax in (("attention.output.dense", True), ("output.dense", False))
    ]


def test_vit_closes_two_branches_a_block() -> None:
    assert sites(network(configs.VIT), IMAGES) == [
        (f"vit.layers.{block}.{module}", softmax)
        for block in (0, 1)
        for module, softmax in (("attention.o_proj", True), ("mlp.fc2", False))
    ]


def test_swin_has_an_attention_branch_in_every_block() -> None:
    found = sites(network(configs.SWIN), IMAGES)
    assert [attention for _, attention in found] == [True, False] * 3


def test_resnet_has_branches_without_attention_and_every_one_is_chosen() -> None:
    found = residual_sites(network(configs.RESNET), IMAGES, LOGITS)
    assert found
    assert not any(site.attention for site in found)
    assert chosen_sites(found) == [site.module for site in found]


def test_torchs_own_attention_is_seen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x).mean(1))

    assert sites(Net(), {"x": torch.randn(2, 5, 16)}) == [
        ("block.attention", True),
        ("block.ffn.2", False),
    ]


def test_attention_is_chosen_before_other_branches_and_no_branch_is_refused() -> None:
    assert chosen_sites([Site("a", True), Site("m", False)]) == ["a"]
    with pytest.raises(ConfigError, match="no module whose output is added to a residual stream"):
        chosen_sites(residual_sites(nn.Sequential(nn.Linear(4, 4)), {"input": torch.ones(1, 4)},
                                    LOGITS))  # fmt: skip


def test_softmaxes_are_counted_in_the_branch_they_ran_in() -> None:
    found = residual_sites(network(configs.VIT), IMAGES, LOGITS)
    assert [site.softmaxes for site in found] == [(0,), (), (1,), ()]


class Shared(nn.Module):
    """Three blocks that are one and the same, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.fc(x.relu())
        return x


def test_a_module_that_closes_several_branches_is_refused() -> None:
    found = residual_sites(Shared(), {"x": torch.ones(1, 4)}, LOGITS)
    with pytest.raises(ConfigError, match=r"fc closes 3 residual branches in one pass, expected 1"):
        chosen_sites(found)


def test_what_one_run_gave_may_be_added_twice() -> None:
    class Twice(Shared):
        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x.relu())
            return (x + y) * (x + y)

    assert sites(Twice(), {"x": torch.ones(1, 4)}) == [("fc", False)]
