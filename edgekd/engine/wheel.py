"""The wheels a Bundle carries: edgekd's own, and those the device's system lacks.

The device must run the edgekd that made the Bundle. An index may have another version or none, and
building a wheel with a build backend would need that backend and a checkout. A wheel is a zip with
three text files (PyPA "Binary distribution format", 1.0), so it is written here: from a checkout
with its ``pyproject.toml``, or from an installed wheel with its metadata. Equal sources give equal
bytes: names are sorted, times are fixed, nothing is compressed (zlib's output differs between
versions).

The others come through ``pip download`` with the versions of ``constraints-device.txt``, from
wherever the user's pip is configured to look. pip evaluates environment markers for the Python it
runs under, not for ``--python-version``; so the markers of edgekd's own requirements are evaluated
here. What was downloaded once is kept in one cache directory and checked by hash when it is used
again.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import recipe
from edgekd.engine import cache
from edgekd.errors import ToolchainError
from edgekd.progress import say
from edgekd.target import Target, shipped

# Files a checkout keeps beside the package and a wheel inside it, see `edgekd.target.shipped`.
_BESIDE = ("targets", "constraints-device.txt", "bench/scenarios")
_WHEEL = "Wheel-Version: 1.0\nGenerator: edgekd\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold


@dataclass(frozen=True)
class Wheels:
    """Wheels for a device.

    Attributes:
        files: File name -> bytes.
        missing: Requirements for which pip found no wheel.
    """

    files: Mapping[str, bytes]
    missing: tuple[str, ...]


def device_wheels(target: Target) -> Wheels:
    """Wheels of everything edgekd needs on a target, except what its system brings.

    Args:
        target: Whose Python, platforms and system packages count.

    Returns:
        The wheels; where the index cannot be reached, those that could be had and what is missing.
    """
    roots = requirements(target)
    constraints = shipped("constraints-device.txt")
    question = [constraints.read_text(encoding="utf-8"), target.python, target.platforms, roots]
    key = hashlib.sha256(json.dumps(question).encode()).hexdigest()
    folder = cache.directory() / f"wheels-{key[:16]}"
    kept = _verified(folder)
    if kept is not None:
        return Wheels(kept, ())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="wheels-new-") as scratch:
        missing = _download(Path(scratch), target, constraints, roots)
        files = {file.name: file.read_bytes() for file in sorted(Path(scratch).glob("*.whl"))}
        if not missing:
            _keep(Path(scratch), folder, files)
    return Wheels(files, tuple(missing))


def requirements(target: Target) -> list[str]:
    """What pip must provide on a target: edgekd's requirements and, for ``cpu``, its runtime."""
    lines = _metadata_text(_package()).splitlines()
    needed = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Requires-Dist:")]
    if target.runtime == "onnxruntime":
        needed.append("onnxruntime")
    wanted = []
    for line in needed:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if _applies(marker, target.python) and _name(requirement) not in target.system_packages:
            wanted.append(requirement)
    return sorted(wanted)


def _applies(marker: str, python: str) -> bool:
    """Evaluate the two kinds of marker edgekd's metadata has, for the target's Python."""
    bound = re.fullmatch(r"python_version < ['\"]3\.(\d+)['\"]", marker)
    if bound:
        return int(python.split(".")[1]) < int(bound[1])
    return "extra ==" not in marker


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _download(folder: Path, target: Target, constraints: Path, roots: Sequence[str]) -> list[str]:
    """Fill a folder with wheels; returns the requirements that pip could not meet."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--retries", "1"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
    command += [f"--platform={tag}" for tag in target.platforms]
    command += ["--constraint", str(constraints), "--dest", str(folder)]

    def lacks(wanted: Sequence[str]) -> bool:
        done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
        if done.returncode and len(wanted) == 1:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            say(f"no wheel of {wanted[0]} for {target.name}: {(reasons or ['pip failed'])[-1]}")
        return done.returncode != 0

    return [root for root in roots if lacks([root])] if lacks(roots) else []


def _verified(folder: Path) -> dict[str, bytes] | None:
    """Wheels kept in the cache; None where there are none or one byte is not what was kept."""
    index = folder / "wheels.json"
    if not index.is_file():
        return None
    expected: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
    files = {file.name: file.read_bytes() for file in sorted(folder.glob("*.whl"))}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return files if found == expected else None


def _keep(scratch: Path, folder: Path, files: Mapping[str, bytes]) -> None:
    """Move a complete download into the cache; a process that was faster has won."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    (scratch / "wheels.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scratch, folder, dirs_exist_ok=True)


