"""What every verb shares: exit codes, one sentence, and what a missing package says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekd.artifact import Artifact
from edgekd.cli import main
from edgekd.errors import ConfigError, install
from edgekd.export.model import resolved
from edgekd.recipe import Export

sys.path.insert(0, str(Path(__file__).parent))
from tiny import graphs, reports


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("torch", "train", ["distill", "digits-vit"]),
        ("sklearn", "train", ["distill", "digits-vit"]),
    ],
)
def test_a_missing_package_is_a_sentence_with_the_command(
    package: str, extra: str, arguments: list[str], tmp_path: object
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from edgekd.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert f"needs {package}, which is not installed" in done.stderr
    assert done.stderr.rstrip().endswith(install(extra))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_that_wait_leave_their_cores_soon_unless_asked_otherwise(
    asked: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must be set before torch is loaded: OpenMP reads it once."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    code = (
        "import atexit, os, sys\nfrom edgekd.cli import main\n"
        "said = lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
        "atexit.register(said)\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "targets"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{found} False"


def test_an_error_is_one_line_on_stderr_and_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ConfigError(f"recipe {name!r}: no")

    monkeypatch.setattr("edgekd.cli.make.recipe.load", fail)
    done = CliRunner().invoke(main, ["distill", "x"])
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr == "edgekd: recipe 'x': no\n"


@pytest.mark.parametrize(
    ("arms", "options", "trained"),
    [
        ('["dense"]', [], "dense"),
        ('["dense", "sparse"]', [], "sparse"),
        ('["dense", "sparse"]', ["--no-sparsity"], "dense"),
        ('["sparse"]', [], "sparse"),
    ],
)
def test_the_one_student_is_of_an_arm_that_the_recipe_has(
    arms: str, options: list[str], trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.toml").write_text(
        f'name = "r"\narms = {arms}\n[teacher]\nmodel = "hf:c.json"\n'
        '[data]\nsource = "random"\n[distill]\nsteps = 0\n'
    )
    asked: list[str] = []

    def distil(_recipe: object, _out: Path, arm: str) -> None:
        asked.append(arm)
        raise ConfigError("enough")

    monkeypatch.setattr("edgekd.distill.student.distill", distil)
    done = CliRunner().invoke(main, ["distill", str(tmp_path / "r.toml"), *options])
    assert (done.exit_code, asked) == (3, [trained]), done.stderr


def test_a_wrong_command_line_is_exit_2() -> None:
    assert CliRunner().invoke(main, ["build"]).exit_code == 2
    assert CliRunner().invoke(main, ["no-such-verb"]).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["build", "--target", "cpu"],
        ["evaluate"],
        ["bench"],
        ["gate"],
        ["inspect"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_file_where_an_artifact_is_expected_is_told(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"")
    done = CliRunner().invoke(main, [*arguments, str(file)])
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == (
        f"edgekd: {file}: is a file, expected an artifact's directory: give the one that "
        "`edgekd export` printed\n"
    )


def test_somebody_elses_onnx_file_is_not_built(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    done = CliRunner().invoke(main, ["build", str(file), "--target", "cpu"])
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == (
        f"edgekd: {file}: edgekd takes graphs that it exported: give the OnnxModel's directory; "
        "foreign ONNX files are not supported yet\n"
    )


def test_export_says_what_auto_means_there() -> None:
    """As `edgekd.export.model.resolved` has it."""
    told = " ".join(CliRunner().invoke(main, ["export", "--help"]).stdout.split())
    assert 'exporter and weights are "auto", torchscript and float weights are taken' in told
    assert "only `edgekd run` builds the engines that decide between" in told
    settings = resolved(Export())
    assert (Export().exporter, Export().weights) == ("auto", "auto")
    assert (settings.exporter, settings.weights) == ("torchscript", "float")


def test_an_arm_without_a_name_is_refused() -> None:
    done = CliRunner().invoke(main, ["build", ".", "--target", "cpu", "--arm", "nothing"])
    assert done.exit_code == 3 or "NAME=ARTIFACT" in done.stderr


def test_a_bug_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ZeroDivisionError(name)

    monkeypatch.setattr("edgekd.cli.make.recipe.load", fail)
    done = CliRunner().invoke(main, ["distill", "x"])
    assert isinstance(done.exception, ZeroDivisionError)


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return graphs.make_model(tmp_path / "out")


def test_evaluate_says_its_numbers_on_stderr_and_a_path_on_stdout(model: Artifact) -> None:
    done = CliRunner().invoke(main, ["evaluate", str(model.path)])
    assert done.exit_code == 0, done.output
    path = Path(done.stdout.rstrip("\n"))
    assert path.parent == model.path.parent
    assert "teacher, recorded: top-1 " in done.stderr
    assert "OnnxModel sparse, run live: top-1 " in done.stderr
    assert " points to the teacher (" in done.stderr
    assert "; agreement " in done.stderr


def test_bench_says_a_line_for_each_engine(tmp_path: Path) -> None:
    engine = reports.engine(tmp_path / "out").path
    scenario = tmp_path / "few.toml"
    scenario.write_text(
        'name = "few"\nscenario = "SingleStream"\nbatch = 1\npercentile = 90\nqueries = 64\n'
        "repetitions = 9\n[warmup]\nqueries = 1\nseconds = 0.0\n"
    )
    done = CliRunner().invoke(main, ["bench", str(engine), "--scenario", str(scenario)])
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.rstrip("\n")).parent == tmp_path / "out"
    assert f"sparse {engine.name}: p50 " in done.stderr
    assert ", p90 " in done.stderr


class TestReport:
    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        """Two LatencyReports without their engines, as they come back from a device."""
        engines = [reports.engine(tmp_path / "out", arm) for arm in ("dense", "sparse")]
        for first in (1, 3):
            times = [reports.draw(seed, 2e6, 0.01) for seed in (first, first + 1)]
            reports.latency_report(tmp_path / "out", engines, reports.few(), times)
        back = tmp_path / "back"
        back.mkdir()
        for report in (tmp_path / "out").glob("latency-*"):
            report.rename(back / report.name)
        return back

    def test_a_directory_stands_for_all_artifacts_in_it(self, out: Path, tmp_path: Path) -> None:
        (out / "notes").mkdir()
        page = tmp_path / "page.html"
        done = CliRunner().invoke(main, ["report", str(out), "--out", str(page)])
        assert done.exit_code == 0, done.output
        assert done.stdout == f"{page}\n"
        text = page.read_text(encoding="utf-8")
        made = list(out.glob("*/manifest.json"))
        assert len(made) == 2
        for path in made:
            assert path.parent.name in text

    def test_one_report_from_a_device_reaches_a_page(
        self, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        latency = next(out.glob("latency-*"))
        done = CliRunner().invoke(main, ["report", str(latency)])
        assert (done.exit_code, done.stdout) == (0, "report.html\n"), done.output
        assert latency.name in Path("report.html").read_text(encoding="utf-8")

    def test_json_names_what_is_on_the_page(self, out: Path, tmp_path: Path) -> None:
        latency = next(out.glob("latency-*"))
        page = tmp_path / "page.html"
        done = CliRunner().invoke(main, ["report", str(latency), "--out", str(page), "--json"])
        document = json.loads(done.stdout)
        assert document["report"] == str(page)
        assert [each["kind"] for each in document["artifacts"]] == ["LatencyReport"]

    def test_a_directory_without_any_is_told(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["report", str(tmp_path)])
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr == (
            f"edgekd: {tmp_path}: neither it nor any directory in it holds a manifest.json: give "
            "an artifact, or the --out of the verb that made some\n"
        )
