"""Artifacts: the question decides the key, the answer the id, and every alteration is told."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Kind, Question, Work
from edgekd.errors import ArtifactError, ConfigError

PLATE = Kind("Plate", "plate", 1, ("plate.txt", "parts/a.txt"))
OTHER = Kind("Other", "other", 1, ())
ASKED = Question(PLATE, {"size": 2, "name": "x"}, sources={"code": "ab"}, tools={"numpy": "2"})


def write(work: Work) -> Mapping[str, Any]:
    (work.scratch / "parts").mkdir()
    (work.scratch / "plate.txt").write_text("hello")
    (work.scratch / "parts" / "a.txt").write_text("")
    return {"accuracy": 0.5}


def never(work: Work) -> Mapping[str, Any]:
    raise AssertionError(f"the stage ran again in {work.scratch}")


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return artifact.make(tmp_path / "out", ASKED, write)


def says(*words: str) -> str:
    return ".*".join(map(re.escape, words))


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the manifest and make its own hashes right again, as a forger would."""
    file = path / "manifest.json"
    body = json.loads(file.read_text())
    change(body)
    question = ("kind", "schema", "parents", "config", "sources", "tools")
    body["key"] = sha256({name: body[name] for name in question})
    body["id"] = sha256({k: v for k, v in body.items() if k not in ("id", "provenance")})
    file.write_text(json.dumps(body))


def sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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


def test_out_that_cannot_be_a_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError) as caught:
        artifact.make(tmp_path / "file", ASKED, never)
    assert "could not be written: Not a directory" in str(caught.value)
    assert "choose another --out" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_the_stage_itself_pass_through(tmp_path: Path) -> None:
    def unreadable(work: Work) -> Mapping[str, Any]:
        return {"text": (work.scratch / "absent").read_text()}

    with pytest.raises(FileNotFoundError):
        artifact.make(tmp_path, ASKED, unreadable)


def test_full_disk_met_by_a_rust_library_is_told_too(tmp_path: Path) -> None:
    def save(work: Work) -> Mapping[str, Any]:
        raise RuntimeError(f"{work.scratch}: I/O error: No space left on device (os error 28)")

    with pytest.raises(ArtifactError, match="could not be written: No space left on device"):
        artifact.make(tmp_path, ASKED, save)


def test_two_keys_that_share_a_name_are_not_mixed_up(made: Artifact, tmp_path: Path) -> None:
    edit_manifest(made.path, lambda body: body["config"].update(size=9))
    with pytest.raises(ArtifactError, match=says("its key is", f"expected {ASKED.key}", "--out")):
        artifact.make(tmp_path / "out", ASKED, never)


def test_file_names_are_those_of_the_manifest(made: Artifact) -> None:
    assert made.file("parts/a.txt") == made.path / "parts" / "a.txt"
    expected = says("the Plate holds no file 'b.txt'; it holds parts/a.txt, plate.txt")
    with pytest.raises(ArtifactError, match=expected):
        made.file("b.txt")


def test_read_json(tmp_path: Path) -> None:
    kind = Kind("Json", "json", 1, ("a.json",))

    def store(work: Work) -> Mapping[str, Any]:
        (work.scratch / "a.json").write_text('{"labels": ["é"]}', encoding="utf-8")
        return {}

    assert artifact.make(tmp_path, Question(kind, {}), store).read_json("a.json") == {
        "labels": ["é"]
    }


def test_load_accepts_the_kinds_it_names(made: Artifact) -> None:
    assert artifact.load(made.path) == artifact.load(made.path, OTHER, PLATE) == made
    with pytest.raises(ArtifactError, match=says("is of kind Plate, expected Other or Student")):
        artifact.load(made.path, OTHER, kinds.STUDENT)


def test_another_schema_is_told(made: Artifact) -> None:
    with pytest.raises(ArtifactError, match=says("Plate has schema 1, this edgekd reads 2")):
        artifact.load(made.path, dataclasses.replace(PLATE, schema=2))


def test_a_directory_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=says("nowhere: no such artifact directory")):
        artifact.load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=says("holds no manifest.json", "not an edgekd")):
        artifact.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["the document", "EOF"]),
        ("[]", ["the document", "object"]),
        ("\xff", ["the document"]),
        ('{"kind": 3}', ["kind", "valid string"]),
    ],
)
def test_a_manifest_that_is_none(made: Artifact, text: str, expected: list[str]) -> None:
    (made.path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=says("not a manifest (", *expected)):
        artifact.load(made.path)


