"""Progress goes to stderr, lines where there is no terminal, and says what came out."""

from __future__ import annotations

import re
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
