"""An edited line of any module that a stage imports makes its answers another question's."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

import edgekd
from edgekd import origin

# Modules that may change without an answer changing, and why.
NO_INFLUENCE: Mapping[str, str] = {
    "edgekd": "a docstring",
    "edgekd.errors": "names of errors; whoever meets one gets no answer",
    "edgekd.problems": "sentences about a wrong file; whoever reads one gets no answer",
    "edgekd.progress": "words on stderr",
    "edgekd.artifact": "how answers are stored; a change of form is a new schema",
    "edgekd.durable": "how files reach the disk",
    "edgekd.origin": "makes these very hashes",
    "edgekd.kinds": "names, schemas and files, which are in the question and checked at the end",
    "edgekd.recipe": "reads a file into values, which are in the question",
    "edgekd.sections": "the same; its defaults are written into the question",
    "edgekd.target": "reads a file into values, which are in the question",
    "edgekd.bench.scenario": "reads a file into values, which are in the question",
}
ROOT = Path(edgekd.__path__[0])
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def named_sources(path: Path) -> set[str]:
    """What a stage's file gives to `source_hash`: names in the call, or in tables of SOURCES."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "source_hash"
        table = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").endswith(
            "SOURCES"
        )
        if isinstance(node, ast.ImportFrom) and any(n.name.endswith("SOURCES") for n in node.names):
            found |= named_sources(MODULES[str(node.module)])
        if call or table:
            texts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
            found |= {text for text in texts if isinstance(text, str) and text[:6] == "edgekd"}
    return found


STAGES = {
    name: sources
    for name, path in MODULES.items()
    if name != "edgekd.origin" and (sources := named_sources(path))
}


def test_the_stages_are_found() -> None:
    assert set(STAGES) == {
        "edgekd.distill.teacher",
        "edgekd.distill.student",
        "edgekd.export.model",
        "edgekd.engine.build",
        "edgekd.choice",
        "edgekd.evaluate",
        "edgekd.bench.bench",
        "edgekd.gate",
    }


def test_what_has_no_influence_is_there() -> None:
    assert set(NO_INFLUENCE) <= set(MODULES)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_the_question_counts_every_module_the_stage_imports(stage: str) -> None:
    imported = set(origin.imported(stage))
    assert stage in imported
    needed = imported - set(NO_INFLUENCE)
    counted = {
        name
        for name in needed
        if any(f"{name}.".startswith(f"{source}.") for source in STAGES[stage])
    }
    assert needed - counted == set()
    unused = {s for s in STAGES[stage] if not any(f"{n}.".startswith(f"{s}.") for n in imported)}
    assert unused == set(), "named as a source and never imported"
