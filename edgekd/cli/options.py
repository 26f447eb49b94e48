"""What verbs share: options spelled alike, and how a result is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.artifact import Artifact

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


def show(made: Artifact, as_json: bool) -> None:
    """Print what a verb made: its path, or a document."""
    click.echo(json.dumps(document(made)) if as_json else str(made.path))


def document(made: Artifact) -> dict[str, Any]:
    """An artifact as ``--json`` prints it."""
    return {"path": str(made.path), "kind": made.kind, "id": made.id, "results": made.results}
