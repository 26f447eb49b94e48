"""Our attention against torch's own, call by call; names of both forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd import unpack
from edgekd.errors import UnsupportedError

E, H, B, L, S = 16, 4, 3, 5, 7


def pair(**options: Any) -> tuple[nn.MultiheadAttention, unpack.Attention]:
    """torch's module with random biases, and ours made from it, in eval mode."""
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(E, H, **options)
    with torch.no_grad():
        for name, parameter in packed.named_parameters():
            if "bias" in name:
                parameter.normal_()
    ours = unpack.canonical(copy.deepcopy(packed))
    assert isinstance(ours, unpack.Attention)
    return packed.eval(), ours.eval()


def inputs(packed: nn.MultiheadAttention, batched: bool = True) -> list[Tensor]:
    found = [torch.randn(n, B, k) for n, k in ((L, E), (S, packed.kdim), (S, packed.vdim))]
    if packed.batch_first:
        found = [x.transpose(0, 1).contiguous() for x in found]
    return found if batched else [x.select(0 if packed.batch_first else 1, 0) for x in found]


def same(one: Any, two: Any) -> None:
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert torch.allclose(a, b, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"batch_first": True}, {"kdim": 12, "vdim": 20},
     {"kdim": 12, "vdim": 20, "batch_first": True, "bias": False}, {"dropout": 0.5}],
)  # fmt: skip
def test_the_same_function(options: dict[str, Any], need_weights: bool) -> None:
    packed, ours = pair(**options)
    q, k, v = inputs(packed)
    padding = torch.rand(B, S) < 0.3
    padding[:, 0] = False
    attention = torch.rand(L, S) < 0.3
    attention[:, 0] = False
    added = torch.randn(B * H, L, S)
    for masks in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": attention},
        {"attn_mask": added},
        {"attn_mask": attention, "key_padding_mask": padding},
        {"attn_mask": added, "key_padding_mask": torch.randn(B, S)},
    ):
        for average in (True, False):
            call: dict[str, Any] = {
                **masks, "need_weights": need_weights, "average_attn_weights": average
            }  # fmt: skip
            same(ours(q, k, v, **call), packed(q, k, v, **call))


@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch(batch_first: bool) -> None:
    packed, ours = pair(batch_first=batch_first)
    q, k, v = inputs(packed, batched=False)
    padding = torch.tensor([False] * (S - 2) + [True] * 2)
    for need in (True, False):
        same(
            ours(q, k, v, key_padding_mask=padding, need_weights=need),
            packed(q, k, v, key_padding_mask=padding, need_weights=need),
        )


def test_causal_and_a_row_that_is_masked_throughout() -> None:
    packed, ours = pair()
    x = inputs(packed)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    for need in (True, False):
        call = {"attn_mask": mask, "is_causal": True, "need_weights": need}
        same(ours(x, x, x, **call), packed(x, x, x, **call))
        nothing = torch.full((L, L), False)
        nothing[1] = True
        call = {"attn_mask": nothing, "need_weights": need}
        same(ours(x, x, x, **call), packed(x, x, x, **call))
    with pytest.raises(RuntimeError, match="is_causal needs the attn_mask"):
        ours(x, x, x, is_causal=True)


def test_dropout_only_where_it_trains() -> None:
    packed, ours = pair(dropout=0.5)
    x = inputs(packed)[0]
    still = ours(x, x, x)[0]
    assert torch.equal(still, ours(x, x, x)[0])
    ours.train()
    torch.manual_seed(1)
    one, two = ours(x, x, x)[0], ours(x, x, x)[0]
    assert not torch.equal(one, two)
    assert not torch.equal(one, still)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("fastpath", [True, False])
def test_inside_torchs_encoder_and_decoder(norm_first: bool, fastpath: bool) -> None:
    """Whatever its fused path is set to: it asks attributes of ours before it looks for weights."""
    torch.manual_seed(0)
    whole = nn.Transformer(
        E, H, 2, 2, 32, batch_first=True, norm_first=norm_first, dropout=0.0
    ).eval()
    ours = unpack.canonical(copy.deepcopy(whole))
    assert sum(isinstance(module, unpack.Attention) for module in ours.modules()) == 6
    source, target = torch.randn(B, S, E), torch.randn(B, L, E)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[:, -2:] = True
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        call = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
        wanted = whole(source, target, **call)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        with torch.no_grad():
            found = ours(source, target, **call)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert torch.allclose(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"kdim": 12, "vdim": 20}, {"bias": False}])
def test_names_of_both_forms_load(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    old = nn.ModuleDict({"a": nn.MultiheadAttention(E, H, **options), "b": nn.Linear(2, 2)})
    new = unpack.canonical(copy.deepcopy(old))
    fresh = unpack.canonical(
        nn.ModuleDict({"a": nn.MultiheadAttention(E, H, **options), "b": nn.Linear(2, 2)})
    )
    for state in (old.state_dict(), new.state_dict()):
        fresh.load_state_dict(unpack.renamed(fresh, state))
        for name, tensor in new.state_dict().items():
            assert torch.equal(tensor, fresh.state_dict()[name]), name
    assert {"a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight", "a.out_proj.weight"} <= set(
        new.state_dict()
    )


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(E, H)
    before = torch.get_rng_state()
    unpack.canonical(model)
    assert torch.equal(before, torch.get_rng_state())


def test_shared_modules_and_shared_weights_stay_shared() -> None:
    one, two = nn.MultiheadAttention(E, H), nn.MultiheadAttention(E, H)
    two.in_proj_weight, two.out_proj.weight = one.in_proj_weight, one.out_proj.weight
    model = unpack.canonical(nn.ModuleList([one, two, one]))
    assert model[0] is model[2]
    assert model[0].k_proj.weight is model[1].k_proj.weight
    assert model[0].out_proj.weight is model[1].out_proj.weight
    assert model[0].k_proj.bias is not model[1].k_proj.bias


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_of_its_own_are_refused(options: dict[str, Any]) -> None:
    model = nn.ModuleDict({"pool": nn.MultiheadAttention(E, H, **options)})
    with pytest.raises(UnsupportedError, match=r"attention pool appends keys of its own"):
        unpack.canonical(model)


def test_an_attention_with_a_forward_of_its_own_is_left_alone() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x)[0]

    model = nn.ModuleDict({"a": Own(E, H)})
    assert isinstance(unpack.canonical(model)["a"], Own)


def test_what_is_left_of_a_norm_that_carries_its_activation() -> None:
    from timm.layers import BatchNormAct2d

    model = nn.ModuleDict(
        {"conv": nn.Conv2d(4, 8, 1, bias=False), "bn": BatchNormAct2d(8, act_layer=nn.PReLU)}
    )
    unpack.without_batchnorm(model, [("conv", "bn")])
    assert model["conv"].bias.shape == (8,)
    assert "bn.act.weight" in model.state_dict()
    assert model["bn"](torch.full((1, 8, 1, 1), -1.0)).flatten()[0] == -0.25
