"""Kill, fill the disk, race: whatever happens, a reader finds a whole artifact or none.

The driver prints what happened at each fault point; the tests here judge it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("crash_driver.py")
ROOT = DRIVER.parent.parent


def drive(*arguments: object) -> Any:
    command = [sys.executable, str(DRIVER), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive("points", tmp_path_factory.mktemp("points"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive("full", tmp_path_factory.mktemp("full"))


def test_every_write_fsync_and_rename_has_a_point_before_and_after(killed: Any) -> None:
    points = killed["whole"]["points"]
    checkpoint = ["write checkpoint.npz", "fsync checkpoint.npz", "rename checkpoint.npz"]
    checkpoint += ["fsync the directory of checkpoint.npz"]
    expected = checkpoint * 3 + [
        "write losses.jsonl",
        "fsync losses.jsonl",
        "rename losses.jsonl",
        "fsync the directory of losses.jsonl",
        "write weights.npy",
        "fsync weights.npy",
        "rename weights.npy",
        "fsync the directory of weights.npy",
        "fsync deep/losses.jsonl",
        "fsync weights.npy",
        "write manifest.json",
        "fsync manifest.json",
        "rename manifest.json",
        "fsync the directory of manifest.json",
        "fsync deep/",
        "publish",
        "fsync out/",
        "clean",
    ]
    steps = [name.removeprefix("before ") for name in points if name.startswith("before ")]
    assert steps == expected
    assert [n.removeprefix("after ") for n in points if n.startswith("after ")] == expected
    assert points.count("middle of weights.npy") == 1


def test_the_kill_really_happened_at_each_point(killed: Any) -> None:
    assert len(killed["attempts"]) == len(killed["whole"]["points"]) == 61
    assert [attempt["first"]["killed"] for attempt in killed["attempts"]] == [SIGKILL] * 61


def test_after_a_kill_a_reader_finds_nothing_or_the_whole_artifact(killed: Any) -> None:
    points, whole = killed["whole"]["points"], killed["whole"]["id"]
    published = points.index("after publish")
    for n, attempt in enumerate(killed["attempts"]):
        assert attempt["seen"]["exit"] == 0, points[n]
        assert attempt["seen"]["ids"] == ([whole] if n >= published else []), points[n]


def test_the_same_command_again_gives_the_same_id_and_cleans_up(killed: Any) -> None:
    assert killed["left"] == []
    for point, attempt in zip(killed["whole"]["points"], killed["attempts"], strict=True):
        assert attempt["again"]["exit"] == 0, point
        assert attempt["again"]["id"] == killed["whole"]["id"], point
        assert attempt["left"] == [], point


def test_the_second_run_resumes_from_the_last_whole_checkpoint(killed: Any) -> None:
    points = killed["whole"]["points"]
    renames = [n for n, name in enumerate(points) if name == "after rename checkpoint.npz"]
    assert len(renames) == 3
    published = points.index("after publish")
    for n, attempt in enumerate(killed["attempts"]):
        saved = 2 * sum(rename <= n for rename in renames)
        expected = [str(saved)] if saved and n < published else []
        assert attempt["resumed"] == expected, points[n]


def test_a_full_disk_is_one_sentence_and_nothing_half_written(full: Any) -> None:
    assert len(full["cases"]) == 14  # 6 files written, one of them in two halves; 2 limits each
    for (n, limit), attempt in zip(full["cases"], full["attempts"], strict=True):
        moment = f"{full['whole']['points'][n]}, limit {limit} bytes"
        assert attempt["first"]["exit"] == 3, moment
        assert attempt["first"]["error"] == "ArtifactError", moment
        said = attempt["first"]["said"]
        assert "\n" not in said
        assert "crash-" in said
        assert "could not be written: " in said
        assert "File too large" in said or "a write was cut short" in said, said
        assert "nothing was published: free space or choose another --out" in said
        assert attempt["seen"] == {"ids": [], "killed": 0, "exit": 0}, moment


def test_with_space_again_the_same_command_gives_the_same_id(full: Any) -> None:
    for case, attempt in zip(full["cases"], full["attempts"], strict=True):
        assert attempt["again"]["id"] == full["whole"]["id"], case
        assert attempt["left"] == [], case


def test_processes_that_ask_at_once_share_the_work(tmp_path: Path) -> None:
    found = drive("race", tmp_path, 6, 25)
    assert all(isinstance(ids, list) for ids in found["ids"]), found["ids"]
    assert len({tuple(ids) for ids in found["ids"]}) == 1
    assert len(set(found["ids"][0])) == 25
    assert found["worked"] == list(range(25))
    assert found["left"] == []
