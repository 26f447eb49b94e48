"""Makes one small artifact and dies where it is told to; test_artifact_crash.py reads the output.

    crash_driver.py points ROOT        die at every fault point in turn, then make it again
    crash_driver.py full ROOT          the same for a disk that is full from a write on
    crash_driver.py race ROOT N M      N processes ask M questions, all of them at the same time

Each attempt is a fork of this process, which has one thread and has imported nothing but NumPy and
edgekd.artifact: a fresh process for a few milliseconds instead of half a second. The stage writes
two files, one of them in two halves, and a checkpoint it resumes from.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import artifact, durable
from edgekd.errors import EdgekdError

KIND = artifact.Kind("Crash", "crash", 1, ("weights.npy", "deep/losses.jsonl"))
STEPS = 6


def question(seed: int = 0) -> artifact.Question:
    """The question every process asks."""
    return artifact.Question(KIND, {"steps": STEPS, "seed": seed}, sources={"data": "0" * 64})


def train(work: artifact.Work) -> Mapping[str, Any]:
    """Six steps, a checkpoint after every second; the answer does not depend on where it began."""
    checkpoint = work.keep / "checkpoint.npz"
    step, weights = 0, np.arange(256, dtype=np.float64)
    if checkpoint.exists():
        with np.load(checkpoint, allow_pickle=False) as saved:
            step, weights = int(saved["step"]), saved["weights"]
        with (work.keep.parent.parent.parent / "resumed").open("a") as log:
            log.write(f"{step}\n")
    while step < STEPS:
        weights = np.sqrt(weights + step)
        step += 1
        if step % 2 == 0:
            state = {"step": np.array(step), "weights": weights}
            durable.replace_file(checkpoint, lambda path: np.savez(path, **state))  # noqa: B023
    (work.scratch / "deep").mkdir()
    losses = [float(np.mean(weights)), float(np.max(weights))]
    write_lines = "".join(json.dumps(value) + "\n" for value in losses)
    durable.replace_file(
        work.scratch / "deep" / "losses.jsonl", lambda path: path.write_text(write_lines)
    )
    durable.replace_file(work.scratch / "weights.npy", lambda path: halves(path, weights))
    return {"mean": losses[0]}


def halves(path: Path, weights: np.ndarray[Any, Any]) -> None:
    """Save an array with a fault point in the middle of the write."""
    np.save(path, weights)
    content = path.read_bytes()
    with path.open("wb") as stream:
        stream.write(content[: len(content) // 2])
        stream.flush()
        durable.point("middle of weights.npy")
        stream.write(content[len(content) // 2 :])


def in_fork(action: Callable[[], Any]) -> dict[str, Any]:
    """Run an action in a fork; returns what it printed, or the signal that ended it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(action()).encode())
            code = 0
        except EdgekdError as error:
            os.write(
                writer, json.dumps({"error": type(error).__name__, "said": str(error)}).encode()
            )
            code = 3
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        printed = stream.read()
    _, status = os.waitpid(child, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    answer: dict[str, Any] = json.loads(printed) if printed else {}
    return {**answer, "killed": killed, "exit": os.waitstatus_to_exitcode(status)}


def make(out: Path) -> dict[str, Any]:
    """Make the artifact; its id and the points passed on the way."""
    passed: list[str] = []
    durable.point = passed.append
    return {"id": artifact.make(out, question(), train).id, "points": passed}


def make_with_fault(out: Path, fatal: int, fault: Callable[[], object]) -> dict[str, Any]:
    """Make the artifact and call `fault` at the n-th point."""
    count = 0

    def point(_: str) -> None:
        nonlocal count
        if count == fatal:
            fault()
        count += 1

    durable.point = point
    return {"id": artifact.make(out, question(), train).id}


def die() -> None:
    """Kill this process as nobody can catch."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill(limit: int) -> None:
    """From here on no file may grow past a size; a write past it fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def visible(out: Path) -> list[str]:
    """Ids of what a reader of the directory finds; anything half-written raises."""
    names = sorted(path for path in out.glob("*") if path.name != ".work")
    return [artifact.load(path, KIND).id for path in names]


def left(out: Path) -> list[str]:
    """What is left to clean in the work directory."""
    return sorted(path.relative_to(out).as_posix() for path in (out / ".work").rglob("*"))


def attempt(root: Path, name: str, action: Callable[[Path], Any]) -> dict[str, Any]:
    """One attempt that goes wrong, what it left, and the same command once more."""
    out = root / name / "out"
    first = in_fork(lambda: action(out))
    seen = in_fork(lambda: {"ids": visible(out)})
    again = in_fork(lambda: make(out))
    log = root / name / "resumed"
    resumed = log.read_text().split() if log.exists() else []
    return {"first": first, "seen": seen, "again": again, "left": left(out), "resumed": resumed}


def points(root: Path) -> dict[str, Any]:
    """Die at every point in turn."""
    whole = in_fork(lambda: make(root / "whole"))
    attempts = [
        attempt(root, f"at-{n}", lambda out, n=n: make_with_fault(out, n, die))  # type: ignore[misc]
        for n in range(len(whole["points"]))
    ]
    return {"whole": whole, "left": left(root / "whole"), "attempts": attempts}


def full(root: Path) -> dict[str, Any]:
    """Meet a full disk at every write, with room for nothing or for a part of the file."""
    whole = in_fork(lambda: make(root / "whole"))
    moments = [n for n, name in enumerate(whole["points"]) if name.startswith("before write")]
    moments.append(whole["points"].index("middle of weights.npy"))
    cases = [(n, limit) for n in moments for limit in (0, 30)]
    attempts = []
    for n, limit in cases:
        fault = functools.partial(fill, limit)
        run = functools.partial(make_with_fault, fatal=n, fault=fault)
        attempts.append(attempt(root, f"at-{n}-{limit}", run))
    return {"whole": whole, "cases": cases, "attempts": attempts}


def race(root: Path, processes: int, questions: int) -> dict[str, Any]:
    """Many processes ask the same questions in the same order; each is worked on once."""

    def work(seed: int) -> Callable[[artifact.Work], Mapping[str, Any]]:
        def write(work: artifact.Work) -> Mapping[str, Any]:
            with (root / "worked").open("a") as log:
                log.write(f"{seed}\n")
            time.sleep(0.005)
            return train(work)

        return write

    def ask() -> list[str]:
        return [
            artifact.make(root / "out", question(seed), work(seed)).id for seed in range(questions)
        ]

    ids = root / "ids"
    ids.mkdir(parents=True)
    children = []
    for n in range(processes):
        child = os.fork()
        if child == 0:
            try:
                (ids / str(n)).write_text(json.dumps(ask()))
            except BaseException:
                (ids / str(n)).write_text(json.dumps(traceback.format_exc()))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return {
        "ids": [json.loads((ids / str(n)).read_text()) for n in range(processes)],
        "worked": sorted(int(seed) for seed in (root / "worked").read_text().split()),
        "left": left(root / "out"),
    }


if __name__ == "__main__":
    mode, root = sys.argv[1], Path(sys.argv[2])
    runs: dict[str, Callable[..., dict[str, Any]]] = {"points": points, "full": full, "race": race}
    print(json.dumps(runs[mode](root, *map(int, sys.argv[3:]))))
