from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, kinds, runner
from edgekd.artifact import Artifact
from edgekd.bench import device_state, inputs, repetition
from edgekd.bench.repetition import Clocks
from edgekd.bench.scenario import Scenario, Warmup
from edgekd.data import IO, Arrays
from edgekd.errors import ArtifactError, MeasurementError
from edgekd.runner import Batched

Job = Callable[..., Path]


def steps(*sizes: int) -> Callable[[], int]:
    """A clock that goes on by these sizes in turn, the last one for ever."""

    def tick() -> Iterator[int]:
        now = 1_000_000_000
        for size in sizes:
            yield now
            now += size
        while True:
            yield now
            now += sizes[-1]

    readings = tick()
    return lambda: next(readings)


def double() -> Batched:
    return Batched(lambda x: {"y": 2 * x["x"]}, {"x": np.dtype(np.float32)}, 1, 8)


def take(clocks: Clocks, count: int = 6) -> tuple[Any, Arrays]:
    arrays = {"x": np.arange(8, dtype=np.float32).reshape(4, 2)}
    queries = repetition.split(arrays, 1, count)
    answers = {"y": np.zeros((4, 2), np.float32)}
    return repetition.take(double(), queries, count, answers, clocks), answers


@pytest.fixture
def job(tmp_path: Path, engine: Artifact, quick: Scenario) -> Job:
    """A function that writes a job for the engine into a folder."""
    chosen = inputs.choose([engine], inputs.default_samples(engine))
    folder = tmp_path / "job"
    folder.mkdir()
    np.savez(folder / "inputs.npz", **chosen.arrays)
    assert chosen.references[0] is not None
    np.savez(folder / "reference.npz", **chosen.references[0])

    def write(**changes: Any) -> Path:
        document = {
            "engine": str(engine.path),
            "id": engine.id,
            "null": False,
            "inputs": str(folder / "inputs.npz"),
            "reference": str(folder / "reference.npz"),
            "scenario": quick.model_dump(mode="json"),
            "target": engine.config["target"],
            **changes,
        }
        (folder / "job.json").write_text(json.dumps(document))
        return folder

    return write


