"""Wrong and altered input, and a machine that misbehaves: the sentence that `bench` ends with."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekd import artifact, kinds
from edgekd.artifact import Artifact
from edgekd.bench import bench as stage
from edgekd.bench.bench import bench, newest
from edgekd.bench.scenario import Scenario
from edgekd.cli import main
from edgekd.errors import ArtifactError, ConfigError, MeasurementError, UnsupportedError

Engines = Callable[..., Artifact]


def test_engines_of_two_targets_are_no_comparison(
    new_engine: Engines, quick: Scenario, tmp_path: Path
) -> None:
    engines = [new_engine(), new_engine(name="other-cpu")]
    words = "is for target other-cpu, .* is for cpu: latencies of two targets are no comparison"
    with pytest.raises(ConfigError, match=words):
        bench(engines, quick, tmp_path / "out")


def test_no_engine_and_what_is_none_are_refused(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="bench was given 0 engines, expected at least 1"):
        bench([], quick, tmp_path / "out")
    model = artifact.parent(engine, "model")
    with pytest.raises(ArtifactError, match="is a OnnxModel, expected an Engine: build it"):
        bench([model], quick, tmp_path / "out")


def test_evidence_is_never_measured(engine: Artifact, quick: Scenario, tmp_path: Path) -> None:
    config = {**engine.config, "runtime": "tensorrt-rtx"}
    manifest = engine.manifest.model_copy(update={"config": config})
    evidence = dataclasses.replace(engine, manifest=manifest)
    with pytest.raises(
        UnsupportedError, match="tensorrt-rtx plan kept as evidence, which is never"
    ):
        bench([evidence], quick, tmp_path / "out")


def test_a_batch_the_engine_does_not_take_is_refused(engine: Artifact, tmp_path: Path) -> None:
    offline = Scenario(name="big", scenario="Offline", batch=9, queries=20, repetitions=9)
    words = "scenario big asks 9 samples a query, the engine .* takes 1 to 8: change batch"
    with pytest.raises(ConfigError, match=words):
        bench([engine], offline, tmp_path / "out")


def test_required_state_that_cannot_be_read_makes_no_report(
    new_engine: Engines, quick: Scenario, tmp_path: Path
) -> None:
    engine = new_engine(required_state=["steal_share", "power_mode"])
    words = "required state power_mode in .*found unavailable: not read, expected a reading; .*nvpm"
    with pytest.raises(MeasurementError, match=words):
        bench([engine], quick, tmp_path / "out")
    assert list((tmp_path / "out").glob("latency-*")) == []


def test_an_engine_or_samples_altered_or_incomplete_are_refused(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    samples = artifact.parent(engine, "samples", kinds.SAMPLES)
    (samples.path / "samples.npz").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"samples\.npz was altered: 0 bytes, expected"):
        bench([engine], quick, tmp_path / "out", samples)
    (engine.path / "io.json").unlink()
    with pytest.raises(ArtifactError, match=r"io\.json is missing; copy the artifact again, whole"):
        bench([engine], quick, tmp_path / "out")


def test_a_run_that_became_invalid_is_not_gone_on_with(
    engine: Artifact, quick: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    file = engine.path / "model.onnx"

    def alter(*_: object) -> None:
        if len(list(out.glob(".work/latency-*/rounds/*"))) == 5:
            file.write_bytes(file.read_bytes()[:-1] + b"\0")

    class Bar:
        def __enter__(self) -> Callable[..., None]:
            return alter

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(stage.progress, "bar", lambda *_: Bar())
    with pytest.raises(ArtifactError, match=r"model\.onnx was altered"):
        bench([engine], quick, out)
    assert list((out / ".work").iterdir()) == []


def test_altered_samples_beside_the_engine_are_not_passed_over(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    samples = artifact.parent(engine, "samples", kinds.SAMPLES)
    file = samples.path / "samples.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    for ask in (bench, newest):
        with pytest.raises(ArtifactError, match=r"samples\.npz was altered: SHA-256 .*, expected"):
            ask([engine], quick, tmp_path / "out")


def test_fewer_queries_than_the_percentile_needs_say_how_many(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    file = tmp_path / "scenario.toml"
    document = {**quick.model_dump(mode="json", exclude={"warmup"}), "queries": 63}
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in document.items()))
    done = CliRunner().invoke(main, ["bench", str(engine.path), "--scenario", str(file)])
    assert done.exit_code == 3
    assert "63 queries are too few for an upper bound of p90 with 99% coverage" in done.output
    assert "expected at least 64: set queries = 64 or more" in done.output


def test_a_clock_that_jumps_in_a_repetition_ends_the_run(
    engine: Artifact, quick: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the processes of the repetitions get this module: in them the machine seems to sleep.
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "hours = itertools.count()\n"
        "time.clock_gettime_ns = lambda _: next(hours) * 3_600_000_000_000\n"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    words = (
        r"the clock jumped: boot time went on by 3600000\.0 ms while perf_counter counted "
        r"[\d.]+ ms, expected at most [\d.]+ ms apart .*: measure again"
    )
    with pytest.raises(MeasurementError, match=words):
        bench([engine], quick, tmp_path / "out")
    assert list((tmp_path / "out").glob("latency-*")) == []
