from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.bench import scenario
from edgekd.errors import ConfigError

TEXT = """
name = "mine"
scenario = "SingleStream"
batch = 1
percentile = 90
queries = 64
repetitions = 9
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_shipped_scenarios_are_the_three_of_mlperf() -> None:
    assert scenario.names() == ["multi-stream", "offline", "single-stream"]
    found = {name: scenario.load(name) for name in scenario.names()}
    assert {name: each.name for name, each in found.items()} == {name: name for name in found}
    assert {each.scenario for each in found.values()} == {"MultiStream", "Offline", "SingleStream"}
    # Six whole ABBA blocks each: the fewest whose ratios have 95% intervals.
    assert {each.repetitions for each in found.values()} == {12}


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    found = scenario.load(write(tmp_path, TEXT))
    assert (found.queries, found.percentile, found.repetitions) == (64, 90, 9)
    assert (found.warmup.queries, found.warmup.seconds) == (10, 0.2)


def test_an_unknown_name_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r'Did you mean "offline".*multi-stream, offline, single'):
        scenario.load("ofline")


@pytest.mark.parametrize(
    ("percentile", "queries", "needed"),
    [(50, 10, None), (90, 63, 64), (95, 129, 130), (99, 661, 662)],
)
def test_too_few_queries_say_how_many_are_needed(
    tmp_path: Path, percentile: int, queries: int, needed: int | None
) -> None:
    text = TEXT.replace("= 90", f"= {percentile}").replace("= 64", f"= {queries}")
    words = (
        rf"{queries} queries are too few for an upper bound of p{percentile} with 99% coverage.*"
        rf"at least {needed}: set queries = {needed}"
        if needed
        else "queries: found 10, expected at least 11"
    )
    with pytest.raises(ConfigError, match=words):
        scenario.load(write(tmp_path, text))


def test_just_enough_queries_are_taken(tmp_path: Path) -> None:
    for percentile, needed in ((50, 11), (90, 64), (95, 130), (99, 662)):
        text = TEXT.replace("= 90", f"= {percentile}").replace("= 64", f"= {needed}")
        assert scenario.load(write(tmp_path, text)).queries == needed


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch = 1", "batch = 2", "batch is 2, SingleStream has 1"),
        ("percentile = 90", "", "the result of SingleStream is a percentile: set"),
        ("percentile = 90", "percentile = 91", "percentile: found 91, expected 50, 90, 95 or 99"),
        ('"SingleStream"', '"Offline"', "percentile is 90, but the result of Offline is samples"),
        ('"SingleStream"', '"Server"', "'SingleStream', 'MultiStream' or 'Offline'"),
        ("repetitions = 9", "repetitions = 8", "found 8, expected at least 9"),
        ("queries = 64", "query = 64", 'query is an unknown key. Did you mean "queries"'),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scenario.load(write(tmp_path, TEXT.replace(old, new)))
