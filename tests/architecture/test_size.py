"""Files and functions stay small enough to read in one go."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "edgekd").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FILE_LINES = 400
FUNCTION_LINES = 60


def long_functions(source: str) -> list[str]:
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        f"{node.name}: {lines} lines"
        for node in functions
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]


def test_the_count_of_lines_is_right() -> None:
    short = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)
    assert long_functions(short) == []
    assert long_functions(short + "    x = 1\n") == [f"f: {FUNCTION_LINES + 1} lines"]


def test_no_file_is_too_long() -> None:
    assert len(SOURCES) > 20
    assert len(TESTS) > 20
    files = [*SOURCES, *TESTS]
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert {str(path): n for path, n in lines.items() if n > FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    found = {str(path.relative_to(ROOT)): long_functions(path.read_text()) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}
