"""The error set is closed, and a wrong name is answered with the right ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd import errors
from edgekd.errors import EdgekdError, install, names_that_exist


def test_the_set_is_closed() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, EdgekdError)
    }
    assert found == {
        "EdgekdError",
        "ConfigError",
        "ContractError",
        "ArtifactError",
        "UnsupportedError",
        "ToolchainError",
        "MeasurementError",
    }
    assert all(getattr(errors, name).__base__ is EdgekdError for name in found - {"EdgekdError"})


@pytest.mark.parametrize(
    ("wrong", "names", "expected"),
    [
        ("step", ["steps", "batch_size"], 'Did you mean "steps"? There are: batch_size, steps'),
        ("zzz", ["steps", "batch_size"], "There are: batch_size, steps"),
        ("zzz", [], "There are: none"),
        ("cpu", iter(["cpus"]), 'Did you mean "cpus"? There are: cpus'),
    ],
)
def test_names_that_exist(wrong: str, names: list[str], expected: str) -> None:
    assert names_that_exist(wrong, names) == expected


def test_a_checkout_installs_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    assert install("train") == "pip install -c constraints.txt -e '.[train]'"
    assert (root / "constraints.txt").is_file()
    monkeypatch.chdir(tmp_path)
    assert install("rtx") == f"cd {root} && pip install -c constraints.txt -e '.[rtx]'"


def test_an_installed_edgekd_adds_to_its_own_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(errors, "ROOT", tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1.2 of {name}")
    assert install("train") == "pip install 'edgekd[train]==1.2 of edgekd'"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert install("ort") == "pip install 'edgekd[ort]==1.2 of edgekd'"
