"""When two runs may be compared, and what a ratio of their numbers is worth."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, baseline, kinds, recipe, target
from edgekd.artifact import Artifact, Question, Work
from edgekd.bench.bench import protocol
from edgekd.bench.device_state import UNCONTROLLED
from edgekd.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports

FEW = reports.few()
SLOW = reports.draw(1, 2e6, between=0.01)
FAST = reports.draw(2, 1e6, between=0.01)


def test_another_target_scenario_or_protocol(
    made: dict[str, dict[str, Artifact]], written: Path
) -> None:
    found, cpu = baseline.read(written), target.load("cpu")
    same = protocol([made["sparse"]["engine"]], FEW)
    baseline.check_same(found, cpu, FEW, same)
    orin = target.load("jetson-agx-orin-64gb-jp6.2")
    with pytest.raises(ConfigError) as caught:
        baseline.check_same(found, orin, FEW, same)
    assert (
        "b: its LatencyReport is of target 'cpu', the gate is on target "
        "'jetson-agx-orin-64gb-jp6.2'; they differ in bandwidth_bytes_per_s, compute_capability, "
    ) in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        baseline.check_same(found, cpu, reports.few(queries=65), same)
    assert str(caught.value).endswith(
        "b: its LatencyReport is of scenario 'few', the gate is on scenario 'few'; they differ in "
        "queries: gate on the baseline's own scenario, or accept a baseline of this one in another "
        "directory"
    )
    with pytest.raises(
        ConfigError, match=r"was measured by the protocol 'edgekd-1 clock=.*'edgekd-"
    ):
        baseline.check_same(found, cpu, FEW, same.replace("edgekd-1", "edgekd-2"))


def new_samples(out: Path, old: Artifact, **changes: Any) -> Artifact:
    """Samples with some arrays replaced (None removes one)."""
    with np.load(old.file("samples.npz")) as stored:
        arrays = {**stored, **changes}
    arrays = {name: array for name, array in arrays.items() if array is not None}

    def write(work: Work) -> dict[str, Any]:
        np.savez(work.scratch / "samples.npz", **arrays)
        shutil.copyfile(old.file("io.json"), work.scratch / "io.json")
        return {}

    answer = {name: array.tolist() for name, array in arrays.items()}
    return artifact.make(out, Question(kinds.SAMPLES, {"answer": answer}), write)


def test_the_samples_must_ask_the_same(written: Path, tmp_path: Path) -> None:
    found = baseline.read(written)
    assert found.samples is not None
    baseline.check_questions(found, found.samples)
    # Another student's outputs, another teacher's: still the same questions.
    logits = np.zeros((20, 10), np.float32)
    again = new_samples(tmp_path, found.samples, **{"student.logits": logits})
    baseline.check_questions(found, again)
    labels = np.zeros(20, np.int64)
    other = new_samples(tmp_path, found.samples, labels=labels)
    with pytest.raises(ConfigError) as caught:
        baseline.check_questions(found, other)
    assert (
        f"{other.path}: labels of these 20 samples are not those of the baseline's 20 samples"
    ) in str(caught.value)
    assert str(caught.value).endswith(
        "name with --samples those that both engines are to be run on"
    )
    inputs = {"input.x": np.zeros((19, 64), np.float32), "labels": np.zeros(19, np.int64)}
    fewer = new_samples(tmp_path, found.samples, **inputs)
    with pytest.raises(ConfigError, match="input x, labels of these 19 samples are not those of"):
        baseline.check_questions(found, fewer)
    renamed = new_samples(tmp_path, found.samples, **{"input.x": None, "input.y": logits})
    with pytest.raises(ConfigError, match="input x, input y of these 20 samples"):
        baseline.check_questions(found, renamed)


def test_samples_that_are_not_there_cannot_be_compared_with(written: Path, tmp_path: Path) -> None:
    own = baseline.read(written).samples
    assert own is not None
    other = new_samples(tmp_path, own, labels=np.zeros(20, np.int64))
    own = artifact.load(shutil.copytree(own.path, tmp_path / "own"))
    (place,) = written.glob(f"{kinds.SAMPLES.slug}-*")
    shutil.rmtree(place)
    found = baseline.read(written)
    baseline.check_questions(found, own)  # the id is enough
    with pytest.raises(ConfigError) as caught:
        baseline.check_questions(found, other)
    assert f"its Samples {own.id[:12]}... are not there, and the gate is on {other.id[:12]}" in str(
        caught.value
    )


def test_the_ratio_of_two_runs_is_as_wide_as_both_allow(
    made: dict[str, dict[str, Artifact]], tmp_path: Path
) -> None:
    # p90 of each of 12 processes is 1, 2, ... 12 us; the second smallest and largest are 3 and 10:
    # P(binomial(12, 1/2) <= 2) is 1.9%.
    steps = np.repeat(np.arange(1000, 13000, 1000), 64).reshape(12, 64)
    out, engine = tmp_path / "out", made["sparse"]["engine"]
    theirs = reports.latency_report(out, [engine], FEW, [steps])
    baseline.accept(tmp_path / "b", **{**made["sparse"], "latency": theirs})
    ours = reports.latency_report(out, [made["dense"]["engine"]], FEW, [2 * steps])
    ratio = baseline.stored_ratio(baseline.read(tmp_path / "b"), ours)
    assert ratio == pytest.approx((2.0, 2 * 3 / 10, 2 * 10 / 3))


def test_the_ratio_of_two_offline_runs_is_that_of_their_times(
    made: dict[str, dict[str, Artifact]], tmp_path: Path
) -> None:
    offline = reports.few(scenario="Offline", percentile=None)
    out, engine = tmp_path / "out", made["sparse"]["engine"]
    flat = np.full((12, 64), 1000)
    flat[:, 0] = 1000 + 64 * 1000  # the mean of each repetition is 2000, its p90 1000
    theirs = reports.latency_report(out, [engine], offline, [flat])
    baseline.accept(tmp_path / "b", **{**made["sparse"], "latency": theirs})
    ours = reports.latency_report(out, [engine], offline, [np.full((12, 64), 1000)])
    assert baseline.stored_ratio(baseline.read(tmp_path / "b"), ours) == (0.5, 0.5, 0.5)


def test_a_baseline_from_an_interleaved_run_is_the_engine_that_was_accepted(
    made: dict[str, dict[str, Artifact]], tmp_path: Path
) -> None:
    out, sparse, dense = tmp_path / "out", made["sparse"], made["dense"]["engine"]
    both = reports.latency_report(out, [dense, sparse["engine"]], FEW, [SLOW, FAST])
    baseline.accept(tmp_path / "b", **{**sparse, "latency": both})
    ours = reports.latency_report(out, [dense], FEW, [FAST])
    found, _, _ = baseline.stored_ratio(baseline.read(tmp_path / "b"), ours)
    assert found == 1.0


@pytest.mark.parametrize(
    ("state", "config", "words"),
    [
        ({}, {}, ""),
        ({"cpu_clock_hz": [2_010_000_000, 2_010_000_000]}, {}, ""),
        (
            {"cpu_clock_hz": [3_000_000_000, 3_000_000_000]},
            {},
            "cpu_clock_hz was 2000000000.0 for the baseline and is 3000000000.0 for the candidate",
        ),
        (
            {"cpu_clock_locked": False},
            {},
            f"the candidate's machine was not locked ({UNCONTROLLED})",
        ),
        (
            {"cpu_model": "another"},
            {},
            "cpu_model was ['a processor'] for the baseline and is ['another'] for the candidate",
        ),
        ({"threads": 4}, {}, "threads was 2.0 for the baseline and is 4.0 for the candidate"),
        ({}, {"where": {"device": "other"}}, "where was {"),
    ],
)
def test_two_runs_compare_only_in_a_locked_and_equal_state(
    made: dict[str, dict[str, Artifact]],
    tmp_path: Path,
    state: dict[str, Any],
    config: dict[str, Any],
    words: str,
) -> None:
    theirs, engine = made["sparse"]["latency"], made["dense"]["engine"]
    ours = reports.latency_report(tmp_path, [engine], FEW, [FAST], state, **config)
    found = baseline.unlike_state(theirs, ours)
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_a_baseline_that_was_not_locked_says_so(
    made: dict[str, dict[str, Artifact]], tmp_path: Path
) -> None:
    engine = made["sparse"]["engine"]
    free = reports.latency_report(tmp_path, [engine], FEW, [FAST], {"cpu_clock_locked": False})
    found = baseline.unlike_state(free, made["sparse"]["latency"])
    assert found == f"the baseline's machine was not locked ({UNCONTROLLED})"


def test_what_a_target_requires_is_compared(tmp_path: Path) -> None:
    needs = ["power_mode", "gpu_clock_hz", "temperature_celsius", "throttling"]
    document = {**target.load("cpu").as_json(), "required_state": needs}
    recipe.check(target.Target, document, "test")
    engine = reports.engine(tmp_path, where={"required_state": needs})
    gpu = {"power_mode": "MAXN (0)", "gpu_clock_hz": 1_300_000_000, "temperature_celsius": 50.0}

    def run(seed: int, **changes: Any) -> Artifact:
        times = reports.draw(seed, 1e6, between=0.01)
        return reports.latency_report(tmp_path, [engine], FEW, [times], {**gpu, **changes})

    first = run(1)
    assert baseline.unlike_state(first, run(2, temperature_celsius=59.0)) == ""
    warm = baseline.unlike_state(first, run(3, temperature_celsius=61.0))
    assert warm.startswith("temperature_celsius was 50.0 for the baseline and is 61.0")
    mode = baseline.unlike_state(first, run(4, power_mode="15W (1)"))
    assert mode.startswith("power_mode was ['MAXN (0)'] for the baseline and is ['15W (1)']")
    assert baseline.unlike_state(first, run(5, gpu_clock_hz=1_290_000_000)) == ""
    assert baseline.unlike_state(first, run(6, gpu_clock_hz=1_200_000_000)).startswith("gpu_clock")
