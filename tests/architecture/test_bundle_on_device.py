"""A Bundle is copied to a machine that has nothing but Python 3.10, and its commands are typed.

Every command of COMMANDS.md, exactly as it stands there, by one ``bash -e`` in an empty directory,
with no way to a package index: what it prints are artifacts that open and verify, and a verdict.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import graphs, programs

from edgekd import artifact, kinds, recipe, target
from edgekd.artifact import Artifact
from edgekd.bench import inputs
from edgekd.engine.build import build
from edgekd.gate import EXIT_CODES
from edgekd.recipe import Recipe

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the discard port: whatever asks an index fails at once
ARMS = ("fp16", "sparse")  # each with Samples of its own
BUSY = ("measure when the host is quieter", "measure again")  # what such refusals end in


def recipe_with(**gate: float) -> Recipe:
    """A recipe whose model and data are nowhere, as on a device."""
    document = {
        "name": "tiny",
        "teacher": {"model": "hf:nowhere/at/all"},
        "data": {"source": "python:no_such_module:load"},
        "distill": {"steps": 3},
        "gate": gate,
    }
    return recipe.parse(document, "tiny.toml")


@pytest.fixture(scope="module")
def python310(needs: Callable[[str, bool, str], None]) -> Path:
    """A real CPython 3.10, not a shim that chooses one."""
    found = programs.load("tests/architecture/test_device_side.py").find_python310()
    needs("python3.10", found is not None, "make system-deps, or pyenv install 3.10")
    ask = [found, "-c", "import sys; print(sys.executable)"]
    return Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Artifact:
    """A cpu Bundle of two arms; its wheels are downloaded once and kept in pytest's cache."""
    assert pytestconfig.cache is not None
    out = tmp_path_factory.mktemp("host") / "out"
    arms = {arm: graphs.make_model(out, arm=arm) for arm in ARMS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("device-wheels")))
        made = build(
            arms["sparse"],
            target.load("cpu"),
            out,
            bundle=True,
            arms=arms,
            recipe=recipe_with(accuracy_drop_points=100.0, size_bytes=10**9),
        )
    assert made.results["missing_wheels"] == []
    return made


