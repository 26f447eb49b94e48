"""Reading an artifact: every byte is checked, and every alteration is told."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Kind, Question, Work
from edgekd.errors import ArtifactError

sys.path.insert(0, str(Path(__file__).parent))
from tiny.artifacts import ASKED, OTHER, PLATE, edit_manifest, says, write


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return artifact.make(tmp_path / "out", ASKED, write)


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


def test_a_file_is_not_a_directory(made: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError) as caught:
        artifact.load(tmp_path / "model.safetensors")
    assert str(caught.value) == (
        f"{tmp_path / 'model.safetensors'}: is a file, expected an artifact's directory: give the "
        "one that `edgekd export` printed"
    )
    with pytest.raises(ArtifactError, match=says("is a file, expected", f"give {made.path}")):
        artifact.load(made.path / "plate.txt")


def test_somebody_elses_onnx_file_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError) as caught:
        artifact.load(tmp_path / "model.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'model.onnx'}: edgekd takes graphs that it exported: give the OnnxModel's "
        "directory; foreign ONNX files are not supported yet"
    )


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
