"""One repetition: a fresh process that opens one engine, asks it and writes down how long it took.

    python -m edgekd.bench.repetition FOLDER PARENT

FOLDER holds ``job.json``; ``result.json`` and ``times.npz`` are written beside it. PARENT is the
process that waits. What is timed is one call of the runner, from host arrays to host arrays, with
`time.perf_counter_ns`. The garbage collector is off meanwhile. The answer is copied away after the
clock was read, so that it can be checked when all is over.

The clock is checked too. `perf_counter` must agree with the boot time, which goes on while the
machine sleeps, and with the time of day: where they part, the machine slept, was moved, or its
clock was set, and nobody knows what the samples in between mean. Two clocks cannot be read at once:
a process that is preempted between the readings is milliseconds off, so they are read again until
they lie close together, and that much is allowed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import artifact, kinds, runner
from edgekd.artifact import Artifact
from edgekd.bench import device_state
from edgekd.bench.scenario import Scenario
from edgekd.data import IO, Arrays
from edgekd.errors import EdgekdError, MeasurementError
from edgekd.runner import Batched
from edgekd.target import Target

# An engine may round in another way: another batch size, fp16, an INT8 value on the edge. More than
# this share of the largest recorded value is another answer. How large the differences are in
# detail is what `compare` and `evaluate` are for.
TOLERANCE = 0.05

_ALLOWED = {"boot time": (20_000_000, 0.01), "time of day": (20_000_000, 0.01)}  # ns, share
_AT_ONCE_NS, _TRIES = 1_000_000, 20  # readings this close together are one, or the best of so many
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Clocks:
    """The clocks of a machine, each a function that returns ns."""

    perf_counter: Callable[[], int] = time.perf_counter_ns
    boot_time: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    time_of_day: Callable[[], int] = time.time_ns

    def read(self) -> dict[str, int]:
        """All of them, ns, as close to one another as a few tries bring them."""
        found, span_ns = {}, _AT_ONCE_NS + 1
        for attempt in range(_TRIES):
            if span_ns <= _AT_ONCE_NS:
                break
            reading = {
                "perf_counter": self.perf_counter(),
                "boot time": self.boot_time(),
                "time of day": self.time_of_day(),
            }
            took_ns = self.perf_counter() - reading["perf_counter"]
            if attempt == 0 or took_ns < span_ns:
                found, span_ns = reading, took_ns
        return found


@dataclass(frozen=True)
class Queries:
    """The distinct queries of a repetition, asked in turn.

    Attributes:
        inputs: {name: array[batch, ...]} for each.
        rows: Which rows of the run's inputs each one holds.
    """

    inputs: list[Arrays]
    rows: list[NDArray[np.int64]]


def split(arrays: Arrays, batch: int, at_most: int) -> Queries:
    """Cut inputs into queries of equal size; the last one goes on with the first rows.

    Args:
        arrays: {name: array[rows, ...]}.
        batch: Rows a query.
        at_most: Queries that will be asked.
    """
    count = len(next(iter(arrays.values())))
    number = min(-(-count // batch), at_most)
    rows = [np.arange(i * batch, (i + 1) * batch) % count for i in range(number)]
    return Queries([{n: array[each] for n, array in arrays.items()} for each in rows], rows)


def warm_up(run: Batched, queries: Queries, scenario: Scenario, clocks: Clocks) -> None:
    """Ask without counting, until both numbers of the scenario's warm-up are reached."""
    started, asked = clocks.perf_counter(), 0
    wanted = scenario.warmup
    while asked < wanted.queries or clocks.perf_counter() - started < wanted.seconds * 1e9:
        run(queries.inputs[asked % len(queries.inputs)])
        asked += 1


def take(
    run: Batched, queries: Queries, count: int, answers: Arrays, clocks: Clocks
) -> NDArray[np.int64]:
    """Ask, one query after the other, and time each.

    Args:
        run: The engine.
        queries: Asked in turn.
        count: How many are asked.
        answers: {name: array[rows, ...]}; filled with the last answer to each row.
        clocks: The clocks.

    Returns:
        int64[count], ns.

    Raises:
        MeasurementError: A clock jumped or went back.
    """
    wall_ns = np.empty(count, np.int64)
    clock, inputs, rows = clocks.perf_counter, queries.inputs, queries.rows
    gc.collect()
    gc.disable()
    try:
        before = clocks.read()
        for index in range(count):
            place = index % len(inputs)
            start = clock()
            outputs = run(inputs[place])
            wall_ns[index] = clock() - start
            for name, array in outputs.items():
                answers[name][rows[place]] = array
        after = clocks.read()
    finally:
        gc.enable()
    check_clocks(before, after, wall_ns)
    return wall_ns


def check_clocks(
    before: Mapping[str, int], after: Mapping[str, int], wall_ns: NDArray[np.int64]
) -> None:
    """Refuse samples of a clock that jumped.

    Args:
        before: `Clocks.read` before the first query.
        after: The same after the last.
        wall_ns: int64[queries].

    Raises:
        MeasurementError: A sample is negative, or two clocks disagree on how much time went by.
    """
    back = np.flatnonzero(wall_ns < 0)
    if len(back):
        raise MeasurementError(
            f"the clock went back: query {back[0]} took {wall_ns[back[0]]} ns, expected at least "
            "0: measure again, and on another machine if it happens again"
        )
    passed_ns = {name: after[name] - before[name] for name in before}
    for name, (allowed_ns, share) in _ALLOWED.items():
        gap_ns = passed_ns[name] - passed_ns["perf_counter"]
        limit_ns = max(allowed_ns, share * passed_ns["perf_counter"])
        if abs(gap_ns) > limit_ns:
            raise MeasurementError(
                f"the clock jumped: {name} went on by {passed_ns[name] / 1e6:.1f} ms while "
                f"perf_counter counted {passed_ns['perf_counter'] / 1e6:.1f} ms, expected at most "
                f"{limit_ns / 1e6:.1f} ms apart (the machine slept, was moved, or its clock was "
                "set): measure again"
            )


