"""The error set is closed, and a wrong name is answered with the right ones."""

from __future__ import annotations

import pytest

from edgekd import errors
from edgekd.errors import EdgekdError, names_that_exist


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
        ("step", ["steps", "batch_size"], 'did you mean "steps"? There are: batch_size, steps'),
        ("zzz", ["steps", "batch_size"], "There are: batch_size, steps"),
        ("zzz", [], "There are: none"),
        ("cpu", iter(["cpus"]), 'did you mean "cpus"? There are: cpus'),
    ],
)
def test_names_that_exist(wrong: str, names: list[str], expected: str) -> None:
    assert names_that_exist(wrong, names) == expected
