"""The arithmetic of the roofline, on numbers written out by hand; no GPU has made any yet."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import programs

ROW: dict[str, Any] = {
    "m": 100, "n": 200, "k": 400, "l2": "flushed", "us": {"sparse": 2.0, "dense_twin": 4.0},
    "output": "s8", "residual": False,
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


@pytest.mark.parametrize(
    ("output", "residual", "bytes_each"),
    [("s8", False, 1), ("gelu_s8", False, 1), ("f16", False, 2), ("f16", True, 4)],
)
def test_bytes_of_what_a_layer_writes_and_adds(
    roofline: ModuleType, output: str, residual: bool, bytes_each: int
) -> None:
    row = {**ROW, "output": output, "residual": residual}
    assert roofline.bytes_moved("dense_twin", row) == 40_000 + 80_000 + 20_000 * bytes_each


def test_what_has_no_time_has_no_share(roofline: ModuleType) -> None:
    found = roofline.shares({**ROW, "us": {"sparse": 2.0, "dense_twin": 0.0}}, RATES, 550.0)
    assert set(found) == {"sparse"}
    assert roofline.shares({**ROW, "us": {}}, RATES, 550.0) == {}


def test_a_shape_is_judged_by_the_times_that_it_has(roofline: ModuleType) -> None:
    row = {**ROW, "m": 1576, "tile": "large_128x128"}
    whole = {**row, **roofline.shares(row, RATES, 550.0)}
    without = {**row, "us": {"sparse": 2.0}, "sparse": whole["sparse"]}
    tiles = {**row, "chosen": "large_128x128", "us": {"a": 3.0, "b": 2.0}, "dense_us": {"a": 2.8}}
    aims = roofline.aims(
        [whole, without, {**row, "us": {}}],
        [tiles, {**tiles, "dense_us": {}}, {**tiles, "m": 8}],
        RATES,
    )
    assert [aim["shapes"] for aim in aims] == [1, 0, 0, 1, 2, 0, 0, 0, 0]
    assert aims[0]["met"] is True
    assert (aims[3]["met"], aims[3]["short"][0]["found"]) == (None, 1.4)  # 1.5 wanted
    few = {**row, "m": 8, "n": 384, "k": 384, "tile": "small_t8"}
    times = {"sparse": 2.0, "sparse_s32": 2.0, "cusparselt_s32": 3.0, "cusparselt_fused": 1.0}
    found = roofline.aims([{**few, "us": times}], [], RATES)
    assert [aim["shapes"] for aim in found] == [0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert [aim["share_found"] for aim in found[7:]] == [1.0, 0.0]
    bare = {"sparse_s32": 2.0, "dense_twin_s32": 2.8}
    judged = roofline.aims([{**row, "us": bare}], [], RATES)[2]
    assert (judged["least"], judged["short"][0]["found"]) == (1.5, 1.4)


def test_where_the_table_takes_a_slower_tile(
    roofline: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def tiles(m: int, chosen: str, **us: float) -> dict[str, Any]:
        return {"m": m, "n": 256, "k": 128, "chosen": chosen, "us": us}

    found = roofline.choice(
        [
            tiles(8, "small_t8", small_t8=2.0, small_t24=1.95),  # within 5%
            tiles(50, "small_t24", small_t8=4.0, small_t24=2.2, small_t40=2.0),
            tiles(197, "small_t40", small_t40=6.0, small_t64=4.0),
            tiles(394, "small_t40", small_t64=4.0),  # the chosen one has no time
        ]
    )
    lost = [(each["m"], each["chosen"], each["fastest"], each["times"]) for each in found["lost"]]
    assert lost == [(197, "small_t40", "small_t64", 1.5), (50, "small_t24", "small_t40", 1.1)]
    assert (found["shapes"], found["slower_than"]) == (3, 1.05)
    left_out = ["every tile, 64 x 64: not measured: the minutes were over"]
    roofline.tell({"choice": found, "aims": [], "not_measured": left_out})
    said = capsys.readouterr().out
    assert "choose.h takes a tile within 5% of the fastest: 1 of 3" in said
    assert f"1 layers were not measured, the first {left_out[0]}" in said


def test_the_plot_leaves_out_what_has_no_time(roofline: ModuleType, tmp_path: Path) -> None:
    rows = [{**ROW, "us": {"sparse": 2.0}}]
    document = {"gpu": "none", "raw_rates": RATES, "gigabytes_per_s": 550.0, "rows": rows}
    roofline.draw(document, tmp_path / "roofline.svg")
    roofline.draw({**document, "rows": []}, tmp_path / "empty.svg")
    assert "<svg" in (tmp_path / "empty.svg").read_text()


def test_the_plot_is_drawn(roofline: ModuleType, tmp_path: Path) -> None:
    document = {"gpu": "none", "raw_rates": RATES, "gigabytes_per_s": 550.0, "rows": [ROW]}
    roofline.draw(document, tmp_path / "deep" / "roofline.svg")
    text = (tmp_path / "deep" / "roofline.svg").read_text()
    assert "<svg" in text
    assert "PathCollection" in text
