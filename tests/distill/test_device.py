"""Where training runs, as the question records it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny.recipes import tiny

from edgekd.distill import device


def test_without_a_gpu_it_is_the_cpu_and_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.resolved(tiny(tmp_path)) == {"device": "cpu", "threads": 1, "deterministic": True}


def test_with_a_gpu_it_says_that_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = device.resolved(tiny(tmp_path))
    assert (found["device"], found["deterministic"]) == ("cuda", False)


def test_threads_are_the_recipes_or_every_core(tmp_path: Path) -> None:
    assert device.threads(tiny(tmp_path, threads=3)) == 3
    assert device.threads(tiny(tmp_path, threads=None)) == len(os.sched_getaffinity(0))


def test_prepare_seeds_and_fixes_what_can_be_fixed(tmp_path: Path) -> None:
    device.prepare(tiny(tmp_path, seed=5))
    one = torch.randn(4)
    device.prepare(tiny(tmp_path, seed=5))
    assert torch.equal(torch.randn(4), one)
    device.prepare(tiny(tmp_path, seed=6))
    assert not torch.equal(torch.randn(4), one)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
