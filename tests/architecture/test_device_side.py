"""The device side runs on a Jetson's Python 3.10 with nothing but its own closure installed.

A real CPython 3.10 gets the versions of constraints-device.txt, without torch, onnx or rich, and
runs the tests of the device-side modules; pip then resolves the same closure for aarch64. Both need
the package index once: the environment is kept in .venv-device until what decides it changes.
(test_bundle_on_device.py runs a whole Bundle.)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import graphs

from edgekd import artifact, kinds
from edgekd.recipe import read_toml

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-device"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints-device.txt"
# Tests of device-side modules that make what they need without torch and onnx. (The graphs that the
# others work on are made with onnx: for those, build and evaluate run on a graph made here.)
TESTS = (
    "test_artifact.py",
    "test_artifact_crash.py",
    "test_artifact_read.py",
    "test_data.py",
    "test_durable.py",
    "test_eligible.py",
    "test_judge.py",
    "test_problems.py",
    "test_errors.py",
    "test_io_json.py",
    "test_metric.py",
    "test_origin.py",
    "test_quant.py",
    "test_recipe.py",
    "test_sparse24.py",
    "test_target.py",
    "bench/test_cpu_state.py",
    "bench/test_cuda_state.py",
    "bench/test_device_state.py",
    "bench/test_scenario.py",
    "bench/test_stats.py",
    "engine/test_cache.py",
    "engine/test_commands.py",
    "engine/test_cuda.py",
    "engine/test_layers.py",
    "engine/test_runner.py",
    "engine/test_sparsity.py",
    "engine/test_wheel.py",
)
TOOLS = ["hypothesis==6.168.5", "pytest==9.2.0"]  # the last that run on Python 3.10
AARCH64 = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")


def pip(*arguments: object) -> str:
    command = [str(PYTHON), "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-2000:]}"
    return done.stdout


def pins(file: Path) -> dict[str, str]:
    """Package -> version, names as pip normalizes them."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[str]:
    project = read_toml(ROOT / "pyproject.toml")["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["ort"]]


def find_python310() -> str | None:
    """A CPython 3.10 that runs: a pyenv shim on PATH may name one that is not chosen."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = ["python3.10", *map(str, sorted(versions.glob("3.10*/bin/python")))]
    ask = "import ensurepip, sys; print(sys.implementation.name, *sys.version_info[:2])"
    for candidate in filter(shutil.which, candidates):
        done = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
        if done.stdout == "cpython 3 10\n":
            return candidate
    return None


@pytest.fixture(scope="module")
def device(needs: Callable[[str, bool, str], None]) -> None:
    """.venv-device, made when absent or out of date."""
    found = find_python310()
    needs("python3.10", found is not None, "make system-deps, or pyenv install 3.10")
    assert found is not None
    decides = json.dumps([found, requirements(), pins(CONSTRAINTS), TOOLS])
    stamp = VENV / "stamp"
    if stamp.is_file() and stamp.read_text() == decides:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([found, "-m", "venv", str(VENV)], check=True)
    pip("install", "--quiet", "-c", CONSTRAINTS, *requirements())
    pip("install", "--quiet", "-c", CONSTRAINTS, *TOOLS)
    stamp.write_text(decides)


@pytest.mark.usefixtures("device")
def test_every_installed_version_is_pinned_and_nothing_heavy_is_there() -> None:
    installed = {normal(d["name"]): d["version"] for d in json.loads(pip("list", "--format=json"))}
    pinned = pins(CONSTRAINTS)
    assert {name: installed.get(name) for name in pinned} == pinned
    extra = set(installed) - set(pinned) - {"pip", "setuptools"}
    tools = {"exceptiongroup", "hypothesis", "iniconfig", "pluggy", "pygments", "pytest"}
    assert extra == tools | {"sortedcontainers"}


def run310(*arguments: object, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(PYTHON), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.usefixtures("device")
def test_device_side_tests_pass_on_python_310(tmp_path: Path) -> None:
    files = [ROOT / "tests" / name for name in TESTS]
    assert [str(file) for file in files if not file.exists()] == []
    # The folder's conftest makes graphs with onnx, and no test named above asks for one.
    options = ["-p", "no:cacheprovider", "--noconftest", "-m", "not slow"]
    said = run310("-m", "pytest", *options, *files, cwd=tmp_path)
    assert "platform linux -- Python 3.10." in said
    counted = re.search(r"(\d+) passed", said.splitlines()[-1])
    assert counted is not None
    assert int(counted[1]) > 200


@pytest.mark.usefixtures("device")
def test_an_engine_is_built_and_evaluated_on_python_310(tmp_path: Path) -> None:
    model = graphs.make_model(tmp_path / "out")
    cli = ["-c", "from edgekd.cli import main; main()"]
    built = run310(*cli, "build", model.path, "--target", "cpu", "--json", cwd=tmp_path)
    engine = artifact.load(Path(json.loads(built)["path"]), kinds.ENGINE)
    assert "Python 3.10." in engine.manifest.provenance["machine"]
    judged = run310(*cli, "evaluate", engine.path, "--json", cwd=tmp_path)
    report = artifact.load(Path(json.loads(judged)["path"]), kinds.ACCURACY_REPORT)
    assert engine.id in report.manifest.parents.values()


@pytest.mark.usefixtures("device")
def test_the_same_closure_resolves_for_aarch64(tmp_path: Path) -> None:
    report = VENV / f"aarch64-{hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()[:12]}.json"
    if not report.is_file():
        wheels = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10"]
        wheels += [word for tag in AARCH64 for word in ("--platform", tag)]
        dry = ["--dry-run", "--ignore-installed", "--target", tmp_path, "--report", tmp_path / "r"]
        pip("install", "--quiet", *dry, *wheels, "-c", CONSTRAINTS, *requirements())
        shutil.move(tmp_path / "r", report)
    packages = json.loads(report.read_text())["install"]
    found = {normal(p["metadata"]["name"]): p["metadata"]["version"] for p in packages}
    assert found == pins(CONSTRAINTS)
    files = [p["download_info"]["url"].rpartition("/")[2] for p in packages]
    assert [f for f in files if not f.endswith(("aarch64.whl", "none-any.whl"))] == []
    native = {normal(f.split("-")[0]) for f in files if f.endswith("aarch64.whl")}
    assert native >= {"numpy", "onnxruntime", "pydantic-core"}
