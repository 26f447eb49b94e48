from __future__ import annotations

from typing import Any

import pytest

from edgekd import target
from edgekd.bench import device_state
from edgekd.bench.cpu_state import State
from edgekd.errors import ConfigError, MeasurementError

CPU = ["steal_share", "cpu_model", "threads"]
JETSON = ["power_mode", "gpu_clock_hz", "memory_clock_hz", "temperature_celsius", "throttling"]


def reading(**changes: Any) -> State:
    """A Jetson's reading that holds; it has every field there is."""
    return {
        "cpu_model": "aarch64",
        "cpus": [0, 1],
        "threads": 2,
        "cpu_ticks": [10_000, 100],
        "load_1min": 0.5,
        "cpu_clock_locked": True,
        "boot_id": "b",
        "power_mode": "MAXN (0)",
        "gpu_clock_hz": 1_300_500_000,
        "gpu_clock_locked": True,
        "memory_clock_hz": 3_199_000_000,
        "memory_clock_locked": True,
        "temperature_celsius": 50.0,
        "over_current": {"oc1": 0, "oc3": 17},
        "throttling": [],
        **changes,
    }


def held(**changes: Any) -> State:
    return {**device_state.during(reading(), reading()), "ticks": 1000, "steal_ticks": 0, **changes}


def test_every_field_a_shipped_target_requires_is_one_that_is_read() -> None:
    for name in target.names():
        found = target.load(name)
        assert found.required_state
        state = device_state.read(found)
        assert set(found.required_state) - {"steal_share"} <= set(state), name
        # Known to `check`, too: with a state in which all holds, nothing is refused.
        device_state.check(found.required_state, [held()])


def test_this_machine_holds_what_the_cpu_target_requires() -> None:
    cpu = target.load("cpu")
    before, after = device_state.read(cpu), device_state.read(cpu)
    state = device_state.during(before, after)
    device_state.check(cpu.required_state, [state], {"threads": 1})
    assert 0 <= state["steal_ticks"] <= state["ticks"]
    assert "gpu_clock_hz" not in state


def test_ticks_and_events_are_those_in_between() -> None:
    before = reading(load_1min=0.1)
    after = reading(cpu_ticks=[10_400, 103], over_current={"oc1": 0, "oc3": 19}, load_1min=0.9)
    state = device_state.during(before, after)
    assert (state["ticks"], state["steal_ticks"]) == (400, 3)
    assert state["throttling"] == ["oc3: 2 over-current events"]
    assert state["load_1min"] == 0.1  # before our own load


def test_throttling_at_either_reading_counts() -> None:
    state = device_state.during(reading(throttling=["sw_power_cap"]), reading())
    assert state["throttling"] == ["sw_power_cap"]


def test_what_cannot_be_read_once_is_unavailable() -> None:
    missing = "unavailable: no hwmon"
    assert device_state.during(reading(over_current=missing), reading())["throttling"] == missing
    state = device_state.during(reading(cpu_ticks=missing), reading())
    assert state["steal_ticks"] == state["ticks"] == missing
    with pytest.raises(MeasurementError, match=r"steal_share.*no hwmon, expected a reading"):
        device_state.check(["steal_share"], [state])


def test_a_machine_that_changed_meanwhile_is_told() -> None:
    state = device_state.during(reading(power_mode="MAXN (0)"), reading(power_mode="15W (1)"))
    assert state["power_mode"] == "MAXN (0) then 15W (1)"
    with pytest.raises(MeasurementError, match=r"power_mode.*MAXN \(0\) then 15W \(1\), expected"):
        device_state.check(["power_mode"], [held(), state])


@pytest.mark.parametrize(
    ("field", "changes", "words"),
    [
        ("cpu_model", {"cpu_model": "Other"}, "found Other, expected aarch64.*was built on"),
        ("threads", {"threads": 1}, "found 1, expected 2 CPUs, as at first.*taskset"),
        (
            "power_mode",
            {"power_mode": "15W (1)"},
            r"found 15W \(1\), expected MAXN \(0\).*nvpmodel",
        ),
        (
            "gpu_clock_hz",
            {"gpu_clock_locked": False},
            "Hz, free to change, expected a locked clock.*jetson_clocks.*nvidia-smi -lgc",
        ),
        (
            "gpu_clock_hz",
            {"gpu_clock_hz": 1_200_000_000},
            "found 1200000000 Hz, expected 1300500000 Hz as at first, within 1%",
        ),
        ("memory_clock_hz", {"memory_clock_hz": 2_133_000_000}, "found 2133000000 Hz"),
        (
            "temperature_celsius",
            {"temperature_celsius": 61.0},
            "found 11 degrees of change, expected at most 10;.*let it settle",
        ),
        (
            "throttling",
            {"throttling": ["oc3: 2 over-current events"]},
            "found oc3: 2 over-cur.*none",
        ),
        ("steal_share", {"steal_ticks": 400}, "found 20.0% of the processor's time, .* most 5%"),
        ("gpu_clock_hz", {"gpu_clock_hz": "unavailable: why"}, "unavailable: why, expected a read"),
    ],
)
def test_a_required_field_that_is_wrong_makes_the_run_invalid(
    field: str, changes: dict[str, Any], words: str
) -> None:
    states = [held(), held(**changes)]
    with pytest.raises(
        MeasurementError, match=f"required state {field} in repetition 2: .*{words}"
    ):
        device_state.check([field], states)
    others = [each for each in CPU + JETSON if each != field]
    device_state.check(others, states)


def test_the_engines_own_cpu_and_threads_are_expected() -> None:
    with pytest.raises(MeasurementError, match="found aarch64, expected Xeon"):
        device_state.check(CPU, [held()], {"cpu_model": "Xeon"})
    with pytest.raises(MeasurementError, match="found 2 CPUs, expected at least 16"):
        device_state.check(CPU, [held()], {"threads": 16})
    device_state.check(CPU, [held()], {"cpu_model": "aarch64", "threads": 1})


def test_steal_is_judged_over_the_whole_run() -> None:
    # 4 ticks of 20 are below what the counter resolves; 60 of 1000 are not.
    device_state.check(CPU, [held(ticks=20, steal_ticks=4)])
    states = [held(ticks=1000, steal_ticks=60), *[held(ticks=1000) for _ in range(3)]]
    device_state.check(CPU, states)
    assert device_state.steal_share(states) == pytest.approx(60 / 4000)
    with pytest.raises(MeasurementError, match=r"6\.0%"):
        device_state.check(CPU, states[:1])


def test_a_field_nobody_reads_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r'"throttling"\? There are: cpu_model, gpu_clock_hz'):
        device_state.check(["throtling"], [held()])


def test_only_a_locked_machine_may_quote_absolute_latencies() -> None:
    assert device_state.control(CPU, [held()]) == device_state.CONTROLLED
    assert device_state.control(CPU, [held(), held(steal_ticks=1)]) == device_state.UNCONTROLLED
    free = held(cpu_clock_locked="unavailable: no cpufreq here")
    assert device_state.control(CPU, [free]) == "uncontrolled machine: ratios only"
    assert device_state.control(JETSON, [free]) == device_state.CONTROLLED
