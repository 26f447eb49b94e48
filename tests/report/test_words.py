"""No number is rounded to something it is not."""

from __future__ import annotations

import pytest

from edgekd.report import words


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.9555, "95.5%"),
        (0.99999, "99.999%"),
        (0.0000164, "0.002%"),
        (0.9999999999999999, "100%"),
    ],
)
def test_percent_reaches_0_and_100_only_where_it_is_so(share: float, text: str) -> None:
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [(0.0, "0.0"), (0.0056, "+0.6"), (-0.0128, "\u22121.3"), (-0.0002, "\u22120.02")],
)
def test_points_carry_their_sign(difference: float, text: str) -> None:
    assert words.points(difference) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0037747, "0.0038"),
        (12.34, "12"),
        (0.00029, "0.00029"),
        (8.27e-5, "8.3 \u00d7 10\u207b\u2075"),
        (9.96e-5, "0.00010"),
    ],
)
def test_significant_digits(value: float, text: str) -> None:
    assert words.significant(value) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.00 MB")],
)
def test_sizes_change_their_unit_where_they_would_need_a_fourth_digit(
    number: int, text: str
) -> None:
    assert words.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(8192, "8,192"), (278_528, "278.5 k"), (999_950, "1.0 M"), (4_100_000_000, "4.1 G")],
)
def test_macs(number: int, text: str) -> None:
    assert words.macs(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "< 0.01 s"),
        (0.038, "0.04 s"),
        (19.947, "19.9 s"),
        (59.97, "60.0 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (853, "853 ns"),
        (999.5, "1.00 µs"),
        (84_649, "84.6 µs"),
        (9_699_000, "9.70 ms"),
        (99_960, "100 µs"),
        (1.2346e13, "12,300 s"),
        (4_310_000, "4.31 ms"),
        (1.24e9, "1.24 s"),
    ],
)
def test_latencies_have_three_digits(time_ns: float, text: str) -> None:
    assert words.time(time_ns) == text


def test_an_interval_of_latencies_names_a_common_unit_once() -> None:
    assert words.times(302_947, 322_765) == "303 to 323 µs"
    assert words.times(974_498, 4_788_253) == "974 µs to 4.79 ms"


def test_latencies_of_an_axis_are_round() -> None:
    found = [words.round_time(time_ns) for time_ns in (0, 500, 2e3, 2.5e6, 1e9)]
    assert found == ["0", "500 ns", "2 µs", "2.5 ms", "1 s"]


def test_rates_have_three_digits() -> None:
    assert words.rate(7034.98) == "7,030 samples/s"
    assert words.rates(84.26, 0.99961) == "84.3 to 1.00 samples/s"


def test_decades_of_an_axis() -> None:
    assert [words.decade(e) for e in (-6, -3, 0, 2)] == ["10\u207b\u2076", "0.001", "1", "100"]


def test_lists_and_plurals() -> None:
    assert words.listed([]) == ""
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert [words.plural(1, "layer"), words.plural(1800, "layer")] == ["1 layer", "1,800 layers"]


def test_values_and_dotted_names() -> None:
    tree = {"fit": {"steps": 900, "none": None}, "include": ["*"], "exclude": [], "seed": 0}
    flat = {name: words.value(leaf) for name, leaf in words.flatten(tree).items()}
    assert flat == {
        "fit.steps": "900",
        "fit.none": "none",
        "include": "*",
        "exclude": "none",
        "seed": "0",
    }
    assert words.value({"on": True, "rate": 0.0005}) == "on yes, rate 0.0005"
