"""What verbs share: options spelled alike, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekd.artifact import Artifact

_Verb = TypeVar("_Verb", bound=Callable[..., Any])

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


def file_option(name: str, default: str) -> Callable[[_Verb], _Verb]:
    """The file that a verb writes, as its `path`.

    Args:
        name: What it is called on the command line.
        default: What it is where it is not given.
    """
    return click.option(
        name,
        "path",
        default=default,
        show_default=True,
        type=click.Path(dir_okay=False, path_type=Path),
        help="File to write.",
    )


def show(made: Artifact, as_json: bool) -> None:
    """Print what a verb made: its path, or a document."""
    click.echo(json.dumps(document(made)) if as_json else str(made.path))


def document(made: Artifact) -> dict[str, Any]:
    """An artifact as ``--json`` prints it."""
    return {"path": str(made.path), "kind": made.kind, "id": made.id, "results": made.results}