def test_a_key_nobody_knows_in_the_manifest(made: Artifact) -> None:
    edit_manifest(made.path, lambda body: body.update(extra=1))
    with pytest.raises(
        ArtifactError, match=says("not a manifest (extra: ", "remove the directory")
    ):
        artifact.load(made.path)


def test_a_number_json_has_no_word_for(made: Artifact) -> None:
    file = made.path / "manifest.json"
    file.write_text(file.read_text().replace('"accuracy": 0.5', '"accuracy": NaN'))
    with pytest.raises(ArtifactError, match=says("not a manifest (", "not JSON compliant")):
        artifact.load(made.path)


@pytest.mark.parametrize(
    ("change", "which"),
    [
        (lambda body: body["config"].update(size=3), "key"),
        (lambda body: body["parents"].update(teacher="0" * 64), "key"),
        (lambda body: body["results"].update(accuracy=0.9), "id"),
        (lambda body: body["files"]["plate.txt"].update(bytes=6), "id"),
        (lambda body: body.update(id="0" * 64), "id"),
    ],
)
def test_an_altered_manifest_is_told(
    made: Artifact, change: Callable[[dict[str, Any]], object], which: str
) -> None:
    file = made.path / "manifest.json"
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))
    with pytest.raises(ArtifactError, match=says(f"was altered ({which} is ", "hashes to ")):
        artifact.load(made.path)


def test_provenance_may_change(made: Artifact) -> None:
    file = made.path / "manifest.json"
    body = json.loads(file.read_text())
    body["provenance"] = {"host": "elsewhere"}
    file.write_text(json.dumps(body))
    assert artifact.load(made.path).id == made.id


def test_an_altered_file_is_told_by_size_or_hash(made: Artifact) -> None:
    (made.path / "plate.txt").write_text("hello!")
    with pytest.raises(ArtifactError, match=says("plate.txt was altered: 6 bytes, expected 5")):
        artifact.load(made.path)
    (made.path / "plate.txt").write_text("hellO")
    expected = says("plate.txt was altered: SHA-256 ", "expected 2cf24dba5fb0...; remove")
    with pytest.raises(ArtifactError, match=expected):
        artifact.load(made.path)


def test_a_missing_file_is_told(made: Artifact) -> None:
    (made.path / "parts" / "a.txt").unlink()
    with pytest.raises(
        ArtifactError, match=says("parts/a.txt is missing; copy the artifact again")
    ):
        artifact.load(made.path)


def test_an_extra_file_is_told(made: Artifact) -> None:
    (made.path / "parts" / "b.txt").write_text("")
    with pytest.raises(
        ArtifactError, match=says("holds 'parts/b.txt', which its manifest does not")
    ):
        artifact.load(made.path)


def test_an_extra_link_to_a_directory_is_told(made: Artifact, tmp_path: Path) -> None:
    (made.path / "link").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match=says("holds 'link', which its manifest does not")):
        artifact.load(made.path)


def test_a_file_that_became_a_link_is_told(made: Artifact, tmp_path: Path) -> None:
    (tmp_path / "same").write_text("hello")
    (made.path / "plate.txt").unlink()
    (made.path / "plate.txt").symlink_to(tmp_path / "same")
    with pytest.raises(ArtifactError, match=says("names a file outside it: 'plate.txt'")):
        artifact.load(made.path)


def test_a_directory_that_became_a_link_is_told(made: Artifact, tmp_path: Path) -> None:
    (made.path / "parts").rename(tmp_path / "parts")
    (made.path / "parts").symlink_to(tmp_path / "parts")
    with pytest.raises(ArtifactError, match=says("names a file outside it: 'parts/a.txt'")):
        artifact.load(made.path)


@pytest.mark.parametrize("name", ["../secret", "/SECRET", "parts/../plate.txt", "./plate.txt"])
def test_a_forged_manifest_cannot_reach_outside(made: Artifact, name: str) -> None:
    secret = made.path.parent / "secret"
    secret.write_text("hello")
    name = name.replace("/SECRET", str(secret))

    def forge(body: dict[str, Any]) -> None:
        body["files"][name] = body["files"]["plate.txt"]

    edit_manifest(made.path, forge)
    with pytest.raises(ArtifactError, match=says(f"names a file outside it: {name!r}")):
        artifact.load(made.path)


