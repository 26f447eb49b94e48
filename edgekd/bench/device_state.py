"""What the machine was while it was measured, and whether that makes a latency evidence.

A latency without its clocks, power mode and temperature cannot be repeated: published Orin numbers
of one network differ by a factor of five. So the state is read before and after every repetition,
and the target says which fields of it are *required*. A required field that is wrong or cannot be
read makes the run invalid, and there is no option to overrule that. Any other field that cannot be
read is recorded as unavailable.

Some fields are decided over the whole run, not at one reading: steal time is counted in ticks of
10 ms, of which a short repetition has few; a temperature may rise slowly; a CPU may be another one
after a migration. So `check` is asked after each repetition with all of them so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.bench import cpu_state, cuda_state
from edgekd.bench.cpu_state import State, is_unavailable, unavailable
from edgekd.errors import ConfigError, MeasurementError, names_that_exist
from edgekd.target import Target

UNCONTROLLED = "uncontrolled machine: ratios only"
CONTROLLED = "controlled: every required field of the state was read and held"

# Chosen, not found in a specification: what a median still shrugs off.
STEAL_SHARE = 0.05
STEAL_TICKS = 5  # below this the counter's resolution decides, not the machine
CLOCK_CHANGE = 0.01
TEMPERATURE_CHANGE_CELSIUS = 10.0

_ADVICE = {
    "steal_share": "other virtual machines took the processor: measure when the host is quieter",
    "cpu_model": "measure an Engine on the machine it was built on, all repetitions on that one",
    "threads": "let the process use as many CPUs as the Engine has threads (taskset, container)",
    "power_mode": "set one with nvpmodel -m and leave it",
    "gpu_clock_hz": "lock it: jetson_clocks on a Jetson, else nvidia-smi -lgc",
    "memory_clock_hz": "lock it: jetson_clocks, and root to read it, or nvidia-smi -lmc",
    "temperature_celsius": "let it settle under load first, or cool it better",
    "throttling": "cool it, or supply more power, or choose a lower power mode",
}


def read(target: Target, root: Path = Path("/")) -> State:
    """Read the machine's state as far as a target's measurement needs it.

    Args:
        target: Decides whether a GPU is looked at, and how.
        root: Where ``proc`` and ``sys`` are.
    """
    state = cpu_state.read(root)
    if target.runtime == "onnxruntime":
        return state
    integrated = target.compute_capability == [8, 7]  # Orin: no nvidia-smi
    return state | (cuda_state.read_jetson(root) if integrated else cuda_state.read_smi())


def during(before: State, after: State) -> State:
    """What held while a repetition ran, from the readings around it.

    Args:
        before: Read before the first query.
        after: Read after the last one, while clocks are still those of the load.

    Returns:
        The later reading; ``ticks`` and ``steal_ticks`` of the time between, ``load_1min`` before
        our own load, ``throttling`` with whatever happened in between, and every field that names
        the machine, where it changed, as ``<before> then <after>``.
    """
    state = dict(after)
    state["load_1min"] = before["load_1min"]
    ticks = (before["cpu_ticks"], after["cpu_ticks"])
    if any(is_unavailable(each) for each in ticks):
        state["ticks"] = state["steal_ticks"] = next(each for each in ticks if is_unavailable(each))
    else:
        state["ticks"], state["steal_ticks"] = (
            late - early for early, late in zip(*ticks, strict=True)
        )
    del state["cpu_ticks"]
    if "throttling" in after:
        state["throttling"] = _throttling(before, after)
    for field in ("cpu_model", "threads", "cpus", "power_mode", "boot_id"):
        if field in after and before[field] != after[field]:
            state[field] = f"{before[field]} then {after[field]}"
    return state


def check(
    required: Sequence[str], states: Sequence[State], expected: Mapping[str, Any] | None = None
) -> None:
    """Refuse a run whose required state is wrong or unreadable.

    Args:
        required: Fields, as a target's `required_state` lists them.
        states: What `during` returned for each repetition so far.
        expected: ``cpu_model`` the Engine was built on and ``threads`` it uses, where known.

    Raises:
        ConfigError: There is no field of that name.
        MeasurementError: A field is wrong or could not be read.
    """
    unknown = [field for field in required if field not in _ADVICE]
    if unknown:
        raise ConfigError(
            f"required_state names {unknown[0]!r}, which is no field of a machine's state. "
            f"{names_that_exist(unknown[0], _ADVICE)}"
        )
    for field in required:
        problem = _problem(field, states, (expected or {}).get(field))
        if problem:
            found, wanted = problem
            raise MeasurementError(
                f"required state {field} in repetition {len(states)}: found {found}, expected "
                f"{wanted}; so these latencies are no evidence: {_ADVICE[field]}"
            )


def steal_share(states: Sequence[State]) -> float | str:
    """Share of all processor time that the hypervisor gave to others."""
    missing = [state["steal_ticks"] for state in states if is_unavailable(state["steal_ticks"])]
    if missing:
        return str(missing[0])
    ticks = sum(int(state["ticks"]) for state in states)
    return sum(int(state["steal_ticks"]) for state in states) / max(ticks, 1)


def control(required: Sequence[str], states: Sequence[State]) -> str:
    """Whether absolute latencies may be quoted, after `check` has passed.

    Args:
        required: The target's `required_state`.
        states: Of every repetition.
    """
    if "gpu_clock_hz" in required:
        return CONTROLLED
    locked = all(state["cpu_clock_locked"] is True for state in states)
    return CONTROLLED if locked and steal_share(states) == 0 else UNCONTROLLED


def _problem(field: str, states: Sequence[State], expected: Any) -> tuple[Any, str] | None:
    """(found, what was expected) where a required field is wrong."""
    if field == "steal_share":
        return _steal_problem(states)
    found: Any = states[-1].get(field, unavailable("not read"))
    first: Any = states[0].get(field)
    if is_unavailable(found):
        return found, "a reading"
    if field in ("cpu_model", "power_mode") and found != (expected or first):
        return found, str(expected or first)
    if field == "threads" and found != first:
        return found, f"{first} CPUs, as at first"
    if field == "threads" and expected and found < expected:
        return f"{found} CPUs", f"at least {expected}"
    if field == "throttling" and found:
        return ", ".join(found), "none"
    if field.endswith("clock_hz"):
        if states[-1].get(f"{field.removesuffix('_hz')}_locked") is False:
            return f"{found} Hz, free to change", "a locked clock"
        if abs(found - first) > CLOCK_CHANGE * first:
            return f"{found} Hz", f"{first} Hz as at first, within {CLOCK_CHANGE:.0%}"
    if field == "temperature_celsius":
        spread = max(s[field] for s in states) - min(s[field] for s in states)
        if spread > TEMPERATURE_CHANGE_CELSIUS:
            return f"{spread:g} degrees of change", f"at most {TEMPERATURE_CHANGE_CELSIUS:g}"
    return None


def _steal_problem(states: Sequence[State]) -> tuple[Any, str] | None:
    share = steal_share(states)
    if isinstance(share, str):
        return share, "a reading"
    stolen = sum(int(state["steal_ticks"]) for state in states)
    if share > STEAL_SHARE and stolen > STEAL_TICKS:
        return f"{share:.1%} of the processor's time", f"at most {STEAL_SHARE:.0%}"
    return None


def _throttling(before: State, after: State) -> list[str] | str:
    """Reasons and alerts at either reading, and over-current events between them."""
    for reading in (before, after):
        for field in ("throttling", "over_current"):
            if is_unavailable(reading.get(field)):
                return str(reading[field])
    reasons = {*before["throttling"], *after["throttling"]}
    events = after.get("over_current", {})
    reasons |= {
        f"{name}: {count - before['over_current'].get(name, 0)} over-current events"
        for name, count in events.items()
        if count != before["over_current"].get(name, 0)
    }
    return sorted(reasons)
