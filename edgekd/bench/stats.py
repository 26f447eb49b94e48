"""What may be claimed from latency samples: bounds, intervals and ratios without a distribution.

Latencies are skewed, have several modes and a long tail, so nothing here assumes a shape.

* **Upper bound of a percentile.** Of n independent queries the number that stay below the true
  p-quantile is binomial(n, p). So the k-th smallest latency is at or above that quantile with
  probability P(binomial(n, p) <= k - 1), and the smallest k that reaches 99% is the bound (David
  and Nagaraja, Order Statistics, 3rd edition, section 7.1). It is LoadGen's early stopping
  (mlcommons/inference, loadgen/early_stopping.cc, confidence 0.99, tolerance 0) read as an order
  statistic. As there, the largest sample must be discarded, or one hiccup of the machine would be
  the result: k <= n - 1. The condition for k = n - 1, 1 - p^n - n p^(n-1) (1 - p) >= 0.99, gives
  11, 64, 130 and 662 queries for p50, p90, p95 and p99.
* **Independence** is what that rests on, so it is checked: autocorrelation of ranks (Wald and
  Wolfowitz 1943, Annals of Mathematical Statistics 14), which no outlier can hide or fake. Where it
  fails, the bound is withheld. It is looked at inside each process, where the binomial needs it;
  nothing is pooled over processes.
* **The unit is the repetition**, a fresh process: memory layout, core placement and clock ramps are
  drawn once a process, so ten thousand queries of one process are one draw of them (Georges,
  Buytaert and Eeckhout 2007, OOPSLA). A result is the median over repetitions, its interval two
  order statistics of them: exact for any distribution and already usable at 9, where a bootstrap
  of a median has few distinct values and covers too little.
* **The ratio of two engines** is taken inside an ABBA block, where a linear drift of the machine
  cancels, and bootstrapped over blocks. Of a handful of blocks the percentile bootstrap is too
  narrow; its quantiles are moved outwards as Hesterberg (2015, The American Statistician 69,
  "expanded percentile interval") gives them, so that a mean of normal values has t coverage. No
  bootstrap leaves the range of its blocks, and the range of n covers a median with 1 - 2^(1-n):
  where that is less than 95% (4 or 5 blocks), the interval says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import MeasurementError

COVERAGE = 0.99  # of an upper bound, as LoadGen's confidence
CONFIDENCE = 0.95  # of an interval
FALSE_ALARM = 0.01  # of the autocorrelation check, over all lags and repetitions together
LAGS = 10
RESAMPLES = 10_000
SEED = 0

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bound:
    """An upper bound of a percentile.

    Attributes:
        value_ns: The order statistic.
        coverage: Probability that it is at or above the percentile, at least `COVERAGE`.
        discarded: How many larger samples there are, at least 1.
    """

    value_ns: int
    coverage: float
    discarded: int


@dataclass(frozen=True)
class Interval:
    """A point estimate and its interval.

    Attributes:
        estimate: The point estimate.
        low: Lower end.
        high: Upper end.
        coverage: Probability that the interval holds the true value.
    """

    estimate: float
    low: float
    high: float
    coverage: float


@dataclass(frozen=True)
class Autocorrelation:
    """Outcome of the independence check.

    Attributes:
        largest: Rank autocorrelation farthest from 0, over all lags and repetitions.
        lag: Its lag, in queries.
        limit: What independent samples stay within, with probability 1 - `FALSE_ALARM` in all.
        failed: Repetitions that have a lag beyond the limit.
    """

    largest: float
    lag: int
    limit: float
    failed: tuple[int, ...]


def queries_needed(percentile: float, coverage: float = COVERAGE) -> int:
    """Fewest queries that give a percentile an upper bound with one sample discarded.

    Args:
        percentile: For example 90, above 0 and below 100.
        coverage: Of the bound.
    """
    share = percentile / 100
    count = 2
    while 1 - share**count - count * share ** (count - 1) * (1 - share) < coverage:
        count += 1
    return count


def nearest_rank(samples: Int64s, percentile: float) -> int:
    """Point estimate of a percentile: the smallest sample with that share at or below it.

    Args:
        samples: int64[n], ns, in any order.
        percentile: Above 0, at most 100.
    """
    rank = math.ceil(len(samples) * percentile / 100 - 1e-9)  # 0.29 * 100 is 28.999999999999996
    return int(np.sort(samples)[rank - 1])


def upper_bound(samples: Int64s, percentile: float, coverage: float = COVERAGE) -> Bound:
    """Order statistic that a percentile stays below, see the module's text.

    Args:
        samples: int64[n], ns, of independent queries, in any order.
        percentile: For example 90.
        coverage: At least this.

    Raises:
        MeasurementError: There are fewer samples than `queries_needed`.
    """
    needed = queries_needed(percentile, coverage)
    if len(samples) < needed:
        raise MeasurementError(
            f"{len(samples)} queries give p{percentile:g} no upper bound of {coverage:.0%} "
            f"coverage, expected at least {needed}: measure more queries a repetition"
        )
    below = _binomial_cdf(len(samples), percentile / 100)
    rank = int(np.searchsorted(below, coverage)) + 1  # P(binomial <= rank - 1) >= coverage
    return Bound(int(np.sort(samples)[rank - 1]), float(below[rank - 1]), len(samples) - rank)


def ecdf(samples: Int64s) -> tuple[Int64s, Floats]:
    """Empirical distribution: distinct latencies, and the share of samples at or below each.

    Args:
        samples: int64[n], ns.
    """
    values, counts = np.unique(samples, return_counts=True)
    return values, np.cumsum(counts) / len(samples)


def autocorrelation(samples: Int64s) -> Autocorrelation:
    """Check that the queries of each repetition are independent of those before them.

    Of n independent samples a rank autocorrelation has mean near 0 and variance near 1/n, less for
    few samples and long lags; the limit is the normal quantile for `FALSE_ALARM` shared by all lags
    and repetitions (Bonferroni). So independent samples fail it in at most that share of runs.

    Args:
        samples: int64[repetitions, queries], ns, each row in the order of measurement.
    """
    repetitions, queries = samples.shape
    lags = min(LAGS, queries // 4)
    quantile = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * lags * repetitions))
    limit = quantile / math.sqrt(queries)
    found = np.array([[_rank_correlation(row, lag + 1) for lag in range(lags)] for row in samples])
    row, lag = np.unravel_index(np.abs(found).argmax(), found.shape)
    failed = np.flatnonzero((np.abs(found) > limit).any(axis=1))
    return Autocorrelation(
        float(found[row, lag]), int(lag) + 1, limit, tuple(int(each) for each in failed)
    )


def median_interval(values: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Median over repetitions, between two order statistics (the sign test turned around).

    The interval from the k-th smallest to the k-th largest misses the true median with probability
    2 P(binomial(n, 1/2) <= k - 1), whatever the distribution; the largest k within 1 - confidence
    is taken. Nine repetitions give the second smallest and largest, 96.1%.

    Args:
        values: float[repetitions], at least 6.
        confidence: At least this is covered.

    Raises:
        MeasurementError: So few repetitions that not even smallest and largest cover that much.
    """
    below = _binomial_cdf(len(values), 0.5)
    k = int(np.searchsorted(below, (1 - confidence) / 2, side="right"))
    if k == 0:
        raise MeasurementError(
            f"{len(values)} repetitions give a median no {confidence:.0%} interval: measure 9"
        )
    ordered = np.sort(values)
    coverage = 1 - 2 * float(below[k - 1])
    return Interval(float(np.median(values)), float(ordered[k - 1]), float(ordered[-k]), coverage)


