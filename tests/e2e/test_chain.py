"""The main job, as a user runs it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

from edgekd import artifact

from .conftest import edgekd, write_recipe

TARGETS = ("--target", "cpu", "--target", "a100-sxm4-80gb-trt11.4",
           "--target", "jetson-agx-orin-64gb-jp6.2")  # fmt: skip


def _identities(out: Path) -> dict[str, str]:
    return {
        path.name: artifact.load(path).id
        for path in sorted(out.iterdir())
        if (path / artifact.MANIFEST).is_file()
    }


def test_the_chain_makes_every_artifact_and_a_page(chain: tuple[Path, Path, str]) -> None:
    _, out, stderr = chain
    kinds = Counter(artifact.load(out / name).kind for name in _identities(out))
    assert kinds == {
        "Teacher": 1, "Student": 2, "Samples": 3, "OnnxModel": 3,
        "ExportChoice": 1, "Engine": 3 + 3, "Bundle": 2, "AccuracyReport": 3 + 3,
    }  # fmt: skip
    assert (out / "report.html").stat().st_size < 2_000_000
    for stage in ("teacher", "distill sparse", "export sparse", "build for cpu", "report"):
        assert stage in stderr
    assert not any((out / ".work").iterdir())


def test_the_sparse_arm_is_proven_on_files_and_evidence(chain: tuple[Path, Path, str]) -> None:
    _, out, _ = chain
    found = [artifact.load(out / name) for name in _identities(out)]
    (model,) = (a for a in found if a.kind == "OnnxModel" and a.config["arm"] == "sparse")
    assert model.results["layers_sparse"] == model.results["layers_int8"] == 12
    assert model.results["attention_blocks"] == 2
    assert model.results["parity"]["integers_largest_step"] <= 1
    assert not model.results["parity"]["vacuous"]
    (engine,) = (
        a
        for a in found
        if a.kind == "Engine" and a.results.get("evidence") and a.config["arm"] == "sparse"
    )
    assert engine.results["int8"] == engine.results["planned_int8"] == 12
    assert engine.results["fused_attention"] == 2


def test_the_same_command_again_answers_from_cache(chain: tuple[Path, Path, str]) -> None:
    recipe, out, _ = chain
    before, times = _identities(out), {p: p.stat().st_mtime_ns for p in out.glob("*-*/*")}
    again = edgekd("run", recipe, *TARGETS, "--out", out, "--json")
    assert again.returncode == 0, again.stderr
    document = json.loads(again.stdout)
    assert {Path(made["path"]).name: made["id"] for made in document["artifacts"]} == before
    assert {p: p.stat().st_mtime_ns for p in out.glob("*-*/*")} == times


def test_another_place_gives_equal_ids(chain: tuple[Path, Path, str], tmp_path: Path) -> None:
    recipe, out, _ = chain
    moved = tmp_path / "elsewhere"
    shutil.copytree(recipe.parent, moved)
    done = edgekd("compress", moved / recipe.name, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    made = _identities(tmp_path / "out")
    # `run` chose how to export by the A100's evidence; without a target the safe way is taken.
    assert edgekd("compress", recipe, "--out", out).returncode == 0
    expected = _identities(out)
    assert {kind.split("-")[0] for kind in made} == {"teacher", "student", "samples", "onnx"}
    assert {name: expected[name] for name in made} == made


def test_verbs_compose_and_print_one_path(chain: tuple[Path, Path, str]) -> None:
    recipe, out, _ = chain
    student = edgekd("distill", recipe, "--out", out)
    model = edgekd("export", student.stdout.strip())
    engine = edgekd("build", model.stdout.strip(), "--target", "cpu")
    report = edgekd("evaluate", engine.stdout.strip(), "--json")
    for done in (student, model, engine, report):
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
    rows = {row["who"]: row for row in json.loads(report.stdout)["results"]["rows"]}
    assert set(rows) == {"teacher", "student", "model"}
    assert 0 <= rows["model"]["kl_nats"] < 1
    shown = edgekd("inspect", engine.stdout.strip())
    assert "Engine" in shown.stdout
    assert shown.returncode == 0


def test_inspect_prints_the_manifest_as_json(chain: tuple[Path, Path, str]) -> None:
    _, out, _ = chain
    name = next(name for name in _identities(out) if name.startswith("student"))
    manifest = json.loads(edgekd("inspect", out / name, "--json").stdout)
    assert manifest["kind"] == "Student"
    assert manifest == json.loads((out / name / "manifest.json").read_text())


def test_without_targets_graphs_and_report_are_made(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, fit=4, steps=2)
    recipe.write_text(recipe.read_text().replace("threads", 'arms = ["fp16"]\nthreads'))
    done = edgekd("run", recipe, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Student" not in {
        artifact.load(tmp_path / "out" / n).kind for n in _identities(tmp_path / "out")
    }


def test_a_scenario_measures_every_arm_and_a_second_run_says_when_that_was(
    chain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    recipe, out, _ = chain
    quick = tmp_path / "quick.toml"
    quick.write_text(
        'name = "quick"\nscenario = "SingleStream"\nbatch = 1\npercentile = 50\nqueries = 11\n'
        "repetitions = 9\n[warmup]\nqueries = 2\nseconds = 0.0\n"
    )
    shutil.copytree(out, tmp_path / "out")
    args = ("run", recipe, "--target", "cpu", "--scenario", quick, "--out", tmp_path / "out")
    first = edgekd(*args)
    assert first.returncode == 0, first.stderr
    (path,) = (tmp_path / "out").glob("latency-*")
    report = artifact.load(path)
    assert [row["arm"] for row in report.results["engines"]] == ["fp16", "dense", "sparse"]
    again = edgekd(*args)
    assert list((tmp_path / "out").glob("latency-*")) == [path]
    assert f"{path.name} of {report.config['started'][:10]}" in again.stderr


def test_the_gate_judges_by_the_recipes_budgets(
    chain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    recipe, out, _ = chain
    engine = next(
        path
        for path in out.glob("engine-*")
        if artifact.load(path).config["runtime"] == "onnxruntime"
    )
    moved = shutil.copytree(recipe.parent, tmp_path / "recipe") / recipe.name
    plain = moved.read_text()
    codes = {}
    for name, budget in (("wide", 10**9), ("narrow", 1)):
        moved.write_text(f"{plain}\n[gate]\nsize_bytes = {budget}\n")
        done = edgekd("gate", engine, "--recipe", moved, "--out", out)
        codes[name] = done.returncode
        assert done.stdout.startswith(str(out / "verdict-"))
    assert codes == {"wide": 0, "narrow": 1}
    nothing = edgekd("gate", engine, "--recipe", recipe)
    assert nothing.returncode == 3
    assert "edgekd: " in nothing.stderr
