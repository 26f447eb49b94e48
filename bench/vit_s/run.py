"""Latency of a ViT-S-size network on this CPU: float32, dense INT8 and 2:4 INT8, interleaved.

    python bench/vit_s/run.py

Writes ``bench/results/vit-s-cpu.json``: the LatencyReport's numbers, the machine and its state. The
weights are random, so this says nothing of accuracy; ONNX Runtime uses no 2:4, so dense and sparse
are expected to be equal.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edgekd import recipe, target
from edgekd.bench import scenario
from edgekd.run import run

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import results  # noqa: E402


def main() -> None:
    """Run the chain without training, measure, and keep the numbers."""
    asked = scenario.load(HERE / "scenario.toml")
    with tempfile.TemporaryDirectory() as directory:
        result = run(
            recipe.load(HERE / "recipe.toml"), [target.load("cpu")], Path(directory), asked
        )
        (report,) = (made for made in result.artifacts if made.kind == "LatencyReport")
        latency = report.read_json("latency.json")
    what = "latency only: random weights, ViT-S size, batch 1, ONNX Runtime on a CPU"
    covers = ("edgekd.export", "edgekd.bench")
    results.write("vit-s-cpu", "python bench/vit_s/run.py", covers, {"what": what, **latency})
    for row in latency["engines"]:
        p50, ratio = row["percentiles"]["p50"], row.get("ratio_to_first", {}).get("p50")
        beside = "" if ratio is None else f", {ratio['estimate']:.2f} of the first's time"
        print(f"{row['arm']:<7} p50 {p50['estimate'] / 1e6:.2f} ms{beside}")


if __name__ == "__main__":
    main()