def version() -> str:
    """Version of the edgekd that is running."""
    return _field(_metadata_text(_package()), "Version")


def contents() -> tuple[str, bytes]:
    """The wheel's file name and its bytes.

    Raises:
        ToolchainError: edgekd is neither a checkout nor an installed distribution.
    """
    package = _package()
    metadata = _metadata_text(package)
    version = _field(metadata, "Version")
    info = f"edgekd-{version}.dist-info"
    files = _package_files(package)
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    files[f"{info}/entry_points.txt"] = _entry_points(package).encode()
    record = f"{info}/RECORD"
    rows = [f"{name},{_digest(data)},{len(data)}" for name, data in sorted(files.items())]
    files[record] = ("\n".join([*rows, f"{record},,"]) + "\n").encode()
    return f"edgekd-{version}-py3-none-any.whl", _zip(files)


def _package() -> Path:
    return Path(__file__).parents[1]


def _package_files(package: Path) -> dict[str, bytes]:
    found = {f"edgekd/{name}": data for name, data in _tree(package).items()}
    for name in _BESIDE:
        path = shipped(name)
        if path.is_dir():
            found |= {f"edgekd/{name}/{file}": data for file, data in _tree(path).items()}
        else:
            found[f"edgekd/{name}"] = path.read_bytes()
    return found


def _tree(root: Path) -> dict[str, bytes]:
    files = (file for file in root.rglob("*") if file.is_file())
    names = {file.relative_to(root): file for file in files}
    return {
        name.as_posix(): file.read_bytes()
        for name, file in names.items()
        if "__pycache__" not in name.parts and not name.name.startswith(".")
    }


def _project(package: Path) -> dict[str, Any] | None:
    """The ``[project]`` table of the checkout the package lies in, None for an installed one."""
    file = package.parent / "pyproject.toml"
    project = recipe.read_toml(file).get("project", {}) if file.is_file() else {}
    return project if project.get("name") == "edgekd" else None


def _metadata_text(package: Path) -> str:
    project = _project(package)
    if project is None:
        return _installed("METADATA")
    fields = [
        ("Metadata-Version", "2.1"),
        ("Name", "edgekd"),
        ("Version", project["version"]),
        ("Summary", project["description"]),
        ("License", project["license"]),
        ("Requires-Python", project["requires-python"]),
        *(("Requires-Dist", requirement) for requirement in project["dependencies"]),
    ]
    for extra, needed in sorted(project.get("optional-dependencies", {}).items()):
        fields.append(("Provides-Extra", extra))
        fields += [("Requires-Dist", _with_extra(requirement, extra)) for requirement in needed]
    return "".join(f"{name}: {value}\n" for name, value in fields)


def _with_extra(requirement: str, extra: str) -> str:
    name, _, marker = (part.strip() for part in requirement.partition(";"))
    return f'{name}; ({marker}) and extra == "{extra}"' if marker else f'{name}; extra == "{extra}"'


def _entry_points(package: Path) -> str:
    project = _project(package)
    if project is None:
        return _installed("entry_points.txt")
    scripts: Mapping[str, str] = project.get("scripts", {})
    rows = [f"{name} = {value}" for name, value in sorted(scripts.items())]
    return "\n".join(["[console_scripts]", *rows]) + "\n"


def _installed(name: str) -> str:
    try:
        text = importlib.metadata.distribution("edgekd").read_text(name)
    except importlib.metadata.PackageNotFoundError:
        text = None
    if text is None:
        raise ToolchainError(
            f"edgekd's own wheel cannot be written: {_package()} has no pyproject.toml beside it "
            f"and no installed {name}; install edgekd with pip, or run it from a checkout"
        )
    return text


def _field(metadata: str, name: str) -> str:
    rows = (line for line in metadata.splitlines() if line.startswith(f"{name}: "))
    return next(rows).split(": ", 1)[1]


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        # RECORD last, as the specification recommends: readers find it without a scan.
        for name in sorted(files, key=lambda name: (name.endswith("/RECORD"), name)):
            entry = zipfile.ZipInfo(name, date_time=_TIME)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, whatever wrote it
            archive.writestr(entry, files[name])
    return buffer.getvalue()
