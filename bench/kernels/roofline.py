"""A roofline of the kernels' times: how near each is to what the GPU could do at all.

    python bench/kernels/roofline.py bench/results/kernels-<gpu>.json out/roofline.svg

A GEMM of m x n x k does m n k multiply-adds and has to move its operands once: m k of tokens, 0.625
n k of sparse weights (1 n k of dense ones), m n results of a byte each, or of two and as much of a
residual. Above is the raw rate of the MMA
instruction, to the left the memory's bandwidth; what lies between a point and the roof is ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WEIGHT_BYTES = {"sparse": 0.625, "dense_twin": 1.0}


def bytes_moved(name: str, row: Mapping[str, Any]) -> float:
    """Bytes of operands and results, each moved once.

    Args:
        name: ``sparse`` or ``dense_twin``.
        row: One shape, as gpu.py writes it.
    """
    m, n, k = row["m"], row["n"], row["k"]
    result = 1 if row["output"].endswith("s8") else 4 if row["residual"] else 2
    return float(m * k + WEIGHT_BYTES[name] * n * k + result * m * n)


def shares(
    row: Mapping[str, Any], rates: Mapping[str, float], gigabytes_per_s: float
) -> dict[str, Any]:
    """Share of the raw rate, and of the bandwidth, that each of our kernels reached.

    One without a time has no share.

    Args:
        row: One shape's times, as gpu.py writes it.
        rates: Tera multiply-adds a second of the ``sparse`` and ``dense`` instruction.
        gigabytes_per_s: What a copy reaches, read and write counted.
    """
    m, n, k = row["m"], row["n"], row["k"]
    found: dict[str, Any] = {}
    for name in _timed(row):
        seconds = row["us"][name] * 1e-6
        raw = rates["sparse" if name == "sparse" else "dense"] * 1e12
        found[name] = {
            "of_raw_rate": round(m * n * k / seconds / raw, 4),
            "of_bandwidth": round(bytes_moved(name, row) / seconds / gigabytes_per_s / 1e9, 4),
        }
    return found


def _timed(row: Mapping[str, Any]) -> list[str]:
    """Which of our two kernels the row has a time of."""
    return [name for name in WEIGHT_BYTES if row["us"].get(name, 0) > 0]


# What the kernels are held to where there is a GPU.
LARGE_M = 1576  # 8 images of a ViT
OF_R, OF_RAW_RATE, WINS = 0.75, 0.7, 0.8
LONG_US = 10.0
# A tile this much faster than the chosen one is what choose.h should have taken.
SLOWER = 1.05


def aims(
    rows: Sequence[Mapping[str, Any]], tiles: Sequence[Mapping[str, Any]], rates: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What was wanted, how many shapes reach it, and each that does not.

    Args:
        rows: As gpu.py writes them, `shares` included.
        tiles: The same, of every tile.
        rates: Of the two instructions, and r, their ratio.

    Returns:
        For each aim what it is, the share of shapes wanted (None where none is) and found (None
        where there is none to judge), whether it is met, and the shapes that fall short with what
        they reached.
    """
    large = [row for row in rows if row["m"] >= LARGE_M]
    gains = _gains(large, "dense_twin", "sparse")
    raw = [(row, row["sparse"]["of_raw_rate"]) for row in large if "sparse" in _timed(row)]
    few = [row for row in rows if row["tile"].startswith("small") and _width(row) in (384, 768)]
    small = _gains(few, "cusparselt_and_epilogue", "sparse")
    bare = _gains(few, "cusparselt_s32", "sparse_s32")
    fused = _gains(few, "cusparselt_fused", "sparse")
    large_bare = _gains(large, "dense_twin_s32", "sparse_s32")
    best = [
        ({**row, "l2": "warm", "tile": row["chosen"]},
         min(row["dense_us"].values()) / min(row["us"].values()))
        for row in tiles
        if row["m"] >= LARGE_M and row["us"] and row["dense_us"]
    ]  # fmt: skip
    gain = OF_R * rates["r"]
    # Below, starting a kernel and moving its operands take longer than multiplying can.
    long = LONG_US * rates["sparse"] * 1e6
    busy_gains, busy_raw = (
        [(row, value) for row, value in found if row["m"] * row["n"] * row["k"] >= long]
        for found in (gains, raw)
    )
    where, busy = f"m >= {LARGE_M}", f"of at least {LONG_US:.0f} us at the raw rate"
    return [
        _aim(f"sparse over its dense twin, {where}: {OF_R} r", gains, gain, 1.0),
        _aim(f"the same, {busy}", busy_gains, gain, 1.0),
        _aim(f"the same to INT32, {where}", large_bare, gain, None),
        _aim(f"our fastest sparse tile over our fastest dense one, {where}", best, gain, None),
        _aim(f"share of the raw IMMA.SP rate, {where}", raw, OF_RAW_RATE, 1.0),
        _aim(f"the same, {busy}", busy_raw, OF_RAW_RATE, 1.0),
        _aim("cuSPARSELt and epilogue over ours, few tokens, ViT-S and -B", small, 1.0, WINS),
        _aim("the same products alone, to INT32", bare, 1.0, None),
        _aim("cuSPARSELt with its own epilogue over ours, where it has one", fused, 1.0, None),
    ]


