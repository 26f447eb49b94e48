"""What people see on stderr while a stage works: one line a step, a bar on what takes long.

stdout belongs to results (a path, or JSON), so everything here goes to stderr. rich draws it where
it is installed; a device may have neither rich nor a terminal, then plain lines do.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


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
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
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
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    return console if console.is_terminal else None


def _spinner(name: str) -> contextlib.AbstractContextManager[Any]:
    console = _terminal()
    return contextlib.nullcontext() if console is None else console.status(name)


def _plain(label: str, total: int) -> Callable[[int, str], None]:
    """Lines at most every ten seconds, for logs and for devices without rich."""
    last = time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 10.0:
            last = time.monotonic()
            say(f"{label}: {done}/{total} {note}")

    return show
