"""What people see on stderr while a stage works: one line a step, a bar on what takes long.

stdout belongs to results (a path, or JSON), so everything here goes to stderr. rich draws it where
it is installed; a device may have neither rich nor a terminal, then plain lines do.

One thing is drawn at a time, on one line: a bar inside a stage, or a stage inside another, takes
the line of the outer spinner, which goes on when the inner one has ended. Two that draw would erase
each other, and a spinner's thread beside a measurement would be a part of what is measured.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# Spinners of the stages at work, the outermost first; only the last may be turning.
_spinners: list[Any] = []


def say(message: str) -> None:
    """Print one line for the person who waits."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stage(name: str) -> Iterator[Callable[[str], None]]:
    """Show that a stage is at work; when it ends, its name, how long it took and what came out.

    Args:
        name: What is done, for example ``export sparse``.

    Yields:
        A function that takes the words to show beside the name.
    """
    outcome: list[str] = []
    started = time.perf_counter()
    with _spinner(name):
        yield outcome.append
    say(f"{name:<40} {time.perf_counter() - started:7.1f} s  {' '.join(outcome)}")


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar that cleans up after itself.

    Args:
        label: What is going on.
        total: Number of steps.

    Yields:
        A function of (steps done so far, short note such as the loss).
    """
    console = _terminal()
    if console is None:
        yield _plain(label, total)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    # No refresh thread: it would compete with what is measured or trained.
    drawn = Progress(*columns, console=console, transient=True, auto_refresh=False)
    with _line_of_its_own(), drawn as progress:
        task = progress.add_task(label, total=total, note="")
        shown = 0.0

        def show(done: int, note: str) -> None:
            nonlocal shown
            progress.update(task, completed=done, note=note)
            if time.monotonic() - shown >= 0.1 or done == total:
                shown = time.monotonic()
                progress.refresh()

        yield show


def _terminal() -> Any:
    """The console on stderr, None without rich or where stderr is not a terminal."""
    if _spinners:
        return _spinners[-1].console
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    return console if console.is_terminal else None


@contextlib.contextmanager
def _spinner(name: str) -> Iterator[None]:
    """Turns beside the name, on a terminal."""
    console = _terminal()
    if console is None:
        yield
        return
    with _line_of_its_own():
        _spinners.append(console.status(name))
        try:
            with _spinners[-1]:
                yield
        finally:
            _spinners.pop()


@contextlib.contextmanager
def _line_of_its_own() -> Iterator[None]:
    """Stop the spinner that turns, its thread too, and let it go on afterwards."""
    outer = _spinners[-1] if _spinners else None
    if outer is None:
        yield
        return
    outer.stop()
    try:
        yield
    finally:
        outer.start()


def _plain(label: str, total: int) -> Callable[[int, str], None]:
    """Lines at most every ten seconds, for logs and for devices without rich."""
    last = time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 10.0:
            last = time.monotonic()
            say(f"{label}: {done}/{total} {note}")

    return show
