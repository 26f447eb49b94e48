"""What to type on the device: ``COMMANDS.md`` of a Bundle.

The commands are one shell script, and a test runs them as they are. An engine's name depends on the
device that builds it, and after an update two lie in one directory: so each is held in a shell
variable, and no pattern that could match both is in the commands.

An engine is judged by the budgets of the recipe where it sets any. Where it sets none there is
nothing to judge by until a baseline was accepted, and the text says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from edgekd.recipe import Arm, Recipe
from edgekd.target import Target, load, names

_EDGEKD = "edgekd-venv/bin/edgekd"


@dataclass(frozen=True)
class Script:
    """Commands for one shell, in the folder that holds the Bundle.

    Attributes:
        commands: From nothing to engines, reports and, with budgets, a verdict.
        judges: Whether the last of them judges by budgets.
        accept: Makes the engine the baseline.
        compare: Holds an engine to the baseline, and to the budgets.
    """

    commands: list[str]
    judges: bool
    accept: str
    compare: str

    def as_json(self) -> dict[str, list[str]]:
        """What ``bundle.json`` keeps of it."""
        return {"commands": self.commands, "baseline_commands": [self.accept, self.compare]}


def write(
    bundle: str,
    target: Target,
    arms: Mapping[str, Mapping[str, str]],
    main: str,
    recipe: Recipe | None,
) -> Script:
    """Write the commands of a Bundle.

    Args:
        bundle: Name of its directory.
        target: The device.
        arms: Arm -> ``directory`` of its model and its ``samples``, both within the Bundle.
        main: The arm that is judged.
        recipe: What lies in the Bundle as ``recipe.json``; None where nothing does.
    """
    order = [name for name in get_args(Arm) if name in arms]  # ratios are to the first
    samples = {name: f"{bundle}/{arm['samples']}" for name, arm in arms.items()}
    shipped = target.name in names() and load(target.name) == target
    named = target.name if shipped else f"{bundle}/target.json"
    lines = _install(bundle, target)
    for name in order:
        place, engine = f"{bundle}/{arms[name]['directory']}", _engine(name)
        lines += [
            f"{_variable(name)}=$({_EDGEKD} build {place} --target {named} --out out/{name})",
            f"{_EDGEKD} evaluate {engine} --samples {samples[name]} --out out/{name}",
        ]
    engines = " ".join(_engine(name) for name in order)
    lines.append(f"{_EDGEKD} bench {engines} --samples {samples[order[0]]} --out out/bench")
    gate = f"{_EDGEKD} gate {_engine(main)} --samples {samples[main]} --out out/gate"
    budgets = f" --recipe {bundle}/recipe.json" if recipe else ""
    judges = _has_budgets(recipe)
    return Script(
        commands=[*lines, *([gate + budgets] if judges else [])],
        judges=judges,
        accept=f"{gate} --baseline baseline --accept",
        compare=f"{gate} --baseline baseline{budgets}",
    )


def _install(bundle: str, target: Target) -> list[str]:
    system = " --system-site-packages" if target.system_packages else ""
    runtime = " onnxruntime" if target.runtime == "onnxruntime" else ""
    return [
        f"python{target.python} -m venv{system} edgekd-venv",
        f"edgekd-venv/bin/pip install --no-index --find-links {bundle}/wheels edgekd{runtime}",
        f"{_EDGEKD} inspect {bundle}",
    ]


def _variable(arm: str) -> str:
    return f"{arm.upper()}_ENGINE"


def _engine(arm: str) -> str:
    return f'"${_variable(arm)}"'


def _has_budgets(recipe: Recipe | None) -> bool:
    """Whether `edgekd gate` has something to check without a baseline."""
    if recipe is None:
        return False
    budgets = recipe.gate
    given = (budgets.accuracy_drop_points, budgets.latency_ms, budgets.size_bytes)
    return given != (None, None, None)


def text(script: Script, target: Target, main: str, missing_wheels: Sequence[str]) -> str:
    """``COMMANDS.md``: the commands, and what a person must know before typing them.

    Args:
        script: From `write`.
        target: The device.
        main: The arm that is judged.
        missing_wheels: Requirements of which the Bundle holds no wheel.
    """
    lines = [
        f"# On {target.name}",
        "",
        "Nothing here needs a network. Copy this directory to the device whole, and type the",
        "commands in one shell, in the folder that holds it: what they make lies beside the",
        "Bundle, which stays as it is.",
        "",
        *_needs(target, missing_wheels),
        *_block(script.commands),
        "`out/<arm>` then holds one Engine and one AccuracyReport for each arm, `out/bench` the",
        "LatencyReport in which they were measured side by side.",
        "",
    ]
    if target.required_state:
        lines += [
            f"A latency of this device is evidence only where {', '.join(target.required_state)}",
            "can be read and are as they must be. Where not, `bench` and `gate` exit with 3 and",
            "say what to type.",
            "",
        ]
    return "\n".join([*lines, *_judging(script, main)])


def _needs(target: Target, missing_wheels: Sequence[str]) -> list[str]:
    """What the device must have before the first command."""
    python = f"python{target.python}"
    lines = [
        f"On Ubuntu and JetPack `{python} -m venv` needs `sudo apt install {python}-venv` first.",
        "",
    ]
    for package in target.system_packages:
        version = f" {target.runtime_version}" if package == target.runtime else ""
        lines += [
            f"The device's system must bring the Python package `{package}`{version}; check with",
            f'`{python} -c "import {package}; print({package}.__version__)"`.',
            "",
        ]
    if missing_wheels:
        lines += [
            f"Not in `wheels/`, as no index had them: {', '.join(missing_wheels)}.",
            f"Download them for Python {target.python} into a folder of their own and add",
            "`--find-links FOLDER` to the second command.",
            "",
        ]
    return lines


def _judging(script: Script, main: str) -> list[str]:
    """What `edgekd gate` answers, and the two commands that need a baseline."""
    budgets = f"The last command holds the {main} engine to the budgets of `recipe.json`."
    if not script.judges:
        budgets = "The Bundle has no budget to judge an engine by: a baseline is what is left."
    return [
        "## The verdict",
        "",
        budgets,
        "`edgekd gate` prints the Verdict's directory, and on stderr each check in a sentence. It",
        "exits with 0 where every check passes, with 1 where one regresses, with 4 where the",
        "numbers leave one open (its sentence says what would decide it), and with 3 where nothing",
        "could be measured.",
        "",
        "Once, make the engine the baseline: a copy of it, with what was measured. There is",
        "nothing to compare it with yet, so this exits with 0.",
        "",
        *_block([script.accept]),
        "Later, after the commands of another Bundle in this folder, hold its engine to the",
        "baseline, which is run again beside it. Typed at once it compares the engine with itself:",
        "0, or 4 where the machine or the samples cannot show so little a difference.",
        "",
        *_block([script.compare]),
    ]


def _block(commands: Sequence[str]) -> list[str]:
    return ["```sh", *commands, "```", ""]
