"""Making an artifact: the question decides the key, the answer the id, each is worked on once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Kind, Work
from edgekd.errors import ArtifactError

sys.path.insert(0, str(Path(__file__).parent))
from tiny.artifacts import ASKED, OTHER, PLATE, edit_manifest, never, says, sha256, write


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return artifact.make(tmp_path / "out", ASKED, write)


def test_manifest_says_what_was_asked_and_answered(made: Artifact) -> None:
    body = json.loads((made.path / "manifest.json").read_text())
    assert body.pop("provenance").keys() == {"time", "seconds", "host", "machine", "edgekd_git"}
    assert body == {
        "kind": "Plate",
        "schema": 1,
        "parents": {},
        "config": {"size": 2, "name": "x"},
        "sources": {"code": "ab"},
        "tools": {"numpy": "2"},
        "results": {"accuracy": 0.5},
        "files": {
            "plate.txt": {
                "bytes": 5,
                "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            },
            "parts/a.txt": {
                "bytes": 0,
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            },
        },
        "key": ASKED.key,
        "id": made.id,
    }
    assert body.pop("id") == sha256(body)
    assert made.path.name == f"plate-{ASKED.key[:12]}"
    assert (made.kind, made.config["size"], made.results["accuracy"]) == ("Plate", 2, 0.5)


def test_key_is_the_hash_of_the_question_alone() -> None:
    text = (
        '{"config":{"name":"x","size":2},"kind":"Plate","parents":{},"schema":1,'
        '"sources":{"code":"ab"},"tools":{"numpy":"2"}}'
    )
    assert ASKED.key == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": OTHER},
        {"kind": dataclasses.replace(PLATE, schema=2)},
        {"config": {"size": 3, "name": "x"}},
        {"sources": {"code": "ac"}},
        {"tools": {"numpy": "2.1"}},
    ],
)
def test_every_part_of_the_question_changes_the_key(change: dict[str, Any]) -> None:
    assert dataclasses.replace(ASKED, **change).key != ASKED.key


def test_files_promised_by_the_kind_do_not_change_the_key() -> None:
    assert dataclasses.replace(ASKED, kind=dataclasses.replace(PLATE, files=())).key == ASKED.key


def test_a_parent_counts_by_id(made: Artifact, tmp_path: Path) -> None:
    child = dataclasses.replace(ASKED, parents={"student": made})
    assert child.as_json()["parents"] == {"student": made.id}
    again = artifact.make(tmp_path / "elsewhere", ASKED, write)
    assert dataclasses.replace(ASKED, parents={"student": again}).key == child.key != ASKED.key


def test_id_is_the_answer_and_provenance_is_not_in_it(made: Artifact, tmp_path: Path) -> None:
    same = artifact.make(tmp_path / "a", ASKED, write)

    def differently(work: Work) -> Mapping[str, Any]:
        return {**write(work), "accuracy": 0.75}

    other = artifact.make(tmp_path / "b", ASKED, differently)
    assert same.id == made.id != other.id
    assert other.manifest.key == made.manifest.key


def test_the_same_question_is_answered_from_cache(made: Artifact, tmp_path: Path) -> None:
    assert artifact.cached(tmp_path / "out", ASKED)
    assert not artifact.cached(tmp_path / "out", dataclasses.replace(ASKED, tools={}))
    assert artifact.make(tmp_path / "out", ASKED, never) == made
    assert list((tmp_path / "out" / ".work").iterdir()) == []


# Root may write anywhere, so the refusal is made where every write passes: Python's audit events.
READ_ONLY = """
import errno, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny.artifacts import ASKED, never
from edgekd import artifact

out = sys.argv[2]
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def refuse(event, args):
    writes = event == "open" and args[2] & WRITE
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        if str(args[0]).startswith(out):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

sys.addaudithook(refuse)
print(artifact.make(Path(out), ASKED, never).id)
"""


def on_a_read_only_disk(out: Path) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    command = [sys.executable, "-c", READ_ONLY, str(here), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("left", ["nothing", "checkpoint", "lock"])
def test_a_cached_answer_needs_no_write(made: Artifact, left: str) -> None:
    keep = made.path.parent / ".work" / made.path.name
    if left == "checkpoint":
        keep.mkdir()
    elif left == "lock":
        keep.with_name(f"{keep.name}.lock").write_text("")
    done = on_a_read_only_disk(made.path.parent)
    assert (done.stdout, done.returncode) == (f"{made.id}\n", 0), done.stderr


def test_what_is_not_cached_is_one_sentence_on_a_read_only_disk(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = on_a_read_only_disk(out)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"ArtifactError: {out}: could not be written: the file system of {out} is" in last
    assert "mounted read-only" in last
    assert list(out.iterdir()) == []


def test_a_cached_answer_waits_for_nobody(
    made: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(artifact, "lock", lambda path: pytest.fail(f"waits for {path}"))
    assert artifact.make(tmp_path / "out", ASKED, never) == made


def test_what_a_killed_process_left_is_removed_although_the_answer_is_cached(
    made: Artifact, tmp_path: Path
) -> None:
    work = tmp_path / "out" / ".work"
    (work / made.path.name / "scratch").mkdir(parents=True)
    (work / f"{made.path.name}.lock").write_text("")
    assert artifact.make(tmp_path / "out", ASKED, never) == made
    assert list(work.iterdir()) == []


def test_a_failed_stage_publishes_nothing_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail(work: Work) -> Mapping[str, Any]:
        artifact.replace_file(work.keep / "checkpoint", lambda path: path.write_text("7"))
        (work.scratch / "half").write_text("leftover")
        raise ZeroDivisionError("a bug")

    def resume(work: Work) -> Mapping[str, Any]:
        assert (work.keep / "checkpoint").read_text() == "7"
        assert list(work.scratch.iterdir()) == []
        return write(work)

    with pytest.raises(ZeroDivisionError):
        artifact.make(out, ASKED, fail)
    assert [path.name for path in out.iterdir()] == [".work"]
    artifact.make(out, ASKED, resume)
    assert list((out / ".work").iterdir()) == []


def test_a_stage_that_breaks_its_promise_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=says("Plate", "did not write parts/a.txt, plate.txt")):
        artifact.make(tmp_path, ASKED, lambda _: {})
    assert artifact.cached(tmp_path, ASKED) is False


def test_results_that_json_cannot_hold_are_a_bug_and_publish_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifact.make(tmp_path, ASKED, lambda work: {**write(work), "loss": float("nan")})
    assert not artifact.cached(tmp_path, ASKED)


def test_errors_of_the_stage_itself_pass_through(tmp_path: Path) -> None:
    def unreadable(work: Work) -> Mapping[str, Any]:
        return {"text": (work.scratch / "absent").read_text()}

    with pytest.raises(FileNotFoundError):
        artifact.make(tmp_path, ASKED, unreadable)


def test_two_keys_that_share_a_name_are_not_mixed_up(made: Artifact, tmp_path: Path) -> None:
    edit_manifest(made.path, lambda body: body["config"].update(size=9))
    with pytest.raises(ArtifactError, match=says("its key is", f"expected {ASKED.key}", "--out")):
        artifact.make(tmp_path / "out", ASKED, never)


def test_kinds_are_told_apart_by_name_and_slug() -> None:
    every = [kind for kind in vars(kinds).values() if isinstance(kind, Kind)]
    assert len(every) == 10
    assert len({kind.name for kind in every}) == len({kind.slug for kind in every}) == 10
    for kind in every:
        assert kind.schema >= 1
        assert kind.files
        assert "manifest.json" not in kind.files
