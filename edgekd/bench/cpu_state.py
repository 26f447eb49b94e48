"""What Linux tells of a processor: its name, who may use it, its clock, what was stolen from it.

Every reader answers with a value or with ``unavailable: <reason>``; what is missing on a machine
is then on record instead of being guessed. Sources: proc_pid(5) and proc_stat(5) for steal time,
the kernel's admin-guide/pm/cpufreq and driver-api/thermal/sysfs-api for clock and temperature.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

State = dict[str, Any]

UNAVAILABLE = "unavailable: "
_TICK_FIELDS = 8  # user nice system idle iowait irq softirq steal; guest time is within user


def unavailable(reason: str) -> str:
    """What stands in a state for something that could not be read."""
    return f"{UNAVAILABLE}{reason}"


def is_unavailable(value: Any) -> bool:
    """Whether a value of a state stands for something that could not be read."""
    return isinstance(value, str) and value.startswith(UNAVAILABLE)


def read(root: Path = Path("/")) -> State:
    """Read the processor's state.

    Args:
        root: Where ``proc`` and ``sys`` are.

    Returns:
        ``cpu_model``, ``threads`` (CPUs this process may use), ``cpus`` (their numbers),
        ``cpu_ticks`` ([all, stolen] since boot), ``load_1min``, ``cpu_governor``, ``cpu_clock_hz``
        (of each CPU), ``cpu_clock_locked``, ``cpu_temperature_celsius``, ``boot_id``.
    """
    cpus = sorted(os.sched_getaffinity(0))
    policies = sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"))
    lowest = [_number(policy / "scaling_min_freq") for policy in policies]
    highest = [_number(policy / "scaling_max_freq") for policy in policies]
    no_cpufreq = unavailable("no cpufreq here, as in most virtual machines")
    return {
        "cpu_model": _parsed(root / "proc/cpuinfo", parse_cpu_model),
        "cpus": cpus,
        "threads": len(cpus),
        "cpu_ticks": _parsed(root / "proc/stat", parse_ticks),
        "load_1min": _parsed(root / "proc/loadavg", lambda text: float(text.split()[0])),
        "cpu_governor": sorted({text(policy / "scaling_governor") for policy in policies})
        or no_cpufreq,
        "cpu_clock_hz": [_hertz(policy / "scaling_cur_freq") for policy in policies] or no_cpufreq,
        "cpu_clock_locked": lowest == highest if policies else no_cpufreq,
        "cpu_temperature_celsius": temperature_celsius(root),
        "boot_id": text(root / "proc/sys/kernel/random/boot_id"),
    }


def parse_ticks(stat: str) -> list[int]:
    """[all ticks, stolen ticks] of all CPUs since boot, from ``/proc/stat``."""
    numbers = [int(word) for word in stat.splitlines()[0].split()[1:]][:_TICK_FIELDS]
    return [sum(numbers), numbers[7]]


def parse_cpu_model(cpuinfo: str) -> str:
    """Name of the processor, its architecture where Linux gives none (ARM)."""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines()]
    models = [
        name
        for name, line in zip(names, cpuinfo.splitlines(), strict=True)
        if line.startswith("model name")
    ]
    return models[0] if models else platform.machine()


def temperature_celsius(root: Path) -> float | str:
    """Temperature of the hottest thermal zone that can be read (millidegrees in sysfs)."""
    zones = (_number(zone) for zone in sorted(root.glob("sys/class/thermal/thermal_zone*/temp")))
    readable = [zone / 1000 for zone in zones if not isinstance(zone, str)]
    return max(readable) if readable else unavailable("no thermal zone can be read")


def text(path: Path) -> str:
    """Content of a small file, stripped, or why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        return unavailable(f"{path}: {error.strerror}")


def _number(path: Path) -> int | str:
    content = text(path)
    if is_unavailable(content):
        return content
    return int(content) if content.lstrip("-").isdigit() else unavailable(f"{path}: {content!r}")


def _hertz(path: Path) -> int | str:
    found = _number(path)
    return found if isinstance(found, str) else found * 1000  # cpufreq counts in kHz


def _parsed(path: Path, parse: Any) -> Any:
    content = text(path)
    if is_unavailable(content):
        return content
    try:
        return parse(content)
    except (ValueError, IndexError):
        return unavailable(f"{path}: not understood: {content[:40]!r}")
