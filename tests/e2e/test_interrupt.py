"""Killed at any moment, the same command ends with the artifacts of a run that was not."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekd import artifact
from edgekd.distill import loop

from .conftest import command, edgekd, write_recipe


def _start(*args: object, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*args, before=before),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _identities(out: Path) -> dict[str, str]:
    """Ids of everything visible; `artifact.load` fails on anything half-written."""
    visible = [path for path in sorted(out.glob("*")) if path.is_dir() and path.name != ".work"]
    return {path.name: artifact.load(path).id for path in visible}


def test_ctrl_c_is_one_sentence_and_exit_130(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, fit=1_000_000)
    process = _start("distill", recipe, "--out", tmp_path / "out")
    work = tmp_path / "out" / ".work"
    deadline = time.monotonic() + 120
    while not list(work.glob("teacher-*/scratch")):
        assert time.monotonic() < deadline, "the stage never began"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "stopped; the same command goes on from here" in stderr
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").glob("*-*"))


FIT, STEPS = 600, 300
# Checkpoints at their real pace, a minute, would never be met in a run of a minute.
OFTEN = "from edgekd.distill import loop; loop.CHECKPOINT_SECONDS = 0.2"


def _killed(args: Sequence[object], out: Path, where: str | float) -> tuple[bool, str]:
    """Run the chain and kill it: where a stage has a checkpoint, or after some seconds.

    Returns:
        Whether it was killed before it finished, and what it said.
    """
    process = _start(*args, "--out", out, before=OFTEN)
    deadline = time.monotonic() + (where if isinstance(where, float) else 300)
    while process.poll() is None and time.monotonic() < deadline:
        if isinstance(where, str) and list((out / ".work").glob(f"{where}-*/{loop.CHECKPOINT}")):
            break
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), stderr
    return process.returncode != 0, stderr


def _resumed(said: str, label: str, steps: int) -> list[int]:
    """Steps at which a training run went on."""
    return [int(n) for n in re.findall(rf"{label}: resumed at step (\d+) of {steps}\n", said)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_ten_kills_of_the_whole_chain(tmp_path: Path, seed: int) -> None:
    recipe = write_recipe(tmp_path, fit=FIT, steps=STEPS)
    args = ("run", recipe, "--target", "cpu", "--target", "a100-sxm4-80gb-trt11.4")
    started = time.monotonic()
    undisturbed = edgekd(*args, "--out", tmp_path / "reference")
    assert undisturbed.returncode == 0, undisturbed.stderr
    duration = time.monotonic() - started
    reference = _identities(tmp_path / "reference")

    # A process goes on where the one before was killed, so times of up to half the duration are
    # spread over the whole chain, and few processes live to its end.
    draw = random.Random(seed)
    planned = ["teacher", "student"]
    out, said, kills, fresh = tmp_path / "out", "", 0, 0
    while kills < 10:
        where = planned[kills] if kills < len(planned) else draw.uniform(0.5, duration / 2)
        dead, stderr = _killed(args, out, where)
        said += stderr
        found = _identities(out)
        assert found.items() <= reference.items()
        kills += dead
        if not dead:  # nothing was left to kill: again, where nothing is made yet
            assert found == reference
            fresh += 1
            out = tmp_path / f"out-{fresh}"
    last = edgekd(*args, "--out", out)
    assert last.returncode == 0, last.stderr
    said += last.stderr
    assert _identities(out) == reference
    assert not any((out / ".work").iterdir())
    for label, steps in (("fit teacher", FIT), ("distill (?:dense|sparse)", STEPS)):
        resumed = _resumed(said, label, steps)
        assert any(0 < step < steps for step in resumed), (label, resumed)
    assert "starting anew" not in said
