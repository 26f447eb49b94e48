"""What people see on stderr while a stage works: one line a step, a bar on what takes long.

stdout belongs to results (a path, or JSON), so everything here goes to stderr. rich draws it where
it is installed; a device may have neither rich nor a terminal, then plain lines do.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


def say(message: str) -> None:
    """Print one line for the person who waits."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stage(name: str) -> Iterator[Callable[[str], None]]:
    """Announce a stage when it ends: its name, what came out, how long it took.

    Yields:
        A function that takes the sentence to show beside the name.
    """
    outcome: list[str] = []
    started = time.perf_counter()
    yield outcome.append
    say(f"{name:<18} {time.perf_counter() - started:7.1f} s  {' '.join(outcome)}")


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar that cleans up after itself.

    Args:
        label: What is going on.
        total: Number of steps.

    Yields:
        A function of (steps done so far, short note such as the loss).
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield _plain(label, total)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(label, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


def _plain(label: str, total: int) -> Callable[[int, str], None]:
    """Lines at most every ten seconds, for logs and for devices without rich."""
    last = time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 10.0:
            last = time.monotonic()
            say(f"{label}: {done}/{total} {note}")

    return show
