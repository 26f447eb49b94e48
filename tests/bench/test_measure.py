from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import runner
from edgekd.artifact import Artifact
from edgekd.bench import inputs, measure
from edgekd.bench.measure import Measured
from edgekd.bench.scenario import Scenario
from edgekd.errors import ArtifactError, MeasurementError
from edgekd.target import Target

Engines = Callable[..., Artifact]
SEED = 5


def take(
    engines: list[Artifact], scenario: Scenario, keep: Path, rounds: int, **options: Any
) -> Measured:
    chosen = inputs.choose(engines, inputs.default_samples(engines[0]))
    where = Target.model_validate(engines[0].config["target"])
    return measure.measure(
        engines, scenario, chosen, where, rounds=rounds, seed=SEED, keep=keep, **options
    )


def once(done: int, action: Callable[[], object]) -> measure.Show:
    """Do something when so many repetitions are done."""

    def show(number: int, _: str) -> None:
        if number == done:
            action()

    return show


def test_the_order_is_abba_and_shuffled_from_block_to_block() -> None:
    rounds = measure.order(3, 9, 0)
    assert len(rounds) == 9
    for forward, backward in zip(rounds[:8:2], rounds[1:8:2], strict=True):
        assert backward == forward[::-1]
        assert sorted(forward) == [0, 1, 2]
    assert len({tuple(each) for each in measure.order(3, 20, 0)}) > 3
    assert measure.order(3, 9, 0) == rounds
    assert measure.order(3, 20, seed=1) != measure.order(3, 20, 0)


def test_two_engines_alternate_as_abba() -> None:
    rounds = measure.order(2, 20, 0)
    assert {(*rounds[i], *rounds[i + 1]) for i in range(0, 20, 2)} == {
        (0, 1, 1, 0),
        (1, 0, 0, 1),
    }


def test_over_a_block_all_have_the_same_mean_place() -> None:
    for seed in range(5):
        flat = [each for row in measure.order(4, 2, seed) for each in row]
        places = [[i for i, each in enumerate(flat) if each == n] for n in range(4)]
        assert {sum(each) for each in places} == {7}


def test_a_run_keeps_every_sample_of_every_engine_and_of_null(
    new_engine: Engines, quick: Scenario, tmp_path: Path
) -> None:
    engines = [new_engine(arm="dense"), new_engine(arm="sparse")]
    seen: list[tuple[int, str]] = []
    found = take(
        engines, quick, tmp_path / "keep", 2, show=lambda done, arm: seen.append((done, arm))
    )
    assert (found.wall_ns.shape, found.wall_ns.dtype) == ((2, 2, 64), np.int64)
    assert found.null_ns.shape == (2, 64)
    assert found.gpu_ns is None
    assert (found.wall_ns > 0).all()
    # A runner that does nothing costs less than any engine.
    assert np.median(found.null_ns) < np.median(found.wall_ns)
    assert (found.seed, found.order) == (SEED, measure.order(3, 2, SEED))
    names = ["dense", "sparse", "null"]
    flat = [each for row in found.order for each in row]
    assert seen == [(n + 1, names[each]) for n, each in enumerate(flat)]
    assert found.references == [inputs.RECORDED] * 2
    assert found.resumed == []
    assert [len(row) for row in found.states] == [3, 3]


