"""Where training runs, as the question records it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny.recipes import tiny

from edgekd.distill import device, teacher


def test_without_a_gpu_it_is_the_cpu_and_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.resolved(tiny(tmp_path)) == {"device": "cpu", "threads": 1, "deterministic": True}


def test_with_a_gpu_it_says_that_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert device.resolved(tiny(tmp_path)) == {
        "device": "cuda", "threads": 1, "deterministic": False, "gpu": "NVIDIA A100-SXM4-80GB",
    }  # fmt: skip


def test_another_gpu_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    for gpu in ("NVIDIA A100-SXM4-80GB", "NVIDIA H200", "NVIDIA H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu=gpu: gpu)
        asked.append(teacher.question(tiny(tmp_path)).key)
    assert asked[0] != asked[1] == asked[2]


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


def test_prepare_turns_tf32_off_whoever_turned_it_on(tmp_path: Path) -> None:
    # In a process of its own: the flags are torch's, not ours to change for other tests.
    code = """
import torch
from pathlib import Path
from tiny.recipes import tiny
from edgekd.distill import device
recipe, b = tiny(Path(".")), torch.backends
for ask in (
    "pass",
    "b.cudnn.allow_tf32 = b.cuda.matmul.allow_tf32 = True",
    "b.fp32_precision = 'tf32'",
    "b.cudnn.fp32_precision = 'tf32'",
    "b.cudnn.conv.fp32_precision = 'tf32'",
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('medium')",
):
    exec(ask)
    asked = b.cudnn.conv.fp32_precision, b.cuda.matmul.fp32_precision
    assert "tf32" in asked, (ask, asked)
    device.prepare(recipe)
    print(b.cudnn.allow_tf32, b.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
          b.cudnn.conv.fp32_precision, b.cudnn.rnn.fp32_precision, b.cuda.matmul.fp32_precision)
    for each in (b, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.cuda.matmul):
        each.fp32_precision = "none"
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False False highest ieee ieee ieee"] * 7
