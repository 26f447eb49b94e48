"""A small kind of artifact, how it is made, and how a forger would alter it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekd.artifact import Kind, Question, Work

PLATE = Kind("Plate", "plate", 1, ("plate.txt", "parts/a.txt"))
OTHER = Kind("Other", "other", 1, ())
ASKED = Question(PLATE, {"size": 2, "name": "x"}, sources={"code": "ab"}, tools={"numpy": "2"})


def write(work: Work) -> Mapping[str, Any]:
    """The stage: two files, one of them empty, and one result."""
    (work.scratch / "parts").mkdir()
    (work.scratch / "plate.txt").write_text("hello")
    (work.scratch / "parts" / "a.txt").write_text("")
    return {"accuracy": 0.5}


def never(work: Work) -> Mapping[str, Any]:
    """The stage where the answer must come from cache."""
    raise AssertionError(f"the stage ran again in {work.scratch}")


def says(*words: str) -> str:
    """Pattern of a message that holds these words in this order."""
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