def test_each_repetition_is_a_process_of_its_own(
    engine: Artifact, quick: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sitecustomize on the path is the one thing that can write a process down from inside.
    site = tmp_path / "site"
    site.mkdir()
    log = tmp_path / "log"
    (site / "sitecustomize.py").write_text(
        f"import os, sys\nopen({str(log)!r}, 'a').write(f'{{os.getpid()}} {{sys.executable}}\\n')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    take([engine], quick, tmp_path / "keep", 2)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({number for number, _ in lines}) == 4
    assert {path for _, path in lines} == {sys.executable}
    assert str(os.getpid()) not in {number for number, _ in lines}


def test_without_recorded_answers_later_repetitions_are_held_against_the_first(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    chosen = inputs.choose([engine], None)
    where = Target.model_validate(engine.config["target"])
    keep = tmp_path / "keep"

    def spoil() -> None:
        path = keep / "rounds" / "000-00" / "answers.npz"
        with np.load(path) as stored:
            logits = stored["logits"] + 1000
        np.savez(path, logits=logits)

    show = once(2, spoil)  # the first round is over
    with pytest.raises(MeasurementError, match="'logits': 64 of 64 answers differ"):
        measure.measure([engine], quick, chosen, where, rounds=2, seed=SEED, keep=keep, show=show)


def test_an_answer_other_than_the_recorded_one_ends_the_run(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    chosen = inputs.choose([engine], inputs.default_samples(engine))
    (recorded,) = chosen.references
    assert recorded is not None
    wrong = {"logits": recorded["logits"] + np.float32(1000)}
    where = Target.model_validate(engine.config["target"])
    keep = tmp_path / "keep"
    with pytest.raises(MeasurementError, match="'logits': 20 of 20 answers differ from the record"):
        measure.measure(
            [engine],
            quick,
            replace(chosen, references=(wrong,)),
            where,
            rounds=2,
            seed=SEED,
            keep=keep,
        )
    assert not list((keep / "rounds").glob("*-00"))  # in its first repetition


def test_each_repetitions_state_is_looked_at(
    engine: Artifact, quick: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = f"001-{measure.order(2, 2, SEED)[1][0]:02d}"
    read = measure._result

    def moved(folder: Path) -> Mapping[str, Any]:
        result = read(folder)
        other = {"cpu_model": "another processor"} if folder.name == third else {}
        return {**result, "state": {**result["state"], **other}}

    monkeypatch.setattr(measure, "_result", moved)
    words = "required state cpu_model in repetition 3: found another processor, expected "
    with pytest.raises(MeasurementError, match=words):
        take([engine], quick, tmp_path / "keep", 2)


def test_an_engine_built_on_another_processor_is_refused(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    engine.config["device"]["device"] = "another processor"
    words = "cpu_model in repetition 1: found .*, expected another processor; .* was built on"
    with pytest.raises(MeasurementError, match=words):
        take([engine], quick, tmp_path / "keep", 2)


def test_an_engine_changed_under_a_running_bench_ends_it(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    file = engine.path / "model.onnx"
    show = once(2, lambda: file.write_bytes(file.read_bytes()[:-1] + b"\0"))
    with pytest.raises(ArtifactError, match=r"model\.onnx was altered"):
        take([engine], quick, tmp_path / "keep", 4, show=show)


def test_a_process_that_dies_is_told(
    engine: Artifact, quick: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import os\nos._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    words = "a repetition ended with 9, expected 0: it said nothing: open the engine by itself"
    with pytest.raises(MeasurementError, match=words):
        take([engine], quick, tmp_path / "keep", 2)


def test_finished_blocks_are_kept_and_half_a_block_is_not(
    engine: Artifact, quick: Scenario, tmp_path: Path
) -> None:
    keep = tmp_path / "keep"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take([engine], quick, keep, 4, show=once(7, stop))
    assert len(list((keep / "rounds").iterdir())) == 7
    assert measure.resumable(keep, 2)
    kept = {f.name: f.stat().st_mtime_ns for f in (keep / "rounds").glob("00[01]-*/times.npz")}
    found = take([engine], quick, keep, 4)
    assert found.resumed == [2]
    assert found.wall_ns.shape == (1, 4, 64)
    again = {f.name: f.stat().st_mtime_ns for f in (keep / "rounds").glob("00[01]-*/times.npz")}
    assert again == kept
    # A third start remembers the second.
    assert take([engine], quick, keep, 4).resumed == [2, 4]


@pytest.mark.parametrize("what", ["boot", "age", "nothing"])
def test_what_was_kept_is_of_no_use_after_a_restart_or_an_hour(
    engine: Artifact, quick: Scenario, tmp_path: Path, what: str
) -> None:
    keep = tmp_path / "keep"
    take([engine], quick, keep, 2)
    for file in (keep / "rounds").glob("001-*/result.json"):
        result = json.loads(file.read_text())
        if what == "boot":
            result["state"]["boot_id"] = "another"
        if what == "age":
            result["time_ns"] -= 3601 * 10**9
        file.write_text(json.dumps(result))
    assert measure.resumable(keep, 2) is (what == "nothing")
    assert not measure.resumable(tmp_path / "nowhere", 2)


def test_the_engines_say_which_cpu_and_threads_are_expected(engine: Artifact) -> None:
    where = runner.fingerprint(engine)
    assert measure.expected_state([engine]) == {
        "cpu_model": where["device"],
        "threads": where["threads"],
    }
