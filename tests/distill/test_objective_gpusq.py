"""GPUSQ's options of one step: critical blocks, agreement, weights, the teacher's labels."""

from __future__ import annotations

import pytest
import torch
from tiny import data, models
from torch import Tensor, nn

from edgekd.data import IO as Ports
from edgekd.data import Tensor as Port
from edgekd.distill import losses
from edgekd.distill.objective import Objective
from edgekd.errors import ConfigError
from edgekd.recipe import Losses

IO = data.vectors().io
X = {"x": torch.randn(12, 32, generator=torch.Generator().manual_seed(0))}
TARGET = torch.arange(12) % 4


def network(seed: int, depth: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return models.MLP(depth=depth).eval()


def features(net: nn.Module) -> list[Tensor]:
    outputs = [net.stem(X["x"])]
    for block in net.blocks:
        outputs.append(block(outputs[-1]))
    return outputs[1:]


@pytest.mark.parametrize(("share", "kept"), [(0.25, [3]), (0.5, [2, 3]), (0.6, [1, 2, 3])])
def test_the_last_share_of_the_blocks_is_compared(share: float, kept: list[int]) -> None:
    student, teacher = network(1), network(0)
    objective = Objective(Losses(critical=share), student, teacher, IO)
    wanted = losses.blocks(*([features(net)[i] for i in kept] for net in (student, teacher)))
    assert objective.blocks == [f"blocks.{i}" for i in kept]
    assert torch.allclose(objective(X, TARGET)["blocks"], wanted)


def test_samples_on_which_the_networks_disagree_teach_no_features() -> None:
    student, teacher = network(0), network(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    objective = Objective(Losses(blocks=2.0, agreement=True), student, teacher, IO, observe=True)
    term = objective(X, TARGET)["blocks"]
    agree = student(X["x"]).argmax(1) == teacher(X["x"]).argmax(1)
    assert 0 < int(agree.sum()) < 12  # else the gate is not tested
    each = []
    for ours, theirs in zip(features(student), features(teacher), strict=True):
        rows = [((ours[i] - theirs[i]) ** 2).mean() for i in range(12) if agree[i]]
        each.append(torch.stack(rows).mean() / theirs.var(correction=0))
    assert torch.allclose(term, 2.0 * torch.stack(each).mean())
    assert objective.observed["agreement"] == pytest.approx(float(agree.float().mean()))
    for index, loss in enumerate(each):
        assert objective.observed[f"blocks.blocks.{index}"] == pytest.approx(
            float(loss.detach()), rel=1e-5
        )


def test_no_agreement_is_no_loss_and_no_gradient() -> None:
    teacher = network(0)
    student = network(0)
    with torch.no_grad():
        student.head.weight.neg_()
        student.head.bias.copy_(-teacher.head.bias)
        student.stem.bias.add_(0.01)  # or there would be no features to learn either
    objective = Objective(
        Losses(logits=0, blocks=1, agreement=True), student, teacher, IO, observe=True
    )
    terms = objective(X, TARGET)
    assert (student(X["x"]).argmax(1) != teacher(X["x"]).argmax(1)).all()
    assert terms["blocks"].item() == 0.0
    terms["blocks"].backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert grads
    assert all(bool((grad == 0).all()) for grad in grads)
    assert objective.observed == {"agreement": 0.0}  # a loss of 0 would be a lie


def test_blocks_count_as_they_are_told() -> None:
    student, teacher = network(1, 2), network(0, 2)
    weights = {"blocks.0": 0.5, "blocks.1": 1.5}
    objective = Objective(Losses(), student, teacher, IO, weights=weights, observe=True)
    term = objective(X, TARGET)["blocks"]
    one, two = (objective.observed[f"blocks.blocks.{i}"] for i in (0, 1))
    assert float(term.detach()) == pytest.approx((0.5 * one + 1.5 * two) / 2, rel=1e-5)


def test_labels_may_be_the_teachers() -> None:
    student, teacher = network(1), network(0)
    settings = Losses(labels=0.5, labels_from="teacher")
    terms = Objective(settings, student, teacher, IO)(X, TARGET * 0)
    wanted = losses.labels(student(X["x"]), teacher(X["x"]).argmax(1))
    assert torch.allclose(terms["labels"], 0.5 * wanted)


def test_the_dense_teacher_labels_where_another_network_teaches() -> None:
    student, teacher, dense = network(1), network(0), network(2)
    settings = Losses(labels=0.5, labels_from="teacher")
    terms = Objective(settings, student, teacher, IO, labeller=dense)(X, TARGET)
    answers = student(X["x"])
    assert torch.allclose(terms["labels"], 0.5 * losses.labels(answers, dense(X["x"]).argmax(1)))
    assert torch.allclose(terms["logits"], losses.logits(answers, teacher(X["x"]), 2.0))


def test_units_are_the_weights() -> None:
    settings = Losses(logits=10.0, blocks=5.0, labels=1.0, outputs={"logits": 0.5})
    objective = Objective(settings, network(1), network(0), IO)
    assert objective.units == {"logits": 5.0, "blocks": 5.0, "labels": 1.0}


def values_only() -> Ports:
    outputs = [Port(name="logits", dtype="float32", shape=["batch", 4], role="values")]
    return IO.model_copy(update={"outputs": outputs})


@pytest.mark.parametrize(
    "settings",
    [
        Losses(agreement=True),
        Losses(labels=1.0, labels_from="teacher"),
    ],
)
def test_outputs_that_name_no_class(settings: Losses) -> None:
    words = "reads a class from output 'logits', whose role in io is 'values', expected 'logits'"
    with pytest.raises(ConfigError, match=words):
        Objective(settings, network(1), network(0), values_only())


class Tokens(nn.Module):
    """An answer for every token, from blocks that put tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 8)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_an_answer_for_every_token_has_no_agreement() -> None:
    objective = Objective(Losses(agreement=True), Tokens(), Tokens(), IO)
    with pytest.raises(ConfigError, match=r"output logits is \[12, 4, 4\], expected \[batch, cla"):
        objective(X, TARGET)


def test_the_teachers_labels_of_every_token_are_learned() -> None:
    student, teacher = Tokens(), Tokens()
    settings = Losses(logits=0, blocks=0, labels=1.0, labels_from="teacher")
    terms = Objective(settings, student, teacher, IO)(X, TARGET)
    ours, theirs = student(X["x"]).reshape(-1, 4), teacher(X["x"]).reshape(-1, 4)
    assert torch.allclose(terms["labels"], losses.labels(ours, theirs.argmax(1)))


class TokensFirst(Tokens):
    """Blocks whose first axis is not the batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 8).transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(0))


def test_blocks_without_a_row_a_sample_have_no_agreement() -> None:
    objective = Objective(Losses(agreement=True), TokensFirst(), TokensFirst(), IO)
    with pytest.raises(ConfigError, match=r"a block gives \[4, 12, 8\] for 12 samples, expected"):
        objective(X, TARGET)
