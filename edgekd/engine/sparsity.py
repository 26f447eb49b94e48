"""What TensorRT's log says of 2:4: which layers could take a sparse kernel, and which did.

Eligible is not chosen: the builder times a sparse and a dense kernel for each eligible layer and
keeps the faster, so "0 of 12 chosen" is a measurement, not a fault. It says so in its log alone, in
one of two forms: older versions list names ("Layers eligible for sparse math: ...", "TRT inference
plan picked sparse implementation for layers: ..."), newer ones count ("Found N layer(s) eligible",
"Chose M layer(s)"). Both are written from public logs; neither was seen where this was written,
because TensorRT-RTX chooses its kernels on the device and logs nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

_NAMED = {
    "eligible": re.compile(r"\(Sparsity\) Layers eligible for sparse math:(.*)"),
    "chosen": re.compile(r"\(Sparsity\) TRT inference plan picked sparse .*? for layers:(.*)"),
}
_COUNTED = {
    "eligible": re.compile(r"\(Sparsity\) Found (\d+) .*?eligible"),
    "chosen": re.compile(r"\(Sparsity\) Chose (\d+) "),
}


@dataclass(frozen=True)
class Sparsity:
    """Layers that could take a sparse kernel and that did; None where the log does not say.

    `layers` are the chosen ones by TensorRT's names, empty where it only counts them.
    """

    eligible: int | None
    chosen: int | None
    layers: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values, for an Engine's results."""
        return asdict(self)


def parse(log: Iterable[str]) -> Sparsity:
    """Read a build log; where a line comes more than once, the largest count is the build's."""
    found: dict[str, list[int]] = {"eligible": [], "chosen": []}
    layers: tuple[str, ...] = ()
    for line in log:
        for what in found:
            if match := _COUNTED[what].search(line):
                found[what].append(int(match[1]))
            elif match := _NAMED[what].search(line):
                names = tuple(name.strip() for name in match[1].split(",") if name.strip())
                found[what].append(len(names))
                layers = names if what == "chosen" and len(names) >= len(layers) else layers
    largest = {what: max(counts, default=None) for what, counts in found.items()}
    return Sparsity(largest["eligible"], largest["chosen"], layers)
