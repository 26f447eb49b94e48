"""One step's weighted terms, from both networks in the right order."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny import data, models
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data import Tensor as Port
from edgekd.distill import losses
from edgekd.distill.objective import Objective
from edgekd.errors import ConfigError
from edgekd.recipe import Losses

IO = data.vectors().io
X = {"x": torch.randn(6, 32, generator=torch.Generator().manual_seed(0))}
TARGET = torch.tensor([0, 1, 2, 3, 0, 1])


def pair(student: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = models.mlp().eval().requires_grad_(False)
    return (student or models.mlp()).eval(), teacher


def test_each_term_is_its_loss_times_its_weight() -> None:
    student, teacher = pair()
    settings = Losses(logits=2.0, temperature=3.0, blocks=0.5, labels=0.25)
    terms = Objective(settings, student, teacher, IO)(X, TARGET)
    ours, theirs = student(X["x"]), teacher(X["x"])
    assert list(terms) == ["logits", "blocks", "labels"]
    assert torch.allclose(terms["logits"], 2.0 * losses.logits(ours, theirs, 3.0))
    assert torch.allclose(terms["labels"], 0.25 * losses.labels(ours, TARGET))
    s0, t0 = student.blocks[0](student.stem(X["x"])), teacher.blocks[0](teacher.stem(X["x"]))
    s1, t1 = student.blocks[1](s0), teacher.blocks[1](t0)
    assert torch.allclose(terms["blocks"], 0.5 * losses.blocks([s0, s1], [t0, t1]))


def test_equal_networks_have_nothing_to_learn() -> None:
    _, teacher = pair()
    student, _ = pair()
    student.load_state_dict(teacher.state_dict())
    terms = Objective(Losses(), student, teacher, IO)(X, TARGET)
    assert [float(term.detach()) for term in terms.values()] == pytest.approx([0, 0], abs=1e-6)


def test_terms_of_weight_zero_are_not_computed() -> None:
    student, teacher = pair()
    objective = Objective(Losses(logits=0, blocks=0, labels=1), student, teacher, IO)
    assert list(objective(X, TARGET)) == ["labels"]
    assert not any(module._forward_hooks for module in student.modules())


def test_the_gradient_reaches_the_student_alone() -> None:
    student, teacher = pair()
    teacher.requires_grad_(True)
    terms = Objective(Losses(labels=1.0), student, teacher, IO)(X, TARGET)
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_every_step_compares_with_its_own_teacher_pass() -> None:
    student, teacher = pair()
    objective = Objective(Losses(), student, teacher, IO)
    other = {"x": X["x"] * 3}
    fresh = Objective(Losses(), *pair(student), IO)(other, TARGET)
    objective(X, TARGET)
    again = objective(other, TARGET)
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_hooks_go_when_training_is_over() -> None:
    student, teacher = pair()
    objective = Objective(Losses(), student, teacher, IO)
    assert sum(len(module._forward_hooks) for module in student.modules()) == 2
    objective.remove()
    for network in (student, teacher):
        assert not any(module._forward_hooks for module in network.modules())


def test_a_shallower_student_learns_from_every_second_block() -> None:
    student, _ = pair()
    teacher = models.MLP(depth=4).eval()
    terms = Objective(Losses(), student, teacher, IO)(X, TARGET)
    mine, theirs = [student.stem(X["x"])], [teacher.stem(X["x"])]
    for networks, outputs in ((student.blocks, mine), (teacher.blocks, theirs)):
        for block in networks:
            outputs.append(block(outputs[-1]))
    wanted = losses.blocks(mine[1:], [theirs[2], theirs[4]])
    assert torch.allclose(terms["blocks"], wanted)


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (models.five_classes, r"student and teacher disagree on logits: \[6, 5\] against \[6, 4\]"),
        (models.wide, r"a student block gives \[6, 48\], its teacher's \[6, 32\]; .* one width"),
        (models.excluded, "the student has no repeated blocks to compare; set it to 0"),
    ],
)
def test_networks_that_cannot_be_compared(student: type[nn.Module], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Objective(Losses(), *pair(student()), IO)(X, TARGET)


def test_a_wider_student_learns_from_logits_alone() -> None:
    terms: dict[str, Tensor] = Objective(Losses(blocks=0), *pair(models.wide()), IO)(X, TARGET)
    assert list(terms) == ["logits"]


class TwoHeads(nn.Module):
    """Classes and boxes, as a detector gives them."""

    def __init__(self, boxes: str = "boxes", classes: int = 4) -> None:
        super().__init__()
        self.name = boxes
        self.classes, self.box = nn.Linear(32, classes), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classes(x), self.name: self.box(x)}


BOTH = IO.model_copy(
    update={
        "outputs": [*IO.outputs, Port(name="boxes", dtype="float32", shape=["batch", 8])],
        "labels": [],
    }
)


def two_heads() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return TwoHeads(), TwoHeads().requires_grad_(False)


def test_every_output_is_distilled_by_its_role_and_weight() -> None:
    student, teacher = two_heads()
    settings = Losses(logits=2.0, blocks=0, outputs={"boxes": 3.0, "logits": 0.5})
    terms = Objective(settings, student, teacher, BOTH)(X, TARGET)
    assert list(terms) == ["logits", "values.boxes"]
    ours, theirs = student(X["x"]), teacher(X["x"])
    kl = losses.logits(ours["logits"], theirs["logits"], 2.0)
    assert torch.allclose(terms["logits"], 2.0 * 0.5 * kl)
    error = ((ours["boxes"] - theirs["boxes"]) ** 2).mean() / theirs["boxes"].var(correction=0)
    assert torch.allclose(terms["values.boxes"], 3.0 * error)


def test_roles_decide_how_an_output_is_compared() -> None:
    student, teacher = two_heads()
    outputs = [port.model_copy(update={"role": "values"}) for port in BOTH.outputs]
    io = BOTH.model_copy(update={"outputs": outputs})
    terms = Objective(Losses(blocks=0, outputs={"boxes": 0.0}), student, teacher, io)(X, TARGET)
    assert list(terms) == ["values"]


def test_an_output_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"there is no output 'box'. Did you mean .boxes."):
        Objective(Losses(blocks=0, outputs={"box": 1.0}), *two_heads(), BOTH)


def test_networks_with_other_outputs_are_told_apart() -> None:
    student, teacher = two_heads()
    objective = Objective(Losses(blocks=0), TwoHeads("corners"), teacher, BOTH)
    with pytest.raises(
        ConfigError, match=r"the student: the network returned logits, corners, exp"
    ):
        objective(X, TARGET)
    objective = Objective(Losses(blocks=0), student, TwoHeads(classes=5), BOTH)
    with pytest.raises(ConfigError, match=r"disagree on logits: \[6, 4\] against \[6, 5\]"):
        objective(X, TARGET)


def task(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return functional.l1_loss(outputs["boxes"], labels)


def no_scalar(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return outputs["boxes"] - labels


def no_tensor(outputs: dict[str, Tensor], labels: Tensor) -> float:
    return float(len(outputs) + len(labels))


def fails(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return outputs["masks"] + labels


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """These functions under a name that a recipe can give."""
    monkeypatch.setitem(sys.modules, "users_losses", sys.modules[__name__])


@pytest.mark.usefixtures("here")
def test_the_tasks_own_loss_gets_every_output_and_the_labels() -> None:
    student, teacher = two_heads()
    boxes = torch.ones(6, 8)
    settings = Losses(logits=0, blocks=0, labels=0.5, task="python:users_losses:task")
    terms = Objective(settings, student, teacher, BOTH)(X, boxes)
    assert torch.allclose(terms["labels"], 0.5 * (student(X["x"])["boxes"] - 1).abs().mean())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_scalar", r"returned \[6, 8\], expected a tensor of one number"),
        ("no_tensor", "returned float, expected a tensor of one number"),
        ("fails", "failed: KeyError: 'masks'"),
    ],
)
def test_a_task_that_is_no_loss_is_told(name: str, words: str) -> None:
    settings = Losses(logits=0, blocks=0, labels=1, task=f"python:users_losses:{name}")
    objective = Objective(settings, *two_heads(), BOTH)
    with pytest.raises(
        ConfigError, match=f"distill.losses.task 'python:users_losses:{name}' {words}"
    ):
        objective(X, torch.ones(6, 8))


def test_labels_without_classes_or_a_task_are_told() -> None:
    with pytest.raises(ConfigError, match=r"distill.losses.task is missing: .* names no classes"):
        Objective(Losses(labels=1.0), *two_heads(), BOTH)
