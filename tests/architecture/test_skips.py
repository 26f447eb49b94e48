"""No silent skip: one fixture may skip, and STRICT=1 turns it into a failure."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
REASON = "needs a ruler, which only root can install: buy one"


def test_what_is_there_is_not_skipped(needs: Callable[[str, bool, str], None]) -> None:
    needs("a ruler", True, "buy one")


def test_what_is_missing_is_skipped_with_its_reason(
    needs: Callable[[str, bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKD_STRICT", "0")
    with pytest.raises(pytest.skip.Exception, match=f"^{REASON}$"):
        needs("a ruler", False, "buy one")


def test_strict_allows_no_skip(
    needs: Callable[[str, bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKD_STRICT", "1")
    with pytest.raises(pytest.fail.Exception, match=REASON):
        needs("a ruler", False, "buy one")


def test_nothing_else_skips() -> None:
    """`importorskip` stays: `make test` installs what it names, only the device run lacks it."""
    other = re.compile(r"pytest\.skip\(|mark\.skip|mark\.xfail|unittest\.skip|collect_ignore")
    here = {Path(__file__), TESTS / "conftest.py"}
    found = [
        f"{path.relative_to(TESTS)}:{number}"
        for path in sorted(TESTS.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path not in here and other.search(line)
    ]
    assert found == []
