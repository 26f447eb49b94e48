from __future__ import annotations

import math

import numpy as np
import pytest

from edgekd.bench import stats
from edgekd.errors import MeasurementError


def test_queries_needed_are_loadgens() -> None:
    assert [stats.queries_needed(p) for p in (50, 90, 95, 99)] == [11, 64, 130, 662]


@pytest.mark.parametrize(("percentile", "needed"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_one_query_less_has_no_bound(percentile: int, needed: int) -> None:
    samples = np.arange(needed)
    bound = stats.upper_bound(samples, percentile)
    assert (bound.value_ns, bound.discarded) == (needed - 2, 1)  # all but the largest sample
    assert 0.99 <= bound.coverage < 0.9975
    words = f"{needed - 1} queries give p{percentile} no upper bound of 99%.*at least {needed}"
    with pytest.raises(MeasurementError, match=words):
        stats.upper_bound(samples[:-1], percentile)


def test_the_coverage_of_eleven_queries_is_counted_by_hand() -> None:
    # Below the median lie all 11, or all but one, in 1 + 11 of 2^11 cases; then the bound fails.
    assert stats.upper_bound(np.arange(11), 50).coverage == pytest.approx(1 - 12 / 2048)


def test_the_bound_covers_the_true_percentile_and_not_by_much_more() -> None:
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(4000):
        samples = (random.lognormal(0, 1.5, 150) * 1e6).astype(np.int64)
        covered += stats.upper_bound(samples, 90).value_ns >= 1e6 * math.exp(1.5 * 1.2815515655)
    promised = stats.upper_bound(np.arange(150), 90).coverage
    assert promised >= 0.99
    # Three standard errors of a share of 4000.
    assert covered / 4000 == pytest.approx(promised, abs=3 * math.sqrt(0.01 / 4000))


def test_more_queries_discard_more_samples() -> None:
    discarded = [stats.upper_bound(np.arange(n), 90).discarded for n in (64, 100, 1000, 10_000)]
    assert discarded == sorted(discarded)
    assert discarded[0] == 1
    assert 900 < discarded[-1] < 1000  # towards the tenth that lies above p90


def test_percentiles_are_nearest_ranks() -> None:
    samples = np.array([50, 15, 40, 20, 35])
    # The textbook's example: p5, p30, p40, p50, p100 of these five are 15, 20, 20, 35, 50.
    assert [stats.nearest_rank(samples, p) for p in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    assert stats.nearest_rank(np.arange(1, 101), 29) == 29  # not 30, though 0.29 * 100 > 29


def test_ecdf_steps_at_each_distinct_sample() -> None:
    values, shares = stats.ecdf(np.array([3, 1, 3, 7]))
    assert values.tolist() == [1, 3, 7]
    assert shares.tolist() == [0.25, 0.75, 1.0]


def test_independent_samples_pass_the_check_and_rarely_fail() -> None:
    random = np.random.default_rng(5)
    alarms = sum(
        bool(stats.autocorrelation((random.lognormal(0, 1, (9, 100)) * 1e6).astype(int)).failed)
        for _ in range(300)
    )
    assert alarms / 300 <= 0.03


def test_samples_that_depend_on_the_one_before_fail_the_check() -> None:
    random = np.random.default_rng(6)
    noise = random.normal(0, 1, (9, 400))
    noise[2, 1:] += 2 * noise[2, :-1]  # a moving average: rank correlation about 0.4 at lag 1
    found = stats.autocorrelation((noise * 1000).astype(np.int64))
    assert found.failed == (2,)
    assert found.lag == 1
    assert found.largest > found.limit > 0


def test_the_check_fails_where_the_bound_would_break_its_promise() -> None:
    # Simulated with 200 queries: independent ones are missed by 0.8% of the bounds; the share is
    # 1.8% where each normal value is correlated by 0.3 with the one before, 3.9% at 0.5.
    random = np.random.default_rng(12)
    for correlation in (0.3, 0.5):
        rows = random.normal(0, 1, (50, 12, 300))
        for query in range(1, 300):
            fresh = math.sqrt(1 - correlation**2) * rows[:, :, query]
            rows[:, :, query] = correlation * rows[:, :, query - 1] + fresh
        runs = (rows[:, :, 100:] * 1e6).astype(np.int64)
        assert all(stats.autocorrelation(each).failed for each in runs)


def test_an_outlier_does_not_hide_dependence() -> None:
    drift = np.arange(200)[np.newaxis].repeat(9, axis=0)
    drift[:, 100] = 10**12
    assert stats.autocorrelation(drift).failed == tuple(range(9))


def test_a_clock_that_only_ever_says_one_number_is_no_dependence() -> None:
    assert stats.autocorrelation(np.full((9, 100), 40)).failed == ()


def test_the_median_of_nine_lies_between_second_smallest_and_largest() -> None:
    values = np.array([9, 2, 8, 3, 7, 4, 6, 5, 100], np.float64)
    found = stats.median_interval(values)
    assert (found.estimate, found.low, found.high) == (6.0, 3.0, 9.0)
    assert found.coverage == pytest.approx(1 - 2 * 10 / 512)  # 1 + 9 of 2^9 cases on either side


def test_five_repetitions_are_too_few_for_a_median() -> None:
    with pytest.raises(MeasurementError, match=r"5 repetitions give .*95% interval: measure 9"):
        stats.median_interval(np.arange(5.0))
    assert stats.median_interval(np.arange(6.0)).coverage == pytest.approx(1 - 2 / 64)


def test_the_median_interval_covers() -> None:
    random = np.random.default_rng(7)
    intervals = [stats.median_interval(random.exponential(1, 9)) for _ in range(3000)]
    share = np.mean([each.low <= math.log(2) <= each.high for each in intervals])
    assert share == pytest.approx(1 - 20 / 512, abs=0.011)


def test_a_ratio_of_constants_is_exact() -> None:
    found = stats.ratio(np.full(10, 4.0), np.full(10, 3.0))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))


def test_linear_drift_cancels_within_a_block() -> None:
    # AB BA AB BA ... on a machine that slows down by 5% a repetition; B is as fast as A.
    times = np.exp(0.05 * np.arange(20))
    a = np.array([times[2 * r + (r % 2)] for r in range(10)])
    b = np.array([times[2 * r + 1 - (r % 2)] for r in range(10)])
    assert not np.allclose(b / a, 1)
    found = stats.ratio(a, b)
    assert (found.estimate, found.low, found.high) == pytest.approx((1, 1, 1))


def test_an_odd_last_round_is_left_out() -> None:
    a, b = np.full(9, 2.0), np.full(9, 1.0)
    b[8] = 1000.0
    assert stats.ratio(a, b).estimate == pytest.approx(0.5)


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    random = np.random.default_rng(8)
    a, b = random.lognormal(0, 0.1, 16), random.lognormal(0, 0.1, 16)
    assert stats.ratio(a, b) == stats.ratio(a, b)
    assert stats.ratio(a, b, seed=1) != stats.ratio(a, b)


def test_few_blocks_admit_that_they_cover_less() -> None:
    assert [stats.ratio(np.ones(n), np.ones(n)).coverage for n in (9, 10, 12, 40)] == [
        0.875,
        0.9375,
        0.95,
        0.95,
    ]
    with pytest.raises(MeasurementError, match="7 rounds are 3 ABBA blocks, expected at least 4"):
        stats.ratio(np.ones(7), np.ones(7))


@pytest.mark.parametrize("rounds", [9, 12, 20])
def test_the_ratio_covers_as_much_as_it_says(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 2000)  # what decides is the number of blocks
    random = np.random.default_rng(9)
    covered = 0
    for seed in range(500):
        a, b = np.exp(random.normal(0, 0.05, (2, rounds)))
        found = stats.ratio(a, 0.9 * b, seed=seed)
        covered += found.low <= 0.9 <= found.high
    assert covered / 500 == pytest.approx(found.coverage, abs=0.035)


def test_students_quantiles_are_the_tables() -> None:
    # Abramowitz and Stegun, table 26.10, 95% two-sided.
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042}
    found = {freedom: stats._student_quantile(0.975, freedom) for freedom in table}
    assert found == pytest.approx(table, abs=6e-4)
