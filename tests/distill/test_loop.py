"""The loop: schedule, batch order, and a resumed run that ends with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekd.data import ArraySplit
from edgekd.distill import loop
from edgekd.errors import ConfigError, ContractError
from edgekd.recipe import Training
from edgekd.weights import state

STEPS = 7


def network() -> nn.Module:
    """Everything with a memory: dropout (random numbers), batch norm (buffers), weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def split(rows: int = 20, dtype: type = np.int64) -> ArraySplit:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 4)).astype(np.float32)
    return ArraySplit({"x": x}, rng.integers(0, 3, rows).astype(dtype))


def run(keep: Path, model: nn.Module | None = None, **changes: Any) -> loop.Run:
    keep.mkdir(parents=True, exist_ok=True)
    model = model or network()

    def loss(inputs: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        answers = model(inputs["x"])
        return {
            "labels": nn.functional.cross_entropy(answers, target),
            "size": 1e-3 * answers.square().mean(),
        }

    settings = Training(steps=STEPS, batch_size=8, learning_rate=1e-2, warmup=0.3)
    return loop.Run(
        **{
            "label": "fit",
            "model": model,
            "loss": loss,
            "split": split(),
            "settings": settings,
            "seed": 3,
            "keep": keep,
            **changes,
        }
    )


def after(run: loop.Run, calls: int, error: type[BaseException]) -> loop.Run:
    """The same run, with an error in the loss of a later step."""
    inner, count = run.loss, iter(range(10**6))

    def loss(inputs: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        if next(count) == calls:
            raise error("stop")
        return inner(inputs, target)

    run.loss = loss
    return run


def diverging(run: loop.Run) -> loop.Run:
    """The same run, with a last loss that is finite and whose gradient is not."""
    inner, count = run.loss, iter(range(100))

    def loss(inputs: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        terms = inner(inputs, target)
        if next(count) == STEPS - 1:
            terms["root"] = (run.model.get_parameter("3.bias") * 0).abs().sqrt().sum()
        return terms

    run.loss = loss
    return run


def file(run: loop.Run) -> dict[str, Tensor]:
    return load_file(run.keep / loop.CHECKPOINT)


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return list(one) == list(two) and all(torch.equal(one[n], two[n]) for n in one)


class TestResume:
    @pytest.mark.parametrize("stop", [1, 4, STEPS - 1])
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_interrupted_run_ends_with_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, error: type[BaseException]
    ) -> None:
        whole = run(tmp_path / "whole")
        curve = loop.train(whole)
        assert [row["step"] for row in curve] == list(range(STEPS))

        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        cut = after(run(tmp_path / "cut"), stop, error)
        with pytest.raises(error, match="stop"):
            loop.train(cut)
        torch.manual_seed(99)  # nothing of the first process is left
        torch.randn(5)
        again = run(tmp_path / "cut", model=network())
        torch.manual_seed(77)
        assert loop.train(again) == curve
        assert equal(state(again.model), state(whole.model))
        assert equal(file(again), file(whole))
        assert (again.keep / loop.CHECKPOINT).read_bytes() == (
            whole.keep / loop.CHECKPOINT
        ).read_bytes()

    def test_a_run_that_lost_no_time_to_checkpoints_is_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        curve = loop.train(run(tmp_path / "rarely"))
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        assert loop.train(run(tmp_path / "often")) == curve

    def test_a_finished_run_is_not_trained_further(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = run(tmp_path)
        curve = loop.train(first)
        second = run(tmp_path)
        second.loss = lambda *_: pytest.fail("a step was taken")
        assert loop.train(second) == curve
        assert equal(state(first.model), state(second.model))
        assert "fit: resumed at step 7 of 7" in capsys.readouterr().err

    def test_another_seed_gives_another_run(self, tmp_path: Path) -> None:
        one, two = run(tmp_path / "1"), run(tmp_path / "2", seed=4)
        assert loop.train(one) != loop.train(two)


class TestForeignCheckpoints:
    """A checkpoint that is not this run's is told, and the run starts from its beginning."""

    def starts_anew(
        self, tmp_path: Path, write: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
    ) -> str:
        (tmp_path / "clean").mkdir()
        (tmp_path / "foreign").mkdir()
        path = tmp_path / "foreign" / loop.CHECKPOINT
        clean = run(tmp_path / "clean")
        curve = loop.train(clean)
        write(path)
        foreign = run(tmp_path / "foreign")
        capsys.readouterr()
        assert loop.train(foreign) == curve
        assert equal(state(foreign.model), state(clean.model))
        told = capsys.readouterr().err
        assert f"fit: {path} is not a checkpoint of this run (" in told
        assert "starting anew" in told
        return told

    def saved(self, tmp_path: Path) -> dict[str, Tensor]:
        return {n: t.clone() for n, t in file(run(tmp_path / "clean")).items()}

    def test_garbage(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = self.starts_anew(tmp_path, lambda path: path.write_bytes(b"garbage"), capsys)
        assert "header" in told.lower()

    def test_an_empty_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.starts_anew(tmp_path, lambda path: path.write_bytes(b""), capsys)

    def test_a_truncated_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def write(path: Path) -> None:
            whole = (tmp_path / "clean" / loop.CHECKPOINT).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])

        self.starts_anew(tmp_path, write, capsys)

    def test_safetensors_of_another_kind(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = self.starts_anew(
            tmp_path, lambda path: save_file({"fc.weight": torch.zeros(2)}, path), capsys
        )
        assert "'about'" in told

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t.pop("model.0.weight"), "1 tensors do not fit, first model.0.weight"),
            (lambda t: t.update({"model.9.weight": torch.zeros(1)}), "first model.9.weight"),
            (lambda t: t.update({"model.3.bias": torch.zeros(4)}), "first model.3.bias"),
            (lambda t: t.update({"optimizer.0.exp_avg": torch.zeros(1)}), "optimizer.0.exp_avg"),
            (lambda t: t.update({"optimizer.x.exp_avg": torch.zeros(1)}), "invalid literal"),
            (lambda t: t.update({"optimizer.99.exp_avg": torch.zeros(1)}), "out of range"),
            (lambda t: t.update({"random.cpu": torch.zeros(3, dtype=torch.uint8)}), "random.cpu"),
            (lambda t: t.pop("random.cpu"), "first random.cpu"),
            (lambda t: t.update({"about": torch.tensor([123], dtype=torch.uint8)}), "Expecting"),
        ],
    )
    def test_one_of_another_network_or_version(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        change: Callable[[dict[str, Tensor]], Any],
        words: str,
    ) -> None:
        def write(path: Path) -> None:
            tensors = self.saved(tmp_path)
            change(tensors)
            save_file(tensors, path)

        assert words in self.starts_anew(tmp_path, write, capsys)

    def test_a_run_of_other_length_goes_on_only_as_far_as_it_should(self, tmp_path: Path) -> None:
        loop.train(run(tmp_path))
        about = json.loads(bytes(file(run(tmp_path))["about"].tolist()))
        assert about["step"] == STEPS == len(about["curve"])


