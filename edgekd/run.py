"""The whole chain, readable in one page: teacher, students, graphs, engines and Bundles, report.

Each arm of a recipe is one graph that a device compares: ``fp16`` is the teacher without
quantization, ``dense`` the INT8 student, ``sparse`` the 2:4 INT8 student with the same steps,
losses and seed. The main arm is the most compressed one. Whatever was answered before is taken from
cache, so the same command after a kill goes on where it stood.

How a student is exported (which of torch's exporters, weights as integers or floats) is decided by
what an engine makes of it (`edgekd.choice`). Where no engine can be built the safe way is taken,
and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekd import artifact, choice, data, kinds, progress
from edgekd.artifact import Artifact
from edgekd.bench.bench import bench, newest
from edgekd.bench.scenario import Scenario
from edgekd.errors import ConfigError
from edgekd.evaluate import evaluate
from edgekd.recipe import Export, Recipe
from edgekd.target import Target

MAIN_FIRST = ("sparse", "dense", "fp16")


@dataclass(frozen=True)
class Result:
    """What a run made: every artifact in the order it was made, and the page that shows them."""

    artifacts: list[Artifact]
    report: Path


def run(
    recipe: Recipe, targets: Sequence[Target], out: Path, scenario: Scenario | None = None
) -> Result:
    """Compile a recipe for some targets.

    Args:
        recipe: What to compress and how.
        targets: Devices to build for; none means the graphs and the report alone.
        out: Directory of artifacts; ``report.html`` is written there.
        scenario: Measure the latency of the engines that can be built here; None measures none.

    Raises:
        EdgekdError: Whatever stage met a problem says so; finished artifacts stay.
    """
    from edgekd import sources
    from edgekd.distill.teacher import teach
    from edgekd.plan import refuse
    from edgekd.report import report

    if len(set(recipe.arms)) != len(recipe.arms):
        raise ConfigError(f"recipe {recipe.name}: arms are {recipe.arms}: name each arm once")
    refuse(recipe, targets)
    data.require_sizes(sources.load(recipe).io, recipe.export)
    made: list[Artifact] = []
    with progress.stage("teacher") as done:
        made.append(teach(recipe, out))
        done(made[-1].path.name)
    graphs, more = _graphs(recipe, made[0], targets, out)
    made += more
    runnable = list(graphs.values())
    for target in targets:
        built = _build(recipe, graphs, target, out)
        made += built
        engines = [
            each for each in built if each.kind == "Engine" and not each.results.get("evidence")
        ]
        runnable += engines
        if engines and scenario is not None:
            made.append(_bench(engines[::-1], scenario, out))
    for model in runnable:
        with progress.stage(f"evaluate {model.config['arm']} {model.kind}") as done:
            made.append(evaluate(model, out))
            done(made[-1].path.name)
    with progress.stage("report") as done:
        page = report(made, out / "report.html")
        done(str(page))
    return Result(made, page)


def _graphs(
    recipe: Recipe, teacher: Artifact, targets: Sequence[Target], out: Path
) -> tuple[dict[str, Artifact], list[Artifact]]:
    """The OnnxModel of every arm, main first, and all that was made."""
    graphs: dict[str, Artifact] = {}
    made: list[Artifact] = []
    judge, settings = choice.judge(recipe, targets), recipe.export
    for arm in sorted(recipe.arms, key=MAIN_FIRST.index):
        if arm == "dense" and "sparse" in graphs and not graphs["sparse"].results["quantized"]:
            progress.say("dense: left out, no layer is planned for INT8")
            continue
        source = teacher if arm == "fp16" else _student(recipe, arm, out)
        with progress.stage(f"export {arm}") as done:
            # All arms are exported as the main one is: they are compared with each other.
            if not graphs and judge is not None and source is not teacher:
                made.append(choice.choose(source, settings, judge, out))
                kept = made[-1].results
                settings = choice.way(settings, kept["exporter"], kept["weights"])
            graphs[arm] = _export(source, settings, out)
            done(graphs[arm].path.name)
        samples = artifact.parent(graphs[arm], "samples", kinds.SAMPLES)
        made += [*([] if source is teacher else [source]), samples, graphs[arm]]
    return graphs, made


def _build(
    recipe: Recipe, graphs: dict[str, Artifact], target: Target, out: Path
) -> list[Artifact]:
    """The Engine of every arm, or one Bundle of them all and the evidence made beside it."""
    from edgekd.engine.build import build

    main, *others = graphs
    with progress.stage(f"build for {target.name}") as done:
        arms = {name: graphs[name] for name in others}
        built = [build(graphs[main], target, out, arms=arms, recipe=recipe)]
        if built[0].kind == "Engine":
            built += [build(graphs[name], target, out) for name in others]
        done(built[0].path.name)
    return [*built, *_evidence(built[0])]


def _bench(engines: list[Artifact], scenario: Scenario, out: Path) -> Artifact:
    """Measure, or take the latest report of the same engines on this device, with its date."""
    with progress.stage(f"bench {scenario.name}") as done:
        measured = newest(engines, scenario, out)
        date = f" of {measured.config['started'][:10]}" if measured else ""
        measured = measured or bench(engines, scenario, out)
        done(measured.path.name + date)
    return measured


def _student(recipe: Recipe, arm: Literal["dense", "sparse"], out: Path) -> Artifact:
    from edgekd.distill.student import distill

    with progress.stage(f"distill {arm}") as done:
        student = distill(recipe, out, arm)
        done(student.path.name)
    return student


def _export(source: Artifact, settings: Export, out: Path) -> Artifact:
    from edgekd.export.model import export

    return export(source, out, settings)


def _evidence(built: Artifact) -> list[Artifact]:
    """The engines that were built beside a Bundle to see what a builder makes of its graphs."""
    roles = [role for role in built.manifest.parents if role.startswith("evidence")]
    return [artifact.parent(built, role, kinds.ENGINE) for role in sorted(roles)]
