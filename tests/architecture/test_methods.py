"""The table of methods: every row is a recipe, and a method that does nothing ends the run."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest
from tiny import programs

from edgekd.errors import ConfigError


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return programs.load("bench/methods/run.py")


def test_every_row_is_a_recipe_and_has_its_own_name(methods: ModuleType) -> None:
    methods.check(list(methods.GROUPS))
    for group, rows in methods.GROUPS.items():
        assert len(rows) >= 2
        assert len({row.name for row in rows}) == len(rows), group


def test_a_key_that_there_is_not_ends_it(methods: ModuleType) -> None:
    methods.GROUPS["new"] = [methods.Row("a"), methods.Row("b", {"sparsity": {"metod": "x"}})]
    with pytest.raises(ConfigError, match=r"new: b: sparsity.metod is an unknown key"):
        methods.check(["new"])


def runs(*hashes: str, kl: float = 0.5) -> list[dict[str, Any]]:
    return [
        {
            "group": "new", "row": row, "seed": seed, "kl": kl * (1 + index), "agreement": 1.0,
            "accuracy": 0.5, "teacher_accuracy": 0.5, "seconds": 1.0, "sha256": [sha256],
        }
        for index, (row, sha256) in enumerate(zip("ab", hashes, strict=True))
        for seed in (1, 0)
    ]  # fmt: skip


def test_a_method_that_nothing_reads_ends_it(methods: ModuleType) -> None:
    methods.GROUPS["new"] = [methods.Row("a"), methods.Row("b")]
    with pytest.raises(SystemExit, match=r"new: b: .* 'a' to the byte in 2 of 2 seeds"):
        methods.table(["new"], runs("1", "1"))
    methods.GROUPS["new"][1] = methods.Row("b", may_equal="it chooses")
    assert len(methods.table(["new"], runs("1", "1"))) == 2


def test_rows_are_held_to_the_first_seed_by_seed(methods: ModuleType) -> None:
    methods.GROUPS["new"] = [methods.Row("a"), methods.Row("b")]
    first, second = methods.table(["new"], runs("1", "2"))
    assert first["kl_over_first_row"] == [1.0, 1.0]
    assert second["kl_over_first_row"] == [2.0, 2.0]
    assert (first["kl_moves_one_way_in_every_seed"], second["kl_moves_one_way_in_every_seed"]) == (
        False,
        True,
    )
    assert second["kl"] == {"mean": 1.0, "spread": 0.0, "seeds": [1.0, 1.0]}


def test_the_table_that_people_read_is_the_result() -> None:
    page = programs.load("bench/methods/table.py")
    content = json.loads(page.RESULT.read_text())
    text = page.RESULT.with_suffix(".md").read_text()
    assert text == page.markdown(content)
    assert "too easy to separate methods" in text.splitlines()[0]
    (line,) = [each for each in text.splitlines() if each.startswith("| INT4 | dense | ")]
    row = next(row for row in content["rows"] if row["row"] == "INT4")
    assert f"| {100 * row['accuracy']['mean']:.1f} ± " in line
    assert f"{row['kl_over_first_row'][0]:.2f}, " in line
