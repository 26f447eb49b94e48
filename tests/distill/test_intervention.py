"""Teacher intervention on outputs (TI-O): what it does to signals, whatever form they come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny.taught import X, acting, passes, two
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.data import Tensor as TensorFacts
from edgekd.distill import losses
from edgekd.distill.intervention import Intervention
from edgekd.distill.objective import Objective
from edgekd.errors import ConfigError
from edgekd.recipe import Losses, TeacherIntervention

Form = Callable[[Tensor, Tensor], Any]


class Branch(nn.Module):
    """y = x + fc(x), so that what a site gives is read off the output."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.fc.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


def mixed(share: float, steps: int) -> tuple[Branch, Branch, Intervention]:
    student, teacher = Branch(1.0), Branch(3.0).requires_grad_(False)
    settings = TeacherIntervention(share=share, weight=2.0)
    acting = Intervention(settings, steps, student.train(), teacher, [("fc", "fc")])
    return student, teacher, acting


@pytest.mark.parametrize(("step", "strength"), [(0, 1.0), (2, 0.5), (4, 0.0), (7, 0.0)])
def test_the_teachers_signal_fades_over_its_share_of_the_steps(step: int, strength: float) -> None:
    student, teacher, acting = mixed(share=0.5, steps=8)
    x = torch.eye(4)
    acting.at(step)
    teacher(x)
    site = student(x) - x
    assert torch.allclose(site, strength * teacher.fc(x) + (1 - strength) * x @ torch.ones(4, 4))


def test_a_replaced_site_learns_from_its_own_loss_alone() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    x = torch.arange(16.0).reshape(4, 4)
    acting.at(0)
    teacher(x)
    student(x).sum().backward(retain_graph=True)
    assert not student.fc.weight.grad.any()  # the signal is the teacher's, no gradient comes back
    loss = acting.loss()
    taught, own = teacher.fc(x), student.fc.weight.detach()
    expected = 2.0 * ((x @ own.T - taught) ** 2).mean() / taught.var(correction=0)
    assert torch.allclose(loss.detach(), expected)
    loss.backward()
    assert student.fc.weight.grad.any()


def test_a_stale_teacher_is_an_error_even_at_the_same_shape() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    x = torch.ones(2, 4)
    acting.at(0)
    teacher(x)
    student(x)
    with pytest.raises(ConfigError, match=r"the student's fc gives .* the teacher's None"):
        student(x)


def test_an_evaluated_student_is_on_its_own_and_removal_leaves_no_hook() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    x = torch.ones(2, 4)
    acting.at(0)
    teacher(x)
    assert torch.equal(student.eval()(x), x + x @ torch.ones(4, 4))
    acting.remove()
    student.train()
    assert torch.equal(student(x), x + x @ torch.ones(4, 4))
    assert not student.fc._forward_hooks
    assert not teacher.fc._forward_hooks


def test_the_objective_adds_the_term_beside_its_own() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    out = TensorFacts(name="y", dtype="float32", shape=["batch", 4])
    facts = IO(inputs=[], outputs=[out], labels=[])
    objective = Objective(Losses(blocks=0.0), student, teacher, facts, acting)
    acting.at(0)
    terms = objective({"x": torch.eye(4)}, torch.arange(4))
    assert list(terms) == ["logits", "intervention"]
    objective.remove()
    assert not student.fc._forward_hooks


class Weighed(nn.Module):
    """A residual branch, and beside it how it weighed things, as attention may answer both."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.fc, self.form = nn.Linear(32, 32), form

    def forward(self, x: Tensor) -> Any:
        own = self.fc(x)
        return self.form(own.tanh(), own.softmax(-1))


class OfWeighed(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.branch, self.head = Weighed(form), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.branch(x)
        *_, out, self.weights = found.values() if isinstance(found, dict) else found
        return self.head(x + out)


@pytest.mark.parametrize(
    "form",
    [
        lambda out, weights: (out, weights),
        lambda out, weights: (None, out, weights),
        lambda out, weights: {"hidden": out, "weights": weights},
    ],
    ids=["pair", "nothing first", "mapping"],
)
def test_of_what_a_site_gives_the_branch_alone_is_replaced(form: Form) -> None:
    networks = two(lambda: OfWeighed(form))
    student, teacher = networks
    found = acting("output", networks, X)
    assert found.sites == ["branch"]
    logits = passes(found, networks, X)
    x = X["x"]
    taught, own = teacher.branch.fc(x).tanh(), student.branch.fc(x)  # type: ignore[operator, union-attr]
    assert torch.allclose(logits, student.head(x + taught))  # type: ignore[operator]
    assert torch.equal(student.weights, own.softmax(-1))  # type: ignore[arg-type]
    assert torch.allclose(found.loss(), losses.values(own.tanh(), taught))
