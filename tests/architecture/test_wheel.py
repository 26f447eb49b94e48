"""The wheel stands alone: installed into an empty environment, run from an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOAD_ALL = """
import importlib.resources, json
from pathlib import Path
import edgekd
from edgekd import recipe, target
from edgekd.bench import scenario

package = importlib.resources.files("edgekd")
names = {
    folder: sorted(f.name[:-5] for f in (package / folder).iterdir() if f.name.endswith(".toml"))
    for folder in ("recipes", "targets", "bench/scenarios")
}
for name in names["bench/scenarios"]:
    assert scenario.load(name).name == name
for name in names["recipes"]:
    found = recipe.load(name)
    for model in (found.teacher.model, found.student.model):
        if model and model.startswith("hf:"):
            assert (found.base / model[3:]).exists(), model
for name in names["targets"]:
    assert target.load(name).name == name
print(json.dumps({**names, "from": str(Path(edgekd.__file__).parent)}))
"""


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("edgekd-*.whl")
    return built


def repository(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.toml"))


def test_it_carries_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    outside = {name for name in names if not name.startswith(("edgekd/", "edgekd-"))}
    assert outside == set()
    assert {f"edgekd/targets/{name}.toml" for name in repository("targets")} <= names
    assert {f"edgekd/recipes/{name}.toml" for name in repository("edgekd/recipes")} <= names
    assert "edgekd/constraints-device.txt" in names
    assert {name.rpartition("/")[2] for name in names if "licenses/" in name} == {"LICENSE"}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgekd").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_it_runs_in_an_empty_environment_from_an_empty_directory(
    wheel: Path, tmp_path: Path
) -> None:
    empty, venv = tmp_path / "empty", tmp_path / "venv"
    empty.mkdir()
    run(sys.executable, "-m", "venv", venv, cwd=empty)
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=empty)
    assert run(venv / "bin" / "edgekd", "--help", cwd=empty).startswith("Usage: edgekd")
    found = run(venv / "bin" / "python", "-c", LOAD_ALL, cwd=empty)
    import json

    loaded = json.loads(found)
    assert loaded["recipes"] == repository("edgekd/recipes")
    assert loaded["targets"] == repository("targets")
    assert loaded["bench/scenarios"] == repository("bench/scenarios")
    assert loaded["from"].startswith(str(venv))
