"""What an NVIDIA device tells of its clocks, its temperature and whether it throttled.

Two worlds. A discrete GPU answers nvidia-smi. A Jetson's GPU does not; there the clocks are in
devfreq (GPU) and in the debugfs of the boot processor (EMC, the memory controller), which only
root reads. The power mode comes from nvpmodel, over-current events from the ``soctherm_oc`` hwmon
and the power of each rail from the INA3221 hwmon ("Platform Power and Performance" of the Jetson
Linux Developer Guide, R36). ``jetson_clocks`` is not asked: what it does, pinning minimum to
maximum and locking the EMC, is read where it does it.

Written from documentation. No such device was at hand, so the tests' texts are made from it too.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.bench.cpu_state import State, is_unavailable, temperature_celsius, text, unavailable

# One column each of nvidia-smi --query-gpu; see nvidia-smi --help-query-gpu.
_SMI = {
    "gpu_name": "name",
    "driver": "driver_version",
    "persistence_mode": "persistence_mode",
    "gpu_clock_hz": "clocks.sm",
    "gpu_clock_max_hz": "clocks.max.sm",
    "memory_clock_hz": "clocks.mem",
    "memory_clock_max_hz": "clocks.max.mem",
    "temperature_celsius": "temperature.gpu",
    "power_watts": "power.draw",
    "throttling": "clocks_event_reasons.active",
}
# NVML API reference, NvmlClocksEventReasons. Idle and clocks the user or the display set slow a
# device down too, but are no throttling.
_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
_NO_THROTTLING = 0x01 | 0x02 | 0x100
_ALERTS = ("throttle-alert", "hot-surface-alert")  # cooling devices that slow a Jetson down


def read_smi() -> State:
    """Read a discrete GPU's state through nvidia-smi.

    Returns:
        ``gpu_name``, ``driver``, ``persistence_mode``, ``gpu_clock_hz`` and its maximum,
        ``memory_clock_hz`` and its maximum, ``temperature_celsius``, ``power_watts``,
        ``throttling`` (active reasons, none is an empty list).
    """
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and not device.startswith("GPU-"):
        device = ""  # CUDA numbers the fastest first, nvidia-smi by bus: not the same number
    query = [f"--query-gpu={','.join(_SMI.values())}", "--format=csv,noheader,nounits"]
    answer = _ask(["nvidia-smi", *query, *([f"--id={device}"] if device else [])])
    if is_unavailable(answer):
        return dict.fromkeys(_SMI, answer)
    if len(answer.splitlines()) > 1:
        reason = (
            f"{len(answer.splitlines())} GPUs and no saying which is used: set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID and CUDA_VISIBLE_DEVICES"
        )
        return dict.fromkeys(_SMI, unavailable(reason))
    return parse_smi(answer)


def parse_smi(line: str) -> State:
    """State from one line of nvidia-smi's CSV without header and units.

    Args:
        line: Columns in the order of the query.
    """
    words = [word.strip() for word in line.strip().split(",")]
    if len(words) != len(_SMI):
        reason = f"nvidia-smi gave {len(words)} columns, expected {len(_SMI)}"
        return dict.fromkeys(_SMI, unavailable(reason))
    return {field: _smi_value(field, word) for field, word in zip(_SMI, words, strict=True)}


def _smi_value(field: str, word: str) -> Any:
    if word.startswith("[") or word in ("N/A", ""):  # [N/A], [Not Supported], [Unknown Error]
        return unavailable(f"nvidia-smi says {word or 'nothing'} to {_SMI[field]}")
    if field in ("gpu_name", "driver", "persistence_mode"):
        return word
    try:
        if field == "throttling":
            return parse_reasons(int(word, 16))
        return int(word) * 1_000_000 if field.endswith("_hz") else float(word)
    except ValueError:
        return unavailable(f"nvidia-smi says {word!r} to {_SMI[field]}")


def parse_reasons(mask: int) -> list[str]:
    """Names of the throttle reasons in NVML's mask; unknown bits count as reasons."""
    named = [name for bit, name in _REASONS.items() if mask & bit]
    unknown = mask & ~_NO_THROTTLING & ~sum(_REASONS)
    return named + ([f"unknown 0x{unknown:x}"] if unknown else [])


