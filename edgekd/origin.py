"""Where an answer comes from: the code and data that were used, the tools, the machine.

Code and data are hashed into an artifact's question by content, never by path, so a renamed
checkout asks the same question and an edited line asks another. Tools count by version. The machine
and the time are provenance: told, but hashed into nothing.

A user's module counts with every module of theirs that it imports, found by reading the import
statements and never by running them or by looking at what happens to be imported already: the
same files give the same hash in every process. Left out: what is imported by a name made up at run
time (but all of the package the module lies in counts), and installed distributions, the
standard library and edgekd itself, which a question names in other ways.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
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
        spec = _find(name)
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


def user_hash(module: str) -> str:
    """SHA-256 (hex) of the source of a module that a recipe names, and of what it imports.

    That is every module of `imported`, and the whole top-level package the module lies in, since
    packages of networks often import their files by listing a directory. A module of edgekd stands
    for itself alone: what it imports is in the question already.

    Raises:
        ConfigError: The module does not exist.
    """
    top = module.partition(".")[0]
    if top == "edgekd":
        return source_hash(module)
    files = imported(module)
    package = _find(top)
    if package is not None and package.origin and package.submodule_search_locations:
        root = Path(package.origin).parent
        files |= {_dotted(file.relative_to(root.parent)): file for file in root.rglob("*.py")}
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def imported(module: str) -> dict[str, Path]:
    """A module and every module it imports, directly or through others, without running any.

    An import counts wherever it stands, inside a function too. It is followed into the top-level
    package it is made from, and into modules that belong neither to the standard library nor to an
    installed distribution nor to edgekd.

    Args:
        module: Dotted name.

    Returns:
        Dotted name -> file, the module itself included; a package is its ``__init__.py``.

    Raises:
        ConfigError: The module does not exist as a file.
    """
    importlib.invalidate_caches()  # a file written a moment ago counts
    found: dict[str, Path] = {}
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        parents = [name[:end] for end, letter in enumerate(name) if letter == "."]
        for each in (*parents, name):  # importing a.b.c runs a and a.b first
            if each in seen:
                continue
            seen.add(each)
            spec = _find(each)
            if spec is None or spec.origin is None or not spec.has_location:
                continue
            found[each] = Path(spec.origin)
            top = each.partition(".")[0]
            left += [n for n in _imports(each, spec) if _followed(n.partition(".")[0], top)]
    if module not in found:
        raise ConfigError(
            f"python module {module!r} was not found as a file: install it or set PYTHONPATH"
        )
    return found


def _imports(name: str, spec: ModuleSpec) -> Iterator[str]:
    """Names that a module's import statements may mean; not all of them are modules."""
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    try:
        tree = ast.parse(Path(str(spec.origin)).read_bytes())
    except (SyntaxError, ValueError):  # whoever imports it is told
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = f"{above}.{node.module or ''}".strip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _followed(top: str, importer: str) -> bool:
    """Whether imports of a top-level module are followed from a module of another, or the same."""
    if top == importer:
        return True
    spec = None if top == "edgekd" or top in sys.builtin_module_names else _find(top)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return not any(_installed(Path(place)) for place in places)


def _installed(path: Path) -> bool:
    """Whether a path lies in the standard library or among installed distributions."""
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    paths = sysconfig.get_paths()
    library = {Path(paths[name]).resolve() for name in ("stdlib", "platstdlib")}
    return not path.is_absolute() or bool(library & set(path.resolve().parents))


def _find(name: str) -> ModuleSpec | None:
    """Where a module lies, as import would find it, but without importing its parents."""
    path: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:end]), path) if all(parts) else None
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and end < len(parts):
            return None
    return spec


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except (ImportError, AttributeError, ValueError):
            continue
        if spec is not None:
            return spec
    return None


def _dotted(file: Path) -> str:
    """``a/b/c.py`` as ``a.b.c``, and ``a/b/__init__.py`` as ``a.b``."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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
