"""TI-C, TI-M and their schedules: stop-gradients against a slow reference, and no trace left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import attention as tiny_attention
from tiny import configs, packed
from tiny.recipes import tiny
from tiny.taught import IMAGES, LOGITS, SENTENCES, X, acting, hf, passes, settings, slow, two
from torch import Tensor, nn

from edgekd import models, sources
from edgekd.distill import interception, losses
from edgekd.distill.intervention import intervene, signal, strength
from edgekd.distill.objective import Objective
from edgekd.distill.prepare import Prepared
from edgekd.models import Tensors, forward
from edgekd.recipe import Losses


class TestSchedule:
    """Tables of a training of 24 steps, written out by hand."""

    @pytest.mark.parametrize(
        ("mode", "share", "expected"),
        [
            ("output", 0.5, "O" * 24),
            ("context", 0.5, "C" * 24),
            ("map", 0.5, "M" * 24),
            ("gradual", 1.0, "OOOO" + "CCCC" + "M" * 16),
            ("gradual", 0.5, "OO" + "CC" + "M" * 20),
            ("inverted", 1.0, "M" * 8 + "C" * 8 + "O" * 8),
            ("inverted", 0.5, "MMMM" + "CCCC" + "O" * 16),
        ],
    )
    def test_signal(self, mode: str, share: float, expected: str) -> None:
        names = {"O": "output", "C": "context", "M": "map"}
        chosen = settings(mode, share=share)
        assert [signal(chosen, 24, step) for step in range(24)] == [names[c] for c in expected]

    def test_stochastic_draws_from_seed_and_step_alone(self) -> None:
        chosen = settings("stochastic")
        drawn = [signal(chosen, 300, step, seed=3) for step in range(300)]
        assert [signal(chosen, 300, step, seed=3) for step in (299, 7)] == [drawn[299], drawn[7]]
        assert [signal(chosen, 300, step, seed=4) for step in range(300)] != drawn
        counts = [drawn.count(each) for each in ("output", "context", "map")]  # type: ignore[arg-type]
        assert sum(counts) == 300
        assert all(70 < count < 130 for count in counts)

    @pytest.mark.parametrize("withdraw", ["linear", "two-step"])
    def test_after_the_last_intervened_step_its_signal_stays(self, withdraw: str) -> None:
        chosen = settings("stochastic", share=0.3, withdraw=withdraw)
        drawn = [signal(chosen, 25, step, seed=3) for step in range(25)]
        acted = [step for step in range(25) if strength(chosen, 25, step) > 0]
        assert acted == list(range(8))  # of 7.5 steps
        assert set(drawn[7:]) == {drawn[7]}
        assert len(set(drawn[:8])) > 1

    def test_strength(self) -> None:
        linear, two = settings("map", share=0.5), settings("map", share=0.5, withdraw="two-step")
        assert [strength(linear, 8, step) for step in range(8)] == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
        assert [strength(two, 8, step) for step in range(8)] == [1, 1, 1, 1, 0, 0, 0, 0]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensors]] = {
    "vit": (lambda: hf(configs.VIT, "eager"), IMAGES),
    "vit fused": (lambda: hf(configs.VIT, "sdpa"), IMAGES),
    "bert": (lambda: hf(configs.BERT, "eager"), SENTENCES),
    "bert fused": (lambda: hf(configs.BERT, "sdpa"), SENTENCES),
    "packed": (packed.vit, X),
    "einsum": (lambda: tiny_attention.network(tiny_attention.einsum), X),
}


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    @pytest.mark.parametrize("mode", ["context", "map"])
    def test_withdrawn_it_answers_as_without(self, name: str, mode: str) -> None:
        make, inputs = NETWORKS[name]
        networks = two(make)
        plain = forward(networks[0], inputs, LOGITS)["logits"]
        found = acting(mode, networks, inputs, step=4)
        assert torch.allclose(passes(found, networks, inputs), plain, atol=1e-5)
        assert float(found.loss().detach()) > 0
        found = acting(mode, networks, inputs, step=0)
        assert not torch.allclose(passes(found, networks, inputs), plain, atol=1e-3)
        assert torch.equal(forward(networks[0], inputs, LOGITS)["logits"], plain)

    def test_a_replaced_map_trains_its_projections_by_its_own_loss_alone(self, name: str) -> None:
        make, inputs = NETWORKS[name]
        networks = two(make)
        found = acting("map", networks, inputs)
        logits = passes(found, networks, inputs)
        # The bias of the keys moves all scores of a row: no map, and no loss, depends on it.
        projections = {
            layer
            for call in found._attentions.student.calls  # type: ignore[union-attr]
            for layer in call.queries
        }
        weights = {n: p for n, p in networks[0].named_parameters() if n.endswith("weight")}
        by_loss = torch.autograd.grad(
            found.loss(), list(weights.values()), allow_unused=True, retain_graph=True
        )
        trained = {n for n, g in zip(weights, by_loss, strict=True) if g is not None and g.any()}
        assert trained == {f"{layer}.weight" for layer in projections}
        by_logits = torch.autograd.grad(logits.sum(), list(weights.values()), allow_unused=True)
        reached = {n: g for n, g in zip(weights, by_logits, strict=True) if g is not None}
        for layer in projections:
            gradient = reached.get(f"{layer}.weight")
            rows = 2 * len(gradient) // 3 if gradient is not None else 0  # packed: not its values'
            assert gradient is None or not gradient[:rows].any()


def gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    values = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, values, retain_graph=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def quantized(scales: str, weights: str) -> tuple[nn.Module, nn.Module]:
    """A packed student with 2:4 masks, and quantizers of weights and inputs, and its teacher."""
    section = {"calibration_samples": 16, "scales": scales, "weights": weights}
    recipe = tiny(Path(), "packed:vit", quantization=section)
    student, teacher = two(packed.vit)
    teacher.requires_grad_(False)
    description = models.describe(recipe.teacher.model, recipe.base)
    examples = sources.load(recipe)
    Prepared(recipe, "sparse", examples, teacher, student, description, Path())
    return student.train(), teacher


@pytest.mark.parametrize("mode", ["map", "context"])
@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (3, 0.25)])
@pytest.mark.parametrize("form", ["float", "follow int8", "learned int8", "follow ternary"])
def test_signals_and_gradients_are_the_slow_references(
    mode: str, step: int, share: float, form: str
) -> None:
    kinds = form.split()
    networks = two(packed.vit) if form == "float" else quantized(*kinds)
    student, teacher = networks
    found = acting(mode, networks, X, step=step)
    logits = passes(found, networks, X)
    term = found.loss()
    weigh = torch.arange(12.0).view(3, 4).sin()

    with torch.no_grad():
        _, maps, contexts = slow(teacher, X["x"], mode, None, 0.0)  # type: ignore[arg-type]
    taught = maps if mode == "map" else contexts
    answer, *own = slow(student, X["x"], mode, taught, share)  # type: ignore[arg-type]
    pairs = zip(own[0] if mode == "map" else own[1], taught, strict=True)
    expected = torch.stack([losses.values(mine, his) for mine, his in pairs]).mean()
    assert torch.allclose(logits, answer, atol=1e-5)
    assert torch.allclose(term, expected, rtol=1e-5)
    for ours, theirs in ((logits * weigh, answer * weigh), (term, expected)):
        mine, slowly = (gradients(student, loss.sum()) for loss in (ours, theirs))
        scale = max(float(g.abs().max()) for g in slowly.values())
        assert scale > 0
        assert any("learned" in name for name in mine) == form.startswith("learned")
        for name, gradient in mine.items():
            assert torch.allclose(gradient, slowly[name], atol=1e-6 * max(scale, 1.0)), name


def test_the_hidden_state_learns_through_the_values_alone() -> None:
    """At full strength: its gradient is that of values under the teacher's constant map."""
    networks = two(packed.vit)
    student, teacher = networks
    found = acting("map", networks, X)
    seen: list[Tensor] = []
    student.blocks[1].norm1.register_forward_hook(lambda _m, _a, out: seen.append(out))  # type: ignore[union-attr, index]
    logits = passes(found, networks, X)
    (gradient,) = torch.autograd.grad(logits.sum(), seen, retain_graph=True)

    with torch.no_grad():
        _, maps, _ = slow(teacher, X["x"], "map", None, 0.0)  # type: ignore[arg-type]
    attn = student.blocks[1].attn  # type: ignore[union-attr, index]
    hidden = seen[0].detach().requires_grad_()
    context = maps[1] @ attn.split(attn.qkv(hidden))[2]
    branch = attn.proj(context.transpose(1, 2).reshape(hidden.shape))
    later: list[Tensor] = []
    attn.register_forward_hook(lambda _m, _a, out: later.append(out))
    again = passes(found, networks, X)
    (arriving,) = torch.autograd.grad(again.sum(), later)
    (expected,) = torch.autograd.grad(branch, hidden, arriving)
    assert torch.allclose(gradient, expected, atol=1e-6)
    (none,) = torch.autograd.grad(found.loss(), seen[-1:], materialize_grads=True)
    assert not none.any()