@pytest.fixture(scope="module")
def device(
    bundle: Artifact, python310: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder on the device, and what the commands of COMMANDS.md printed there."""
    text = (bundle.path / "COMMANDS.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for _ in range(3):
        folder = tmp_path_factory.mktemp("device")
        shutil.copytree(bundle.path, folder / bundle.path.name)
        done = typed(script, folder, python310)
        # A machine too busy to measure on says so and what to do, which a person would.
        if done.returncode != 3 or not done.stderr.rstrip().endswith(BUSY):
            break
    return folder, done


def typed(
    script: str, folder: Path, python310: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as a person with an empty home and no network would."""
    environment = {
        "PATH": f"{python310.parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "PIP_INDEX_URL": NOWHERE,
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
        "PIP_NO_COMPILE": "1",  # of thousands of modules some hundred are imported
        "OMP_NUM_THREADS": "1",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        **variables,
    }
    return subprocess.run(
        ["bash", "-e"],
        input=script,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def printed(folder: Path, stdout: str) -> list[Artifact]:
    """The artifacts whose paths were printed, each opened and verified."""
    lines = [line for line in stdout.splitlines() if re.fullmatch(r"out/\S+", line)]
    return [artifact.load(folder / line) for line in lines]


def samples_of(bundle: Artifact, arm: str) -> str:
    found: str = bundle.read_json("bundle.json")["arms"][arm]["samples_id"]
    return found


def test_every_command_does_what_it_says(
    device: tuple[Path, subprocess.CompletedProcess[str]], bundle: Artifact
) -> None:
    folder, done = device
    made = printed(folder, done.stdout)
    assert [each.kind for each in made] == [
        *["AccuracyReport"] * 2,
        "LatencyReport",
        *["Verdict"] * 3,
    ], done.stdout[-2000:] + done.stderr[-4000:]
    engines = {
        arm: artifact.load(path, kinds.ENGINE)
        for arm in ARMS
        for path in (folder / "out" / arm).glob("engine-*")
    }
    for (arm, engine), report in zip(engines.items(), made[:2], strict=True):
        assert "Python 3.10." in engine.manifest.provenance["machine"]
        samples = samples_of(bundle, arm)
        assert engine.manifest.parents["samples"] == samples
        assert report.manifest.parents == {"model": engine.id, "samples": samples}
    latency = made[2]
    asked = [latency.manifest.parents[f"engine-{number}"] for number in range(2)]
    assert asked == [engine.id for engine in engines.values()]
    assert latency.manifest.parents["samples"] == samples_of(bundle, "fp16")
    answers = [row["answers"] for row in latency.read_json("latency.json")["engines"]]
    assert answers == [inputs.RECORDED] * 2


def test_the_verdicts_are_written_and_the_last_is_the_exit_code(
    device: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = device
    verdicts = [each for each in printed(folder, done.stdout) if each.kind == "Verdict"]
    budgets, accepted, compared = (each.read_json("verdict.json") for each in verdicts)
    # bash -e went past the first two, so both exited with 0.
    assert {check["name"]: check["verdict"] for check in budgets["checks"]} == {
        "accuracy_to_teacher": "pass",
        "size": "pass",
    }
    assert (accepted["overall"], accepted["checks"]) == ("accepted", [])
    assert (folder / "baseline" / "baseline.json").is_file()
    # How two runs of one engine compare is this machine's affair; that it is judged is ours.
    assert {check["name"] for check in compared["checks"]} == {
        "accuracy_to_teacher",
        "size",
        "latency_to_baseline",
        "accuracy_to_baseline",
    }
    assert done.returncode == EXIT_CODES[compared["overall"]]
    for check in [*budgets["checks"], *compared["checks"]]:
        assert re.search(r": .*, at most .*: (pass|regress|inconclusive)", check["sentence"])
        assert check["sentence"] in done.stderr


def test_the_environment_holds_the_bundles_wheels_and_nothing_heavy(
    device: tuple[Path, subprocess.CompletedProcess[str]], python310: Path, bundle: Artifact
) -> None:
    done = typed("edgekd-venv/bin/pip list --format=json", device[0], python310)
    names = {row["name"].lower() for row in json.loads(done.stdout)}
    assert {"edgekd", "numpy", "onnxruntime", "click", "pydantic"} <= names
    assert not names & {"torch", "onnx", "rich", "transformers", "jinja2"}
    assert len(names - {"pip", "setuptools"}) == len(bundle.read_json("bundle.json")["wheels"])


def gate_line(folder: Path) -> str:
    (bundle,) = folder.glob("bundle-*")
    lines: list[str] = json.loads((bundle / "bundle.json").read_text())["commands"]
    assert " gate " in lines[-1]
    return lines[-1]


def test_a_budget_that_is_not_met_exits_with_1(
    device: tuple[Path, subprocess.CompletedProcess[str]], python310: Path
) -> None:
    folder, _ = device
    strict = folder / "strict.json"
    strict.write_text(json.dumps(recipe_with(size_bytes=10).as_json()), encoding="utf-8")
    (engine,) = (folder / "out" / "sparse").glob("engine-*")
    line = re.sub(r"--recipe \S+", "--recipe strict.json", gate_line(folder))
    done = typed(line, folder, python310, SPARSE_ENGINE=str(engine))
    assert done.returncode == 1, done.stderr
    (check,) = artifact.load(folder / done.stdout.strip()).read_json("verdict.json")["checks"]
    assert (check["name"], check["verdict"], check["limit"]) == ("size", "regress", 10)
    assert f"regress       {check['sentence']}" in done.stderr


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("alter artifacts/onnx-model-*/ort.onnx", r"ort\.onnx.*altered"),
        ("remove artifacts/samples-*/samples.npz", r"samples\.npz.*missing"),
        ("remove recipe.json", r"recipe\.json.*missing"),
        ("alter wheels/edgekd-*.whl", r"edgekd-.*\.whl.*altered"),
    ],
)
def test_a_bundle_that_lost_something_on_the_way_stops_before_anything_is_built(
    device: tuple[Path, subprocess.CompletedProcess[str]],
    bundle: Artifact,
    python310: Path,
    tmp_path: Path,
    harm: str,
    words: str,
) -> None:
    copy = tmp_path / bundle.path.name
    shutil.copytree(bundle.path, copy)
    what, _, pattern = harm.partition(" ")
    file = sorted(copy.glob(pattern))[0]
    if what == "remove":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / "edgekd-venv").symlink_to(device[0] / "edgekd-venv")
    _, _, *commands = bundle.read_json("bundle.json")["commands"]  # all after the installation
    done = typed("\n".join(commands), tmp_path, python310)
    assert done.returncode == 3
    (sentence,) = done.stderr.strip().splitlines()
    assert re.match(f"edgekd: .*{words}", sentence), sentence
    assert not (tmp_path / "out").exists()
