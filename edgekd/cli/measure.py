"""Verbs that measure and judge what was made."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgekd import artifact, kinds, progress, recipe
from edgekd.cli import told
from edgekd.cli.options import json_option, out_option, samples_option, show, source_argument


@click.command()
@source_argument
@samples_option
@out_option
@json_option
def evaluate(path: Path, samples_path: Path | None, out: Path | None, as_json: bool) -> None:
    """Measure accuracy and fidelity to the teacher of an OnnxModel or an Engine."""
    model = artifact.load(path, kinds.ONNX_MODEL, kinds.ENGINE)
    samples = None if samples_path is None else artifact.load(samples_path, kinds.SAMPLES)
    from edgekd.evaluate import evaluate

    with progress.stage(f"evaluate {path.name}"):
        made = evaluate(model, out or path.parent, samples)
    for line in told.accuracy(made):
        progress.say(line)
    show(made, as_json)


@click.command()
@click.argument(
    "paths", metavar="ENGINE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--scenario", "scenario_name", default="single-stream", show_default=True)
@samples_option
@out_option
@json_option
def bench(
    paths: tuple[Path, ...],
    scenario_name: str,
    samples_path: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure the latency of engines side by side; ratios are to the first."""
    from edgekd.bench import scenario
    from edgekd.bench.bench import bench

    chosen = scenario.load(scenario_name)
    engines = [artifact.load(path, kinds.ENGINE) for path in paths]
    samples = None if samples_path is None else artifact.load(samples_path, kinds.SAMPLES)
    with progress.stage(f"bench {chosen.name}"):
        made = bench(engines, chosen, out or paths[0].parent, samples)
    for line in told.latency(made):
        progress.say(line)
    show(made, as_json)


@click.command()
@source_argument
@click.option("--recipe", "recipe_name", metavar="RECIPE", help="Take budgets from its [gate].")
@click.option(
    "--baseline",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the baseline to compare with; its engine is measured again beside this one.",
)
@click.option("--scenario", "scenario_name", default="single-stream", show_default=True)
@click.option("--accept", is_flag=True, help="Write what was measured as the new baseline.")
@samples_option
@out_option
@json_option
def gate(
    path: Path,
    recipe_name: str | None,
    baseline: Path | None,
    scenario_name: str,
    accept: bool,
    samples_path: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge an engine by budgets and against a baseline; exit 0 pass, 1 regress, 4 inconclusive."""
    from edgekd.bench import scenario
    from edgekd.gate import EXIT_CODES, gate

    engine = artifact.load(path, kinds.ENGINE)
    budgets = recipe.load(recipe_name).gate if recipe_name else recipe.Gate()
    samples = None if samples_path is None else artifact.load(samples_path, kinds.SAMPLES)
    with progress.stage(f"gate {path.name}"):
        verdict = gate(
            engine,
            out or path.parent,
            budgets=budgets,
            scenario=scenario.load(scenario_name),
            baseline=baseline,
            samples=samples,
            accept=accept,
        )
    for check in verdict.read_json("verdict.json")["checks"]:
        progress.say(f"{check['verdict']:<13} {check['sentence']}")
    show(verdict, as_json)
    sys.exit(EXIT_CODES[verdict.results["overall"]])


VERBS = (
    evaluate,
    bench,
    gate,
)
