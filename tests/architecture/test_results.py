"""A committed result holds for the sources it names; after a change it is made anew.

One whose making takes longer than `LONG_MINUTES`, or needs a device that it names, is said to be
stale and fails nothing.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from tiny import programs

RESULTS = sorted((programs.ROOT / "bench" / "results").glob("*.json"))
LONG_MINUTES = 20


@pytest.fixture(scope="module")
def results() -> ModuleType:
    return programs.load("bench/results.py")


def test_there_are_results() -> None:
    assert {path.stem for path in RESULTS} >= {"demo", "false-alarms", "slow", "vit-s-cpu"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_no_result_is_stale(path: Path, results: ModuleType) -> None:
    told(path, results)


def told(path: Path, results: ModuleType) -> None:
    """Fail where a result is stale; warn where making it anew is more than CI can do."""
    document = json.loads(path.read_text(encoding="utf-8"))
    changed = results.stale(path)
    words = f"stale since {changed} changed: run `{document['command']}` and commit"
    if needs := document.get("needs"):
        words += f" (needs {needs})"
    if changed and (needs or document.get("rerun_minutes", 0) > LONG_MINUTES):
        warnings.warn(f"{path.name} is {words}", stacklevel=1)
    else:
        assert not changed, words


def test_a_changed_source_makes_a_result_stale(tmp_path: Path, results: ModuleType) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"covers": {"edgekd.errors": "0" * 64}}), encoding="utf-8")
    assert results.stale(path) == ["edgekd.errors"]


def test_a_run_cut_off_while_it_writes_leaves_the_earlier_result(
    tmp_path: Path, results: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    path = results.write("here", "make it", ["edgekd.errors"], {"n": 1})
    written = path.read_text(encoding="utf-8")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        results.write("here", "make it", ["edgekd.errors"], {"n": 2})
    assert path.read_text(encoding="utf-8") == written


def test_one_that_needs_a_device_is_stale_with_a_warning(
    tmp_path: Path, results: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    made = [results.write("here", "make it", ["edgekd.errors"], {"n": 1})]
    made.append(results.write("there", "make it", ["edgekd.errors"], {"n": 1}, needs="a GPU"))
    for path in made:
        told(path, results)
    monkeypatch.setattr(results, "digest", lambda _: "0" * 64)
    with pytest.raises(AssertionError, match=r"stale since \['edgekd.errors'\] changed: run `make"):
        told(made[0], results)
    sentence = r"there.json is stale since .* changed: run `make it` and commit \(needs a GPU\)"
    with pytest.warns(UserWarning, match=sentence):
        told(made[1], results)
