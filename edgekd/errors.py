"""The closed set of errors, each named for what the user does next.

Every error is one sentence: where, what is wrong with the numbers (found next to expected), what to
do. The CLI prints it and exits with 3; a traceback from edgekd therefore always means a bug.

    EdgekdError
      ConfigError        fix the recipe, target or scenario file, or the name given
      ContractError      the model breaks a numeric contract (2:4, int8 range, Q/DQ form)
      ArtifactError      the artifact is missing, altered or of the wrong kind
      UnsupportedError   the target cannot run this
      ToolchainError     a tool is absent, too old, or failed
      MeasurementError   the measurement is not valid evidence

What several sentences end with is here too: the names that exist, the command that installs.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import shlex
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of a checkout, or where packages are installed


class EdgekdError(Exception):
    """Root of every error a user can cause or mend; the CLI turns it into exit code 3."""


class ConfigError(EdgekdError):
    """Fix the recipe, target or scenario file, or the name given on the command line."""


class ContractError(EdgekdError):
    """The model breaks a numeric contract: 2:4, int8 range or Q/DQ form."""


class ArtifactError(EdgekdError):
    """The artifact is missing, altered, half-written by someone else, or of the wrong kind."""


class UnsupportedError(EdgekdError):
    """The target cannot run this."""


class ToolchainError(EdgekdError):
    """A tool is absent, too old, or failed."""


class MeasurementError(EdgekdError):
    """The measurement is not valid evidence."""


def names_that_exist(wrong: str, names: Iterable[str]) -> str:
    """What follows on a name that was not found: the nearest one, then all that exist.

    They are sentences of their own: the one before ends with a full stop.

    Args:
        wrong: The name as the user gave it.
        names: Every name that would have been accepted.

    Returns:
        For example ``Did you mean "steps"? There are: batch_size, steps``.
    """
    known = sorted(names)
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{hint}There are: {', '.join(known) if known else 'none'}"


def checkout() -> bool:
    """Whether this edgekd runs from its own source tree, which has a Makefile and constraints."""
    project = ROOT / "pyproject.toml"
    return project.is_file() and 'name = "edgekd"' in project.read_text(encoding="utf-8")


def at_root(command: str) -> str:
    """A command for a shell that stands where this process does, run in the checkout's root."""
    return command if Path.cwd() == ROOT else f"cd {shlex.quote(str(ROOT))} && {command}"


def install(extra: str) -> str:
    """The command that installs an extra of this edgekd.

    A checkout installs itself with the pinned versions. An installed edgekd asks for its own
    version, which pip takes as it lies there: it need not be found in any index again.

    Args:
        extra: A name of ``[project.optional-dependencies]``, for example ``train``.

    Returns:
        For example ``pip install -c constraints.txt -e '.[train]'``.
    """
    if checkout():
        return at_root(f"pip install -c constraints.txt -e '.[{extra}]'")
    try:
        return f"pip install 'edgekd[{extra}]=={importlib.metadata.version('edgekd')}'"
    except importlib.metadata.PackageNotFoundError:  # copied somewhere, not installed
        return f"pip install 'edgekd[{extra}]'"