def test_the_fused_kernel_and_eager_attention_learn_alike() -> None:
    found = []
    for kind in ("eager", "sdpa"):
        networks = two(lambda kind=kind: hf(configs.BERT, kind))  # type: ignore[misc]
        acted = acting("map", networks, SENTENCES, step=1)
        loss = passes(acted, networks, SENTENCES).pow(2).sum() + acted.loss()
        found.append(gradients(networks[0], loss))
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-4) for n in found[0])


def test_the_teachers_map_is_what_flows() -> None:
    """A teacher that attends to nothing in particular: every context is the mean of the values."""
    networks = two(packed.vit)
    for block in networks[1].blocks:  # type: ignore[union-attr]
        block.attn.qkv.weight.zero_()
        block.attn.qkv.bias.zero_()
    uniform = [torch.full((3, 2, 4, 4), 0.25)] * 2
    expected, own, _ = slow(networks[0], X["x"], "map", uniform, 1.0)  # type: ignore[arg-type]
    found = acting("map", networks, X)
    assert torch.allclose(passes(found, networks, X), expected, atol=1e-5)
    wanted = torch.stack([losses.values(mine, uniform[0]) for mine in own]).mean()
    assert torch.allclose(found.loss(), wanted)  # compares the student's own maps, not the mixed


