"""Which blocks, which samples, what weight: the feature term against slow and plain references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekd.distill import features
from edgekd.errors import ConfigError

PAIRS = [(f"s{i}", f"t{i}") for i in range(5)]


class TestCritical:
    @pytest.mark.parametrize(
        ("share", "kept"), [(1.0, 5), (0.5, 3), (0.4, 2), (0.41, 3), (0.2, 1), (0.01, 1)]
    )
    def test_the_last_ones_rounded_up(self, share: float, kept: int) -> None:
        assert features.critical(PAIRS, share) == PAIRS[-kept:]

    def test_what_floats_cannot_say_is_not_rounded_up(self) -> None:
        assert 0.28 * 25 > 7
        assert len(features.critical([("s", "t")] * 25, 0.28)) == 7


def slow(student: Tensor, teacher: Tensor, agree: list[bool]) -> float:
    """The gated term, sample by sample."""
    mean = float(teacher.mean())
    spread = sum((float(v) - mean) ** 2 for v in teacher.flatten()) / teacher.numel()
    errors = []
    for row, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if agree[row]:
            pairs = zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True)
            errors.append(sum((a - b) ** 2 for a, b in pairs) / ours.numel())
    return sum(errors) / len(errors) / spread if errors else 0.0


class TestGated:
    @pytest.mark.parametrize("agree", [[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    @pytest.mark.parametrize("shape", [(4, 6), (4, 3, 5), (4, 2, 3, 3)])
    def test_against_a_slow_reference(self, agree: list[int], shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        student = torch.randn(shape, generator=generator)
        teacher = torch.randn(shape, generator=generator) * 3 + 1
        gate = torch.tensor(agree, dtype=torch.bool)
        found = float(features.gated(student, teacher, gate))
        assert found == pytest.approx(slow(student, teacher, gate.tolist()), rel=1e-5)

    def test_no_gradient_comes_from_a_sample_that_disagrees(self) -> None:
        student = torch.randn(3, 4, requires_grad=True)
        features.gated(student, torch.randn(3, 4), torch.tensor([True, False, True])).backward()
        assert student.grad is not None
        assert student.grad[1].tolist() == [0.0] * 4
        assert (student.grad[[0, 2]] != 0).all()

    def test_nothing_agrees(self) -> None:
        student = torch.randn(3, 4, requires_grad=True)
        term = features.gated(student, torch.randn(3, 4), torch.zeros(3, dtype=torch.bool))
        term.backward()
        assert term.item() == 0.0
        assert student.grad is not None
        assert student.grad.eq(0).all()


def rows(losses: list[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"step": i, "lr": 1.0, "blocks.a": a, "blocks.b": b} for i, (a, b) in enumerate(losses)]


class TestWeights:
    def test_in_both_directions_by_hand(self) -> None:
        # Losses 0.3 and 0.1: proportional to them with mean 1, and to 10/3 and 10.
        curve = rows([(0.2, 0.1), (0.4, 0.1)])
        found = features.weights(curve, ["a", "b"], "proportional")
        assert found == {"a": pytest.approx(1.5), "b": pytest.approx(0.5)}
        found = features.weights(curve, ["a", "b"], "inverse")
        assert found == {"a": pytest.approx(0.5), "b": pytest.approx(1.5)}

    def test_the_last_steps_alone_count(self) -> None:
        early, late = [(9.0, 1.0)] * 30, [(1.0, 3.0)] * features.LAST_STEPS
        found = features.weights(rows(early + late), ["a", "b"], "proportional")
        assert found == {"a": pytest.approx(0.5), "b": pytest.approx(1.5)}

    def test_steps_without_agreement_do_not_count(self) -> None:
        curve = [*rows([(0.2, 0.6)]), {"step": 1, "lr": 1.0, "agreement": 0.0}]
        found = features.weights(curve, ["a", "b"], "proportional")
        assert found == {"a": pytest.approx(0.5), "b": pytest.approx(1.5)}

    @pytest.mark.parametrize("direction", ["inverse", "proportional"])
    def test_blocks_without_any_loss_are_equal(self, direction: str) -> None:
        assert features.weights(rows([(0, 0)]), ["a", "b"], direction) == {"a": 1.0, "b": 1.0}

    def test_one_block_without_loss_stays_finite(self) -> None:
        found = features.weights(rows([(0.0, 0.5)]), ["a", "b"], "inverse")
        assert found["a"] == pytest.approx(2.0)
        assert found["b"] == pytest.approx(2e-6, rel=1e-3)

    def test_no_sample_ever_agreed(self) -> None:
        curve = [{"step": i, "lr": 1.0, "agreement": 0.0} for i in range(7)]
        with pytest.raises(ConfigError) as caught:
            features.weights(curve, ["a"], "inverse")
        assert "block a was compared in none of the last 7 steps of the sparse stage" in str(
            caught.value
        )
        assert "expected at least 1" in str(caught.value)


class TestAligned:
    def test_equal_shapes_are_left_alone(self) -> None:
        one, two = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
        assert features.aligned(one, two) == (one, two)

    def test_a_distillation_token_that_one_has_is_dropped(self) -> None:
        patches = torch.randn(2, 4, 3)
        ours = torch.cat([torch.full((2, 1, 3), 1.0), patches], 1)
        theirs = torch.cat([torch.full((2, 1, 3), 1.0), torch.full((2, 1, 3), 9.0), patches], 1)
        student, teacher = features.aligned(ours, theirs)
        assert torch.equal(student, ours)
        assert torch.equal(teacher, ours)

    def test_a_finer_grid_is_averaged_down(self) -> None:
        # 1 + 4 x 4 patches of the teacher, 2 x 2 of the student, which has no class token.
        grid = torch.arange(16.0).reshape(4, 4)
        theirs = torch.cat([torch.full((1, 1, 1), 99.0), grid.reshape(1, 16, 1)], 1)
        student, teacher = features.aligned(torch.zeros(1, 4, 1), theirs)
        assert student.shape == teacher.shape == (1, 4, 1)
        assert teacher.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]

    def test_the_gradient_reaches_a_finer_student(self) -> None:
        ours = torch.randn(2, 17, 3, requires_grad=True)
        student, teacher = features.aligned(ours, torch.randn(2, 5, 3))
        assert student.shape == teacher.shape == (2, 5, 3)
        student.sum().backward()
        assert ours.grad is not None
        assert torch.allclose(ours.grad[:, 1:], torch.full((2, 16, 3), 0.25))

    @pytest.mark.parametrize(
        ("ours", "theirs", "words"),
        [
            ((2, 5, 3), (2, 5, 4), r"gives \[2, 5, 3\], its teacher's \[2, 5, 4\]; give them one"),
            ((2, 3, 8, 8), (2, 3, 4, 4), r"\[2, 3, 8, 8\], its teacher's \[2, 3, 4, 4\]"),
            ((2, 7, 3), (2, 5, 3), "7 tokens are no square of patches and up to 2 special tokens"),
            ((2, 5, 3), (2, 12, 3), "12 tokens are no square of patches"),
        ],
    )
    def test_what_cannot_be_compared(
        self, ours: tuple[int, ...], theirs: tuple[int, ...], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            features.aligned(torch.zeros(ours), torch.zeros(theirs))
