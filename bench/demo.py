"""How long the demo takes: each stage from nothing, and the same command answered from cache.

    python bench/demo.py [--repetitions 3]

Writes ``bench/results/demo.json``. Each repetition is a fresh process in a fresh directory; the
bundle wheels' download cache is warm from the second on. The machine is described beside the
numbers: they are wall-clock seconds of a small shared machine, good for "does it fit a coffee
break", not for comparing code.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results

RECIPE, SCENARIO = "digits-vit", "single-stream"
TARGETS = ("a100-sxm4-80gb-trt11.4", "jetson-agx-orin-64gb-jp6.2", "cpu")
COMMAND = (
    "run", RECIPE, *(word for name in TARGETS for word in ("--target", name)),
    "--scenario", SCENARIO,
)  # fmt: skip
STAGE = re.compile(r"^(?P<name>\S.*?)\s+(?P<seconds>\d+\.\d) s  ", re.MULTILINE)


def one_run(out: Path) -> dict[str, object]:
    """Run the demo's command once; seconds in all and by stage."""
    started = time.perf_counter_ns()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("edgekd")), *COMMAND, "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = (time.perf_counter_ns() - started) / 1e9
    stages = {match["name"]: float(match["seconds"]) for match in STAGE.finditer(done.stderr)}
    return {"seconds": round(seconds, 2), "stages_s": stages}


def main() -> None:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    count = parser.parse_args().repetitions
    fresh, cached = [], []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as directory:
            fresh.append(one_run(Path(directory)))
            cached.append(one_run(Path(directory)))
    command = " ".join(["python bench/demo.py", *sys.argv[1:]])
    covers = ("edgekd.distill", "edgekd.export")
    results.write("demo", command, covers, {"from_nothing": fresh, "from_cache": cached})
    for name, runs in (("from nothing", fresh), ("from cache", cached)):
        times = [float(str(run["seconds"])) for run in runs]
        print(f"{name}: median {statistics.median(times):.1f} s, all {times}")


if __name__ == "__main__":
    main()
