"""The command line: each verb calls one function of the same name with the same parameter names.

stdout is the result, a path or with ``--json`` a document; stderr is for people. Exit codes: 0
done, 1 a violation or regression was found, 2 the command line is wrong, 3 an `EdgekdError` in one
sentence, 4 inconclusive, 130 Ctrl-C. A traceback is a bug. Nothing heavy is imported until a verb
needs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import click

from edgekd import artifact, kinds, progress, recipe, target
from edgekd.artifact import Artifact
from edgekd.errors import EdgekdError

# Packages that not every machine has, and the extra that brings each.
TRAIN = ("torch", "transformers", "safetensors", "modelopt", "onnx", "onnx_ir", "jinja2", "sklearn",
         "matplotlib", "datasets")  # fmt: skip
EXTRA = {"onnxruntime": "ort", "PIL": "preprocess", "tokenizers": "preprocess",
         **dict.fromkeys(TRAIN, "train")}  # fmt: skip

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON document, not a path."
)
recipe_argument = click.argument("recipe_name", metavar="RECIPE")
source_argument = click.argument("path", metavar="ARTIFACT", type=click.Path(path_type=Path))
samples_option = click.option(
    "--samples",
    "samples_path",
    type=click.Path(path_type=Path),
    help="Samples to use.  [default: the ones the artifact was proven on]",
)
no_sparsity_option = click.option(
    "--no-sparsity", is_flag=True, help="Dense INT8: the same steps, losses and seed without 2:4."
)
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of artifacts.  [default: out, or where the given artifact lies]",
)


class _Cli(click.Group):
    """Turns an `EdgekdError` into one sentence and exit code 3, Ctrl-C into 130."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line; always exits."""
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except EdgekdError as error:
            click.echo(f"edgekd: {error}", err=True)
            sys.exit(3)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRA:
                raise
            click.echo(
                f"edgekd: this verb needs {package}, which is not installed: "
                f"pip install 'edgekd[{EXTRA[package]}]'",
                err=True,
            )
            sys.exit(3)
        except (click.Abort, KeyboardInterrupt):
            click.echo("edgekd: stopped; the same command goes on from here", err=True)
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgekd")
def main() -> None:
    """Compile a teacher network into a 2:4-sparse INT8 student for an edge device, with proof."""


@main.command()
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
        made = [_document(each) for each in result.artifacts]
        click.echo(json.dumps({"report": str(result.report), "artifacts": made}))
    else:
        click.echo(result.report)


@main.command()
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
@click.option(
    "--recipe",
    "path",
    default="recipe.toml",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.",
)
def init(
    model: str, target_name: str, train: Path | None, evaluation: Path | None, path: Path
) -> None:
    """Write a commented recipe for MODEL that runs unedited.

    MODEL is hf:<directory or config.json>, timm:<name> or python:<module>:<callable>.
    """
    wanted = target.load(target_name)
    from edgekd.init import init

    click.echo(init(model, wanted, path, train, evaluation))


@main.command()
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


@main.command()
@recipe_argument
@no_sparsity_option
@out_option
@json_option
def compress(recipe_name: str, no_sparsity: bool, out: Path | None, as_json: bool) -> None:
    """Distill and export: from a RECIPE to the proven ONNX graphs of its student."""
    from edgekd.distill.student import distill
    from edgekd.export.model import export

    loaded, out = recipe.load(recipe_name), out or Path("out")
    arm = _student_arm(no_sparsity)
    with progress.stage(f"distill {arm}"):
        student = distill(loaded, out, arm)
    with progress.stage(f"export {arm}"):
        made = export(student, out, loaded.export)
    _print(made, as_json)


@main.command()
@recipe_argument
@no_sparsity_option
@out_option
@json_option
def distill(recipe_name: str, no_sparsity: bool, out: Path | None, as_json: bool) -> None:
    """Train the student of a RECIPE (and its teacher first, if the recipe says so)."""
    from edgekd.distill.student import distill

    loaded, arm = recipe.load(recipe_name), _student_arm(no_sparsity)
    with progress.stage(f"distill {arm}"):
        made = distill(loaded, out or Path("out"), arm)
    _print(made, as_json)


