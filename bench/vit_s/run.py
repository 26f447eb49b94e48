"""Latency of a ViT-S-size network on this CPU: float32, dense INT8 and 2:4 INT8, interleaved.

    python bench/vit_s/run.py                  4 to 9 minutes on two cores
    python bench/vit_s/run.py --out out        the same, and on the demo's page in out/
    python bench/vit_s/run.py --layers 2       a smaller network, to try it: no result is written

Writes ``bench/results/vit-s-cpu.json``: the LatencyReport's numbers, the machine and its state. The
weights are random, so this says nothing of accuracy; ONNX Runtime uses no 2:4, so dense and sparse
are expected to be equal.

With ``--out DIR`` the artifacts stay in ``DIR/vit-s``. Where ``make demo`` has left its own in DIR,
its page is written again with this latency as a subsection of its own. `edgekd run` writes the page
of its one recipe, so run there again it leaves this out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgekd import artifact, recipe, target
from edgekd.artifact import Artifact
from edgekd.bench import scenario
from edgekd.errors import ArtifactError
from edgekd.report import report
from edgekd.run import run

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import demo  # noqa: E402
import results  # noqa: E402

LAYERS = json.loads((HERE / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]


def main() -> None:
    """Run the chain without training, measure, keep the numbers, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the artifacts in OUT/vit-s")
    parser.add_argument("--layers", type=int, default=LAYERS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out / "vit-s" if arguments.out else Path(scratch) / "out"
        timed = measure(described(arguments.layers, Path(scratch)), out)
        latency = timed.read_json("latency.json")
        tell(latency)
        if arguments.layers == LAYERS:
            keep(latency)
        if arguments.out:
            print(page(timed, arguments.out))


def described(layers: int, scratch: Path) -> recipe.Recipe:
    """The recipe; of fewer layers it has another name, since the page prints it."""
    if layers == LAYERS:
        return recipe.load(HERE / "recipe.toml")
    folder = scratch / "small"
    folder.mkdir()
    text = (HERE / "recipe.toml").read_text(encoding="utf-8")
    named = text.replace('"vit-s-random"', f'"vit-s-random-{layers}-layers"')
    (folder / "recipe.toml").write_text(named, encoding="utf-8")
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return recipe.load(folder / "recipe.toml")


def measure(wanted: recipe.Recipe, out: Path) -> Artifact:
    """The LatencyReport; everything it rests on lies beside it."""
    made = run(wanted, [target.load("cpu")], out, scenario.load(HERE / "scenario.toml")).artifacts
    return next(each for each in made if each.kind == "LatencyReport")


def tell(latency: dict[str, Any]) -> None:
    """A line for each engine."""
    for row in latency["engines"]:
        p50, ratio = row["percentiles"]["p50"], row.get("ratio_to_first", {}).get("p50")
        beside = "" if ratio is None else f", {ratio['estimate']:.2f} of the first's time"
        print(f"{row['arm']:<7} p50 {p50['estimate'] / 1e6:.2f} ms{beside}")


def keep(latency: dict[str, Any]) -> None:
    """Write the result, the report's numbers under a key of their own."""
    what = "latency only: random weights, ViT-S size, batch 1, ONNX Runtime on a CPU"
    covers = ("edgekd.export", "edgekd.bench")
    content = {"what": what, "latency": latency}
    results.write("vit-s-cpu", "python bench/vit_s/run.py", covers, content)


def page(timed: Artifact, out: Path) -> Path:
    """The demo's page with this latency on it; without a demo in `out` this network's own page."""
    if not any(_is_demo(path) for path in out.iterdir()):
        print(f"{out} holds no artifacts of {demo.RECIPE}: the page is of this network alone")
        return timed.path.parent / "report.html"
    targets = [target.load(name) for name in demo.TARGETS]
    # The demo's own command, answered from cache: it knows which artifacts are of one run.
    made = run(recipe.load(demo.RECIPE), targets, out, scenario.load(demo.SCENARIO))
    return report([*made.artifacts, timed], made.report)


def _is_demo(path: Path) -> bool:
    try:
        found = artifact.read_manifest(path)
    except ArtifactError:  # somebody else's
        return False
    return found.kind == "OnnxModel" and found.config.get("name") == demo.RECIPE


if __name__ == "__main__":
    main()