def check_answers(answers: Arrays, rows: Sequence[int], reference: Arrays | None) -> None:
    """Refuse the latency of a wrong answer.

    Args:
        answers: {name: array[rows, ...]}.
        rows: Those that were asked.
        reference: What they ought to be; None checks only that they are finite.

    Raises:
        MeasurementError: An answer is not finite or not the reference's.
    """
    for name, array in answers.items():
        found = array[rows].astype(np.float64)
        bad = ~np.isfinite(found).reshape(len(rows), -1).all(axis=1)
        if bad.any():
            raise MeasurementError(
                f"output {name!r}: {int(bad.sum())} of {len(rows)} answers hold NaN or infinity, "
                f"first row {rows[int(bad.argmax())]}: the latency of a wrong answer is no result"
            )
        if reference is None:
            continue
        wanted = reference[name][rows].astype(np.float64)
        limit = TOLERANCE * float(np.abs(reference[name].astype(np.float64)).max())
        differences = np.abs(found - wanted).reshape(len(rows), -1).max(axis=1)
        wrong = differences > limit
        if wrong.any():
            raise MeasurementError(
                f"output {name!r}: {int(wrong.sum())} of {len(rows)} answers differ from the "
                f"recorded ones by up to {differences.max():.4g}, expected at most {limit:.4g}: "
                "the latency of a wrong answer is no result; see where they part with compare"
            )


def null_runner(io: IO, batch: int) -> Batched:
    """A runner that does nothing, through the same calls: what it costs is the harness's own."""
    outputs = {
        tensor.name: np.zeros(_shape(tensor.shape, batch), tensor.dtype) for tensor in io.outputs
    }
    dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in io.inputs}
    return Batched(lambda _: outputs, dtypes, 1, batch)


def run_job(folder: Path) -> dict[str, Any]:
    """Do one repetition.

    Args:
        folder: Holds ``job.json``: ``engine``, ``id``, ``null``, ``inputs``, ``reference``,
            ``scenario``, ``target``. ``times.npz`` and ``answers.npz`` are written there.

    Returns:
        The state of the machine while it ran.

    Raises:
        EdgekdError: The engine was altered, the clock jumped, an answer is wrong, ...
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    scenario = Scenario.model_validate(job["scenario"])
    target = Target.model_validate(job["target"])
    before = device_state.read(target)
    engine = artifact.load(Path(job["engine"]), kinds.ENGINE)
    if engine.id != job["id"]:
        raise MeasurementError(
            f"{engine.path}: is another Engine than when the bench began: {engine.id[:12]}..., "
            f"expected {job['id'][:12]}...: leave engines alone while they are measured"
        )
    arrays = _arrays(Path(job["inputs"]))
    queries = split(arrays, scenario.batch, scenario.queries)
    rows = sorted({int(row) for each in queries.rows for row in each})
    count = len(next(iter(arrays.values())))
    clocks = Clocks()
    run, gpu_ns = _open(engine, job["null"], scenario.batch)
    with run:
        first = run(queries.inputs[0])
        answers = {n: np.zeros((count, *a.shape[1:]), a.dtype) for n, a in first.items()}
        warm_up(run, queries, scenario, clocks)
        times = {"wall_ns": take(run, queries, scenario.queries, answers, clocks)}
        after = device_state.read(target)
    if not job["null"]:
        reference = _arrays(Path(job["reference"])) if job["reference"] else None
        check_answers(answers, rows, reference)
        np.savez(folder / "answers.npz", **answers)  # type: ignore[arg-type]
    if gpu_ns:
        times["gpu_ns"] = np.array(gpu_ns[-scenario.queries :], np.int64)
    np.savez(folder / "times.npz", **times)  # type: ignore[arg-type]
    return device_state.during(before, after)


def main(folder: Path, parent: int) -> None:
    """Do the job in a folder; what went wrong is written down for the process that waits.

    Args:
        folder: As `run_job` takes it; ``result.json`` is written there.
        parent: Id of the process that waits; without it nothing is done.
    """
    # Otherwise a repetition outlives a bench that was killed, and disturbs the next one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that call
        return
    try:
        result = {"state": run_job(folder), "time_ns": time.time_ns()}
    except EdgekdError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _open(engine: Artifact, null: bool, batch: int) -> tuple[Batched, list[int]]:
    """The engine, and the GPU's own times where its runtime has them."""
    if null:
        return null_runner(IO.model_validate(engine.read_json("io.json")), batch), []
    if engine.config["runtime"] == "tensorrt":
        from edgekd.bench import events

        return events.open_timed(engine)
    return runner.open(engine), []


def _arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _shape(shape: Sequence[int | str], batch: int) -> tuple[int, ...]:
    return tuple(batch if isinstance(size, str) else size for size in shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
