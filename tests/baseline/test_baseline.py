"""A baseline is whole or it is the old one, and it says which of its parts is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, baseline, durable, kinds
from edgekd.artifact import Artifact, Kind, Question
from edgekd.errors import ArtifactError, ConfigError

sys.path.insert(0, str(Path(__file__).parents[1]))


def folder(directory: Path, kind: Kind) -> Path:
    (found,) = directory.glob(f"{kind.slug}-*")
    return found


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.name != ".accept"}


def test_what_is_accepted_can_be_read_where_nothing_else_is(
    made: dict[str, dict[str, Artifact]], written: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "b"
    shutil.copytree(written, moved)
    found = baseline.read(moved)
    expected = made["sparse"]
    assert found.engine is not None
    assert found.samples is not None
    assert found.engine_id == found.engine.id == expected["engine"].id
    assert found.samples.id == expected["samples"].id
    assert (found.accuracy.id, found.latency.id) == (
        expected["accuracy"].id,
        expected["latency"].id,
    )
    assert found.engine.path.parent == moved
    # Beside each other, so that the engine's own Samples are found.
    assert artifact.parent(found.engine, "samples", kinds.SAMPLES).path == found.samples.path


def test_a_new_baseline_replaces_the_old_and_leaves_other_files_alone(
    made: dict[str, dict[str, Artifact]], written: Path
) -> None:
    (written / "README.md").write_text("why")
    old = names(written)
    baseline.accept(written, **made["dense"])
    assert baseline.read(written).engine_id == made["dense"]["engine"].id
    assert names(written) & old == {"README.md", "baseline.json"}
    assert len(names(written)) == 6
    shared = {**made["dense"], "samples": made["sparse"]["samples"]}
    baseline.accept(written, **shared)
    again = baseline.read(written)
    assert again.samples is not None
    assert again.samples.id == made["sparse"]["samples"].id
    assert again.engine_id == made["dense"]["engine"].id


class Killed(BaseException):
    """Ends the process at a fault point."""


def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Arrange for the n-th fault point to kill, for every n; ends when none was left to die at."""
    for number in range(1000):
        seen: list[str] = []

        def point(name: str, seen: list[str] = seen, number: int = number) -> None:
            seen.append(name)
            if len(seen) > number:
                raise Killed(name)

        monkeypatch.setattr(durable, "point", point)
        yield number
        if len(seen) <= number:
            return
    pytest.fail("more than 1000 fault points")


