"""The table of methods as a person reads it, made of the result and of nothing else.

    python bench/methods/table.py      write bench/results/methods.md anew from methods.json

`run.py` writes both; a test holds the one to the other.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[1] / "results" / "methods.json"
HEAD = """\
| method | weights | right, % | KL, thousandths of a nat | agrees, % | KL over the first row's |
|---|---|---|---|---|---|
"""


def markdown(content: Mapping[str, Any]) -> str:
    """What ``methods.json`` says, a table a group; means, with the spread of the seeds behind ±."""
    seeds = len(content["seeds"])
    text = (
        f"# Methods on digits: {content['what']}\n\n"
        f"Made by `{content['command']}` on {content['date']}: {content['steps']} steps a stage, "
        f"{seeds} seeds, each with a teacher of its own; ± is one standard deviation over the "
        "seeds. Rows of a table differ from its first in what they name. The last column is one "
        "ratio a seed; it is in bold where all lie on the same side of 1, which is all that "
        f"{seeds} seeds can show. KL and agreement are with the teacher.\n"
    )
    for group, rows in itertools.groupby(content["rows"], lambda row: str(row["group"])):
        name = "GPUSQ" if group == "gpusq" else group.capitalize()
        text += f"\n## {name}\n\n{HEAD}" + "".join(map(_line, rows))
    return text


def _line(row: Mapping[str, Any]) -> str:
    ratios = ", ".join(f"{ratio:.2f}" for ratio in row["kl_over_first_row"])
    cells = [
        row["row"],
        "2:4" if row["arm"] == "sparse" else "dense",
        _cell(row["accuracy"], 100, ".1f"),
        _cell(row["kl"], 1000, ".3g"),
        _cell(row["agreement"], 100, ".1f"),
        f"**{ratios}**" if row["kl_moves_one_way_in_every_seed"] else ratios,
    ]
    return f"| {' | '.join(cells)} |\n"


def _cell(found: Mapping[str, Any], times: int, form: str) -> str:
    spread = found["spread"]
    behind = "" if spread is None else f" ± {times * spread:{form}}"
    return f"{times * found['mean']:{form}}{behind}"


def write(result: Path = RESULT) -> Path:
    """Write the table beside a result; its path."""
    path = result.with_suffix(".md")
    path.write_text(markdown(json.loads(result.read_text(encoding="utf-8"))), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write())
