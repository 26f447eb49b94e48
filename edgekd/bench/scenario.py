"""Scenarios: how an engine is asked, and which number is the result.

The words are MLPerf's (mlcommons/inference, loadgen/test_settings.h):

| Scenario | A query is | The next is issued | The result |
|---|---|---|---|
| SingleStream | one sample | when the last has been answered | a percentile of latency |
| MultiStream | `batch` samples | when the last has been answered | a percentile of latency |
| Offline | `batch` samples | at once | samples per second |

Server (random arrivals against a latency limit) is left out: it needs a target rate that only the
user of one service knows. LoadGen's minimum duration of 600 s is left out too; what it is for, rare
slow queries, is what the number of queries and of repetitions is set for here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edgekd import recipe
from edgekd.bench import stats
from edgekd.errors import ConfigError, names_that_exist
from edgekd.recipe import Section
from edgekd.target import shipped

REPETITIONS_MIN = 9  # google/benchmark's compare.py warns below it

Percentile = Literal[50, 90, 95, 99]


class Warmup(Section):
    """Queries that are not counted: until both numbers are reached."""

    queries: int = Field(default=10, ge=1)
    seconds: float = Field(default=0.2, ge=0)


class Scenario(Section):
    """How to measure; the same for every engine of a run.

    Attributes:
        name: As given on the command line and as the file is called.
        scenario: SingleStream, MultiStream or Offline.
        batch: Samples a query.
        percentile: The result's, for SingleStream and MultiStream.
        queries: Timed queries a repetition.
        warmup: Queries before them.
        repetitions: Fresh processes an engine. An even number leaves no repetition outside a block;
            12 are the fewest whose ratios have full 95% intervals (see `edgekd.bench.stats`).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    scenario: Literal["SingleStream", "MultiStream", "Offline"]
    batch: int = Field(ge=1)
    percentile: Percentile | None = None
    queries: int = Field(ge=11)  # a median needs as many
    warmup: Warmup = Warmup()
    repetitions: int = Field(ge=REPETITIONS_MIN)

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.scenario == "SingleStream" and self.batch != 1:
            raise ValueError(f"batch is {self.batch}, SingleStream has 1: MultiStream takes more")
        if self.scenario == "Offline":
            if self.percentile is not None:
                raise ValueError(
                    f"percentile is {self.percentile}, but the result of Offline is samples per "
                    "second: leave it out"
                )
            return self
        if self.percentile is None:
            raise ValueError(f"the result of {self.scenario} is a percentile: set percentile")
        needed = stats.queries_needed(self.percentile)
        if self.queries < needed:
            raise ValueError(
                f"{self.queries} queries are too few for an upper bound of p{self.percentile} with "
                f"{stats.COVERAGE:.0%} coverage and one sample discarded, expected at least "
                f"{needed}: set queries = {needed} or more"
            )
        return self


def names() -> list[str]:
    """Names of the shipped scenarios, sorted."""
    return sorted(file.stem for file in shipped("bench/scenarios").glob("*.toml"))


def load(name: str | Path) -> Scenario:
    """Read a scenario.

    Args:
        name: A shipped name such as ``single-stream``, or the path of a ``.toml`` file.

    Raises:
        ConfigError: No such scenario, not TOML, keys that are wrong, or fewer queries than the
            percentile needs; all of them in one message.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in names():
            raise ConfigError(
                f"scenario {str(name)!r}: no shipped scenario has that name, and it is not the "
                f"path of a .toml file. {names_that_exist(str(name), names())}"
            )
        path = shipped("bench/scenarios") / f"{name}.toml"
    checked: Scenario = recipe.check(Scenario, recipe.read_toml(path), str(path))
    return checked