def ratio(
    reference: Floats,
    candidate: Floats,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Interval:
    """Ratio candidate / reference of two interleaved engines, with its interval.

    Args:
        reference: float[rounds]: one number a repetition, such as its median in ns.
        candidate: float[rounds]: the same of the other engine, measured in the same round. Two
            rounds in a row, the second in reverse order, are one block (ABBA); an odd last round
            is in no block and left out.
        confidence: Of the interval.
        seed: Of the bootstrap.

    Returns:
        The geometric mean over blocks and its bootstrap interval; below 1 the candidate is faster.

    Raises:
        MeasurementError: There are fewer than 4 blocks.
    """
    blocks = len(reference) // 2
    if blocks < 4:
        raise MeasurementError(
            f"{len(reference)} rounds are {blocks} ABBA blocks, expected at least 4 for the "
            "interval of a ratio: measure 9 repetitions or more"
        )
    logs = np.log(candidate[: 2 * blocks] / reference[: 2 * blocks]).reshape(blocks, 2).mean(axis=1)
    random = np.random.default_rng(seed)
    means = logs[random.integers(0, blocks, (RESAMPLES, blocks))].mean(axis=1)
    tail = _expanded_tail((1 - confidence) / 2, blocks)
    low, high = np.exp(np.quantile(means, [tail, 1 - tail]))
    coverage = min(confidence, 1 - 2.0 ** (1 - blocks))
    return Interval(float(np.exp(logs.mean())), float(low), float(high), coverage)


def _expanded_tail(tail: float, count: int) -> float:
    """Share to cut off a bootstrap's end so that it reaches as far as Student's t does."""
    t = _student_quantile(1 - tail, count - 1)
    return NormalDist().cdf(-t * math.sqrt(count / (count - 1)))


def _student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t above the median, by bisection."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < share else (low, middle)
    return high


def _student_cdf(t: float, freedom: int) -> float:
    """Finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for j in range(3 if odd else 2, freedom - 1, 2):
        term *= (j - 1) / j * math.cos(angle) ** 2
        total += term
    inside = math.sin(angle) * total
    return 0.5 + (2 / math.pi * (angle + inside) if odd else inside) / 2


def _binomial_cdf(trials: int, share: float) -> Floats:
    """P(binomial(trials, share) <= j) for j = 0 ... trials, through logarithms."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    hits = np.arange(trials + 1)
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    terms = np.exp(log_choose + hits * math.log(share) + (trials - hits) * math.log1p(-share))
    result: Floats = np.minimum(np.cumsum(terms), 1.0)
    return result


def _rank_correlation(row: Int64s, lag: int) -> float:
    # Equal values get the mean of their ranks: a coarse clock makes many of them.
    _, place, counts = np.unique(row, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    centred = ranks - ranks.mean()
    total = float(centred @ centred)
    return float(centred[:-lag] @ centred[lag:]) / total if total else 0.0