class TestCheck:
    def test_it_runs_at_every_checkpoint_and_at_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        loop.train(run(tmp_path / "a", check=lambda: calls.append(1)))
        assert len(calls) == 1
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        loop.train(run(tmp_path / "b", check=lambda: calls.append(1)))
        assert len(calls) == 1 + STEPS + 1

    def test_a_broken_promise_leaves_no_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

        def broken() -> None:
            raise ContractError("the mask was lost")

        with pytest.raises(ContractError, match="the mask was lost"):
            loop.train(run(tmp_path, check=broken))
        assert not (tmp_path / loop.CHECKPOINT).exists()


class TestFinite:
    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_a_loss_names_its_term_the_step_and_the_learning_rate(
        self, tmp_path: Path, value: str
    ) -> None:
        training = run(tmp_path)
        inner, count = training.loss, iter(range(100))

        def loss(inputs: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
            terms = inner(inputs, target)
            return {**terms, "size": terms["size"] + float(value)} if next(count) == 3 else terms

        training.loss = loss
        with pytest.raises(ConfigError) as caught:
            loop.train(training)
        rate = loop.learning_rate(training.settings, 3)
        assert str(caught.value) == (
            f"fit: loss term 'size' is {value} at step 3 of 7 (learning rate {rate:.2g}): "
            "lower the learning_rate of 0.01"
        )

    def test_weights_that_diverge_in_the_last_step_are_not_kept(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            loop.train(diverging(run(tmp_path)))
        assert str(caught.value) == (
            "fit: 3.bias is NaN or infinite after 7 of 7 steps: lower the learning_rate of 0.01"
        )
        assert not (tmp_path / loop.CHECKPOINT).exists()

    def test_weights_that_diverge_leave_and_name_the_last_good_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        training = diverging(run(tmp_path))
        with pytest.raises(ConfigError) as caught:
            loop.train(training)
        assert str(caught.value) == (
            "fit: 3.bias is NaN or infinite after 7 of 7 steps: lower the learning_rate of 0.01; "
            f"the last good checkpoint is {tmp_path / loop.CHECKPOINT}"
        )
        kept = file(training)
        assert json.loads(bytes(kept["about"].tolist()))["step"] == STEPS - 1
        assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


class TestSchedule:
    def test_warm_up_is_linear_and_decay_a_half_cosine(self) -> None:
        settings = Training(steps=100, learning_rate=1.0, warmup=0.1)
        rates = [loop.learning_rate(settings, step) for step in range(100)]
        assert rates[0] == pytest.approx(1 / 11)
        assert rates[9] == pytest.approx(10 / 11)
        assert rates[10] == 1.0
        assert rates[55] == pytest.approx(0.5)
        assert 0 < rates[99] < 1e-3
        assert max(rates) == 1.0

    @pytest.mark.parametrize("warmup", [0.0, 1.0])
    def test_extremes_stay_positive(self, warmup: float) -> None:
        settings = Training(steps=5, learning_rate=1.0, warmup=warmup)
        assert all(0 < loop.learning_rate(settings, step) <= 1 for step in range(5))

    def test_no_steps_change_nothing(self, tmp_path: Path) -> None:
        model = network()
        training = run(tmp_path, model=model, settings=Training(steps=0))
        assert loop.train(training) == []
        assert equal(state(model), state(network()))
        assert not model.training


class TestBatchRows:
    def test_an_epoch_shows_every_row_at_most_once_and_the_next_is_ordered_anew(
        self, tmp_path: Path
    ) -> None:
        training = run(tmp_path)  # 20 rows in batches of 8: two batches an epoch
        epochs = [
            np.concatenate([loop.batch_rows(training, 2 * epoch + b) for b in (0, 1)])
            for epoch in range(3)
        ]
        for rows in epochs:
            assert rows.dtype == np.int64
            assert len(rows) == len(set(rows.tolist())) == 16
        assert not np.array_equal(epochs[0], epochs[1])

    def test_it_depends_on_seed_and_step_alone(self, tmp_path: Path) -> None:
        one, two = run(tmp_path), run(tmp_path)
        loop.batch_rows(one, 0)
        assert np.array_equal(loop.batch_rows(one, 5), loop.batch_rows(two, 5))
        other = run(tmp_path, seed=4)
        assert not np.array_equal(loop.batch_rows(one, 5), loop.batch_rows(other, 5))

    def test_a_split_smaller_than_a_batch_is_its_own_batch(self, tmp_path: Path) -> None:
        training = run(tmp_path, split=split(rows=5))
        assert sorted(loop.batch_rows(training, 3).tolist()) == [0, 1, 2, 3, 4]


def test_labels_of_any_whole_number_type_are_taken(tmp_path: Path) -> None:
    wanted = loop.train(run(tmp_path / "int64"))
    assert loop.train(run(tmp_path / "uint8", split=split(dtype=np.uint8))) == wanted


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    loop.train(run(tmp_path, model=model))
    assert torch.equal(model[0].weight, before)


def test_a_long_curve_does_not_outgrow_the_checkpoints_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A safetensors header holds 100 MB; the curve of a million steps is larger."""
    training = run(tmp_path)
    optimizer = torch.optim.AdamW(training.model.parameters())
    curve = [{"step": float(i), "lr": 1e-3, "logits": 0.123456789} for i in range(2000)]
    loop._save(training, loop._packed(training, optimizer, 2000, curve), 2000)
    raw = (tmp_path / loop.CHECKPOINT).read_bytes()
    assert int.from_bytes(raw[:8], "little") < 5000
    monkeypatch.setattr(loop.progress, "say", lambda _: None)
    assert loop._resume(training, optimizer) == (2000, curve)