@main.command()
@source_argument
@click.option(
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="Take opset and batch sizes from its [export] section.  [default: its defaults]",
)
@out_option
@json_option
def export(path: Path, recipe_name: str | None, out: Path | None, as_json: bool) -> None:
    """Export a Student (INT8, Q/DQ) or a Teacher (float): two ONNX graphs, proven."""
    source = artifact.load(path, kinds.STUDENT, kinds.TEACHER)
    settings = recipe.load(recipe_name).export if recipe_name else recipe.Export()
    if recipe_name is None:
        sizes = f"{settings.batch_min} to {settings.batch_max}"
        progress.say(f"export: no --recipe given: opset {settings.opset}, batch {sizes}")
    from edgekd.export.model import export

    with progress.stage(f"export {path.name}"):
        made = export(source, out or path.parent, settings)
    _print(made, as_json)


@main.command()
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
    _print(made, as_json)


@main.command()
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
    _print(made, as_json)


@main.command()
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
    _print(made, as_json)


@main.command()
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
    _print(verdict, as_json)
    sys.exit(EXIT_CODES[verdict.results["overall"]])


@main.command()
@source_argument
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Verify an artifact and print what it is, what it holds and what was proven of it."""
    found = artifact.load(path)
    if as_json:
        click.echo(found.manifest.model_dump_json(by_alias=True))
    else:
        from edgekd.report.describe import describe

        click.echo(describe(found))


@main.command()
@out_option
@json_option
def doctor(out: Path | None, as_json: bool) -> None:
    """Say what this machine can do, what is missing, and the command that mends it."""
    from edgekd.doctor import doctor

    findings = doctor(out or Path("out"))
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in findings]))
        return
    for finding in findings:
        click.echo(f"{'ok' if finding.good else '--'}  {finding.what:<38} {finding.found}")
        if finding.mend:
            click.echo(f"    {'':<38} -> {finding.mend}")


@main.command()
@json_option
def targets(as_json: bool) -> None:
    """List the devices edgekd knows."""
    known = [target.load(name) for name in target.names()]
    if as_json:
        click.echo(json.dumps([each.as_json() for each in known]))
        return
    for each in known:
        software = f"{each.runtime} {each.runtime_version or ''}".strip()
        click.echo(f"{each.name:<30} {each.device:<28} {software:<20} Python {each.python}")


@main.command()
@source_argument
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="Classes.")
@click.option("--pair", is_flag=True, help="Every two sentences are one input.")
@json_option
def infer(path: Path, inputs: tuple[str, ...], top: int, pair: bool, as_json: bool) -> None:
    """Ask any network: image files, sentences, or one .npz in, classes out.

    ARTIFACT is a Teacher, a Student, an OnnxModel or an Engine.
    """
    model = artifact.load(path, kinds.TEACHER, kinds.STUDENT, kinds.ONNX_MODEL, kinds.ENGINE)
    from edgekd.infer import infer

    answers = infer(model, inputs, top, pair)
    if as_json:
        click.echo(json.dumps(answers))
        return
    for answer in answers:
        click.echo(answer["input"])
        for found in answer.get("classes", ()):
            click.echo(f"  {found['probability']:7.2%}  {found['label']}")
        for name, found in answer.get("outputs", {}).items():
            click.echo(f"  {name} {found['shape']}: {found['min']:.4g} to {found['max']:.4g}")


def _student_arm(no_sparsity: bool) -> Literal["dense", "sparse"]:
    return "dense" if no_sparsity else "sparse"


def _arm(text: str) -> tuple[str, Artifact]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise click.BadParameter(f"{text!r}: expected NAME=ARTIFACT", param_hint="--arm")
    return name, artifact.load(Path(path), kinds.ONNX_MODEL)


def _print(made: Artifact, as_json: bool) -> None:
    click.echo(json.dumps(_document(made)) if as_json else str(made.path))


def _document(made: Artifact) -> dict[str, Any]:
    return {"path": str(made.path), "kind": made.kind, "id": made.id, "results": made.results}
