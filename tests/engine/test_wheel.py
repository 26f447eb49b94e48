from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from edgekd import recipe, target
from edgekd.engine import wheel
from edgekd.errors import ToolchainError

ROOT = Path(__file__).parents[2]
ORIN = target.load("jetson-agx-orin-64gb-jp6.2")
PINS = {
    line.split("==")[0]: line.split("==")[1].strip()
    for line in (ROOT / "constraints-device.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
}


def stand_in(folder: Path, name: str, version: str, needs: tuple[str, ...] = ()) -> None:
    """Write a wheel that pip takes for the real package."""
    info = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{info}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}.dist-info/METADATA", metadata)
        archive.writestr(f"{info}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can see, with the pinned versions of what edgekd needs."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    stand_in(folder, "pydantic", PINS["pydantic"], ("typing-extensions>=4",))
    for name in ("click", "numpy", "tomli", "typing-extensions"):
        stand_in(folder, name, PINS[name])
    return folder


def test_the_requirements_are_those_of_the_targets_python() -> None:
    assert wheel.requirements(ORIN) == [
        "click>=8.1",
        "numpy>=1.22,<3",
        "pydantic>=2.7",
        "tomli>=2.0",
    ]
    newer = wheel.requirements(target.load("jetson-agx-orin-64gb-jp7.2.0"))
    assert newer == ["click>=8.1", "numpy>=1.22,<3", "pydantic>=2.7"]
    assert "onnxruntime" in wheel.requirements(target.load("cpu"))


def test_what_the_system_brings_is_not_carried() -> None:
    with_numpy = ORIN.model_copy(update={"system_packages": ["tensorrt", "numpy"]})
    assert not any(line.startswith("numpy") for line in wheel.requirements(with_numpy))


def test_pip_provides_the_pinned_versions_and_what_they_need(index: Path) -> None:
    stand_in(index, "click", "99.0")
    found = wheel.device_wheels(ORIN)
    assert found.missing == ()
    assert sorted(found.files) == [
        f"click-{PINS['click']}-py3-none-any.whl",
        f"numpy-{PINS['numpy']}-py3-none-any.whl",
        f"pydantic-{PINS['pydantic']}-py3-none-any.whl",
        f"tomli-{PINS['tomli']}-py3-none-any.whl",
        f"typing_extensions-{PINS['typing-extensions']}-py3-none-any.whl",
    ]


def test_what_was_downloaded_once_is_used_again_without_an_index(index: Path) -> None:
    first = wheel.device_wheels(ORIN)
    for file in index.iterdir():
        file.unlink()
    assert wheel.device_wheels(ORIN) == first


def test_a_kept_wheel_that_was_altered_is_downloaded_again(index: Path, tmp_path: Path) -> None:
    first = wheel.device_wheels(ORIN)
    (kept,) = (tmp_path / "cache" / "edgekd").glob("wheels-*/click-*.whl")
    kept.write_bytes(b"altered")
    assert wheel.device_wheels(ORIN) == first
    for file in index.iterdir():
        file.unlink()
    kept.write_bytes(b"altered")
    assert wheel.device_wheels(ORIN).missing == tuple(wheel.requirements(ORIN))


def test_what_no_index_has_is_named_and_not_kept(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (next(index.glob("numpy-*"))).unlink()
    found = wheel.device_wheels(ORIN)
    assert found.missing == ("numpy>=1.22,<3",)
    assert f"click-{PINS['click']}-py3-none-any.whl" in found.files
    assert "no wheel of numpy>=1.22,<3 for jetson-agx-orin-64gb-jp6.2" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("wheels.json"))


def test_own_wheel_is_the_same_every_time_and_complete(tmp_path: Path) -> None:
    name, data = wheel.contents()
    assert wheel.contents() == (name, data)
    assert name == f"edgekd-{wheel.version()}-py3-none-any.whl"
    (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / name) as archive:
        names = set(archive.namelist())
        info = f"edgekd-{wheel.version()}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        assert archive.read(f"{info}/entry_points.txt") == (
            b"[console_scripts]\nedgekd = edgekd.cli:main\n"
        )
    assert {row.split(",")[0] for row in record} == names
    assert {"edgekd/target.py", "edgekd/targets/cpu.toml", "edgekd/constraints-device.txt"} <= names
    assert not any("__pycache__" in entry for entry in names)
    assert "Requires-Python: >=3.10\n" in metadata
    assert "Requires-Dist: tomli>=2.0; python_version < '3.11'\n" in metadata


def test_it_carries_what_the_build_backend_would_carry() -> None:
    project = recipe.read_toml(ROOT / "pyproject.toml")
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {name: f"edgekd/{name}" for name in wheel._BESIDE}


def test_extras_keep_their_own_markers() -> None:
    assert wheel._with_extra("rich>=13", "device") == 'rich>=13; extra == "device"'
    marked = wheel._with_extra("tensorrt>=10.3; platform_machine == 'x86_64'", "trt")
    assert marked == "tensorrt>=10.3; (platform_machine == 'x86_64') and extra == \"trt\""


def test_own_wheel_installs_into_an_empty_environment_and_makes_itself_again(
    tmp_path: Path,
) -> None:
    name, data = wheel.contents()
    (tmp_path / name).write_bytes(data)
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, tmp_path / name], check=True, env=environment)
    # The dependencies come from this environment; edgekd itself from the wheel alone.
    others = os.pathsep.join(entry for entry in sys.path if entry.endswith("site-packages"))
    program = (
        "import edgekd, hashlib; from edgekd import target; from edgekd.engine import wheel;"
        "assert 'venv' in edgekd.__file__, edgekd.__file__;"
        "print(target.names()); print(*wheel.contents()[0:1]);"
        "print(wheel.shipped('constraints-device.txt').is_file())"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [python, "-c", f"import sys; sys.path += {others.split(os.pathsep)!r}\n{program}"],
        check=True,
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [str(target.names()), name, "True"]
    assert (tmp_path / "venv" / "bin" / "edgekd").is_file()


def test_a_copied_package_cannot_write_its_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: str) -> None:
        raise wheel.importlib.metadata.PackageNotFoundError("edgekd")

    monkeypatch.setattr(wheel, "_package", lambda: tmp_path / "edgekd")
    monkeypatch.setattr(wheel.importlib.metadata, "distribution", absent)
    with pytest.raises(ToolchainError, match="no installed METADATA; install edgekd with pip"):
        wheel.contents()
