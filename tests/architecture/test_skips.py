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
    """`importorskip` stays; the next test holds it to what is installed where it stands."""
    other = re.compile(r"pytest\.skip\(|mark\.skip|mark\.xfail|unittest\.skip|collect_ignore")
    here = {Path(__file__), TESTS / "conftest.py"}
    found = [
        f"{path.relative_to(TESTS)}:{number}"
        for path in sorted(TESTS.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path not in here and other.search(line)
    ]
    assert found == []


def test_what_importorskip_names_is_installed_where_its_test_runs() -> None:
    """Only the device-side run lacks onnx and onnxruntime, and only `make kernels` has an nvcc.

    Tests that want nvcc are run by `make kernels` and no other command, so none of them is skipped.
    """
    named = re.compile(r"importorskip\(\s*\"([\w.]+)\"")
    makefile = (TESTS.parent / "Makefile").read_text()
    nvcc_tests = re.search(r"^NVCC_TESTS := (.*)$", makefile, re.MULTILINE)
    assert nvcc_tests is not None
    elsewhere = {TESTS.parent / each for each in nvcc_tests[1].split()}
    recipes = dict(re.findall(r"^(\w+): \$\(STAMP\)\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    assert '$(PYTEST) -m "not slow" $(NVCC_TESTS:%=--ignore=%)' in recipes["test"]
    assert "dev,cuda]" in recipes["kernels"]
    assert "\t$(PYTEST) $(NVCC_TESTS)\n" in recipes["kernels"]
    project = (TESTS.parent / "pyproject.toml").read_text()
    found = {here: set() for here in (True, False)}
    for path in sorted(TESTS.rglob("*.py")):
        found[path not in elsewhere] |= set(named.findall(path.read_text()))
    assert found == {True: {"onnx", "onnxruntime"}, False: {"nvidia.cuda_nvcc", "nvidia.cu13"}}
    assert all(f'    "{name}>=' in project for name in found[True])
