"""Artifacts: directories written once, that say what they are and prove it on every read.

An artifact is the only thing two stages share. It is a directory with a ``manifest.json``:

* the **question** - kind, schema, parents (role -> id), configuration in full, hashes of the
  sources and data that were used, versions of the tools. ``key`` is its SHA-256: same key, same
  question, so a finished artifact answers it from cache.
* the **answer** - files (SHA-256 and size) and results (what the stage measured or proved). ``id``
  is the SHA-256 of question and answer together. A child names its parents by id.
* the **provenance** - host, time, seconds, git revision. It is hashed into neither: it says where
  the bytes came from, not what they are. A hash shows integrity, never origin.

How a kill at any moment leaves nothing half-written: a stage writes into
``<out>/.work/<name>/scratch``, every file is fsynced, the manifest is written last, and one rename
of the directory publishes it. A lock beside that work directory (flock, released by the kernel when
the process dies) lets one process at a time work on a key, so leftovers found under the lock belong
to nobody and are removed. Checkpoints live beside the scratch and survive; they go when the
artifact is published. What is published never changes, so a cached answer is read without the lock
and from a directory that cannot be written.

Left out on purpose: a database, an index, deduplication. A parent is looked up beside its child.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekd.durable import disk_errors, empty_directory, fsync, lock, replace_file, step, there
from edgekd.errors import ArtifactError
from edgekd.origin import file_hash, provenance, source_hash, user_hash, versions

# What a stage needs, the parts of `durable` and `origin` included.
__all__ = ["MANIFEST", "Artifact", "Kind", "Manifest", "Question", "Work", "cached", "file_hash",
           "load", "make", "parent", "read_manifest", "replace_file", "source_hash", "user_hash",
           "versions"]  # fmt: skip

MANIFEST = "manifest.json"
_AGAIN = "remove the directory and make the artifact again"


@dataclass(frozen=True)
class Kind:
    """What an artifact is: its name, the version of its layout, and the files it must hold."""

    name: str
    slug: str
    schema: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """Everything that decides an artifact's content, known before the work starts.

    Attributes:
        kind: What is asked for.
        config: Resolved configuration, JSON values only.
        parents: Role -> artifact this one is made from.
        sources: Name -> SHA-256 of code and data used (see `source_hash` and `file_hash`).
        tools: Name -> version of the libraries that can change the answer.
    """

    kind: Kind
    config: Mapping[str, Any]
    parents: Mapping[str, Artifact] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The hashed form: plain JSON values, parents by id."""
        return {
            "kind": self.kind.name,
            "schema": self.kind.schema,
            "parents": {role: parent.id for role, parent in self.parents.items()},
            "config": _plain(self.config),
            "sources": dict(self.sources),
            "tools": dict(self.tools),
        }

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the question."""
        return _hash_json(self.as_json())

    @property
    def name(self) -> str:
        """Directory name: ``<slug>-<first 12 digits of key>``."""
        return f"{self.kind.slug}-{self.key[:12]}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    bytes: int


class Manifest(BaseModel):
    """``manifest.json``, field for field."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    schema_: int = Field(alias="schema")  # pydantic keeps the plain name for itself
    key: str
    id: str
    parents: dict[str, str]
    config: dict[str, Any]
    sources: dict[str, str]
    tools: dict[str, str]
    results: dict[str, Any]
    files: dict[str, _File]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A published artifact whose every byte was checked when it was opened."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """SHA-256 (hex) of question and answer."""
        return self.manifest.id

    @property
    def kind(self) -> str:
        """Name of the kind, for example ``Student``."""
        return self.manifest.kind

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration this artifact was made with."""
        return self.manifest.config

    @property
    def results(self) -> dict[str, Any]:
        """What the stage measured or proved, JSON values."""
        return self.manifest.results

    def file(self, name: str) -> Path:
        """Path of a file the manifest lists.

        Raises:
            ArtifactError: The manifest lists no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(
                f"{self.path}: the {self.kind} holds no file {name!r}; it holds "
                f"{', '.join(sorted(self.manifest.files))}"
            )
        return self.path / name

    def read_json(self, name: str) -> Any:
        """Parsed content of a JSON file the manifest lists."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))


