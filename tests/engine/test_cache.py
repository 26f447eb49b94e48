from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.engine import cache

ORIN = {"name": "Orin", "compute_capability": [8, 7], "multiprocessors": 16, "driver": 12060}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgekd"


def test_the_directory_is_the_users_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.directory() == home
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.directory() == Path("/home/someone/.cache/edgekd")


@pytest.mark.parametrize(
    ("device", "version"),
    [
        ({**ORIN, "name": "NVIDIA A100-SXM4-80GB"}, "10.3.0"),
        ({**ORIN, "compute_capability": [8, 0]}, "10.3.0"),
        ({**ORIN, "multiprocessors": 8}, "10.3.0"),
        ({**ORIN, "driver": 12080}, "10.3.0"),
        (ORIN, "10.3.1"),
    ],
)
def test_another_device_or_version_has_other_timings(device: dict[str, Any], version: str) -> None:
    first = cache.timings(ORIN, "10.3.0")
    assert first == cache.timings(dict(reversed(ORIN.items())), "10.3.0")
    assert cache.timings(device, version) != first


def test_what_was_kept_is_read_and_nothing_else_is_left(home: Path) -> None:
    file = cache.timings(ORIN, "10.3.0")
    assert cache.read(file) == b""
    for content in (b"first", b"", b"second" * 1000):
        cache.keep(file, content)
        assert cache.read(file) == content
    assert [path for path in home.rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize("harm", [lambda b: b[:-1], lambda b: b[:7], lambda b: b + b"x"])
def test_a_damaged_file_is_told_and_not_used(harm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = cache.timings(ORIN, "10.3.0")
    cache.keep(file, b"timings")
    file.write_bytes(harm(file.read_bytes()))
    assert cache.read(file) == b""
    assert f"{file}: is damaged and not used; the build writes it anew" in capsys.readouterr().err
    cache.keep(file, b"again")
    assert cache.read(file) == b"again"


def test_a_cache_that_cannot_be_written_costs_a_word(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir()
    home.write_text("a file stands where the directory should")
    cache.keep(cache.timings(ORIN, "10.3.0"), b"timings")
    said = capsys.readouterr().err
    assert "could not be kept (" in said
    assert "the next build is as slow as this one" in said
