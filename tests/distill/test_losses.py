"""Loss terms against their equations, pairing by depth, and taps that cannot go stale."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import models
from torch import Tensor, nn

from edgekd.distill import losses
from edgekd.errors import ConfigError


class TestLogits:
    def test_by_hand(self) -> None:
        # Teacher (0.5, 0.5), student (0.75, 0.25) at T = 1: 0.5 ln(2/3) + 0.5 ln 2 = ln(4/3) / 2.
        student = torch.tensor([[math.log(3.0), 0.0]])
        teacher = torch.tensor([[0.0, 0.0]])
        assert float(losses.logits(student, teacher, 1.0)) == pytest.approx(math.log(4 / 3) / 2)
        # At T = 2 the student's odds are sqrt(3), and the term is four times the divergence.
        p = math.sqrt(3) / (1 + math.sqrt(3))
        divergence = -0.5 * math.log(2 * p) - 0.5 * math.log(2 * (1 - p))
        assert float(losses.logits(student, teacher, 2.0)) == pytest.approx(4 * divergence)

    def test_zero_for_equal_answers_and_any_offset(self) -> None:
        answers = torch.randn(5, 7)
        assert float(losses.logits(answers + 3, answers, 2.0)) == pytest.approx(0, abs=1e-6)

    def test_the_mean_is_over_all_but_the_classes(self) -> None:
        student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
        rows = [
            losses.logits(student[i, j][None], teacher[i, j][None], 2.0)
            for i in range(2)
            for j in range(3)
        ]
        found = losses.logits(student, teacher, 2.0)
        assert torch.allclose(found, torch.stack(rows).mean())

    def test_temperature_keeps_the_gradients_size(self) -> None:
        torch.manual_seed(0)
        teacher, start = torch.randn(8, 10) * 0.1, torch.randn(8, 10) * 0.1
        norms = []
        for temperature in (2.0, 20.0):
            student = start.clone().requires_grad_(True)
            losses.logits(student, teacher, temperature).backward()
            assert student.grad is not None
            norms.append(float(student.grad.norm()))
        assert norms[0] == pytest.approx(norms[1], rel=0.05)


class TestBlocks:
    def test_by_hand(self) -> None:
        # MSE 1 over variance 4, and MSE 4 over variance 1: mean of 0.25 and 4.
        teacher = [torch.tensor([2.0, -2.0]), torch.tensor([1.0, -1.0])]
        student = [torch.tensor([3.0, -1.0]), torch.tensor([3.0, 1.0])]
        assert float(losses.blocks(student, teacher)) == pytest.approx((0.25 + 4) / 2)

    def test_the_size_of_a_block_does_not_matter(self) -> None:
        teacher, student = torch.randn(6, 4), torch.randn(6, 4)
        one = losses.blocks([student], [teacher])
        assert torch.allclose(losses.blocks([student * 100], [teacher * 100]), one)

    def test_a_constant_teacher_gives_a_finite_term(self) -> None:
        assert losses.blocks([torch.ones(3)], [torch.ones(3)]).item() == 0.0
        assert losses.blocks([torch.zeros(3)], [torch.ones(3)]).isfinite()


def test_labels_are_cross_entropy() -> None:
    answers = torch.tensor([[math.log(3.0), 0.0]])
    assert float(losses.labels(answers, torch.tensor([0]))) == pytest.approx(math.log(4 / 3))


class TestPaired:
    @pytest.mark.parametrize(
        ("student", "teacher", "pairs"),
        [
            (2, 2, [0, 1]),
            (2, 4, [1, 3]),
            (3, 6, [1, 3, 5]),
            (1, 3, [2]),
            (2, 3, [0, 2]),
            (4, 2, [0, 0, 1, 1]),
            (3, 2, [0, 0, 1]),
        ],
    )
    def test_by_relative_depth_and_the_last_meet(
        self, student: int, teacher: int, pairs: list[int]
    ) -> None:
        mine = [f"s{i}" for i in range(student)]
        found = losses.paired(mine, [f"t{i}" for i in range(teacher)])
        assert found == [(name, f"t{i}") for name, i in zip(mine, pairs, strict=True)]

    @pytest.mark.parametrize(
        ("student", "teacher", "who"), [([], ["a"], "student"), (["a"], [], "teacher")]
    )
    def test_no_blocks(self, student: list[str], teacher: list[str], who: str) -> None:
        with pytest.raises(ConfigError, match=f"the {who} has no repeated blocks .*; set it to 0"):
            losses.paired(student, teacher)


class TestTaps:
    def test_outputs_come_in_the_order_of_the_names_and_keep_their_gradient(self) -> None:
        model = models.mlp().eval()
        x = torch.randn(2, 32)
        taps = losses.Taps(model, ["blocks.1", "blocks.0"])
        model(x)
        second, first = taps.take()
        assert torch.equal(first, model.blocks[0](model.stem(x)))
        assert torch.equal(second, model.blocks[1](first))
        assert first.requires_grad

    def test_what_was_taken_is_not_given_again(self) -> None:
        model = models.mlp()
        taps = losses.Taps(model, ["blocks.0"])
        model(torch.randn(2, 32))
        taps.take()
        with pytest.raises(ConfigError, match=r"block blocks.0 did not run in this step"):
            taps.take()

    def test_a_block_that_is_skipped_at_times(self) -> None:
        model = models.mlp()
        taps = losses.Taps(model, ["blocks.0", "blocks.1"])
        model(torch.randn(2, 32))
        taps.take()
        model.blocks[0](model.stem(torch.randn(2, 32)))  # layer dropout: the second is left out
        with pytest.raises(ConfigError) as caught:
            taps.take()
        assert "block blocks.1 did not run in this step (layer dropout" in str(caught.value)
        assert "set distill.losses.blocks to 0" in str(caught.value)

    def test_the_first_tensor_of_a_tuple_is_taken(self) -> None:
        class Pair(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, None]:
                return x + 1, None

        model = nn.Sequential(Pair())
        taps = losses.Taps(model, ["0"])
        model(torch.zeros(2))
        assert taps.take()[0].tolist() == [1, 1]

    def test_a_block_without_a_tensor(self) -> None:
        class Nothing(nn.Module):
            def forward(self, _: Tensor) -> str:
                return "done"

        model = nn.Sequential(Nothing())
        losses.Taps(model, ["0"])
        with pytest.raises(ConfigError, match="block 0 returned str, expected a tensor first"):
            model(torch.zeros(2))

    def test_removed_taps_leave_nothing_behind(self) -> None:
        model = models.mlp()
        taps = losses.Taps(model, ["blocks.0"])
        taps.remove()
        assert not any(module._forward_hooks for module in model.modules())
