"""How long the demo takes: each stage from nothing, and the same command answered from cache.

    python bench/demo.py [--repetitions 3]

Besides, what a deployment engineer tries first: post-training quantization (the same recipe with no
step of distillation) for one target, where the teacher is already fitted.

Writes ``bench/results/demo.json``. Each repetition is a fresh process in a fresh directory; the
bundle wheels' download cache is warm from the second on. The machine is described beside the
numbers: they are wall-clock seconds of a small shared machine, good for "does it fit a coffee
break", not for comparing code.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import results

RECIPE, SCENARIO = "digits-vit", "single-stream"
TARGETS = ("a100-sxm4-80gb-trt11.4", "jetson-agx-orin-64gb-jp6.2", "cpu")
RECIPES = Path(str(resources.files("edgekd"))) / "recipes"
STAGE = re.compile(r"^(?P<name>\S.*?)\s+(?P<seconds>\d+\.\d) s  ", re.MULTILINE)


def one_run(out: Path, recipe: str = RECIPE, targets: Sequence[str] = TARGETS) -> dict[str, object]:
    """Run the demo's command once; seconds in all and by stage."""
    words = [word for name in targets for word in ("--target", name)]
    started = time.perf_counter_ns()
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("edgekd")),
            *("run", recipe, *words, "--scenario", SCENARIO, "--out", str(out)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = (time.perf_counter_ns() - started) / 1e9
    stages = {match["name"]: float(match["seconds"]) for match in STAGE.finditer(done.stderr)}
    return {"seconds": round(seconds, 2), "stages_s": stages}


def post_training(fitted: Path, folder: Path) -> dict[str, object]:
    """Quantize the demo's teacher for the cpu target untrained; it was fitted in `fitted`."""
    (teacher,) = fitted.glob("teacher-*")
    shutil.copytree(teacher, folder / "out" / teacher.name)
    shutil.copytree(RECIPES / RECIPE, folder / RECIPE)  # the teacher's configuration
    text = (RECIPES / f"{RECIPE}.toml").read_text(encoding="utf-8")
    changed = re.sub(r"(?m)^(\[distill\]\nsteps = )\d+$", r"\g<1>0", text)
    assert changed != text, "the recipe has no [distill] with steps at its head"
    path = folder / "post-training.toml"
    path.write_text(changed, encoding="utf-8")
    return one_run(folder / "out", str(path), ("cpu",))


def main() -> None:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    count = parser.parse_args().repetitions
    fresh, cached, untrained = [], [], []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as directory:
            fresh.append(one_run(Path(directory)))
            cached.append(one_run(Path(directory)))
            with tempfile.TemporaryDirectory() as other:
                untrained.append(post_training(Path(directory), Path(other)))
    command = " ".join(["python bench/demo.py", *sys.argv[1:]])
    covers = ("edgekd.distill", "edgekd.export")
    rows = {
        "from_nothing": fresh,
        "from_cache": cached,
        "post_training_cpu_teacher_fitted": untrained,
    }
    results.write("demo", command, covers, rows)
    for name, runs in rows.items():
        times = [float(str(run["seconds"])) for run in runs]
        print(f"{name}: median {statistics.median(times):.1f} s, all {times}")


if __name__ == "__main__":
    main()
