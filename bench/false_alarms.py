"""How often the gate blames an engine that is no slower than its baseline, and misses one that is.

    python bench/false_alarms.py [--equal 100] [--slower 10] [--minutes 40]

Writes ``bench/results/false-alarms.json``. *Equal* is an engine gated against itself, so whatever
the check of the ratio finds there is noise: regress is a false alarm. *Slower* is an engine with
twice the layers against the same baseline: pass is a miss. Every verdict is a whole `gate`, with
the budgets it has by default, the twelve rounds it asks for and a fresh process for each repetition
of each engine; what is short is what those processes do. A run that the gate refused as no evidence
(too much stolen time) is counted, and another takes its place. On a quiet machine of two cores a
verdict takes 11 s. When the minutes are over it ends with the verdicts there are, however they
came out.

The engines are vision transformers with random weights: latency is all that is looked at.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results

import edgekd
from edgekd import recipe, target
from edgekd.artifact import Artifact
from edgekd.bench.bench import protocol
from edgekd.bench.scenario import Scenario, Warmup
from edgekd.errors import MeasurementError
from edgekd.gate import gate
from edgekd.recipe import Gate
from edgekd.run import run

BUDGETS = Gate()
# single-stream as shipped, with less warm-up: the smallest engine is warm after a few queries.
SCENARIO = Scenario(
    name="short",
    scenario="SingleStream",
    batch=1,
    percentile=90,
    queries=200,
    warmup=Warmup(queries=20, seconds=0.02),
    repetitions=12,
)
REFUSED_MAX = 20
COVERS = ("edgekd.bench", "edgekd.judge")


def engine(layers: int, out: Path) -> Artifact:
    """The float engine of the demo's network with so many layers and random weights."""
    shipped = Path(edgekd.__file__).parent / "recipes" / "digits-vit" / "config.json"
    config = json.loads(shipped.read_text(encoding="utf-8")) | {"num_hidden_layers": layers}
    folder = out / f"config-{layers}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    document = {
        "name": f"layers-{layers}",
        "arms": ["fp16"],
        "teacher": {"model": f"hf:{folder / 'config.json'}", "fit": {"steps": 0}},
        "data": {"source": "python:edgekd.recipes.digits:load"},
        "distill": {"steps": 0},
    }
    made = run(recipe.parse(document, "false_alarms"), [target.load("cpu")], out)
    (found,) = (each for each in made.artifacts if each.kind == "Engine")
    return found


def judge(
    candidate: Artifact, baseline: Path, out: Path, asked: int, until: float
) -> dict[str, Any]:
    """Gate an engine so many times against a baseline; what the check of the ratio said."""
    found: list[tuple[str, float, float, float]] = []
    refused: list[str] = []
    started = time.perf_counter_ns()
    while len(found) < asked and (not found or time.monotonic() < until):
        try:
            made = gate(candidate, out, budgets=BUDGETS, scenario=SCENARIO, baseline=baseline)
        except MeasurementError as error:
            refused.append(str(error))
            if len(refused) > REFUSED_MAX:
                raise
            continue
        check = next(c for c in made.results["checks"] if c["name"] == "latency_to_baseline")
        found.append((check["verdict"], check["found"], *check["interval"]))
        print(f"{len(found):>4}  {check['sentence']}", flush=True)
    seconds, count = (time.perf_counter_ns() - started) / 1e9, len(found)
    verdicts = Counter(verdict for verdict, *_ in found)
    ratios = sorted(ratio for _, ratio, *_ in found)
    return {
        "asked": asked,
        "verdicts": {
            name: share(verdicts[name], count) for name in ("pass", "regress", "inconclusive")
        },
        "interval_holds_1": share(sum(low <= 1 <= high for *_, low, high in found), count),
        "ratio_median": ratios[count // 2],
        "ratio_range": [ratios[0], ratios[-1]],
        "refused": refused,
        "seconds": round(seconds, 1),
        "found": [[round(number, 4) for number in row] for _, *row in found],
    }


def share(hits: int, trials: int) -> dict[str, Any]:
    """A count, and the 95% interval of its share (Clopper and Pearson 1934, exact)."""

    def tail(at_least: int, p: float) -> float:
        return sum(
            math.comb(trials, k) * p**k * (1 - p) ** (trials - k)
            for k in range(at_least, trials + 1)
        )

    low = 0.0 if hits == 0 else _where(lambda p: tail(hits, p), 0.025)
    high = 1.0 if hits == trials else _where(lambda p: tail(hits + 1, p), 0.975)
    return {"count": hits, "of": trials, "interval": [round(low, 4), round(high, 4)]}


def _where(rising: Callable[[float], float], level: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return (low + high) / 2


def main() -> None:
    """Build two engines, gate them, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--equal", type=int, default=100)
    parser.add_argument("--slower", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--quiet-machine", action="store_true", help="nothing else ran on it")
    given = parser.parse_args()
    load, until = os.getloadavg()[0], time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as directory:
        out, baseline = Path(directory) / "out", Path(directory) / "baseline"
        one, two = engine(1, out), engine(2, out)
        gate(one, out, budgets=BUDGETS, scenario=SCENARIO, baseline=baseline, accept=True)
        slower = judge(two, baseline, out, given.slower, until)
        equal = judge(one, baseline, out, given.equal, until)
        how = protocol([one], SCENARIO)
    command = "python bench/false_alarms.py"
    content = {
        "rerun_minutes": 25,  # for all verdicts, on a machine of two quiet cores
        "other_work": "none" if given.quiet_machine else "other work ran on the machine",
        "load_1min": [load, os.getloadavg()[0]],
        "protocol": how,
        "scenario": SCENARIO.model_dump(mode="json"),
        "limit": 1 + BUDGETS.minimum_effect,
        "minutes_given": given.minutes,
        "equal": equal,
        "slower": slower,
    }
    print(results.write("false-alarms", command, COVERS, content))
    for name, found in (("equal", equal), ("slower", slower)):
        counts = {verdict: each["count"] for verdict, each in found["verdicts"].items()}
        print(f"{name}: {counts}, median ratio {found['ratio_median']:.3f}, {found['seconds']} s")
    print(f"anew: {command} (with --quiet-machine where nothing else runs)")


if __name__ == "__main__":
    main()
