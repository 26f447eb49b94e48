"""Verbs that make something: from a model to a recipe, from a recipe to an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from edgekd import artifact, data, kinds, progress, recipe, target
from edgekd.artifact import Artifact
from edgekd.cli.options import (
    document,
    file_option,
    json_option,
    no_sparsity_option,
    out_option,
    recipe_argument,
    show,
    source_argument,
)


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--target", "target_name", required=True, help="Device the recipe is for.")
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    help="Examples: a folder of one folder a class, a .parquet, .csv or .tsv.  [default: noise]",
)
@click.option(
    "--evaluation", type=click.Path(path_type=Path), help="The same, to judge by.  [default: noise]"
)
@file_option("--recipe", "recipe.toml")
def init(
    model: str, target_name: str, train: Path | None, evaluation: Path | None, path: Path
) -> None:
    """Write a commented recipe for MODEL that runs unedited.

    MODEL is hf:<directory or config.json>, timm:<name> or python:<module>:<callable>.
    """
    wanted = target.load(target_name)
    from edgekd.init import init

    click.echo(init(model, wanted, path, train, evaluation))


@click.command()
@recipe_argument
@click.option("--target", "target_name", required=True, help="Device to plan for.")
@json_option
def plan(recipe_name: str, target_name: str, as_json: bool) -> None:
    """Predict, before any training: what runs sparse, INT8 and fused, and where 2:4 can pay."""
    loaded, wanted = recipe.load(recipe_name), target.load(target_name)
    from edgekd.plan import plan
    from edgekd.report.planned import planned

    with progress.stage(f"plan for {wanted.name}"):
        found = plan(loaded, wanted)
    click.echo(json.dumps(found.as_json()) if as_json else planned(found))


@click.command()
@recipe_argument
@click.option("--target", "targets", multiple=True, help="Device to build for; may be repeated.")
@click.option(
    "--scenario",
    "scenario_name",
    help="Measure latency where an engine can be built here, for example single-stream.",
)
@no_sparsity_option
@out_option
@json_option
def run(
    recipe_name: str,
    targets: tuple[str, ...],
    scenario_name: str | None,
    no_sparsity: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run the whole chain: teacher, students, graphs, engines or Bundles, accuracy, report.

    RECIPE is a TOML file or the name of a shipped one, for example digits-vit.
    """
    from edgekd.bench import scenario
    from edgekd.run import run

    loaded, chosen = recipe.load(recipe_name), [target.load(name) for name in targets]
    if no_sparsity:
        loaded = loaded.without("sparse")
    asked = scenario.load(scenario_name) if scenario_name else None
    result = run(loaded, chosen, out or Path("out"), asked)
    if as_json:
        made = [document(each) for each in result.artifacts]
        click.echo(json.dumps({"report": str(result.report), "artifacts": made}))
    else:
        click.echo(result.report)


@click.command()
@recipe_argument
@no_sparsity_option
@out_option
@json_option
def compress(recipe_name: str, no_sparsity: bool, out: Path | None, as_json: bool) -> None:
    """Distill and export: from a RECIPE to the proven ONNX graphs of its student.

    What is "auto" in its [export] section is as for `edgekd export`.
    """
    from edgekd import sources
    from edgekd.distill.student import distill
    from edgekd.export.model import export
    from edgekd.plan import refuse

    loaded, out = recipe.load(recipe_name), out or Path("out")
    refuse(loaded, [])
    data.require_sizes(sources.load(loaded).io, loaded.export)
    arm = _student_arm(loaded, no_sparsity)
    with progress.stage(f"distill {arm}"):
        student = distill(loaded, out, arm)
    with progress.stage(f"export {arm}"):
        made = export(student, out, loaded.export)
    show(made, as_json)


@click.command()
@recipe_argument
@no_sparsity_option
@out_option
@json_option
def distill(recipe_name: str, no_sparsity: bool, out: Path | None, as_json: bool) -> None:
    """Train the student of a RECIPE (and its teacher first, if the recipe says so)."""
    from edgekd.distill.student import distill

    loaded = recipe.load(recipe_name)
    arm = _student_arm(loaded, no_sparsity)
    with progress.stage(f"distill {arm}"):
        made = distill(loaded, out or Path("out"), arm)
    show(made, as_json)


@click.command()
@source_argument
@click.option(
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="Take the graphs' form and sizes from its [export] section.  [default: its defaults]",
)
@out_option
@json_option
def export(path: Path, recipe_name: str | None, out: Path | None, as_json: bool) -> None:
    """Export a Student (INT8, Q/DQ) or a Teacher (float): two ONNX graphs, proven.

    Where the recipe's exporter and weights are "auto", torchscript and float weights are taken:
    only `edgekd run` builds the engines that decide between the others.
    """
    source = artifact.load(path, kinds.STUDENT, kinds.TEACHER)
    settings = recipe.load(recipe_name).export if recipe_name else recipe.Export()
    if recipe_name is None:
        sizes = f"{settings.batch_min} to {settings.batch_max}"
        progress.say(f"export: no --recipe given: opset {settings.opset}, batch {sizes}")
    from edgekd.export.model import export

    with progress.stage(f"export {path.name}"):
        made = export(source, out or path.parent, settings)
    show(made, as_json)


@click.command()
@source_argument
@click.option("--target", "target_name", required=True, help="Device to build for.")
@click.option("--bundle", is_flag=True, help="Make a Bundle even where the engine could be built.")
@click.option(
    "--arm",
    "arms",
    multiple=True,
    metavar="NAME=ARTIFACT",
    help="Another graph for the Bundle to compare, for example dense=out/onnx-model-...",
)
@click.option(
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="Let the Bundle judge its engines by the [gate] of a recipe.",
)
@out_option
@json_option
def build(
    path: Path,
    target_name: str,
    bundle: bool,
    arms: tuple[str, ...],
    recipe_name: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Build an OnnxModel's engine, or the Bundle that builds it on the device."""
    model = artifact.load(path, kinds.ONNX_MODEL)
    wanted = target.load(target_name)
    from edgekd.engine.build import build

    named = dict(_arm(text) for text in arms)
    made_from = recipe.load(recipe_name) if recipe_name else None
    with progress.stage(f"build for {wanted.name}"):
        made = build(model, wanted, out or path.parent, bundle=bundle, arms=named, recipe=made_from)
    show(made, as_json)


def _student_arm(loaded: recipe.Recipe, no_sparsity: bool) -> Literal["dense", "sparse"]:
    """The one student of a verb that makes one: 2:4, unless the option or the recipe is without."""
    only_dense = "dense" in loaded.arms and "sparse" not in loaded.arms
    return "dense" if no_sparsity or only_dense else "sparse"


def _arm(text: str) -> tuple[str, Artifact]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise click.BadParameter(f"{text!r}: expected NAME=ARTIFACT", param_hint="--arm")
    return name, artifact.load(Path(path), kinds.ONNX_MODEL)


VERBS = (
    init,
    plan,
    run,
    compress,
    distill,
    export,
    build,
)
