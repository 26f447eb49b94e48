"""Bad input ends in one sentence and exit code 3, with nothing half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import edgekd, write_recipe


def _refused(*args: object, words: tuple[str, ...], cwd: Path | None = None) -> str:
    done = edgekd(*args, cwd=cwd)
    assert done.returncode == 3, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("edgekd: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last, last
    return last


def _changed(directory: Path, old: str, new: str) -> Path:
    path = write_recipe(directory, fit=4, steps=2)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    path = _changed(tmp_path, "steps = 2", 'stepz = 2\nbatch_size = "many"')
    _refused(
        "distill", path, "--out", tmp_path / "out",
        words=("3 problems", "distill.stepz", 'Did you mean "steps"', "distill.steps is missing",
               "distill.batch_size", "'many'"),
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"hf:config.json"', '"hf:absent.json"', ("absent.json", "no such file")),
        ('"hf:config.json"', '"onnx:model"', ("onnx:model", "expected hf:")),
        ("digits:load", "digits:lode", ("no callable 'lode'",)),
        ("[teacher.fit]\nsteps = 4", 'checkpoint = "weights.gguf"', ("no such file",)),
        ("[teacher.fit]\nsteps = 4", "", ("has no weights", "teacher.fit")),
        (
            "[distill]\n",
            '[sparsity]\ninclude = ["classifier"]\n[distill]\n',
            ("classifier", "n=10, k=64", "multiple of 8"),
        ),
        (
            "[distill]\n",
            '[sparsity]\nexclude = ["vit.layer.*"]\n[distill]\n',
            ("sparsity.exclude", "vit.layer.*", "matches no Linear"),
        ),
        ("[distill]\n", "[distill]\nlearning_rate = 1e30\n", ("loss term", "nan", "lower")),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_work(
    tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    _refused("distill", _changed(tmp_path, old, new), "--out", out, words=words)
    assert not list(out.glob("student-*"))


@pytest.mark.parametrize(
    "verb", [("run",), ("compress",), ("plan", "--target", "jetson-agx-orin-64gb-jp6.2")]
)
def test_a_size_that_no_input_has_is_refused_before_training(
    tmp_path: Path, verb: tuple[str, ...]
) -> None:
    sizes = "[export.dynamic.sequence]\nmin = 1\nopt = 8\nmax = 16\n[distill]\n"
    path, out = _changed(tmp_path, "[distill]\n", sizes), tmp_path / "out"
    words = ("export.dynamic.sequence: no input has this size", "There are: batch")
    _refused(verb[0], path, *verb[1:], *(() if verb[0] == "plan" else ("--out", out)), words=words)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("labels[5] = 10", ("example 5 has label 10", "0 to 9")),
        ("labels, pixels = labels[:0], pixels[:0]", ("holds 0 examples",)),
        ("pixels[3, 0, 0, 0] = float('nan')", ("NaN or infinity",)),
        ("pixels = pixels[:, :, :4]", ("[1, 4, 8]", "[1, 8, 8]")),
    ],
)
def test_data_that_cannot_be_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "mydata.py").write_text(
        "from edgekd.data import ArraySplit, Data\n"
        "from edgekd.recipes import digits\n"
        "def load():\n"
        "    good = digits.load()\n"
        "    pixels = good.train.inputs['pixel_values'].copy()\n"
        "    labels = good.train.labels.copy()\n"
        f"    {body}\n"
        "    return Data(ArraySplit({'pixel_values': pixels}, labels), good.evaluation, good.io)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = _changed(tmp_path, "edgekd.recipes.digits:load", "mydata:load")
    _refused("distill", path, "--out", tmp_path / "out", words=words)
    assert not list((tmp_path / "out").glob("*-*"))


def test_an_out_that_is_no_directory(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, fit=4, steps=2)
    (tmp_path / "disk").symlink_to(tmp_path / "gone")
    out = tmp_path / "disk" / "out"
    words = (f"{tmp_path / 'disk'} is a link to", "which is not there", "choose another --out")
    assert "free space" not in _refused("distill", path, "--out", out, words=words)


def test_a_target_that_does_not_exist(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    words = ("jetson-agx-orin-64gb-jp6.2", "Did you mean")
    _refused("run", path, "--target", "jetson-agx-orin-64gb-jp6.3", words=words, cwd=tmp_path)
    assert not (tmp_path / "out").exists()


def test_wrong_kind_missing_and_altered_artifacts(
    chain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, out, _ = chain
    student = next(out.glob("student-*"))
    _refused("build", student, "--target", "cpu", words=("of kind Student", "expected OnnxModel"))
    _refused("export", tmp_path / "nothing", words=("no such artifact directory",))
    graph = next(out.glob("onnx-model-*")) / "trt.onnx"
    _refused(
        "build", graph, "--target", "cpu",
        words=("trt.onnx: is a file, expected an artifact's directory", f"give {graph.parent}"),
    )  # fmt: skip
    copy = tmp_path / student.name
    shutil.copytree(student, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"\x01\x02\x03")
    _refused("export", copy, words=("model.safetensors was altered", "SHA-256"))


def test_a_model_that_lost_its_parents_says_so(
    chain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, out, _ = chain
    model = next(out.glob("onnx-model-*"))
    shutil.copytree(model, tmp_path / model.name)
    _refused("evaluate", tmp_path / model.name, words=("samples", "is not in", "beside"))


def test_without_tensorrt_rtx_the_evidence_names_the_package(
    chain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, out, _ = chain
    model = next(out.glob("onnx-model-*"))
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("engine-*", "bundle-*"))
    code = "import sys; sys.modules['tensorrt_rtx'] = None; from edgekd.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(tmp_path / "out" / model.name),
         "--target", "a100-sxm4-80gb-trt11.4"],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 3
    assert "tensorrt-rtx" in done.stderr
    assert "pip install" in done.stderr
    assert not list((tmp_path / "out").glob("bundle-*"))
