"""Take samples of several engines in one interleaved run of fresh processes.

A round asks every engine once, and the null runner among them; each asking is a repetition, a
process of its own (`edgekd.bench.repetition`). Rounds come in pairs: the second goes through the
engines in the first one's order reversed (ABBA; the first is shuffled, with a seed of the run), so
that over a pair every engine has the same mean place in time and a linear drift of the machine
meets all alike. Such a pair is a block, the unit that ratios are resampled by, and the unit that
survives a kill: half a block measured today and half tomorrow would be no block.

Every repetition's state is checked when it ends. Wrong state, a wrong answer, a jumping clock or an
altered engine ends the run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgekd
from edgekd import errors
from edgekd.artifact import Artifact
from edgekd.bench import cpu_state, device_state
from edgekd.bench.cpu_state import State
from edgekd.bench.inputs import OWN, RECORDED, Inputs
from edgekd.bench.scenario import Scenario
from edgekd.errors import MeasurementError
from edgekd.target import Target

RESUME_WITHIN_S = 3600  # later, the machine is another one: temperature, load, neighbours

Show = Callable[[int, str], None]


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        wall_ns: int64[engine, round, query]: host arrays in to host arrays out.
        gpu_ns: The same between CUDA events, without transfers; None where there is no GPU.
        null_ns: int64[round, query] of a runner that does nothing.
        states: Of each round the state around each repetition, engines in their order, null last.
        seed: Of the order.
        order: Of each round the engines in the order they were measured; the last number is null.
        resumed: Rounds before which an interrupted run went on.
        references: For each engine what its answers were held against.
    """

    wall_ns: NDArray[np.int64]
    gpu_ns: NDArray[np.int64] | None
    null_ns: NDArray[np.int64]
    states: list[list[State]]
    seed: int
    order: list[list[int]]
    resumed: list[int]
    references: list[str]


def order(runners: int, rounds: int, seed: int) -> list[list[int]]:
    """In which order runners are measured: shuffled, then that order reversed, and so on.

    Args:
        runners: How many.
        rounds: How often each.
        seed: Of the shuffles.
    """
    random = np.random.default_rng(seed)
    result: list[list[int]] = []
    while len(result) < rounds:
        forward = [int(each) for each in random.permutation(runners)]
        result += [forward, forward[::-1]]
    return result[:rounds]


def measure(
    engines: Sequence[Artifact],
    scenario: Scenario,
    inputs: Inputs,
    target: Target,
    *,
    rounds: int,
    seed: int,
    keep: Path,
    show: Show = lambda _, __: None,
) -> Measured:
    """Measure engines and the null runner, interleaved.

    Args:
        engines: Engines for one target.
        scenario: What a repetition is.
        inputs: What they are asked.
        target: Whose required state must hold.
        rounds: Repetitions of each engine.
        seed: Of their order; a run that goes on needs the one it began with.
        keep: A directory for finished repetitions; blocks found there are not measured again.
        show: Called after each repetition with how many are done, and the engine's arm.

    Raises:
        MeasurementError: The state is wrong, a clock jumped, an answer is wrong, or a process died.
        ArtifactError: An engine was altered.
    """
    run = _Run(engines, scenario, inputs, target, keep)
    plan = order(len(engines) + 1, rounds, seed)
    done = finished_rounds(keep, len(engines) + 1)
    resumed = _note_resumption(keep, done)
    required, expected = target.required_state, expected_state(engines)
    states: list[State] = []
    for index, engine_order in enumerate(plan):
        for number in engine_order:
            folder = _folder(keep, index, number)
            if index >= done:
                run.repetition(index, number, folder)
            states.append(_result(folder)["state"])
            device_state.check(required, states, expected)
            arm = "null" if number == len(engines) else str(engines[number].config["arm"])
            show(len(states), arm)
    return run.collect(plan, seed, resumed)


def expected_state(engines: Sequence[Artifact]) -> dict[str, Any]:
    """What the state must agree with: the CPU that ONNX Runtime's Engines name, their threads."""
    devices = [e.config["device"] for e in engines if e.config["runtime"] == "onnxruntime"]
    if not devices:
        return {}
    return {"cpu_model": devices[0]["device"], "threads": max(d["threads"] for d in devices)}


def resumable(keep: Path, runners: int) -> bool:
    """Whether an interrupted run left a block, not long ago, and the machine has not restarted.

    Args:
        keep: The directory it kept its repetitions in.
        runners: Engines and the null runner.
    """
    done = finished_rounds(keep, runners)
    if done == 0:
        return False
    last = [_result(_folder(keep, done - 1, number)) for number in range(runners)]
    age_s = (time.time_ns() - max(int(each["time_ns"]) for each in last)) / 1e9
    boot_id = cpu_state.read()["boot_id"]
    return 0 <= age_s < RESUME_WITHIN_S and all(e["state"]["boot_id"] == boot_id for e in last)


