"""A roofline of the kernels' times: how near each is to what the GPU could do at all.

    python bench/kernels/roofline.py bench/results/kernels-<gpu>.json out/roofline.svg

A GEMM of m x n x k does m n k multiply-adds and has to move its operands once: m k of tokens, 0.625
n k of sparse weights (1 n k of dense ones), m n of results. Above is the raw rate of the MMA
instruction, to the left the memory's bandwidth; what lies between a point and the roof is ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHT_BYTES = {"sparse": 0.625, "dense_twin": 1.0}


def bytes_moved(name: str, m: int, n: int, k: int) -> float:
    """Bytes of operands and int8 results, each moved once."""
    return m * k + WEIGHT_BYTES[name] * n * k + m * n


def shares(
    row: Mapping[str, Any], rates: Mapping[str, float], gigabytes_per_s: float
) -> dict[str, Any]:
    """Share of the raw rate, and of the bandwidth, that each of our kernels reached.

    Args:
        row: One shape's times, as gpu.py writes it.
        rates: Tera multiply-adds a second of the ``sparse`` and ``dense`` instruction.
        gigabytes_per_s: What a copy reaches, read and write counted.
    """
    m, n, k = row["m"], row["n"], row["k"]
    found: dict[str, Any] = {}
    for name in WEIGHT_BYTES:
        seconds = row["us"][name] * 1e-6
        raw = rates["sparse" if name == "sparse" else "dense"] * 1e12
        found[name] = {
            "of_raw_rate": round(m * n * k / seconds / raw, 4),
            "of_bandwidth": round(bytes_moved(name, m, n, k) / seconds / gigabytes_per_s / 1e9, 4),
        }
    return found


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the plot of a result, with L2 flushed: there the bandwidth is a limit."""
    from matplotlib.figure import Figure

    rates, bandwidth = document["raw_rates"], document["gigabytes_per_s"]
    rows = [row for row in document["rows"] if row["l2"] == "flushed"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    ends = (1.0, 5000.0)
    for name, rate, colour in (("sparse", "sparse", "#0f766e"), ("dense_twin", "dense", "#b45309")):
        at = [row["m"] * row["n"] * row["k"] for row in rows]
        x = [
            ops / bytes_moved(name, r["m"], r["n"], r["k"]) for ops, r in zip(at, rows, strict=True)
        ]
        y = [ops / r["us"][name] * 1e-6 for ops, r in zip(at, rows, strict=True)]
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