def test_a_link_to_the_artifact_itself_is_fine(made: Artifact, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(made.path)
    assert artifact.load(tmp_path / "latest").id == made.id


class TestParent:
    @pytest.fixture
    def child(self, made: Artifact) -> Artifact:
        asked = Question(OTHER, {}, parents={"plate": made})
        (made.path.parent / "note.txt").write_text("beside the artifacts")
        return artifact.make(made.path.parent, asked, lambda _: {})

    def test_is_found_beside_the_child_by_id_whatever_its_name(
        self, made: Artifact, child: Artifact
    ) -> None:
        made.path.rename(made.path.with_name("renamed"))
        found = artifact.parent(child, "plate", PLATE)
        assert (found.id, found.path.name) == (made.id, "renamed")

    def test_unknown_role(self, child: Artifact) -> None:
        with pytest.raises(ArtifactError, match=says("Other has no parent 'pl'", "are plate")):
            artifact.parent(child, "pl")

    def test_no_parents_at_all(self, made: Artifact) -> None:
        with pytest.raises(ArtifactError, match="its parents are none"):
            artifact.parent(made, "teacher")

    def test_not_beside_the_child(self, made: Artifact, child: Artifact, tmp_path: Path) -> None:
        made.path.rename(tmp_path / "away")
        expected = says(f"its plate {made.id[:12]}... is not in {child.path.parent}; keep")
        with pytest.raises(ArtifactError, match=expected):
            artifact.parent(child, "plate")

    def test_of_the_wrong_kind(self, child: Artifact) -> None:
        with pytest.raises(ArtifactError, match="is of kind Plate, expected Other"):
            artifact.parent(child, "plate", OTHER)

    def test_altered(self, made: Artifact, child: Artifact) -> None:
        (made.path / "plate.txt").write_text("hellO")
        with pytest.raises(ArtifactError, match=r"plate\.txt was altered"):
            artifact.parent(child, "plate")

    def test_with_an_altered_manifest_is_not_it(self, made: Artifact, child: Artifact) -> None:
        (made.path / "manifest.json").write_text("{}")
        with pytest.raises(ArtifactError, match=f"its plate {made.id[:12]}... is not in"):
            artifact.parent(child, "plate")


def test_replace_file_leaves_the_old_content_when_the_write_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    artifact.replace_file(file, lambda path: path.write_text("old"))

    def fail(path: Path) -> None:
        path.write_text("ne")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        artifact.replace_file(file, fail)
    assert file.read_text() == "old"
    artifact.replace_file(file, lambda path: path.write_text("new"))
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_file_hash_reads_past_one_chunk(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "big").write_bytes(content)
    assert len(content) > 1 << 20
    assert artifact.file_hash(tmp_path / "big") == hashlib.sha256(content).hexdigest()


class TestSourceHash:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        package = tmp_path / "hashed_package"
        (package / "deep").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "deep" / "a.py").write_text("raise RuntimeError('never imported')\n")
        (package / "data.csv").write_text("1")
        (tmp_path / "hashed_module.py").write_text("x = 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        return package

    def test_an_edited_line_changes_it_and_data_does_not(self, package: Path) -> None:
        before = artifact.source_hash("hashed_package")
        (package / "data.csv").write_text("2")
        assert artifact.source_hash("hashed_package") == before
        (package / "deep" / "a.py").write_text("x = 1\n")
        assert artifact.source_hash("hashed_package") != before

    def test_a_renamed_file_changes_it(self, package: Path) -> None:
        before = artifact.source_hash("hashed_package")
        (package / "deep" / "a.py").rename(package / "deep" / "b.py")
        assert artifact.source_hash("hashed_package") != before

    def test_a_module_is_its_file(self, tmp_path: Path) -> None:
        before = artifact.source_hash("hashed_module")
        (tmp_path / "other.py").write_text("")
        assert artifact.source_hash("hashed_module") == before
        assert artifact.source_hash("hashed_module", "hashed_package") != before

    @pytest.mark.parametrize("name", ["no_such_module", "hashed_module.x", "", ".x", "sys"])
    def test_a_name_without_a_file_is_told(self, name: str) -> None:
        expected = says(f"python module {name!r} was not found as a file", "PYTHONPATH")
        with pytest.raises(ConfigError, match=expected):
            artifact.source_hash(name)


def test_versions_are_read_without_import_and_absence_is_said() -> None:
    found = artifact.versions("pydantic", "no-such-distribution")
    assert re.fullmatch(r"\d+\.\d+.*", found["pydantic"])
    assert found["no-such-distribution"] == "absent"


def test_kinds_are_told_apart_by_name_and_slug() -> None:
    every = [kind for kind in vars(kinds).values() if isinstance(kind, Kind)]
    assert len(every) == 9
    assert len({kind.name for kind in every}) == len({kind.slug for kind in every}) == 9
    for kind in every:
        assert kind.schema >= 1
        assert kind.files
        assert "manifest.json" not in kind.files
