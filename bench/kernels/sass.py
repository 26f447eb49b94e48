"""Machine code as nvdisasm prints it: which instructions a kernel and its hot loop are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
_TARGET = re.compile(r"\.L_x_\d+")


@dataclass(frozen=True)
class Line:
    """An instruction, or a label where `operation` is empty."""

    operation: str
    rest: str


def kernels(listing: str) -> dict[str, list[Line]]:
    """The lines of each kernel in ``nvdisasm -c``'s output."""
    found: dict[str, list[Line]] = {}
    lines: list[Line] | None = None
    for text in listing.splitlines():
        if match := _FUNCTION.match(text):
            lines = found.setdefault(match[1], [])
        elif lines is None:
            continue
        elif match := _LABEL.match(text):
            lines.append(Line("", match[1]))
        elif match := _INSTRUCTION.match(text):
            lines.append(Line(match[1], match[2].strip()))
    return found


def hot_loop(lines: list[Line]) -> list[Line]:
    """The loop with the most MMAs, the shortest of them; empty where there is none."""
    places = {line.rest: at for at, line in enumerate(lines) if not line.operation}
    loops = []
    for at, line in enumerate(lines):
        target = _TARGET.search(line.rest) if line.operation.startswith("BRA") else None
        if target and places.get(target[0], at) < at:
            loops.append(lines[places[target[0]] : at + 1])
    return max(loops, key=lambda loop: (count(loop, "IMMA"), -len(loop)), default=[])


def count(lines: list[Line], operation: str) -> int:
    """How many instructions begin with `operation`, such as ``IMMA.SP``; all where it is empty."""
    return sum(line.operation.startswith(operation) for line in lines if line.operation)
