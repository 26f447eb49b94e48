"""Verbs that look at artifacts and at the machine, and change neither; one writes a page."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgekd import artifact, kinds, target
from edgekd.artifact import MANIFEST, Artifact, Kind
from edgekd.cli.options import document, file_option, json_option, out_option, source_argument
from edgekd.errors import ArtifactError

# Named, so that one of an older layout is told and not read.
_KINDS = tuple(kind for kind in vars(kinds).values() if isinstance(kind, Kind))


@click.command()
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
        if "answer" in answer:
            click.echo(f"  after the graph: {json.dumps(answer['answer'])}")
        if "to_do" in answer:
            click.echo(f"  left to do after the graph: {answer['to_do']}")


@click.command()
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


@click.command()
@click.argument(
    "paths", metavar="ARTIFACT...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@file_option("--out", "report.html")
@json_option
def report(paths: tuple[Path, ...], path: Path, as_json: bool) -> None:
    """Write the page about any artifacts, for example those that came back from a device.

    A directory of artifacts, such as out, stands for every artifact in it.
    """
    found = [each for given in paths for each in _artifacts(given)]
    from edgekd.report import report

    made = report(found, path)
    if as_json:
        artifacts = [document(each) for each in found]
        click.echo(json.dumps({"report": str(made), "artifacts": artifacts}))
    else:
        click.echo(made)


@click.command()
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


@click.command()
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


def _artifacts(path: Path) -> list[Artifact]:
    """The artifact of that path, or every one that lies in that directory."""
    if not path.is_dir() or (path / MANIFEST).is_file():
        return [artifact.load(path, *_KINDS)]
    found = [artifact.load(file.parent, *_KINDS) for file in sorted(path.glob(f"*/{MANIFEST}"))]
    if not found:
        raise ArtifactError(
            f"{path}: neither it nor any directory in it holds a {MANIFEST}: give an artifact, or "
            "the --out of the verb that made some"
        )
    return found


VERBS = (
    infer,
    inspect,
    report,
    doctor,
    targets,
)
