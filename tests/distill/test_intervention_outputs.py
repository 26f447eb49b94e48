"""TI-O: where its gradients end, frozen layers, and the passes that try it before training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import attention as tiny_attention
from tiny import configs, packed
from tiny.taught import IMAGES, LOGITS, SENTENCES, X, acting, hf, passes, settings, two
from torch import Tensor, nn

from edgekd.distill import losses
from edgekd.distill.intervention import intervene, signal
from edgekd.errors import ConfigError
from edgekd.models import Tensors

Networks = tuple[nn.Module, nn.Module]
# Configuration, inputs, where an attention is, its layers of Q, K and V, and its output projection.
FAMILIES: dict[str, tuple[Any, Tensors, str, list[str], str]] = {
    "vit": (
        configs.VIT, IMAGES, "vit.layers.{}.attention", ["q_proj", "k_proj", "v_proj"], "o_proj"
    ),
    "bert": (
        configs.BERT, SENTENCES, "bert.encoder.layer.{}.attention",
        ["self.query", "self.key", "self.value"], "output.dense",
    ),
}  # fmt: skip


def trained(net: nn.Module, loss: Tensor) -> set[str]:
    """Names of weights that a loss has a gradient for."""
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, retain_graph=True)
    return {n for n, g in zip(weights, found, strict=True) if g is not None and bool(g.any())}


def slow(net: packed.ViT, x: Tensor, taught: list[Tensor], share: float) -> tuple[Tensor, Tensor]:
    """The packed network with detached hidden states under Q, K and V; logits and the loss."""
    terms = []
    x = net.embed(x.reshape(-1, packed.TOKENS, 8)) + net.position
    for block, his in zip(net.blocks, taught, strict=True):
        hidden = block.norm1(x)
        own = block.attn((1 - share) * hidden + share * hidden.detach())
        terms.append(losses.values(own, his))
        x = x + share * his + (1 - share) * own
        x = x + block.mlp(block.norm2(x))
    return net.head(net.norm(x).mean(1)), torch.stack(terms).mean()


def branches(net: packed.ViT, x: Tensor) -> list[Tensor]:
    """What each attention branch of a network on its own gives."""
    seen: list[Tensor] = []
    handles = [
        block.attn.register_forward_hook(lambda _m, _a, out: seen.append(out))
        for block in net.blocks
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return seen


class TestStopGradient:
    @pytest.mark.parametrize("step", [0, 3])
    @pytest.mark.parametrize("what", ["loss", "logits"])
    def test_gradients_are_the_slow_references(self, step: int, what: str) -> None:
        student, teacher = networks = two(packed.vit)
        found = acting("output", networks, X, step=step)
        logits = passes(found, networks, X)
        ours = found.loss() if what == "loss" else logits.sin().sum()
        found.remove()
        taught = branches(teacher, X["x"])  # type: ignore[arg-type]
        answer, expected = slow(student, X["x"], taught, [1.0, 0, 0, 0.25][step])  # type: ignore[arg-type]
        theirs = expected if what == "loss" else answer.sin().sum()
        assert torch.allclose(ours, theirs, rtol=1e-5)
        weights = list(student.parameters())
        mine, slowly = (
            torch.autograd.grad(loss, weights, materialize_grads=True) for loss in (ours, theirs)
        )
        assert any(bool(g.any()) for g in slowly)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, slowly, strict=True))

    def test_a_loss_trains_its_attention_and_nothing_before_it(self) -> None:
        networks = two(packed.vit)
        found = acting("output", networks, X)
        passes(found, networks, X)
        wanted = {f"blocks.{n}.attn.{layer}.weight" for n in (0, 1) for layer in ("qkv", "proj")}
        assert trained(networks[0], found.loss()) == wanted

    @pytest.mark.parametrize("kind", ["eager", "sdpa"])
    @pytest.mark.parametrize("mode", ["output", "context"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_of_each_family(self, family: str, mode: str, kind: str) -> None:
        """TI-O trains Q, K, V and the output projection of each attention, TI-C the first three."""
        config, inputs, attention, own, out = FAMILIES[family]
        networks = two(lambda: hf(config, kind))
        found = acting(mode, networks, inputs)
        passes(found, networks, inputs)
        layers = [*own, out] if mode == "output" else own
        assert trained(networks[0], found.loss()) == {
            f"{attention.format(n)}.{layer}.weight" for n in (0, 1) for layer in layers
        }

    @pytest.mark.parametrize("mode", ["gradual", "inverted", "stochastic"])
    def test_of_a_schedule_in_its_output_phase(self, mode: str) -> None:
        networks = two(packed.vit)
        chosen = settings(mode, withdraw="two-step")
        steps = [step for step in range(24) if signal(chosen, 24, step) == "output"]
        found = intervene(chosen, 24, 0, networks, X, LOGITS)
        found.at(steps[-1])
        passes(found, networks, X)
        assert trained(networks[0], found.loss()) == {
            f"blocks.{n}.attn.{layer}.weight" for n in (0, 1) for layer in ("qkv", "proj")
        }

    def test_withdrawn_nothing_is_cut(self) -> None:
        networks = two(packed.vit)
        found = acting("output", networks, X, step=4)
        passes(found, networks, X)
        assert {"embed.weight", "blocks.0.mlp.2.weight"} <= trained(networks[0], found.loss())

    def test_a_network_without_attention_is_taught_and_keeps_its_gradients(self) -> None:
        networks = two(lambda: hf(configs.RESNET, "eager"))
        found = acting("output", networks, IMAGES)
        passes(found, networks, IMAGES)
        first = next(n for n, p in networks[0].named_parameters() if p.ndim == 4)
        assert first in trained(networks[0], found.loss())

    @pytest.mark.parametrize("how", ["shared_kv", "difference", "relu"])
    def test_attention_without_layers_of_its_own_is_taught_too(self, how: str) -> None:
        networks = two(lambda: tiny_attention.network(getattr(tiny_attention, how)))
        found = acting("output", networks, X)
        passes(found, networks, X)
        assert float(found.loss().detach()) > 0
        assert not found._cuts


def test_outputs_pair_by_relative_depth() -> None:
    student, teacher = packed.ViT(2).train(), packed.ViT(4).eval().requires_grad_(False)
    networks = (student, teacher)
    found = intervene(settings("output"), 4, 0, networks, X, LOGITS)
    logits, term = passes(found, networks, X), found.loss()
    found.remove()
    his = branches(teacher, X["x"])
    answer, expected = slow(student, X["x"], [his[1], his[3]], 1.0)
    assert torch.allclose(logits, answer, atol=1e-5)
    assert torch.allclose(term, expected, rtol=1e-5)


class Closed(nn.Module):
    """A residual branch that a batch norm closes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(32, 32), nn.BatchNorm1d(32)
        self.head, self.often = nn.Linear(32, 4), True

    def forward(self, x: Tensor) -> Tensor:
        if self.often:
            x = x + self.norm(self.fc(x))
        return self.head(x + torch.relu(self.fc(x)))


