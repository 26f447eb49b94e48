"""Killed at any moment, the same command ends with the artifacts of a run that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from edgekd import artifact

from .conftest import command, edgekd, write_recipe


def _start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*args),
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_ten_random_kills_of_the_whole_chain(tmp_path: Path, seed: int) -> None:
    recipe = write_recipe(tmp_path, fit=400, steps=150)
    args = ("run", recipe, "--target", "cpu", "--target", "a100-sxm4-80gb-trt11.4")
    started = time.monotonic()
    undisturbed = edgekd(*args, "--out", tmp_path / "reference")
    assert undisturbed.returncode == 0, undisturbed.stderr
    duration = time.monotonic() - started
    reference = _identities(tmp_path / "reference")

    draw = random.Random(seed)
    out, kills = tmp_path / "out", 0
    while kills < 10:
        process = _start(*args, "--out", out)
        try:
            process.communicate(timeout=draw.uniform(0.5, duration / 2))
            # It finished: kill the next one in a fresh directory, so that ten kills are ten kills.
            assert process.returncode == 0
            assert _identities(out) == reference
            out = tmp_path / f"out-{kills}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        found = _identities(out)
        assert found.items() <= reference.items()
    last = edgekd(*args, "--out", out)
    assert last.returncode == 0, last.stderr
    assert _identities(out) == reference
    assert not any((out / ".work").iterdir())
