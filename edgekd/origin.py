"""Where an answer comes from: the code and data that were used, the tools, the machine.

Code and data are hashed into an artifact's question by content, never by path, so a renamed
checkout asks the same question and an edited line asks another. Tools count by version. The machine
and the time are provenance: told, but hashed into nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from edgekd.errors import ConfigError


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def source_hash(*modules: str) -> str:
    """SHA-256 (hex) of the Python source of modules or packages, without importing them.

    Args:
        *modules: Dotted names; a package stands for every ``.py`` file below it.

    Raises:
        ConfigError: A module does not exist.
    """
    digest = hashlib.sha256()
    for name in modules:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None or not spec.has_location:
            raise ConfigError(
                f"python module {name!r} was not found as a file: install it or set PYTHONPATH"
            )
        origin = Path(spec.origin)
        root = origin.parent
        files = sorted(root.rglob("*.py")) if spec.submodule_search_locations else [origin]
        for file in files:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions by distribution name, read from metadata without importing anything."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def provenance(seconds: float) -> dict[str, Any]:
    """When, where and with which edgekd something was made; hashed into nothing.

    Args:
        seconds: How long it took.
    """
    checkout = Path(__file__).parent.parent
    revision = "not a checkout"
    if (checkout / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        revision = found.stdout.strip() or "unknown"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": seconds,
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "edgekd_git": revision,
    }
