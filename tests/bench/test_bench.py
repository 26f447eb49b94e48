from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, kinds, run
from edgekd.artifact import Artifact, Question
from edgekd.bench import bench as stage
from edgekd.bench import inputs, measure, summary
from edgekd.bench.bench import bench, newest
from edgekd.bench.scenario import Scenario, Warmup
from edgekd.errors import ArtifactError

Engines = Callable[..., Artifact]


@pytest.fixture(scope="module")
def report(three_engines: list[Artifact], quick: Scenario) -> Artifact:
    """The comparison the stage is for: float teacher, dense INT8 and 2:4 INT8 in one run."""
    return bench(three_engines, quick, three_engines[0].path.parent)


@pytest.fixture
def copied(report: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(report.path, tmp_path / report.path.name))


def read(report: Artifact) -> dict[str, Any]:
    document: dict[str, Any] = report.read_json("latency.json")
    return document


def test_the_report_names_engines_protocol_device_and_what_they_were_asked(
    report: Artifact, three_engines: list[Artifact], quick: Scenario
) -> None:
    document = read(report)
    assert [row["id"] for row in document["engines"]] == [each.id for each in three_engines]
    assert [row["arm"] for row in document["engines"]] == ["fp16", "dense", "sparse"]
    assert {row["runtime"] for row in document["engines"]} == {"onnxruntime"}
    assert document["protocol"] == (
        "edgekd-1 clock=perf_counter_ns around=runner-call transfers=none gc=off process=fresh "
        "warmup=1q+0s order=abba seed=started"
    )
    assert document["target"] == "cpu"
    assert set(document["where"]) == {"device", "threads", "onnxruntime"}
    assert document["inputs"].startswith("20 rows of Samples ")
    assert document["scenario"] == quick.model_dump(mode="json")
    parents = report.manifest.parents
    assert [parents[f"engine-{n}"] for n in range(3)] == [each.id for each in three_engines]
    assert parents["samples"] in {s.manifest.parents["samples"] for s in three_engines}


