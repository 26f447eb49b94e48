"""The commands of a Bundle as text; tests/architecture/test_device_side.py runs them."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from edgekd import recipe, target
from edgekd.engine import commands
from edgekd.engine.commands import Script
from edgekd.recipe import Recipe

ORIN = target.load("jetson-agx-orin-64gb-jp6.2")
ARMS = {
    name: {"directory": f"artifacts/onnx-model-{name}", "samples": f"artifacts/samples-{name}"}
    for name in ("dense", "fp16", "sparse")
}
EDGEKD = "edgekd-venv/bin/edgekd"


def made_from(**gate: Any) -> Recipe:
    document = {
        "name": "tiny",
        "teacher": {"model": "hf:nowhere"},
        "data": {"source": "python:nowhere:load"},
        "distill": {"steps": 3},
    }
    return recipe.parse({**document, "gate": gate}, "tiny.toml")


def written(asked: Recipe | None, where: target.Target = ORIN) -> Script:
    return commands.write("bundle-1", where, ARMS, "sparse", asked)


def test_each_arm_is_asked_its_own_samples_and_bench_those_of_the_first_engine() -> None:
    assert written(made_from(size_bytes=9)).commands == [
        "python3.10 -m venv --system-site-packages edgekd-venv",
        "edgekd-venv/bin/pip install --no-index --find-links bundle-1/wheels edgekd",
        f"{EDGEKD} inspect bundle-1",
        f"FP16_ENGINE=$({EDGEKD} build bundle-1/artifacts/onnx-model-fp16 --target {ORIN.name} "
        "--out out/fp16)",
        f'{EDGEKD} evaluate "$FP16_ENGINE" --samples bundle-1/artifacts/samples-fp16 '
        "--out out/fp16",
        f"DENSE_ENGINE=$({EDGEKD} build bundle-1/artifacts/onnx-model-dense --target {ORIN.name} "
        "--out out/dense)",
        f'{EDGEKD} evaluate "$DENSE_ENGINE" --samples bundle-1/artifacts/samples-dense '
        "--out out/dense",
        f"SPARSE_ENGINE=$({EDGEKD} build bundle-1/artifacts/onnx-model-sparse --target {ORIN.name} "
        "--out out/sparse)",
        f'{EDGEKD} evaluate "$SPARSE_ENGINE" --samples bundle-1/artifacts/samples-sparse '
        "--out out/sparse",
        f'{EDGEKD} bench "$FP16_ENGINE" "$DENSE_ENGINE" "$SPARSE_ENGINE" '
        "--samples bundle-1/artifacts/samples-fp16 --out out/bench",
        f'{EDGEKD} gate "$SPARSE_ENGINE" --samples bundle-1/artifacts/samples-sparse '
        "--out out/gate --recipe bundle-1/recipe.json",
    ]


@pytest.mark.parametrize("asked", [None, made_from(), made_from(minimum_effect=0.1)])
def test_without_a_budget_only_a_baseline_can_judge(asked: Recipe | None) -> None:
    script = written(asked)
    assert not script.judges
    assert " bench " in script.commands[-1]
    assert script.accept == (
        f'{EDGEKD} gate "$SPARSE_ENGINE" --samples bundle-1/artifacts/samples-sparse '
        "--out out/gate --baseline baseline --accept"
    )
    # What counts as slower stands in the recipe, so it is named where there is one.
    budgets = " --recipe bundle-1/recipe.json" if asked else ""
    assert script.compare.endswith(f" --out out/gate --baseline baseline{budgets}")
    text = commands.text(script, ORIN, "sparse", ())
    assert "The Bundle has no budget to judge an engine by: a baseline is what is left." in text


def test_the_text_says_what_must_be_known() -> None:
    script = written(made_from(accuracy_drop_points=1.0))
    text = commands.text(script, ORIN, "sparse", ("numpy>=1.22,<3",))
    for words in (
        "On Ubuntu and JetPack `python3.10 -m venv` needs `sudo apt install python3.10-venv` first",
        "must bring the Python package `tensorrt` 10.3; check with",
        "Not in `wheels/`, as no index had them: numpy>=1.22,<3.",
        f"evidence only where {', '.join(ORIN.required_state)}\n",
        "The last command holds the sparse engine to the budgets of `recipe.json`.",
        "exits with 0 where every check passes, with 1 where one regresses, with 4",
        f"```sh\n{script.accept}\n```",
        f"```sh\n{script.compare}\n```",
    ):
        assert words in text
    assert text.endswith("```\n")


def test_it_is_a_shell_script_without_a_pattern() -> None:
    script = written(made_from(size_bytes=1))
    lines = [*script.commands, script.accept, script.compare]
    assert not any(character in "".join(lines) for character in "*?[")
    subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, check=True)


def test_a_target_of_ones_own_travels_by_its_json() -> None:
    mine = ORIN.model_copy(update={"name": "mine"})
    builds = [line for line in written(None, mine).commands if " build " in line]
    assert len(builds) == 3
    assert all(" --target bundle-1/target.json " in line for line in builds)


def test_the_cpu_target_installs_onnx_runtime() -> None:
    lines = written(None, target.load("cpu")).commands
    assert lines[0] == "python3.10 -m venv edgekd-venv"
    assert lines[1].endswith("edgekd onnxruntime")
