from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Question, Work
from edgekd.bench import bench, device_state, inputs, measure, summary
from edgekd.bench.scenario import Scenario

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import reports

OFFLINE = Scenario(name="o", scenario="Offline", batch=8, queries=64, repetitions=9)


@pytest.fixture
def independent() -> np.ndarray:
    """Nine repetitions of the numbers 1000 to 1099, each in another order."""
    random = np.random.default_rng(3)
    return np.array([1000 + random.permutation(100) for _ in range(9)], np.int64)


def documented(
    engine: Artifact,
    scenario: Scenario,
    wall_ns: list[np.ndarray],
    last: dict[str, Any] = reports.STATE,
    **changes: Any,
) -> dict[str, Any]:
    """The document of an engine measured beside itself, its last repetition in a state `last`."""
    count, rounds = len(wall_ns), len(wall_ns[0])
    states = [[reports.STATE] * (count + 1) for _ in range(rounds)]
    states[-1][-1] = last
    taken: dict[str, Any] = {
        "wall_ns": np.stack(wall_ns),
        "gpu_ns": None,
        "null_ns": wall_ns[0] // 100,
        "states": states,
        "seed": 0,
        "order": measure.order(count + 1, rounds, 0),
        "resumed": [],
        "references": [inputs.RECORDED] * count,
    }
    config = {
        "protocol": "p",
        "scenario": scenario.model_dump(mode="json"),
        "target": bench.common_target([engine]).as_json(),
        "where": {},
        "started": "now",
    }
    engines, chosen = [engine] * count, inputs.choose([engine], None)
    measured = measure.Measured(**{**taken, **changes})
    return summary.document(engines, scenario, chosen, measured, config)


def test_percentiles_bounds_and_rate_of_independent_queries(
    independent: np.ndarray, quick: Scenario
) -> None:
    row = summary.engine_row(independent, quick)
    assert list(row["percentiles"]) == ["p50", "p90"]  # p95 needs 130 queries
    p90 = row["percentiles"]["p90"]
    assert (p90["estimate"], p90["low"], p90["high"]) == (1089.0, 1089.0, 1089.0)
    assert p90["per_repetition_ns"] == [1089] * 9
    bound = p90["upper_bound"]
    assert bound["largest_ns"] == max(bound["per_repetition_ns"]) == 1099 - bound["discarded"]
    assert bound["discarded"] >= 1
    assert bound["coverage"] >= 0.99
    # 100 queries of 1049.5 ns each.
    assert row["samples_per_s"]["estimate"] == pytest.approx(1e9 / 1049.5)
    assert (row["valid"], row["reasons"]) == (True, [])


def test_dependent_queries_lose_their_bounds_and_nothing_else(
    independent: np.ndarray, quick: Scenario
) -> None:
    independent[4].sort()  # a machine that slows down
    row = summary.engine_row(independent, quick)
    assert row["percentiles"]["p90"]["upper_bound"] is None
    assert row["percentiles"]["p90"]["estimate"] == 1089.0
    assert row["valid"] is False
    (reason,) = row["reasons"]
    assert reason.startswith("upper bounds withheld: the queries of 1 of 9 repetitions depend on")
    assert "at lag 1, at most 0.3" in reason


def test_the_median_over_processes_keeps_its_bound_where_queries_depend(
    independent: np.ndarray, quick: Scenario
) -> None:
    # p90 of 12 processes is 1000, 1010, ... 1110. All but one lie below the median in 1 + 12 of
    # 2^12 cases; only then is the second largest no bound.
    rows = np.repeat(np.arange(1000, 1120, 10), 64).reshape(12, 64)
    rows[:, -2] += np.arange(12)
    rows[0, :32] -= 500  # the first half is faster: queries that depend
    row = summary.engine_row(rows, quick)
    p90 = row["percentiles"]["p90"]
    assert p90["upper_bound"] is None
    assert p90["median_upper_bound"] == {
        "value_ns": 1100,
        "coverage": pytest.approx(1 - 13 / 4096),
        "discarded": 1,
    }
    assert p90["estimate"] <= p90["high"] <= 1100
    # Nine processes: 1 + 9 of 2^9 cases are 2%.
    nine = summary.engine_row(independent, quick)["percentiles"]["p90"]
    assert nine["median_upper_bound"] is None