def finished_rounds(keep: Path, runners: int) -> int:
    """Rounds that are there whole, in whole blocks; what is left of a broken one is removed.

    Args:
        keep: The directory of the repetitions.
        runners: Engines and the null runner.
    """
    done = 0
    while all(_folder(keep, done, number).exists() for number in range(runners)):
        done += 1
    done -= done % 2
    for folder in sorted((keep / "rounds").glob("*-*")):
        if int(folder.name.split("-")[0]) >= done:
            shutil.rmtree(folder)
    return done


@dataclass(frozen=True)
class _Run:
    """What all repetitions of a run share."""

    engines: Sequence[Artifact]
    scenario: Scenario
    inputs: Inputs
    target: Target
    keep: Path

    def __post_init__(self) -> None:
        (self.keep / "rounds").mkdir(parents=True, exist_ok=True)
        np.savez(self.keep / "inputs.npz", **self.inputs.arrays)  # type: ignore[arg-type]
        for number, reference in enumerate(self.inputs.references):
            if reference is not None:
                np.savez(self.keep / f"reference-{number}.npz", **reference)  # type: ignore[arg-type]

    def repetition(self, index: int, number: int, folder: Path) -> None:
        """Run one repetition in a fresh process; its folder gets its name when it has succeeded."""
        null = number == len(self.engines)
        engine = self.engines[0 if null else number]
        now = self.keep / "now"
        shutil.rmtree(now, ignore_errors=True)
        now.mkdir()
        job = {
            "engine": str(engine.path.resolve()),
            "id": engine.id,
            "null": null,
            "inputs": str((self.keep / "inputs.npz").resolve()),
            "reference": None if null else self._reference(index, number),
            "scenario": self.scenario.model_dump(mode="json"),
            "target": self.target.as_json(),
        }
        (now / "job.json").write_text(json.dumps(job), encoding="utf-8")
        _spawn(now)
        result = _result(now)
        if "error" in result:
            raise getattr(errors, result["error"])(result["message"])
        now.rename(folder)

    def _reference(self, index: int, number: int) -> str | None:
        recorded = self.inputs.references[number] is not None
        first = _folder(self.keep, 0, number) / "answers.npz"
        path = self.keep / f"reference-{number}.npz" if recorded else first
        return str(path.resolve()) if recorded or index > 0 else None

    def collect(self, plan: list[list[int]], seed: int, resumed: list[int]) -> Measured:
        """Bring all repetitions together."""
        numbers = range(len(self.engines) + 1)
        folders = [[_folder(self.keep, i, n) for n in numbers] for i in range(len(plan))]
        times = [[_times(folder) for folder in row] for row in folders]

        def stack(name: str) -> NDArray[np.int64]:
            return np.array([[row[n][name] for row in times] for n in numbers[:-1]], np.int64)

        on_gpu = all("gpu_ns" in each for row in times for each in row[:-1])
        return Measured(
            wall_ns=stack("wall_ns"),
            gpu_ns=stack("gpu_ns") if on_gpu else None,
            null_ns=np.array([row[-1]["wall_ns"] for row in times], np.int64),
            states=[[_result(folder)["state"] for folder in row] for row in folders],
            seed=seed,
            order=plan,
            resumed=resumed,
            references=[OWN if each is None else RECORDED for each in self.inputs.references],
        )


def _spawn(folder: Path) -> None:
    """Run the repetition in a folder with the Python, and the edgekd, that are running now."""
    package = str(Path(edgekd.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "edgekd.bench.repetition", str(folder.resolve())]
    command.append(str(os.getpid()))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,  # `-m` looks in the working directory first
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode or not (folder / "result.json").is_file():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise MeasurementError(
            f"a repetition ended with {done.returncode}, expected 0: {last}: open the engine by "
            "itself with edgekd evaluate to see why"
        )


def _note_resumption(keep: Path, done: int) -> list[int]:
    """Rounds before which a run went on, this time's among them, remembered over kills."""
    file = keep / "resumed.json"
    known: list[int] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    known += [done] if done else []
    file.write_text(json.dumps(known), encoding="utf-8")
    return known


def _folder(keep: Path, index: int, number: int) -> Path:
    return keep / "rounds" / f"{index:03d}-{number:02d}"


def _result(folder: Path) -> Mapping[str, Any]:
    result: Mapping[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def _times(folder: Path) -> dict[str, NDArray[np.int64]]:
    with np.load(folder / "times.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