def read_jetson(root: Path = Path("/")) -> State:
    """Read a Jetson's state.

    Args:
        root: Where ``sys`` is.

    Returns:
        ``power_mode`` (name and number), ``gpu_clock_hz``, ``gpu_clock_locked``,
        ``memory_clock_hz``, ``memory_clock_locked``, ``temperature_celsius``, ``over_current``
        (events since boot), ``throttling`` (active alerts), ``rails_watts``.
    """
    mode = _ask(["nvpmodel", "-q"])
    gpu = next(iter(sorted(root.glob("sys/class/devfreq/17000000.*"))), None)
    emc = root / "sys/kernel/debug/bpmp/debug/clk/emc"
    no_gpu = unavailable("no devfreq node 17000000.* (the GPU of Orin)")
    locked = text(emc / "mrq_rate_locked")
    return {
        "power_mode": mode if is_unavailable(mode) else parse_power_mode(mode),
        "gpu_clock_hz": _integer(gpu / "cur_freq") if gpu else no_gpu,
        "gpu_clock_locked": text(gpu / "min_freq") == text(gpu / "max_freq") if gpu else no_gpu,
        "memory_clock_hz": _integer(emc / "rate"),
        "memory_clock_locked": locked if is_unavailable(locked) else locked == "1",
        "temperature_celsius": temperature_celsius(root),
        "over_current": _over_current(root),
        "throttling": _alerts(root),
        "rails_watts": _rails(root),
    }


def parse_power_mode(answer: str) -> str:
    """``MAXN (0)`` from what ``nvpmodel -q`` prints: the name, and the number below it.

    The number alone says nothing: it is another mode on another module or JetPack.
    """
    found = re.search(r"NV Power Mode:[ ]*(.+)\n\s*(\d+)", answer)
    if not found:
        return unavailable(f"nvpmodel -q says {' '.join(answer.split())[:60]!r}")
    return f"{found[1].strip()} ({found[2]})"


def _over_current(root: Path) -> dict[str, int] | str:
    """Events since boot: under-voltage, average and instantaneous over-current (OC1 to OC3)."""
    folder = _hwmon(root, "soctherm_oc")
    counts = {} if folder is None else {f.name[:3]: text(f) for f in folder.glob("oc*_event_cnt")}
    if not counts or any(not count.isdigit() for count in counts.values()):
        return unavailable("no hwmon soctherm_oc whose oc*_event_cnt can be read")
    return {name: int(count) for name, count in sorted(counts.items())}


def _alerts(root: Path) -> list[str] | str:
    """Cooling devices that slow the GPU, the CPU or the memory down right now."""
    devices = sorted(root.glob("sys/class/thermal/cooling_device*"))
    states = {text(d / "type"): text(d / "cur_state") for d in devices}
    alerts = {name: now for name, now in states.items() if name.endswith(_ALERTS)}
    if not alerts or any(not now.isdigit() for now in alerts.values()):
        return unavailable("no cooling device *-throttle-alert whose cur_state can be read")
    return [name for name, now in alerts.items() if now != "0"]


def _rails(root: Path) -> dict[str, float] | str:
    """Watts by rail: INA3221 gives mV and mA."""
    folder = _hwmon(root, "ina3221")
    if folder is None:
        return unavailable("no hwmon ina3221")
    rails = {}
    for label in sorted(folder.glob("in*_label")):
        number = label.name[2:-6]
        volts, amperes = (_integer(folder / f"{k}{number}_input") for k in ("in", "curr"))
        if isinstance(volts, int) and isinstance(amperes, int):  # some channels have no current
            rails[text(label)] = volts * amperes / 1e6
    return rails or unavailable(f"{folder}: no rail can be read")


def _hwmon(root: Path, name: str) -> Path | None:
    folders = sorted(root.glob("sys/class/hwmon/hwmon*"))
    return next((folder for folder in folders if text(folder / "name") == name), None)


def _integer(path: Path) -> int | str:
    content = text(path)
    if is_unavailable(content):
        return content
    return int(content) if content.isdigit() else unavailable(f"{path}: {content!r}")


def _ask(command: Sequence[str]) -> str:
    """What a tool prints, or why it does not."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return unavailable(f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        return unavailable(f"{command[0]} did not answer within 20 s")
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[:120]
        return unavailable(f"{command[0]} ended with {done.returncode}: {said}")
    return done.stdout.strip()