def _gains(
    rows: Sequence[Mapping[str, Any]], peer: str, ours: str
) -> list[tuple[Mapping[str, Any], float]]:
    """How many times faster we are than a peer, on each shape that has both times."""
    both = [row for row in rows if peer in row["us"] and ours in row["us"]]
    return [(row, row["us"][peer] / row["us"][ours]) for row in both]


def choice(tiles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the table of choose.h takes a slower tile than there is, the worst first.

    Args:
        tiles: As gpu.py writes them: each tile's time on a shape, and the chosen one.
    """
    judged = [row for row in tiles if row["chosen"] in row["us"]]
    lost = []
    for row in judged:
        fastest = min(row["us"], key=row["us"].__getitem__)
        times = row["us"][row["chosen"]] / row["us"][fastest]
        if times > SLOWER:
            sizes = {name: row[name] for name in ("m", "n", "k", "chosen")}
            lost.append({**sizes, "fastest": fastest, "times": round(times, 3)})
    lost.sort(key=lambda each: -each["times"])
    return {"shapes": len(judged), "slower_than": SLOWER, "lost": lost}


def _aim(
    what: str, found: Sequence[tuple[Mapping[str, Any], float]], least: float, share: float | None
) -> dict[str, Any]:
    short = [
        {**{name: row[name] for name in ("m", "n", "k", "l2", "tile")}, "found": round(value, 3)}
        for row, value in found
        if value < least
    ]
    reached = 1 - len(short) / len(found) if found else None
    return {
        "aim": what,
        "least": round(least, 3),
        "shapes": len(found),
        "share_wanted": share,
        "share_found": None if reached is None else round(reached, 4),
        "met": None if reached is None or share is None else reached >= share,
        "short": short,
    }


def _width(row: Mapping[str, Any]) -> int:
    """Features of the network, d: a layer of it is d, 3 d or 4 d wide."""
    return min(int(row["n"]), int(row["k"]))


def tell(document: Mapping[str, Any]) -> None:
    """Print each aim and how far it is met, and how good the table is."""
    if left_out := document.get("not_measured"):
        print(f"{len(left_out)} layers were not measured, the first {left_out[0]}")
    lost, shapes = document["choice"]["lost"], document["choice"]["shapes"]
    good = f"{shapes - len(lost)} of {shapes}"
    print(f"choose.h takes a tile within {SLOWER - 1:.0%} of the fastest: {good}")
    for aim in document["aims"]:
        share = "no shape" if aim["share_found"] is None else f"{aim['share_found']:.0%}"
        wanted = "" if aim["share_wanted"] is None else f", {aim['share_wanted']:.0%} wanted"
        verdict = {None: "not judged", True: "met", False: "not met"}[aim["met"]]
        print(
            f"{aim['aim']}, at least {aim['least']}: {share} of {aim['shapes']}{wanted}: {verdict}"
        )


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the plot of a result, with L2 flushed: there the bandwidth is a limit."""
    from matplotlib.figure import Figure

    rates, bandwidth = document["raw_rates"], document["gigabytes_per_s"]
    rows = [row for row in document["rows"] if row["l2"] == "flushed"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    ends = (1.0, 5000.0)
    for name, rate, colour in (("sparse", "sparse", "#0f766e"), ("dense_twin", "dense", "#b45309")):
        these = [row for row in rows if name in _timed(row)]
        at = [row["m"] * row["n"] * row["k"] for row in these]
        x = [ops / bytes_moved(name, row) for ops, row in zip(at, these, strict=True)]
        y = [ops / r["us"][name] * 1e-6 for ops, r in zip(at, these, strict=True)]
        axes.scatter(x, y, s=14, color=colour, label=name.replace("_", " "))
        knee = rates[rate] * 1e3 / bandwidth
        roof = [min(rates[rate], end * bandwidth * 1e-3) for end in (ends[0], knee, ends[1])]
        axes.plot((ends[0], knee, ends[1]), roof, color=colour, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds a byte", title=document["gpu"])
    axes.set_ylabel("tera multiply-adds a second")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text(encoding="utf-8")), target)
    print(target)