def test_a_frozen_batch_norm_is_replaced_like_any_site() -> None:
    networks = two(Closed)
    student, teacher = networks
    plain = copy.deepcopy(student)
    found = acting("output", networks, X)
    assert found.sites == ["norm"]
    for norm in (plain.norm, student.norm):
        norm.eval()
    logits = passes(found, networks, X)
    assert float(found.loss().detach()) > 0
    x = X["x"] + teacher.norm(teacher.fc(X["x"]))  # type: ignore[operator]
    assert torch.allclose(logits, student.head(x + torch.relu(student.fc(x))))  # type: ignore[operator]
    assert not torch.allclose(logits, plain(X["x"]))


def test_a_site_that_does_not_run_is_named() -> None:
    networks = two(Closed)
    found = acting("output", networks, X)
    networks[0].often = False
    passes(found, networks, X)
    with pytest.raises(ConfigError, match=r"0 of 1 sites gave a signal in this step, norm gave no"):
        found.loss()


class Narrow(nn.Module):
    """A residual branch of any width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.fc = nn.Linear(32, width), nn.Linear(width, width)
        self.norm, self.drop, self.head = nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.stem(x)))
        return self.head(x + self.fc(x))


class TestAttempt:
    def test_widths_that_differ(self) -> None:
        networks = (Narrow(8).train(), Narrow(16).eval())
        found = intervene(settings("output"), 4, 0, networks, X, LOGITS)
        with pytest.raises(ConfigError, match=r"student's fc gives \[3, 8\], .* \[3, 16\]") as told:
            found.attempt(X, LOGITS)
        assert 'give both as many tokens and channels, use mode = "map" where' in str(told.value)
        assert "or remove [distill.intervention]" in str(told.value)
        assert not any(m._forward_hooks for net in networks for m in net.modules())

    @pytest.mark.parametrize("mode", ["output", "context", "map", "gradual", "stochastic"])
    def test_every_signal_of_the_mode_is_tried(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        networks = two(packed.vit)
        found = intervene(settings(mode), 4, 0, networks, X, LOGITS)
        seen: list[str] = []
        real = found.loss

        def noted() -> Tensor:
            seen.append(found._signal)
            return real()

        monkeypatch.setattr(found, "loss", noted)
        found.attempt(X, LOGITS)
        assert seen == ([mode] if mode in ("output", "context", "map") else
                        ["output", "context", "map"])  # fmt: skip

    def test_it_leaves_everything_as_it_was(self) -> None:
        student, teacher = networks = (Narrow(8).train(), Narrow(8).eval())
        found = intervene(settings("output"), 4, 0, networks, X, LOGITS)
        student.norm.eval()
        before = [
            {name: tensor.clone() for name, tensor in net.state_dict().items()} for net in networks
        ]
        random = torch.get_rng_state()
        found.attempt(X, LOGITS)
        assert torch.equal(torch.get_rng_state(), random)
        for net, kept in zip(networks, before, strict=True):
            assert all(torch.equal(kept[name], t) for name, t in net.state_dict().items())
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        assert student.training
        assert student.drop.training
        assert not student.norm.training
        assert not any(module.training for module in teacher.modules())
