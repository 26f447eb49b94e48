"""The command line: each verb calls one function of the same name with the same parameter names.

stdout is the result, a path or with ``--json`` a document; stderr is for people. Exit codes: 0
done, 1 a violation or regression was found, 2 the command line is wrong, 3 an `EdgekdError` in one
sentence, 4 inconclusive, 130 Ctrl-C. A traceback is a bug. Nothing heavy is imported until a verb
needs it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from edgekd.cli import look, make, measure
from edgekd.errors import EdgekdError, install

# Packages that not every machine has, and the extra that brings each.
TRAIN = ("torch", "transformers", "safetensors", "modelopt", "onnx", "onnx_ir", "jinja2", "sklearn",
         "matplotlib", "datasets")  # fmt: skip
EXTRA = {"onnxruntime": "ort", "PIL": "preprocess", "tokenizers": "preprocess",
         **dict.fromkeys(TRAIN, "train")}  # fmt: skip


class _Cli(click.Group):
    """Turns an `EdgekdError` into one sentence and exit code 3, Ctrl-C into 130."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line; always exits."""
        _wait_briefly()
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
                f"{install(EXTRA[package])}",
                err=True,
            )
            sys.exit(3)
        except (click.Abort, KeyboardInterrupt):
            click.echo("edgekd: stopped; the same command goes on from here", err=True)
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


def _wait_briefly() -> None:
    """Let a thread of torch that waits spin a tenth of a millisecond, not ten, then sleep.

    Beside another busy program the thread it waits for has lost its core, and spinning keeps it
    away: on two cores a training step took three to four times as long as with this. Alone on two
    cores the demo's student takes a sixth longer with it, which ``GOMP_SPINCOUNT=300000`` takes
    back; no spinning at all, ``OMP_WAIT_POLICY=passive``, doubled a step. GNU's OpenMP, which torch
    has on Linux, reads it as it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgekd")
def main() -> None:
    """Compile a teacher network into a 2:4-sparse INT8 student for an edge device, with proof."""


for verb in (*make.VERBS, *measure.VERBS, *look.VERBS):
    main.add_command(verb)
