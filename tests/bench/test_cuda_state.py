"""Parsers of what NVIDIA's tools print and of Jetson's sysfs.

No such device was at hand. The texts and trees here are written from documentation (nvidia-smi
--help-query-gpu, NVML API reference, Jetson Linux Developer Guide R36), not recorded.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekd.bench import cuda_state
from edgekd.bench.cpu_state import is_unavailable

SMI = "NVIDIA A100-SXM4-80GB, 580.65.06, Enabled, 1410, 1410, 1593, 1593, 41, 62.31, 0x{mask:016x}"
HWMON = "sys/class/hwmon/hwmon"
COOLING = "sys/class/thermal/cooling_device"
GPU = "sys/class/devfreq/17000000.gpu"
EMC = "sys/kernel/debug/bpmp/debug/clk/emc"
ORIN = {
    f"{GPU}/cur_freq": "1300500000\n",
    f"{GPU}/min_freq": "1300500000\n",
    f"{GPU}/max_freq": "1300500000\n",
    f"{EMC}/rate": "3199000000\n",
    f"{EMC}/mrq_rate_locked": "1\n",
    "sys/class/thermal/thermal_zone0/temp": "48500\n",
    "sys/class/thermal/thermal_zone8/temp": "51250\n",
    f"{HWMON}0/name": "ina3221\n",
    f"{HWMON}0/in1_label": "VDD_GPU_SOC\n",
    f"{HWMON}0/in1_input": "19880\n",
    f"{HWMON}0/curr1_input": "400\n",
    f"{HWMON}0/in2_label": "VDD_CPU_CV\n",
    f"{HWMON}0/in2_input": "19880\n",
    f"{HWMON}0/curr2_input": "50\n",
    f"{HWMON}0/in7_label": "Sum of shunt voltages\n",
    f"{HWMON}0/in7_input": "0\n",
    f"{HWMON}1/name": "soctherm_oc\n",
    f"{HWMON}1/oc1_event_cnt": "0\n",
    f"{HWMON}1/oc2_event_cnt": "3\n",
    f"{HWMON}1/oc3_event_cnt": "17\n",
    f"{COOLING}0/type": "pwm-fan\n",
    f"{COOLING}0/cur_state": "2\n",
    f"{COOLING}1/type": "gpu-throttle-alert\n",
    f"{COOLING}1/cur_state": "0\n",
}


def orin(root: Path, **changes: str | None) -> Path:
    for name, content in {**ORIN, **changes}.items():
        if content is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
    return root


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, the only one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_smi_gives_clocks_in_hz_temperature_power_and_no_throttling() -> None:
    state = cuda_state.parse_smi(SMI.format(mask=0x1))  # idle is no throttling
    assert state["gpu_clock_hz"] == state["gpu_clock_max_hz"] == 1_410_000_000
    assert state["memory_clock_hz"] == 1_593_000_000
    assert (state["temperature_celsius"], state["power_watts"]) == (41.0, 62.31)
    assert (state["persistence_mode"], state["driver"]) == ("Enabled", "580.65.06")
    assert state["throttling"] == []


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x2 | 0x100, []),  # clocks that the user or the display set
        (0x4, ["sw_power_cap"]),
        (0x8 | 0x40, ["hw_slowdown", "hw_thermal_slowdown"]),
        (0x20 | 0x80, ["sw_thermal_slowdown", "hw_power_brake_slowdown"]),
        (0x800, ["unknown 0x800"]),
    ],
)
def test_throttle_reasons_have_names(mask: int, reasons: list[str]) -> None:
    assert cuda_state.parse_smi(SMI.format(mask=mask))["throttling"] == reasons


def test_a_column_without_a_value_is_unavailable_and_the_others_stay() -> None:
    line = SMI.format(mask=0).replace("62.31", "[N/A]").replace(" 41,", " [Not Supported],")
    state = cuda_state.parse_smi(line)
    assert state["power_watts"] == "unavailable: nvidia-smi says [N/A] to power.draw"
    assert "[Not Supported] to temperature.gpu" in state["temperature_celsius"]
    assert state["gpu_clock_hz"] == 1_410_000_000


def test_a_line_of_another_length_is_not_guessed_at() -> None:
    state = cuda_state.parse_smi("Tesla, 1, 2")
    assert state["gpu_clock_hz"] == "unavailable: nvidia-smi gave 3 columns, expected 10"


def test_smi_is_asked_and_its_absence_is_said(tools: Path) -> None:
    assert cuda_state.read_smi()["throttling"] == "unavailable: nvidia-smi is not installed"
    program(tools, "nvidia-smi", f"echo '{SMI.format(mask=4)}'")
    assert cuda_state.read_smi()["throttling"] == ["sw_power_cap"]
    program(tools, "nvidia-smi", "echo 'Unable to determine the device handle'; exit 15")
    assert "ended with 15: Unable to determine" in cuda_state.read_smi()["gpu_clock_hz"]


def test_of_several_gpus_the_one_in_use_must_be_named(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = SMI.format(mask=0)
    script = f"""case "$*" in *--id=3*) echo '{line}';; *) echo '{line}'; echo '{line}';; esac"""
    program(tools, "nvidia-smi", script)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    # CUDA's own order is not the bus's, so the number alone says nothing.
    assert "2 GPUs and no saying which" in cuda_state.read_smi()["gpu_clock_hz"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert cuda_state.read_smi()["gpu_clock_hz"] == 1_410_000_000


def test_a_jetson_with_locked_clocks(tmp_path: Path, tools: Path) -> None:
    program(tools, "nvpmodel", "echo 'NV Power Mode: MAXN'; echo 0")
    state = cuda_state.read_jetson(orin(tmp_path / "root"))
    assert state == {
        "power_mode": "MAXN (0)",
        "gpu_clock_hz": 1_300_500_000,
        "gpu_clock_locked": True,
        "memory_clock_hz": 3_199_000_000,
        "memory_clock_locked": True,
        "temperature_celsius": 51.25,
        "over_current": {"oc1": 0, "oc2": 3, "oc3": 17},
        "throttling": [],
        "rails_watts": {"VDD_GPU_SOC": 7.952, "VDD_CPU_CV": 0.994},
    }


def test_a_jetson_that_is_neither_locked_nor_cool(tmp_path: Path, tools: Path) -> None:
    program(tools, "nvpmodel", "exit 1")
    changes = {
        f"{GPU}/min_freq": "306000000\n",
        f"{EMC}/mrq_rate_locked": "0\n",
        f"{COOLING}1/cur_state": "1\n",
    }
    state = cuda_state.read_jetson(orin(tmp_path / "root", **changes))
    assert (state["gpu_clock_locked"], state["memory_clock_locked"]) == (False, False)
    assert state["throttling"] == ["gpu-throttle-alert"]
    assert state["power_mode"].startswith("unavailable: nvpmodel ended with 1")


def test_debugfs_that_only_root_reads_is_said(tmp_path: Path, tools: Path) -> None:
    assert tools.is_dir()
    missing = {f"{EMC}/rate": None, f"{EMC}/mrq_rate_locked": None}
    state = cuda_state.read_jetson(orin(tmp_path / "root", **missing))
    assert "clk/emc/rate: No such file" in state["memory_clock_hz"]
    assert is_unavailable(state["memory_clock_locked"])


def test_another_machine_has_nothing_of_a_jetson(tmp_path: Path, tools: Path) -> None:
    assert os.listdir(tools) == []  # noqa: PTH208
    state = cuda_state.read_jetson(tmp_path / "root")
    assert [field for field, value in state.items() if not is_unavailable(value)] == []


@pytest.mark.parametrize(
    ("answer", "mode"),
    [
        ("NV Power Mode: MAXN\n0", "MAXN (0)"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2", "MODE_30W (2)"),
        ("NV Power Mode: MAXN SUPER\n 2\n", "MAXN SUPER (2)"),
        ("NVPM ERROR: no mode", "unavailable: nvpmodel -q says 'NVPM ERROR: no mode'"),
    ],
)
def test_the_power_mode_is_name_and_number(answer: str, mode: str) -> None:
    assert cuda_state.parse_power_mode(answer) == mode
