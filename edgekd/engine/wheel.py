"""edgekd's own wheel, written from the package that is running, for a Bundle to carry.

The device must run the edgekd that made the Bundle. An index may have another version or none, and
building a wheel with a build backend would need that backend and a checkout. A wheel is a zip with
three text files (PyPA "Binary distribution format", 1.0), so it is written here: from a checkout with
its ``pyproject.toml``, or from an installed wheel with its metadata. Equal sources give equal bytes:
names are sorted, times are fixed, nothing is compressed (zlib's output differs between versions).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd import recipe, target
from edgekd.errors import ToolchainError

# Files a checkout keeps beside the package and a wheel inside it, see `edgekd.target.shipped`.
_BESIDE = ("targets", "constraints-device.txt")
_WHEEL = "Wheel-Version: 1.0\nGenerator: edgekd\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold


def requirements() -> list[str]:
    """What edgekd needs to run, as ``Requires-Dist`` lines; those of extras left out."""
    lines = _metadata_text(_package()).splitlines()
    needed = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Requires-Dist:")]
    return [line for line in needed if "extra ==" not in line]


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
        path = target.shipped(name)
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
