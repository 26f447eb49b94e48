"""Writes that survive a kill at any moment, and say one sentence when the disk is full.

A file is replaced by writing a sibling, fsyncing it, renaming it over the old one and fsyncing
the directory: a reader finds the old content or the new one, never a part. Every such step passes
two fault points, before and after; the crash tests replace `point` to die at each of them in turn.
A lock is a file held with flock, which the kernel releases when the process dies, so no lock is
ever stale.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from edgekd.errors import ArtifactError

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS}


def point(name: str) -> None:
    """A moment at which a process may die; the crash tests replace this to die there."""


def step(name: str, action: Callable[[], object]) -> None:
    """Do one thing that a kill may come before or after.

    Args:
        name: What is done, for the crash tests.
        action: Does it.
    """
    point(f"before {name}")
    action()
    point(f"after {name}")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a reader, after a kill too, finds the old content or the new one.

    Args:
        path: The file to replace or create.
        write: Writes the new content to the path it is given.
    """
    # The suffix stays last: numpy appends its own to a name that ends otherwise.
    temporary = path.with_name(f".new-{path.name}")
    step(f"write {path.name}", lambda: write(temporary))
    step(f"fsync {path.name}", lambda: fsync(temporary))
    step(f"rename {path.name}", lambda: temporary.replace(path))
    step(f"fsync the directory of {path.name}", lambda: fsync(path.parent))


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file, made when absent and removed when released; waits for another holder.

    Raises:
        ArtifactError: The file cannot be made.
    """
    while True:
        with _open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            # The holder before us removed the file while we waited: ours is then a lock nobody
            # else can see, and we must queue for the new one.
            if not _same_file(stream.fileno(), path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # last: from here on another process may start
            return


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as error:
        raise _unwritable(path, error, error.errno) from error


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into one sentence about `path`, whichever library met it first.

    Python's own writes raise OSError with a number. numpy's ``tofile`` raises one without, and
    libraries written in Rust (safetensors) an exception of their own that ends in the number.

    Raises:
        ArtifactError: Something inside could not be written.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if match := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(match[1])
        cut_short = isinstance(error, OSError) and "requested and" in str(error)
        if number not in FULL and not cut_short:
            raise
        raise _unwritable(path, error, number) from error


def _unwritable(path: Path, error: Exception, number: int | None) -> ArtifactError:
    reason = os.strerror(number) if number else f"a write was cut short ({error})"
    file = getattr(error, "filename", None)
    return ArtifactError(
        f"{path}: could not be written: {reason}{f' ({file})' if file else ''}; nothing was "
        "published: free space or choose another --out, then run the same command again"
    )
