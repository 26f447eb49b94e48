"""The arithmetic of the roofline, on numbers written out by hand; no GPU has made any yet."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import programs

ROW: dict[str, Any] = {
    "m": 100, "n": 200, "k": 400, "l2": "flushed", "us": {"sparse": 2.0, "dense_twin": 4.0},
}  # fmt: skip
RATES = {"sparse": 40.0, "dense": 20.0, "r": 2.0}


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    return programs.load("bench/kernels/roofline.py")


def test_shares_of_the_roof(roofline: ModuleType) -> None:
    # 8e6 multiply-adds in 2 us are 4e12 a second; 40,000 + 50,000 + 20,000 bytes 55 GB/s.
    assert roofline.shares(ROW, RATES, 550.0) == {
        "sparse": {"of_raw_rate": 0.1, "of_bandwidth": 0.1},
        "dense_twin": {"of_raw_rate": 0.1, "of_bandwidth": 0.0636},
    }


def test_the_plot_is_drawn(roofline: ModuleType, tmp_path: Path) -> None:
    document = {"gpu": "none", "raw_rates": RATES, "gigabytes_per_s": 550.0, "rows": [ROW]}
    roofline.draw(document, tmp_path / "deep" / "roofline.svg")
    text = (tmp_path / "deep" / "roofline.svg").read_text()
    assert "<svg" in text
    assert "PathCollection" in text