def test_what_onnx_runtime_makes_no_use_of_is_said_where_it_is_there(tmp_path: Path) -> None:
    def holding(number: int, *planned: tuple[bool, bool]) -> Artifact:
        """An Engine whose layers are planned (INT8, 2:4) so."""
        rows = [{"int8": int8, "sparse": sparse} for int8, sparse in planned]

        def write(work: Work) -> dict[str, int]:
            for name in kinds.ENGINE.files:
                (work.scratch / name).write_text(json.dumps({"planned": rows}))
            return {}

        return artifact.make(tmp_path, Question(kinds.ENGINE, {"number": number}), write)

    teacher, dense = holding(0, (False, False)), holding(1, (True, False))
    int8 = holding(2, (True, True), (False, False))
    floats = holding(3, (False, True), (True, False))  # a dense head in INT8 is no 2:4 INT8
    assert summary.no_sparsity([teacher, dense]) == []
    (note,) = summary.no_sparsity([teacher, dense, int8])
    assert note.startswith("ONNX Runtime uses no 2:4: dense and 2:4 INT8 are expected to be")
    (note,) = summary.no_sparsity([teacher, floats])
    assert note.startswith("ONNX Runtime uses no 2:4: dense and 2:4 weights in float are expected")


def test_a_note_names_each_engine_that_is_there_twice() -> None:
    assert summary.same_engines(["a", "b", "c"]) == []
    notes = summary.same_engines(["a", "b", "a", "b"])
    assert [note.split(":")[0] for note in notes] == [
        "engines 1 and 3 are the same (same id a)",
        "engines 2 and 4 are the same (same id b)",
    ]


def test_offline_has_a_rate_and_needs_no_bound(independent: np.ndarray) -> None:
    independent[4].sort()
    row = summary.engine_row(independent, OFFLINE)
    assert row["samples_per_s"]["estimate"] == pytest.approx(8e9 / 1049.5)
    assert row["valid"] is True


def test_ratios_are_of_times_so_that_below_one_is_faster(
    independent: np.ndarray, quick: Scenario
) -> None:
    half = independent // 2
    found = summary.ratios(independent, half, quick)
    assert list(found) == ["p50", "p90"]
    assert found["p90"]["estimate"] == pytest.approx(544 / 1089)
    assert found["p50"]["coverage"] == 0.875  # nine rounds are four blocks
    (name,) = found_offline = summary.ratios(independent, half, OFFLINE)
    assert name == "time_per_sample"
    assert found_offline[name]["estimate"] == pytest.approx(0.5, abs=1e-3)


def test_the_null_row_is_the_median_of_medians(independent: np.ndarray) -> None:
    assert summary.null_row(independent)["estimate"] == 1049.0


def test_every_ratio_is_to_the_first_engine(
    independent: np.ndarray, quick: Scenario, engine: Artifact
) -> None:
    times = [factor * independent for factor in (4, 2, 1)]
    rows = documented(engine, quick, times)["engines"]
    assert "ratio_to_first" not in rows[0]
    for row, ratio in zip(rows[1:], (0.5, 0.25), strict=True):
        assert row["ratio_to_first"]["p90"]["estimate"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("locked", "machine"),
    [(True, device_state.CONTROLLED), (False, device_state.UNCONTROLLED)],
)
def test_a_machine_is_controlled_only_in_all_repetitions(
    independent: np.ndarray, quick: Scenario, engine: Artifact, locked: bool, machine: str
) -> None:
    last = {**reports.STATE, "cpu_clock_locked": locked}
    found = documented(engine, quick, [independent], last=last)
    assert found["machine"] == machine


def test_a_gpu_has_its_own_times_and_a_costly_harness_is_told(
    independent: np.ndarray, quick: Scenario, engine: Artifact
) -> None:
    found = documented(
        engine,
        quick,
        [independent, independent],
        gpu_ns=np.stack([independent // 2, independent // 4]),
        null_ns=independent // 4,
        resumed=[4],
        references=[inputs.RECORDED, inputs.OWN],
    )
    first, second = found["engines"]
    assert first["gpu"]["percentiles"]["p90"]["estimate"] == 544.0
    assert second["gpu"]["percentiles"]["p90"]["estimate"] == 272.0
    assert second["ratio_to_first"]["p50"]["estimate"] == 1.0
    assert [row["answers"] for row in found["engines"]] == [inputs.RECORDED, inputs.OWN]
    assert found["resumed_before_rounds"] == [4]
    assert found["order_seed"] == 0
    assert (
        f"engines 1 and 2 are the same (same id {engine.id[:12]}): their ratio compares an engine "
        "with itself"
    ) in found["notes"]
    (note,) = [note for note in found["notes"] if "harness" in note]
    assert "takes up to 25% of a query's time: ratios of the engines alone are farther" in note
