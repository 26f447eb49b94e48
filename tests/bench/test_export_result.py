"""The numbers of bench/export/run.py: how turns become a result, and when the aim is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny import programs

PROGRAM = "bench/export/run.py"
WEIGHTS = 1000


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return programs.load(PROGRAM)


def _turns(*peaks: int) -> list[dict[str, int]]:
    return [{"took_ns": 10 * peak, "peak_bytes": peak} for peak in peaks]


@pytest.mark.parametrize(("most", "kept"), [(3200, True), (3201, False)])
def test_the_aim_is_judged_by_our_worst_turn_and_the_peer_s_best(
    bench: ModuleType, most: int, kept: bool
) -> None:
    found = {
        "plan floor": _turns(400, 400, 400),
        "plan ours": _turns(1400, 1500, 1450),
        "export bare": _turns(2000, 2100, 2050),
        "export ours": _turns(2000, most, 2000),
    }
    row = bench.summary(found, WEIGHTS)
    assert row["kept"] is kept
    assert row["above_peer_in_weights"]["plan"] == 1.1
    assert row["plan ours"]["peak_bytes"] == {"median": 1450, "least": 1400, "most": 1500}
    assert row["plan ours"]["took_ns"]["median"] == 14500


def test_a_way_prints_its_time_and_peak(tmp_path: Path) -> None:
    way = ("way", "plan floor", "vit-l", "none", tmp_path)
    command = [sys.executable, *map(str, (programs.ROOT / PROGRAM, *way))]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert set(found) == {"took_ns", "peak_bytes"}
    # On the meta device: what imports take, and not the 1.17 GB of weights beside it.
    assert 50e6 < found["peak_bytes"] < 1.1e9
