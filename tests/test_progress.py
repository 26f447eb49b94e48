"""Progress goes to stderr, lines where there is no terminal, and says what came out."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from edgekd import progress


def test_stage_announces_its_outcome_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage("distill") as outcome:
        outcome("accuracy 0.97")
        outcome("in 3 epochs")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"distill +0\.\d s  accuracy 0\.97 in 3 epochs\n", captured.err)


def test_a_stage_that_fails_announces_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress.stage("distill"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rich", ["present", "absent"])
def test_bar_prints_lines_every_ten_seconds_without_a_terminal(
    rich: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("edgekd.progress.time.monotonic", lambda: now[0])
    if rich == "absent":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    with progress.bar("training", 40) as show:
        for done, moment in ((1, 103.0), (2, 110.0), (3, 119.9), (4, 120.0)):
            now[0] = moment
            show(done, f"loss {done}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "training: 2/40 loss 2\ntraining: 4/40 loss 4\n"


def test_bar_draws_on_a_terminal_and_cleans_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress.bar("training", 40) as show:
        show(7, "loss 0.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training" in captured.err
    assert "7/40" in captured.err
    erased = "\x1b[2K"
    assert captured.err.rstrip("\n").endswith(erased)


# Counts threads after giving one that was told to end a moment to do so.
NESTED = """
import json, sys, threading, time
from edgekd import progress

def alone():
    end = time.monotonic() + 2
    while threading.active_count() > 1 and time.monotonic() < end:
        time.sleep(0.01)
    return threading.active_count() == 1

counted = {{}}
with progress.stage("the-outer"):
    time.sleep(0.3)
    with progress.{inner} as show:
        for step in range(3):
            if show.__name__ == "show":
                show(step + 1, "")
                counted.setdefault("alone", alone())
            progress.say("a remark")
            time.sleep(0.3)
    counted["after"] = threading.active_count()
    time.sleep(0.3)
print(json.dumps(counted))
"""


def on_a_terminal(code: str) -> tuple[str, dict[str, int]]:
    """All that a program draws on a terminal, and what it prints as its result."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    drawn = b""
    try:
        while more := os.read(ours, 4096):
            drawn += more
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    printed, _ = child.communicate()
    assert child.returncode == 0, drawn.decode()
    return drawn.decode(), json.loads(printed)


@pytest.mark.parametrize("inner", ['bar("the-inner", 3)', 'stage("the-inner")'])
def test_what_is_inside_a_stage_has_the_line_to_itself(inner: str) -> None:
    drawn, counted = on_a_terminal(NESTED.format(inner=inner))
    names = re.findall("the-outer|the-inner", drawn)
    turns = [name for name, before in zip(names, ["", *names], strict=False) if name != before]
    assert turns == ["the-outer", "the-inner", "the-outer"]
    assert drawn.count("the-outer") > 4, "the spinner turns again after what was inside it"
    assert drawn.count("a remark") == 3
    shown = [re.split("\r|\n", line) for line in drawn.split("\x1b[2K")]
    assert not [part for parts in shown for part in parts if "outer" in part and "inner" in part]
    assert counted["after"] == 2


def test_no_thread_draws_while_a_bar_is_shown() -> None:
    _, counted = on_a_terminal(NESTED.format(inner='bar("the-inner", 3)'))
    assert counted == {"alone": True, "after": 2}
