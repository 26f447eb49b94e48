"""Numbers as a person reads them: a unit, the digits the measurement supports, no false hundred.

A share of 0.99998 must not read "100.0%" and one of 0.00002 not "0.0%": digits are added until the
text no longer claims what the number does not. Hashes are shortened to their first 12 digits, as in
directory names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"
NO_DIFFERENCE = "no difference shown"
UNJUDGED = "nothing was judged: the engine became the baseline that others are compared with"
MINUS = "\u2212"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def percent(share: float, digits: int = 1) -> str:
    """A share, 0 to 1, as ``95.6%``; 0% and 100% only where the share is exactly that.

    Args:
        share: 0 to 1.
        digits: Digits after the point, more where rounding would reach 0% or 100%.
    """
    if min(abs(share), abs(1 - share)) < 1e-9:  # a computed bound of 1 may miss it by a last bit
        return f"{share:.0%}"
    while digits < 8 and float(f"{share:.{digits}%}"[:-1]) in (0, 100):
        digits += 1
    return f"{share:.{digits}%}"


def measure(metric: str) -> str:
    """What an AccuracyReport's ``top1`` is: ``top-1``, or the ``score`` of the user's metric."""
    return metric if metric == "top-1" else "score"


def points(difference: float) -> str:
    """A difference of shares as signed percentage points: ``+0.6``, ``0.0``."""
    size_points = abs(difference) * 100
    text = (
        f"{size_points:.1f}"
        if size_points >= 0.05 or not size_points
        else (significant(size_points, 1))
    )
    return text if not difference else f"{'+' if difference > 0 else MINUS}{text}"


def as_at_export(recorded: Mapping[str, Any]) -> str:
    """Whether live outputs are those recorded at export: ``bit for bit``, or how far apart.

    Args:
        recorded: As an AccuracyReport holds it.
    """
    if not recorded["compared"]:
        return "not compared: other samples than at export"
    if recorded["equal"]:
        return "bit for bit"
    apart = f"up to {significant(recorded['largest_difference'])} apart"
    share = recorded["argmax_differ"]
    if share is None:
        return apart
    return f"{apart}, {f'{percent(share)} of answers change' if share else 'no answer changes'}"


def significant(value: float, digits: int = 2) -> str:
    """A small number with its significant digits: ``0.0038``, ``1.2 x 10^-13`` below 0.0001."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 9.96 is 10
    if -5 < exponent < 6:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    factor = f"{value / 10.0**exponent:.{digits - 1}f}"
    return f"{factor} × 10{str(exponent).translate(_SUPERSCRIPT)}"  # noqa: RUF001


def decade(exponent: int) -> str:
    """A power of ten on an axis: ``0.001``, ``10``, ``10^-6`` beyond what the eye can count."""
    if -5 < exponent < 5:
        return f"{10.0**exponent:.{max(0, -exponent)}f}"
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def count(number: int) -> str:
    """A whole number with thousands apart: ``1,462,272``."""
    return f"{number:,}"


def size(number_bytes: float) -> str:
    """Bytes as ``953 B``, ``970.1 kB`` or ``1.71 MB`` (1 kB = 1000 bytes)."""
    if number_bytes < 1000:
        return f"{number_bytes:.0f} B"
    if number_bytes < 999_950:
        return f"{number_bytes / 1e3:.1f} kB"
    return f"{number_bytes / 1e6:.2f} MB"


def macs(number: int) -> str:
    """Multiply-accumulates for one example: ``8,192``, ``278.5 k``, ``17.0 M``."""
    for limit, factor, unit in ((999_950, 1e3, "k"), (999_950_000, 1e6, "M"), (math.inf, 1e9, "G")):
        if number < limit:
            return count(number) if number < 10_000 else f"{number / factor:.1f} {unit}"
    raise AssertionError("unreachable: the last limit is infinite")


def time(time_ns: float) -> str:
    """A latency to three digits: ``853 ns``, ``84.6 µs``, ``4.31 ms``, ``1.24 s``."""
    for unit, factor in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if time_ns < 999.5 * factor:
            return f"{digits(time_ns / factor)} {unit}"
    return f"{digits(time_ns / 1e9)} s"


def times(low_ns: float, high_ns: float) -> str:
    """An interval of latencies, the unit once where both have it: ``303 to 323 µs``."""
    (low, unit), (high, other) = time(low_ns).split(), time(high_ns).split()
    return f"{low} to {high} {other}" if unit == other else f"{low} {unit} to {high} {other}"


def rate(samples_per_s: float) -> str:
    """Throughput to three digits: ``7,030 samples/s``."""
    return f"{digits(samples_per_s)} samples/s"


def rates(low: float, high: float) -> str:
    """An interval of throughputs: ``6,250 to 14,400 samples/s``."""
    return f"{digits(low)} to {rate(high)}"


def round_time(time_ns: float) -> str:
    """A round latency on an axis: ``0``, ``500 µs``, ``2 ms``."""
    if time_ns == 0:
        return "0"
    for unit, factor in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if time_ns < 999.5 * factor:
            return f"{time_ns / factor:g} {unit}"
    return f"{time_ns / 1e9:g} s"


def digits(number: float) -> str:
    """A number above 0 to three digits: ``0.733``, ``9.70``, ``4,310``."""
    exponent = int(f"{number:.2e}".partition("e")[2])  # after rounding: 999.6 is 1,000
    return significant(number, 3) if exponent < 3 else f"{round(number, 2 - exponent):,.0f}"


def duration(seconds: float) -> str:
    """Seconds as ``0.04 s``, ``20.2 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 0.005:
        return "< 0.01 s"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def when(time: str) -> str:
    """An ISO time in UTC, ``2026-11-21T08:03:39Z``, as ``2026-11-21 08:03:39 UTC``."""
    return time.replace("T", " ").replace("Z", " UTC")


def short(digest: str) -> str:
    """The first 12 digits of a hash."""
    return digest[:12]


def plural(number: int, noun: str) -> str:
    """``1 layer``, ``18 layers``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def value(found: Any) -> str:
    """A configuration or result value on one line; nested ones as ``name value, name value``."""
    if found is None:
        return "none"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.6g}"
    if isinstance(found, dict):
        return ", ".join(f"{name} {value(inner)}" for name, inner in found.items()) or "none"
    if isinstance(found, list):
        return ", ".join(value(inner) for inner in found) or "none"
    return str(found)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted name: ``distill.losses.temperature``."""
    leaves: dict[str, Any] = {}
    for name, inner in tree.items():
        if isinstance(inner, dict) and inner:
            leaves |= flatten(inner, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = inner
    return leaves