def test_a_kill_at_any_moment_leaves_the_old_baseline_or_the_new(
    made: dict[str, dict[str, Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [made[arm]["engine"].id for arm in ("sparse", "dense")]
    found = []
    for number in dying(monkeypatch):
        directory = tmp_path / str(number)
        with monkeypatch.context() as quiet:
            quiet.setattr(durable, "point", lambda _: None)
            baseline.accept(directory, **made["sparse"])
        try:
            baseline.accept(directory, **made["dense"])
        except Killed:
            found.append(ids.index(baseline.read(directory).engine_id))
            with monkeypatch.context() as quiet:
                quiet.setattr(durable, "point", lambda _: None)
                baseline.accept(directory, **made["dense"])
        assert baseline.read(directory).engine_id == ids[1]
        assert len(names(directory)) == 5
        shutil.rmtree(directory)
    assert len(found) > 20
    assert found == sorted(found)  # the old one up to one moment, the new one from there on
    assert set(found) == {0, 1}


def test_a_first_baseline_that_was_killed_is_none_and_can_be_written_again(
    made: dict[str, dict[str, Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = set()
    for number in dying(monkeypatch):
        directory = tmp_path / str(number)
        try:
            baseline.accept(directory, **made["sparse"])
        except Killed:
            states.add(baseline.exists(directory))
            with monkeypatch.context() as quiet:
                quiet.setattr(durable, "point", lambda _: None)
                baseline.accept(directory, **made["sparse"])
        assert baseline.read(directory).engine_id == made["sparse"]["engine"].id
        shutil.rmtree(directory)
    assert states == {False, True}


def test_an_altered_part_is_not_copied(
    made: dict[str, dict[str, Artifact]], tmp_path: Path
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(made["sparse"]["engine"].path, copy)
    engine = artifact.load(copy)
    (copy / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match=r"model\.onnx was altered: 7 bytes, expected"):
        baseline.accept(tmp_path / "b", **{**made["sparse"], "engine": engine})
    assert not baseline.exists(tmp_path / "b")


def test_a_directory_of_something_else_is_left_alone(
    made: dict[str, dict[str, Artifact]], tmp_path: Path
) -> None:
    out = made["sparse"]["engine"].path.parent
    with pytest.raises(ConfigError) as caught:
        baseline.accept(out, **made["sparse"])
    assert "and no baseline.json, so it is no baseline and is left alone: name a" in str(
        caught.value
    )
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: is a file, expected a directory for the baseline"):
        baseline.accept(tmp_path / "file", **made["sparse"])


def test_what_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: no such baseline; --accept writes one"):
        baseline.read(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"holds no baseline\.json, so it is no baseline: name"):
        baseline.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"schema": 2},
            r"baseline\.json: is no index .* \(schema: Input should be 1\): restore it",
        ),
        ({"latency": None}, r"\(latency: Input should be"),
        ({"engine": {"name": "../engine-0123456789ab", "id": "0"}}, r"\(engine\.name: String sho"),
        ({"more": 1}, r"\(more: Extra inputs are not permitted\)"),
    ],
)
def test_an_index_of_another_schema_or_an_altered_one(
    written: Path, change: dict[str, Any], words: str
) -> None:
    file = written / "baseline.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ArtifactError, match=words):
        baseline.read(written)
    file.write_text("{")
    with pytest.raises(
        ArtifactError, match=r"\(the document: Invalid JSON: .* remove the baseline"
    ):
        baseline.read(written)


def test_altered_samples(written: Path) -> None:
    file = folder(written, kinds.SAMPLES) / "samples.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"samples\.npz was altered: SHA-256"):
        baseline.read(written)


def test_a_report_of_another_schema(written: Path, tmp_path: Path) -> None:
    place = folder(written, kinds.LATENCY_REPORT)
    later = Kind("LatencyReport", "latency", 2, ())
    other = artifact.make(tmp_path / "o", Question(later, {}), lambda _: {})
    shutil.rmtree(place)
    other.path.rename(place)
    words = "LatencyReport has schema 2, this edgekd reads 1; make it again with this version"
    with pytest.raises(ArtifactError, match=words):
        baseline.read(written)


def test_a_report_that_is_missing_or_another_one(
    made: dict[str, dict[str, Artifact]], written: Path
) -> None:
    place = folder(written, kinds.ACCURACY_REPORT)
    shutil.rmtree(place)
    with pytest.raises(ArtifactError, match=f"{place.name}: no such artifact directory"):
        baseline.read(written)
    shutil.copytree(made["dense"]["accuracy"].path, place)
    with pytest.raises(ArtifactError, match="is another AccuracyReport than was accepted: "):
        baseline.read(written)


@pytest.mark.parametrize("role", ["accuracy", "latency"])
def test_a_report_of_another_engine(
    made: dict[str, dict[str, Artifact]], tmp_path: Path, role: str
) -> None:
    theirs = made["dense"]
    baseline.accept(tmp_path / "b", **{**made["sparse"], role: theirs[role]})
    with pytest.raises(ArtifactError) as caught:
        baseline.read(tmp_path / "b")
    found, expected = theirs["engine"].id[:12], made["sparse"]["engine"].id[:12]
    assert f"is of engine {found}..., expected the baseline's {expected}...: " in str(caught.value)


def test_numbers_alone_can_still_be_read(written: Path) -> None:
    shutil.rmtree(folder(written, kinds.ENGINE))
    shutil.rmtree(folder(written, kinds.SAMPLES))
    found = baseline.read(written)
    assert (found.engine, found.samples) == (None, None)
