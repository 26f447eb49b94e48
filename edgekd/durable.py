"""Writes that survive a kill at any moment, and say one sentence when the disk takes none.

A file is replaced by writing a sibling, fsyncing it, renaming it over the old one and fsyncing
the directory: a reader finds the old content or the new one, never a part. Every such step passes
two fault points, before and after; the crash tests replace `point` to die at each of them in turn.
A lock is a file held with flock, which the kernel releases when the process dies, so no lock is
ever stale. Who waits for one says so after a second.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from edgekd.errors import ArtifactError
from edgekd.progress import say

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# What a path answers with whose disk, share or mount is gone.
GONE = {
    errno.ENOENT,
    errno.ENODEV,
    errno.ENXIO,
    errno.EIO,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
}
WAIT_SECONDS = 1.0  # in silence; then a person is told whom we wait for


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


def there(path: Path) -> bool:
    """Whether something is at a path, as far as this user may see; asking never fails."""
    try:
        path.lstat()
    except OSError:
        return False
    return True


def empty_directory(path: Path) -> None:
    """Make a directory, or make it anew: what a killed process left in it goes.

    Raises:
        ArtifactError: It cannot be made, or what was left cannot be removed.
    """
    try:
        if there(path):
            shutil.rmtree(path)
        path.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(path, error, path) from error


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file, made when absent and removed when released; waits for another holder.

    Args:
        path: ``<out>/.work/<name>.lock``; a process that waits names both.

    Raises:
        ArtifactError: The file cannot be made, or its file system locks none.
    """
    told = False
    while True:
        with _open(path) as stream:
            told = _acquire(stream, path, told)
            # The holder before us removed the file while we waited: ours is then a lock nobody
            # else can see, and we must queue for the new one.
            if not _same_file(stream.fileno(), path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # last: from here on another process may start
            return


def _acquire(stream: TextIO, path: Path, told: bool) -> bool:
    """Take the lock; returns whether the person who waits was told, now or before."""
    deadline = time.monotonic() + WAIT_SECONDS
    name, out = path.name.removesuffix(".lock"), path.parent.parent
    try:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return told
            except BlockingIOError:
                if not told and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
            if not told:
                say(f"waiting for another edgekd that works on {name} in {out}")
            fcntl.flock(stream, fcntl.LOCK_EX)
            return True
    except OSError as error:
        raise _unwritable(out, error, path) from error


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as error:
        raise _unwritable(path.parent.parent, error, _met(error, path)) from error


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk that is full, or turned read-only, into one sentence about `path`.

    Whichever library met it first: Python's own writes raise OSError with a number, numpy's
    ``tofile`` raises one without, and libraries written in Rust (safetensors) an exception of their
    own that ends in the number.

    Raises:
        ArtifactError: Something inside could not be written.
    """
    try:
        yield
    except Exception as error:
        cut_short = isinstance(error, OSError) and "requested and" in str(error)
        if _number(error) not in {*FULL, errno.EROFS} and not cut_short:
            raise
        raise _unwritable(path, error, _met(error, path)) from error


def _number(error: Exception) -> int | None:
    if match := re.search(r"\(os error (\d+)\)", str(error)):
        return int(match[1])
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) else None


def _met(error: Exception, path: Path) -> Path:
    """The file an error is about, `path` where it does not say."""
    name = getattr(error, "filename", None)
    return path if name is None else Path(os.fsdecode(name))


def _unwritable(path: Path, error: Exception, at: Path) -> ArtifactError:
    """One sentence about `path` that says why `at` could not be written, and what mends that."""
    number = _number(error)
    told = os.strerror(number) if number else f"a write was cut short, {error}"
    reason, mend = f"{told} ({at})", "choose another --out"
    found = _obstacle(at) if number in {errno.ENOTDIR, errno.EEXIST, errno.ENOENT} else None
    if number in FULL or number is None:
        mend = f"free space or {mend}"
    elif found is not None and found.is_symlink():
        reason = f"{found} is a link to {found.readlink()}, which is not there"
        mend = f"mount or make that, or {mend}"
    elif found is not None:
        reason = f"{found} is a file, expected a directory"
        mend = f"remove it or {mend}"
    elif number in {errno.EACCES, errno.EPERM}:
        reason = f"this user has no permission to write in {_nearest(at)}"
        mend = f"change its owner or mode, or {mend}"
    elif number == errno.EROFS:
        reason = f"the file system of {_nearest(at)} is mounted read-only"
        mend = f"mount it for writing, or {mend}"
    elif number in GONE:
        reason = f"{_nearest(at)} takes no new files ({told})"
        mend = f"see that its disk or share is mounted, or {mend}"
    return ArtifactError(
        f"{path}: could not be written: {reason}; nothing was published: {mend}, then run the same "
        "command again"
    )


def _obstacle(path: Path) -> Path | None:
    """The first part of a path that stands where a directory should: a file, or a dead link."""
    parts = (*reversed(path.parents), path)
    return next((part for part in parts if there(part) and not part.is_dir()), None)


def _nearest(path: Path) -> Path:
    """The nearest part of a path that is there: what was to be written, or to take it."""
    return next((part for part in (path, *path.parents) if there(part)), path)
