"""A write leaves old content or new, who waits for a lock says so, a disk's refusal is told."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from edgekd import durable
from edgekd.errors import ArtifactError

ROOT = Path(__file__).parents[1]


def test_replace_file_leaves_the_old_content_when_the_write_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    durable.replace_file(file, lambda path: path.write_text("old"))

    def fail(path: Path) -> None:
        path.write_text("ne")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        durable.replace_file(file, fail)
    assert file.read_text() == "old"
    durable.replace_file(file, lambda path: path.write_text("new"))
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(ArtifactError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith("choose another --out, then run the same command again")
    return sentence


def take(out: Path) -> None:
    with durable.lock(out / ".work" / "plate-0.lock"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(tmp_path: Path, number: int) -> None:
    file = tmp_path / "weights"

    def fail() -> None:
        with durable.disk_errors(tmp_path):
            raise OSError(number, os.strerror(number), str(file))

    assert refused(fail) == (
        f"{tmp_path}: could not be written: {os.strerror(number)} ({file}); nothing was published: "
        "free space or choose another --out, then run the same command again"
    )


def test_a_full_disk_met_by_numpy(tmp_path: Path) -> None:
    """/dev/full takes no byte; numpy says how many it wanted and gives no number."""

    def fail() -> None:
        with durable.disk_errors(tmp_path), Path("/dev/full").open("wb") as stream:
            np.zeros(1 << 20).tofile(stream)

    sentence = refused(fail)
    assert "could not be written: a write was cut short, 1048576 requested and " in sentence
    assert "free space or choose" in sentence


def test_a_full_disk_met_by_a_rust_library(tmp_path: Path) -> None:
    def fail() -> None:
        with durable.disk_errors(tmp_path):
            raise RuntimeError("I/O error: No space left on device (os error 28)")

    assert "could not be written: No space left on device" in refused(fail)


def test_other_errors_of_a_stage_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), durable.disk_errors(tmp_path):
        (tmp_path / "absent").read_text()
    with pytest.raises(PermissionError), durable.disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")


@pytest.mark.parametrize("below", ["", "deeper/out"])
def test_a_file_in_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(lambda: take(tmp_path / "file" / below))
    assert f"could not be written: {tmp_path / 'file'} is a file, expected a directory" in sentence
    assert "remove it or choose another" in sentence
    assert "free space" not in sentence


def test_a_link_to_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    sentence = refused(lambda: take(tmp_path / "out"))
    assert f"{tmp_path / 'out'} is a link to {tmp_path / 'disk' / 'out'}, which is not" in sentence
    assert "mount or make that, or choose another" in sentence


def test_a_directory_that_takes_no_directories() -> None:
    sentence = refused(lambda: take(Path("/proc/nowhere/out")))
    assert "/proc takes no new files (No such file or directory)" in sentence
    assert "see that its disk or share is mounted, or choose another" in sentence


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "no permission to write in {at}; nothing was published: change its owner"),
        (errno.EPERM, "no permission to write in {at}; nothing was published: change its owner"),
        (errno.EROFS, "the file system of {at} is mounted read-only; nothing was published: mount"),
        (errno.ESTALE, "{at} takes no new files (Stale file handle); nothing was published: see"),
        (errno.EIO, "{at} takes no new files (Input/output error); nothing was published: see"),
        (errno.ELOOP, "Too many levels of symbolic links ({at}/out/.work); nothing was published"),
    ],
)
def test_a_directory_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """Root may do anything, so the system's answer is given in its place."""

    def mkdir(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    sentence = refused(lambda: take(tmp_path / "out"))
    assert sentence.startswith(f"{tmp_path / 'out'}: could not be written: ")
    assert words.format(at=tmp_path) in sentence


def test_a_file_system_that_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(durable.fcntl, "flock", flock)
    sentence = refused(lambda: take(tmp_path))
    assert f"{tmp_path}: could not be written: No locks available" in sentence


def test_an_empty_directory_replaces_what_was_left(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "deep").mkdir(parents=True)
    durable.empty_directory(tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []
    (tmp_path / "file").write_text("")
    sentence = refused(lambda: durable.empty_directory(tmp_path / "file" / "scratch"))
    assert f"{tmp_path / 'file'} is a file, expected a directory" in sentence


def test_asking_what_is_there_never_fails(tmp_path: Path) -> None:
    assert durable.there(tmp_path)
    assert not durable.there(tmp_path / "nothing")
    assert not durable.there(tmp_path / ("x" * 5000))  # the system refuses to look
    (tmp_path / "dead").symlink_to(tmp_path / "nothing")
    assert durable.there(tmp_path / "dead")


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock until its stdin ends."""
    code = (
        "import sys; from pathlib import Path; from edgekd import durable\n"
        "with durable.lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(stream: IO[str] | None) -> str:
    """The next line; nothing where none comes for a minute."""
    assert stream is not None
    ready, _, _ = select.select([stream], [], [], 60)
    return stream.readline() if ready else ""


def test_who_waits_for_a_lock_says_for_what_and_then_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out" / ".work" / "plate-0.lock"
    with holder(path) as first:
        assert line(first.stdout) == "held\n"
        with holder(path) as second:
            assert line(second.stderr) == (
                f"waiting for another edgekd that works on plate-0 in {tmp_path / 'out'}\n"
            )
            assert path.exists()
            assert first.communicate()[1] == ""  # it had nobody to wait for
            assert second.communicate() == ("held\n", "")
            assert second.returncode == 0
    assert list(path.parent.iterdir()) == []