def test_every_number_is_derived_from_the_stored_samples(report: Artifact, quick: Scenario) -> None:
    with np.load(report.file("samples.npz"), allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    assert sorted(samples) == ["null_ns", "wall_ns"]
    assert (samples["wall_ns"].dtype, samples["wall_ns"].shape) == (np.int64, (3, 9, 64))
    document = read(report)
    assert document["null"] == summary.null_row(samples["null_ns"])
    for number, row in enumerate(document["engines"]):
        derived = json.loads(json.dumps(summary.engine_row(samples["wall_ns"][number], quick)))
        assert {name: row[name] for name in derived} == derived
        assert set(row["percentiles"]) == {"p50", "p90"}
        assert ("ratio_to_first" in row) is (number > 0)
        assert 0 < row["harness_share"] < 1
    ratio = document["engines"][2]["ratio_to_first"]["p90"]
    assert ratio["low"] <= ratio["estimate"] <= ratio["high"]


def test_the_report_says_what_its_numbers_are_not(report: Artifact) -> None:
    document = read(report)
    assert (
        "ONNX Runtime uses no 2:4: dense and 2:4 INT8 are expected to be equally fast"
        in (document["notes"][0])
    )
    assert any("latency only" in note for note in document["notes"])
    assert document["notes"] == report.results["notes"]
    if document["machine"] != "uncontrolled machine: ratios only":  # a machine of one's own
        states = report.read_json("state.json")["states"]
        assert all(state["cpu_clock_locked"] is True for row in states for state in row)


def test_the_state_of_every_repetition_is_kept(report: Artifact) -> None:
    document = report.read_json("state.json")
    assert len(document["order"]) == len(document["states"]) == 9
    for row in document["states"]:
        assert len(row) == 4  # three engines and null
        assert all(state["threads"] >= 1 for state in row)
    started = report.config["started"]
    assert document["seed"] == read(report)["order_seed"] == stage.order_seed(started)
    assert document["order"] == measure.order(4, 9, document["seed"])


def test_the_results_in_the_manifest_are_those_of_the_report(report: Artifact) -> None:
    for kept, row in zip(report.results["engines"], read(report)["engines"], strict=True):
        assert kept["id"] == row["id"]
        assert kept["p90"]["estimate"] == row["percentiles"]["p90"]["estimate"]
        assert kept["ratio_to_first"] == row.get("ratio_to_first")


def test_nothing_is_left_of_the_work(report: Artifact) -> None:
    work = report.path.parent / ".work"
    assert not work.exists() or list(work.iterdir()) == []


def test_the_newest_report_is_found_with_its_date(
    report: Artifact, three_engines: list[Artifact], quick: Scenario
) -> None:
    out = report.path.parent
    found = newest(three_engines, quick, out)
    assert found is not None
    assert found.id == report.id
    assert found.config["started"].startswith("20")
    assert found.config["started"] == read(report)["started"]
    assert newest(three_engines[:2], quick, out) is None
    assert newest(three_engines[::-1], quick, out) is None
    assert newest(three_engines, quick.model_copy(update={"queries": 65}), out) is None
    assert newest(three_engines, quick, out / "nowhere") is None


def test_a_report_of_other_sources_tools_or_samples_is_not_taken(
    report: Artifact,
    three_engines: list[Artifact],
    quick: Scenario,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = report.path.parent
    own = inputs.default_samples(three_engines[0])
    assert own is not None

    def found(samples: Artifact | None = None) -> str | None:
        report = newest(three_engines, quick, out, samples)
        return report and report.id

    assert found() == found(own) == report.id

    def write(work: artifact.Work) -> dict[str, Any]:
        for name in kinds.SAMPLES.files:
            shutil.copyfile(own.file(name), work.scratch / name)
        return {}

    assert found(artifact.make(tmp_path, Question(kinds.SAMPLES, {"other": 1}), write)) is None
    with monkeypatch.context() as changed:
        changed.setattr(stage, "versions", lambda *_: {"numpy": "0"})
        assert found() is None
    with monkeypatch.context() as changed:
        changed.setattr(stage, "source_hash", lambda *_: "of an edited line")
        assert found() is None
    assert found() == report.id


def test_a_report_of_another_schema_is_not_taken(
    copied: Path, three_engines: list[Artifact], quick: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert newest(three_engines, quick, copied.parent) is not None
    later = dataclasses.replace(kinds.LATENCY_REPORT, schema=2)
    monkeypatch.setattr(kinds, "LATENCY_REPORT", later)
    assert newest(three_engines, quick, copied.parent) is None


def test_the_order_is_another_one_in_every_run() -> None:
    seeds = [stage.order_seed(f"2026-11-21T10:00:00.00000000{n}Z") for n in range(3)]
    assert len(set(seeds)) == 3
    assert seeds[0] == stage.order_seed("2026-11-21T10:00:00.000000000Z")
    assert measure.order(4, 12, seeds[0]) != measure.order(4, 12, seeds[1])


def test_altered_samples_are_refused(
    copied: Path, three_engines: list[Artifact], quick: Scenario
) -> None:
    file = copied / "samples.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"samples\.npz was altered: SHA-256 .*, expected"):
        artifact.load(copied, kinds.LATENCY_REPORT)
    with pytest.raises(ArtifactError, match=r"samples\.npz was altered"):
        newest(three_engines, quick, copied.parent)


def test_a_report_of_another_schema_is_refused(copied: Path) -> None:
    later = dataclasses.replace(kinds.LATENCY_REPORT, schema=2)
    with pytest.raises(ArtifactError, match="LatencyReport has schema 1, this edgekd reads 2"):
        artifact.load(copied, later)


KILLED = """
import sys
from pathlib import Path
from edgekd import artifact, kinds, run
from edgekd.bench.bench import bench
from edgekd.bench.scenario import Scenario

engine = artifact.load(Path(sys.argv[1]), kinds.ENGINE)
bench([engine], Scenario.model_validate_json(sys.argv[2]), engine.path.parent)
"""


def running(out: Path) -> list[str]:
    """Command lines of the processes that work below a directory."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines.append(file.read_bytes().decode(errors="replace"))
    return [line for line in lines if str(out) in line and "edgekd.bench.repetition" in line]


def test_a_killed_run_goes_on_with_its_finished_blocks_and_says_so(
    engine: Artifact, quick: Scenario
) -> None:
    out = engine.path.parent
    command = [sys.executable, "-c", KILLED, str(engine.path), quick.model_dump_json()]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not list(out.glob(".work/latency-*/rounds/002-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while running(out) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(out) == []  # a repetition does not outlive its bench
    (marker,) = out.glob(".work/*.started")
    began = marker.read_text()
    made = bench([engine], quick, out)
    assert made.config["started"] == began
    (resumed,) = read(made)["resumed_before_rounds"]
    assert resumed in (2, 4)  # whole blocks
    assert read(made)["engines"][0]["repetitions"] == 9
    states = made.read_json("state.json")
    assert states["seed"] == stage.order_seed(began)
    assert states["order"] == measure.order(2, 9, states["seed"])
    assert list((out / ".work").iterdir()) == []


def test_the_same_question_is_measured_again_and_only_run_takes_an_earlier_answer(
    engine: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = engine.path.parent
    offline = Scenario(
        name="all",
        scenario="Offline",
        batch=8,
        queries=11,
        warmup=Warmup(queries=1, seconds=0),
        repetitions=9,
    )
    first, second = bench([engine], offline, out), bench([engine], offline, out)
    assert first.config["started"] < second.config["started"]
    assert first.config["protocol"] == second.config["protocol"]
    assert len({read(each)["order_seed"] for each in (first, second)}) == 2
    assert read(second)["resumed_before_rounds"] == []
    assert second.id != first.id
    # Nor does run, once a line that measures was edited.
    asked: list[list[Artifact]] = []
    monkeypatch.setattr(run, "bench", lambda engines, *_: asked.append(engines) or first)
    assert run._bench([engine], offline, out).id == second.id
    monkeypatch.setattr(stage, "source_hash", lambda *_: "of an edited line")
    assert run._bench([engine], offline, out).id == first.id
    assert asked == [[engine]]
    (row,) = second.results["engines"]
    assert row["samples_per_s"]["estimate"] > 0
    assert (row["valid"], row["ratio_to_first"]) == (True, None)
