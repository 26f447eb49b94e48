"""What every verb shares: exit codes, one sentence, and what a missing package says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekd.cli import main
from edgekd.errors import ConfigError


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
    assert f"pip install 'edgekd[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_one_line_on_stderr_and_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ConfigError(f"recipe {name!r}: no")

    monkeypatch.setattr("edgekd.cli.make.recipe.load", fail)
    done = CliRunner().invoke(main, ["distill", "x"])
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr == "edgekd: recipe 'x': no\n"


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
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    done = CliRunner().invoke(main, [*arguments, str(file)])
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == (
        f"edgekd: {file}: is a file, expected an artifact's directory: give the one that "
        "`edgekd export` printed\n"
    )


def test_an_arm_without_a_name_is_refused() -> None:
    done = CliRunner().invoke(main, ["build", ".", "--target", "cpu", "--arm", "nothing"])
    assert done.exit_code == 3 or "NAME=ARTIFACT" in done.stderr


def test_a_bug_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ZeroDivisionError(name)

    monkeypatch.setattr("edgekd.cli.make.recipe.load", fail)
    done = CliRunner().invoke(main, ["distill", "x"])
    assert isinstance(done.exception, ZeroDivisionError)