def test_queries_are_cut_in_turn_and_go_on_with_the_first_rows() -> None:
    arrays = {"x": np.arange(5), "y": np.arange(5) * 10}
    queries = repetition.split(arrays, 2, 100)
    assert [each["x"].tolist() for each in queries.inputs] == [[0, 1], [2, 3], [4, 0]]
    assert queries.inputs[2]["y"].tolist() == [40, 0]
    assert len(repetition.split(arrays, 2, 2).inputs) == 2
    assert repetition.split(arrays, 8, 9).rows[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_each_query_is_timed_by_itself() -> None:
    # perf_counter is read twice before, twice a query, and twice after.
    sizes = [1, 1, *[size for n in range(6) for size in (100 + n, 7)], 1]
    wall_ns, answers = take(Clocks(steps(*sizes), steps(700), steps(700)))
    assert wall_ns.dtype == np.int64
    assert wall_ns.tolist() == [100, 101, 102, 103, 104, 105]
    np.testing.assert_array_equal(answers["y"], 2 * np.arange(8).reshape(4, 2))


def test_a_clock_that_goes_back_is_refused() -> None:
    sizes = [1, 1, 100, 7, 100, 7, -40, 7, 100]
    with pytest.raises(MeasurementError, match=r"the clock went back: query 2 took -40 ns, expec"):
        take(Clocks(steps(*sizes), steps(700), steps(700)))


@pytest.mark.parametrize(
    ("name", "clocks"),
    [
        ("boot time", Clocks(steps(1000), steps(50_000_000), steps(1000))),
        ("time of day", Clocks(steps(1000), steps(1000), steps(3_600_000_000_000))),
        ("time of day", Clocks(steps(1000), steps(1000), steps(-3_600_000_000_000))),
    ],
)
def test_a_clock_that_jumps_is_refused(name: str, clocks: Clocks) -> None:
    words = rf"the clock jumped: {name} went on by -?[\d.]+ ms while perf_counter counted 0\.0 ms"
    with pytest.raises(MeasurementError, match=f"{words}, expected at most .*: measure again"):
        take(clocks)


def test_a_process_preempted_between_the_readings_reads_again() -> None:
    # 30 ms pass within the first reading of all clocks, 2 us within the second.
    late = Clocks(steps(30_000_000, 1000, 2000), steps(700), steps(700))
    assert late.read()["perf_counter"] == 1_000_000_000 + 30_000_000 + 1000


def test_of_many_slow_readings_the_quickest_counts() -> None:
    sizes = [5_000_000, 0, 2_000_000, 0, *[9_000_000] * 60]
    assert Clocks(steps(*sizes), steps(1), steps(1)).read()["perf_counter"] == 1_005_000_000


def test_this_machines_clocks_agree() -> None:
    wall_ns, _ = take(Clocks(), count=2000)
    assert (wall_ns >= 0).all()


def test_the_collector_is_on_again_after_a_failure() -> None:
    import gc

    def fail(_: Arrays) -> Arrays:
        raise RuntimeError("broken")

    run = Batched(fail, {"x": np.dtype(np.float32)}, 1, 8)
    queries = repetition.split({"x": np.zeros((2, 2), np.float32)}, 1, 2)
    with pytest.raises(RuntimeError):
        repetition.take(run, queries, 2, {}, Clocks())
    assert gc.isenabled()


def test_warm_up_reaches_both_numbers(quick: Scenario) -> None:
    asked: list[int] = []

    def count(x: Arrays) -> Arrays:
        asked.append(1)
        return x

    run = Batched(count, {"x": np.dtype(np.float32)}, 1, 8)
    queries = repetition.split({"x": np.zeros((2, 2), np.float32)}, 1, 2)
    for seconds, expected in ((0.0, 3), (0.01, 3 + 9)):  # 9 ms are not yet 10
        warmup = quick.warmup.model_copy(update={"queries": 3, "seconds": seconds})
        scenario = quick.model_copy(update={"warmup": warmup})
        asked.clear()
        repetition.warm_up(run, queries, scenario, Clocks(perf_counter=steps(1_000_000)))
        assert len(asked) == expected


def test_answers_that_are_not_finite_or_not_the_recorded_ones_are_refused() -> None:
    reference = {"y": np.array([[10.0], [-20.0], [5.0]])}
    repetition.check_answers({"y": reference["y"] + 0.99}, [0, 1, 2], reference)
    wrong = {"y": reference["y"] + np.array([[0.0], [1.5], [0.0]])}
    words = r"'y': 1 of 3 answers differ from the recorded ones by up to 1\.5, expected at most 1:"
    with pytest.raises(MeasurementError, match=f"{words} the latency of a wrong answer is no res"):
        repetition.check_answers(wrong, [0, 1, 2], reference)
    repetition.check_answers(wrong, [0, 2], reference)  # row 1 was never asked
    bad = {"y": np.array([[1.0], [1.0], [np.nan]])}
    for given in (reference, None):
        with pytest.raises(
            MeasurementError, match="1 of 3 answers hold NaN or infinity, first row 2"
        ):
            repetition.check_answers(bad, [0, 1, 2], given)


def test_the_null_runner_answers_in_the_engines_shapes_without_running_it(engine: Artifact) -> None:
    io = IO.model_validate(engine.read_json("io.json"))
    with repetition.null_runner(io, 4) as run:
        answer = run({"x": np.ones((4, 64), np.float32)})
    assert answer["logits"].shape == (4, 10)
    assert not answer["logits"].any()


def test_a_job_writes_times_and_answers_and_returns_the_state(job: Job, engine: Artifact) -> None:
    folder = job()
    state = repetition.run_job(folder)
    with np.load(folder / "times.npz") as times:
        assert sorted(times) == ["wall_ns"]
        assert (times["wall_ns"].dtype, times["wall_ns"].shape) == (np.int64, (64,))
        assert (times["wall_ns"] > 0).all()
    with np.load(folder / "answers.npz") as answers:
        np.testing.assert_allclose(answers["logits"], runner.outputs(engine)["logits"], atol=1e-4)
    assert state["steal_ticks"] >= 0


def test_a_job_warms_up_reads_the_state_twice_and_keeps_the_last_gpu_times(
    job: Job, engine: Artifact, quick: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []  # each query's number stands for its time on the GPU

    def count(x: Arrays) -> Arrays:
        asked.append(len(asked))
        return opened(x)

    opened = runner.open(engine)
    run = Batched(count, {"x": np.dtype(np.float32)}, 1, 8, close=opened.close)
    monkeypatch.setattr(repetition, "_open", lambda *_: (run, asked))
    ticks = iter([(100, 1), (300, 4)])
    now = device_state.read
    monkeypatch.setattr(device_state, "read", lambda to: {**now(to), "cpu_ticks": next(ticks)})
    scenario = quick.model_copy(update={"warmup": Warmup(queries=5, seconds=0.0)})
    folder = job(scenario=scenario.model_dump(mode="json"))
    state = repetition.run_job(folder)
    # One query to learn the shapes, 5 to warm up, 64 that count.
    assert len(asked) == 1 + 5 + 64
    with np.load(folder / "times.npz") as times:
        assert times["gpu_ns"].tolist() == list(range(6, 70))
    assert (state["ticks"], state["steal_ticks"]) == (200, 3)


def test_a_wrong_answer_of_a_real_engine_is_refused(job: Job) -> None:
    folder = job()
    with np.load(folder / "reference.npz") as stored:
        logits = stored["logits"].copy()
    logits[7] += 0.1 * np.abs(logits).max()
    np.savez(folder / "reference.npz", logits=logits)
    with pytest.raises(MeasurementError, match="'logits': 1 of 20 answers differ"):
        repetition.run_job(folder)
    assert not (folder / "times.npz").exists()


def test_an_altered_engine_is_refused_before_it_is_opened(job: Job, engine: Artifact) -> None:
    folder = job()
    file = engine.path / "model.onnx"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(ArtifactError, match=r"model\.onnx was altered: SHA-256"):
        repetition.run_job(folder)


def test_an_engine_that_lacks_a_file_is_refused(job: Job, engine: Artifact) -> None:
    folder = job()
    (engine.path / "session.json").unlink()
    with pytest.raises(ArtifactError, match=r"session\.json is missing; copy the artifact again"):
        repetition.run_job(folder)


def test_another_engine_in_the_same_place_is_refused(
    job: Job, engine: Artifact, new_engine: Callable[..., Artifact]
) -> None:
    folder = job()
    other = new_engine(arm="dense")
    shutil.rmtree(engine.path)
    shutil.copytree(other.path, engine.path)
    assert artifact.load(engine.path, kinds.ENGINE).id == other.id
    words = f"another Engine than when the bench began: {other.id[:12]}.*{engine.id[:12]}"
    with pytest.raises(MeasurementError, match=words):
        repetition.run_job(folder)


def test_the_process_writes_down_what_went_wrong(job: Job, engine: Artifact) -> None:
    folder = job()
    (engine.path / "io.json").unlink()
    command = [sys.executable, "-m", "edgekd.bench.repetition", str(folder), str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((folder / "result.json").read_text())
    assert result["error"] == "ArtifactError"
    assert "io.json is missing" in result["message"]


def test_a_process_whose_bench_is_gone_does_nothing(job: Job) -> None:
    folder = job()
    nobody = "0"
    command = [sys.executable, "-m", "edgekd.bench.repetition", str(folder), nobody]
    subprocess.run(command, check=True)
    assert not (folder / "result.json").exists()