@dataclass
class Work:
    """Where a stage works: `scratch` becomes the artifact, `keep` survives a kill (checkpoints)."""

    scratch: Path
    keep: Path


def make(out: Path, question: Question, write: Callable[[Work], Mapping[str, Any]]) -> Artifact:
    """Answer a question: from cache when it was answered before, else by doing the work.

    Args:
        out: Directory of artifacts; made when absent.
        question: What is asked.
        write: Fills ``work.scratch`` with the kind's files and returns the results (JSON values).

    Returns:
        The published artifact, verified.

    Raises:
        ArtifactError: The published directory is altered, a file could not be written, or the
            stage did not write what its kind promises.
    """
    final, keep = out / question.name, out / ".work" / question.name
    held = keep.with_name(f"{question.name}.lock")
    if not there(final):
        with lock(held):
            if not there(final):
                _work(keep, final, question, write)
            step("clean", lambda: shutil.rmtree(keep, ignore_errors=True))
    elif there(keep) or there(held):
        # Left by a process that died after it had published; it does no harm where it must stay.
        with contextlib.suppress(ArtifactError), lock(held):
            shutil.rmtree(keep, ignore_errors=True)
    found = load(final, question.kind)
    if found.manifest.key != question.key:
        raise ArtifactError(
            f"{final}: its key is {found.manifest.key}, expected {question.key}: two questions "
            "share the first 12 digits; use another --out directory"
        )
    return found


def _work(
    keep: Path, final: Path, question: Question, write: Callable[[Work], Mapping[str, Any]]
) -> None:
    work = Work(scratch=keep / "scratch", keep=keep)
    started = time.perf_counter_ns()
    empty_directory(work.scratch)
    with disk_errors(final):
        results = write(work)
        seconds = (time.perf_counter_ns() - started) / 1e9
        _publish(work.scratch, final, question, results, round(seconds, 3))


def cached(out: Path, question: Question) -> bool:
    """Whether `make` would answer from cache (the artifact is still verified when it is read)."""
    return (out / question.name / MANIFEST).is_file()


def load(path: Path, *kinds: Kind) -> Artifact:
    """Open an artifact and check every byte of it.

    Args:
        path: The artifact's directory.
        *kinds: Kinds that are accepted; none means any.

    Returns:
        The artifact; its files are what its manifest says.

    Raises:
        ArtifactError: Missing, of the wrong kind or schema, incomplete or altered.
    """
    manifest = read_manifest(path)
    for kind in kinds:
        if manifest.kind == kind.name and manifest.schema_ != kind.schema:
            raise ArtifactError(
                f"{path}: {kind.name} has schema {manifest.schema_}, this edgekd reads "
                f"{kind.schema}; make it again with this version"
            )
    if kinds and manifest.kind not in {kind.name for kind in kinds}:
        wanted = " or ".join(kind.name for kind in kinds)
        raise ArtifactError(f"{path}: is of kind {manifest.kind}, expected {wanted}")
    _verify(path, manifest)
    return Artifact(path=path, manifest=manifest)


def read_manifest(path: Path) -> Manifest:
    """Read ``manifest.json`` alone and check its own hashes (not yet the files).

    Raises:
        ArtifactError: No such directory, no manifest, or one that was altered.
    """
    if path.is_file():
        beside = (path.parent / MANIFEST).is_file()
        if path.suffix == ".onnx" and not beside:
            raise ArtifactError(
                f"{path}: edgekd takes graphs that it exported: give the OnnxModel's directory; "
                "foreign ONNX files are not supported yet"
            )
        mend = f"give {path.parent}" if beside else "give the one that `edgekd export` printed"
        raise ArtifactError(f"{path}: is a file, expected an artifact's directory: {mend}")
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such artifact directory")
    file = path / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{path}: holds no {MANIFEST}, so it is not an edgekd artifact")
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
        body = manifest.model_dump(by_alias=True)
        question = {name: body[name] for name in Question(Kind("", "", 0, ()), {}).as_json()}
        hashes = {"key": _hash_json(question), "id": _identity(body)}
    except ValueError as error:  # also NaN and infinity, which JSON has no word for
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'the document'}: {first['msg']}"
        raise ArtifactError(f"{file}: not a manifest ({reason}); {_AGAIN}") from error
    for name, expected in hashes.items():
        if body[name] != expected:
            raise ArtifactError(
                f"{file}: was altered ({name} is {body[name][:12]}..., its content hashes to "
                f"{expected[:12]}...); {_AGAIN}"
            )
    return manifest


