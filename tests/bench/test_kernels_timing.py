"""How the kernels' program times calls, on a clock that only the calls move."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import programs


class Flush:
    """A buffer whose writing takes `us`."""

    def __init__(self, cuda: Any, us: float) -> None:
        self.cuda, self.us = cuda, us

    def zero_(self) -> None:
        self.cuda.spend(self.us)


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    programs.load("bench/kernels/gpu.py")  # which puts its folder where modules are looked for
    module = sys.modules["timing"]
    monkeypatch.setattr(module, "REPETITIONS", 3)
    monkeypatch.setattr(module, "CALLS", 2)
    return module


def test_two_replays_that_are_not_timed_go_directly_before_each_that_is(
    timing: ModuleType, cuda: Any
) -> None:
    found = timing.timed({"a": lambda: cuda.spend(5), "b": lambda: cuda.spend(8)})
    assert found == timing.Timed({"a": 5.0, "b": 8.0}, {"a": 0.0, "b": 0.0}, {})
    turn = [
        *("replay 10", "replay 10", "event", "replay 10", "event"),
        *("replay 16", "replay 16", "event", "replay 16", "event"),
    ]
    assert cuda.log == 3 * turn


def test_the_flush_is_taken_off(timing: ModuleType, cuda: Any) -> None:
    found = timing.timed({"a": lambda: cuda.spend(5)}, Flush(cuda, 40))
    assert found == timing.Timed({"a": 5.0}, {"a": 0.0}, {})


def test_what_the_flush_hides_has_no_time(timing: ModuleType, cuda: Any) -> None:
    """A time of 0 or less would be divided by."""
    calls = {"a": lambda: cuda.spend(5), "b": lambda: cuda.spend(-1), "c": lambda: None}
    found = timing.timed(calls, Flush(cuda, 40))
    assert found.us == {"a": 5.0}
    lost = "not measured: it is lost in the 40.000 us of flushing L2"
    assert found.not_measured == {"b": lost, "c": lost}


def test_what_fails_is_not_measured_and_ends_nothing(timing: ModuleType, cuda: Any) -> None:
    def refuses() -> None:
        raise ValueError("no kernel\nfor this shape")

    found = timing.timed({"a": lambda: cuda.spend(5), "b": refuses})
    assert found.us == {"a": 5.0}
    assert found.not_measured == {"b": "not measured: no kernel for this shape"}


def test_a_replay_that_fails_is_not_measured(
    timing: ModuleType, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = timing._replayed

    def replayed(graph: Any) -> float:
        if graph.cost_us == 16 and "event" in cuda.log:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return float(right(graph))

    monkeypatch.setattr(timing, "_replayed", replayed)
    found = timing.timed({"a": lambda: cuda.spend(5), "b": lambda: cuda.spend(8)})
    assert found.us == {"a": 5.0}
    assert found.not_measured == {"b": "not measured: CUDA error: unspecified launch failure"}


def test_without_the_flushs_own_time_nothing_is_told(timing: ModuleType, cuda: Any) -> None:
    class Broken:
        def zero_(self) -> None:
            raise RuntimeError("out of memory")

    found = timing.timed({"a": lambda: cuda.spend(5)}, Broken())
    assert (found.us, found.not_measured) == ({}, {"a": "not measured: out of memory"})


def test_the_state_of_a_machine_without_nvidia_smi_is_unavailable(
    timing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "nvidia-smi" in timing.state()["unavailable"]


def test_the_raw_rates_take_turns_and_each_ones_best_counts(
    timing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    rising = {0: iter([30e12, 40e12, 10e12]), 1: iter([1e12, 20e12, 16e12, 18e12])}

    def rate(kind: int, to: Any) -> int:
        asked.append(kind)
        to._obj.value = next(rising[kind])
        return 0

    monkeypatch.setattr(timing, "RATES_ROUNDS", 3)
    seconds = iter([0.0, 0.0, timing.WARM_SECONDS])
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    library = SimpleNamespace(edgekd_raw_rate=rate)
    found = timing.raw_rates(SimpleNamespace(library=library))
    assert asked == [1, 0, 1, 0, 1, 0, 1]
    state = found.pop("state")
    assert found == {"sparse": 40.0, "dense": 20.0, "r": 2.0}
    assert set(state) in ({"unavailable"}, set(timing.STATE))


def test_a_rate_that_fails_ends_it(timing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(edgekd_raw_rate=lambda kind, _: 0 if kind else 7)
    monkeypatch.setattr(timing, "WARM_SECONDS", 0)
    sentence = "the raw rate of the sparse instruction could not be measured: status 7"
    with pytest.raises(SystemExit, match=sentence):
        timing.raw_rates(SimpleNamespace(library=library))


def test_a_copy_reads_and_writes(timing: ModuleType, cuda: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(timing.cases, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "COPY_BYTES", 1000)
    took = iter([9, 8, 2, 8, 9])
    right = torch.Tensor.copy_

    def copy(to: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        cuda.spend(next(took))
        return right(to, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    assert timing.bandwidth() == pytest.approx(2 * 1000 / 2 * 1e-3)  # bytes a us are MB a s
