"""The faults that are seeded, and what is said where seeding them would prove nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny import programs

KERNELS = programs.ROOT / "kernels"  # not the copy in which a fault lies


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "argv", ["mutants.py"])
    return programs.load("bench/kernels/mutants.py")


def test_every_fault_changes_one_place_of_the_sources(mutants: ModuleType) -> None:
    for fault in mutants.FAULTS:
        text = (KERNELS / "src" / fault.file).read_text()
        assert text.count(fault.was) == 1, fault.what
        assert fault.becomes != fault.was, fault.what
    assert len({(fault.file, fault.was, fault.becomes) for fault in mutants.FAULTS}) > 40


def test_tests_that_fail_without_a_fault_prove_nothing(
    mutants: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "test_broken.py").write_text("def test_broken():\n    assert False\n")
    monkeypatch.setattr(mutants, "TESTS", str(tmp_path))
    sentence = "^without a fault: test_broken, expected every test to pass: mend that first$"
    with pytest.raises(SystemExit, match=sentence):
        mutants.main()


def test_tests_that_do_not_end_have_noticed(
    mutants: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "test_endless.py").write_text(
        "def test_endless():\n    while True:\n        pass\n"
    )
    monkeypatch.setattr(mutants, "TESTS", str(tmp_path))
    monkeypatch.setattr(mutants, "LONGEST_S", 1)
    assert mutants.noticed(mutants.FAULTS[0]) == "no end"