def test_an_evaluated_student_is_on_its_own() -> None:
    networks = two(packed.vit)
    plain = forward(networks[0], X, LOGITS)["logits"]
    found = acting("map", networks, X)
    networks[0].eval()
    assert torch.equal(passes(found, networks, X), plain)
    objective = Objective(Losses(blocks=0.0), *networks, LOGITS, found)
    assert list(objective(X, torch.arange(3))) == ["logits"]


def test_sites_pair_by_relative_depth() -> None:
    student, teacher = packed.ViT(2).train(), packed.ViT(4).eval().requires_grad_(False)
    found = intervene(settings("map"), 4, 0, (student, teacher), X, LOGITS)
    assert found._attentions is not None
    assert found._attentions.pairs == [(0, 1), (1, 3)]
    with torch.no_grad():
        _, maps, _ = slow(teacher, X["x"], "map", None, 0.0)
    expected, _, _ = slow(student, X["x"], "map", [maps[1], maps[3]], 1.0)
    assert torch.allclose(passes(found, (student, teacher), X), expected, atol=1e-5)


@pytest.mark.parametrize("step", range(12))
def test_one_signal_a_step_is_taught_and_the_others_are_not(step: int) -> None:
    """Gradual: each step has one term a block, of the signal that its schedule names."""
    networks = two(packed.vit)
    found = intervene(settings("gradual"), 12, 0, networks, X, LOGITS)
    found.at(step)
    passes(found, networks, X)
    shapes = [list(each.shape) for each in found._terms.values()]
    assert shapes == [[], []]
    assert not found._taught
    what = signal(settings("gradual"), 12, step)
    assert what == ("output" if step < 2 else "context" if step < 4 else "map")
    with torch.no_grad():
        _, maps, contexts = slow(networks[1], X["x"], "", None, 0.0)  # type: ignore[arg-type]
    if what != "output":
        taught = maps if what == "map" else contexts
        own = slow(networks[0], X["x"], what, taught, found._strength)[1 if what == "map" else 2]  # type: ignore[arg-type]
        assert torch.allclose(
            list(found._terms.values())[1], losses.values(own[1], taught[1]), rtol=1e-4
        )


def test_the_objective_teaches_and_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = two(packed.vit)
    found = acting("map", (student, teacher), X)
    answers: list[Tensor] = []
    student.register_forward_hook(lambda _m, _a, out: answers.append(out))
    objective = Objective(Losses(blocks=0.0), student, teacher, LOGITS, found)
    assert list(objective(X, torch.arange(3))) == ["logits", "intervention"]
    with torch.no_grad():
        _, maps, _ = slow(teacher, X["x"], "map", None, 0.0)  # type: ignore[arg-type]
    expected, _, _ = slow(student, X["x"], "map", maps, 1.0)  # type: ignore[arg-type]
    assert torch.allclose(answers[0], expected, atol=1e-5)
    monkeypatch.setattr(interception.Watch, "__init__", lambda *_: pytest.fail("still watching"))
    found.remove()
    forward(student, X, LOGITS)