def parent(child: Artifact, role: str, *kinds: Kind) -> Artifact:
    """The artifact a child names by role, looked up by id beside the child.

    Raises:
        ArtifactError: The child has no such parent, or it does not lie beside the child.
    """
    wanted = child.manifest.parents.get(role)
    if wanted is None:
        raise ArtifactError(
            f"{child.path}: the {child.kind} has no parent {role!r}; its parents are "
            f"{', '.join(sorted(child.manifest.parents)) or 'none'}"
        )
    for sibling in sorted(child.path.parent.iterdir()):
        if _claims(sibling, wanted):
            return load(sibling, *kinds)
    raise ArtifactError(
        f"{child.path}: its {role} {wanted[:12]}... is not in {child.path.parent}; "
        "keep an artifact beside the ones made from it"
    )


def _claims(path: Path, wanted: str) -> bool:
    try:
        return read_manifest(path).id == wanted
    except ArtifactError:  # somebody else's directory, or a manifest that was altered
        return False


def _publish(
    scratch: Path, final: Path, question: Question, results: Mapping[str, Any], seconds: float
) -> None:
    files: dict[str, dict[str, Any]] = {}
    for name in sorted(_entries(scratch)):
        file = scratch / name
        step(f"fsync {name}", lambda file=file: fsync(file))  # type: ignore[misc]
        files[name] = {"sha256": file_hash(file), "bytes": file.stat().st_size}
    missing = sorted(set(question.kind.files) - set(files))
    if missing:
        raise ArtifactError(f"{question.kind.name}: the stage did not write {', '.join(missing)}")
    body: dict[str, Any] = {
        **question.as_json(),
        "key": question.key,
        "results": _plain(results),
        "files": files,
        "provenance": provenance(seconds),
    }
    body["id"] = _identity(body)
    text = json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n"
    replace_file(scratch / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    for directory in sorted(path for path in scratch.rglob("*") if path.is_dir()):
        step(f"fsync {directory.name}/", lambda path=directory: fsync(path))  # type: ignore[misc]
    step("publish", lambda: scratch.rename(final))
    step("fsync out/", lambda: fsync(final.parent))


def _verify(path: Path, manifest: Manifest) -> None:
    inside = os.path.realpath(path)
    for name, entry in manifest.files.items():
        file = path / name
        # Differs where the name climbs out, and where any part of it is a link.
        if os.path.realpath(file) != f"{inside}/{name}":
            raise ArtifactError(f"{path}: the manifest names a file outside it: {name!r}")
        if not file.is_file():
            raise ArtifactError(f"{path}: {name} is missing; copy the artifact again, whole")
        size = file.stat().st_size
        if size != entry.bytes:
            raise ArtifactError(
                f"{path}: {name} was altered: {size} bytes, expected {entry.bytes}; {_AGAIN}"
            )
        found = file_hash(file)
        if found != entry.sha256:
            raise ArtifactError(
                f"{path}: {name} was altered: SHA-256 {found[:12]}..., expected "
                f"{entry.sha256[:12]}...; {_AGAIN}"
            )
    extra = sorted(_entries(path) - set(manifest.files) - {MANIFEST})
    if extra:
        raise ArtifactError(f"{path}: holds {extra[0]!r}, which its manifest does not list")


def _entries(root: Path) -> set[str]:
    """Everything below a directory that is not a directory itself; links count, to one too."""
    found = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(root).as_posix() for path in found}


def _identity(body: Mapping[str, Any]) -> str:
    return _hash_json({k: v for k, v in body.items() if k not in {"id", "provenance"}})


def _hash_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Through JSON and back, so that what is hashed now is what a reader will parse."""
    return json.loads(json.dumps(value, allow_nan=False))
