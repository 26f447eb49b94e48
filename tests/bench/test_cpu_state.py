"""Readers of /proc and /sys, on this machine and on small trees written from the kernel's pages."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from edgekd.bench import cpu_state

# From proc_stat(5): user nice system idle iowait irq softirq steal guest guest_nice, in ticks.
STAT = """\
cpu  100 20 30 400 5 6 7 32 50 9
cpu0 50 10 15 200 2 3 3 16 25 4
intr 1462898
"""
CPUINFO = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nprocessor\t: 1\nmodel name\t: Other\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_ticks_are_summed_without_the_guests_that_are_in_user_already() -> None:
    assert cpu_state.parse_ticks(STAT) == [600, 32]


def test_the_model_is_the_first_cpus_or_the_architecture() -> None:
    assert cpu_state.parse_cpu_model(CPUINFO) == "Some CPU @ 2.00GHz"
    assert cpu_state.parse_cpu_model("processor\t: 0\nBogoMIPS\t: 62.5\n") == platform.machine()


def test_this_machine_is_read() -> None:
    state = cpu_state.read()
    assert state["threads"] == len(os.sched_getaffinity(0)) == len(state["cpus"])
    total, steal = state["cpu_ticks"]
    assert 0 <= steal < total
    assert state["load_1min"] >= 0
    assert len(state["boot_id"]) == 36


def test_clock_governor_and_temperature_come_from_sysfs(tmp_path: Path) -> None:
    policy, zone = "sys/devices/system/cpu/cpufreq/policy", "sys/class/thermal/thermal_zone"
    root = write(
        tmp_path,
        {
            "proc/stat": STAT,
            "proc/cpuinfo": CPUINFO,
            "proc/loadavg": "0.25 0.5 0.6 1/91 4070\n",
            f"{policy}0/scaling_min_freq": "2000000\n",
            f"{policy}0/scaling_max_freq": "2000000\n",
            f"{policy}0/scaling_cur_freq": "1999000\n",
            f"{policy}0/scaling_governor": "performance\n",
            f"{zone}0/temp": "41500\n",
            f"{zone}1/temp": "63250\n",
        },
    )
    state = cpu_state.read(root)
    assert state["cpu_clock_hz"] == [1_999_000_000]
    assert state["cpu_governor"] == ["performance"]
    assert state["cpu_clock_locked"] is True
    assert state["cpu_temperature_celsius"] == 63.25
    assert state["load_1min"] == 0.25
    write(root, {f"{policy}0/scaling_min_freq": "800000\n"})
    assert cpu_state.read(root)["cpu_clock_locked"] is False


@pytest.mark.parametrize("field", ["cpu_model", "cpu_ticks", "load_1min", "cpu_clock_hz"])
def test_what_is_not_there_is_unavailable_and_says_why(tmp_path: Path, field: str) -> None:
    found = cpu_state.read(tmp_path)[field]
    assert cpu_state.is_unavailable(found)
    assert "No such file" in found or "no cpufreq here" in found


def test_nonsense_is_unavailable_too(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/stat": "cpu one two\n", "proc/loadavg": "\n"})
    state = cpu_state.read(root)
    assert "not understood: 'cpu one two'" in state["cpu_ticks"]
    assert cpu_state.is_unavailable(state["load_1min"])
