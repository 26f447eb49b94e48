"""What is claimed of a run, and how far each claim is shown: the heart of the page.

Four states, and no fifth. *Proven*: checked on the very file that ships. *Evidence*: seen on
something that stands in for it (another runtime, a sample that cannot exclude the opposite), or in
part. *Not measured*: nobody looked, with the reason. *Failed*: looked at and found otherwise, which
need not be a defect: 2:4 may be no faster. A claim may hold on one file and be unmeasured on
another, so it is made of findings, one for each state and text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgekd.report import engines, findings, measured
from edgekd.report.collection import Collection
from edgekd.report.findings import Finding, State


@dataclass(frozen=True)
class Claim:
    """A sentence that would be worth knowing, what it means, and what was found.

    Attributes:
        name: The claim as a heading.
        phrase: The same inside a sentence that says so.
        question: The same inside a sentence that leaves it open.
        meaning: What exactly is claimed, for a reader who does not know the field's words.
        findings: At least one.
    """

    name: str
    phrase: str
    question: str
    meaning: str
    findings: tuple[Finding, ...]

    @property
    def states(self) -> set[State]:
        """States of its findings."""
        return {finding.state for finding in self.findings}

    @property
    def broken(self) -> bool:
        """Whether it failed where that is no legal answer."""
        return any(finding.state == "failed" and not finding.aside for finding in self.findings)


def claims(run: Collection) -> list[Claim]:
    """Every claim edgekd makes, whether or not anything was found about it."""
    return [
        _claim(
            "The 2:4 mask is exact",
            "the 2:4 mask is exact in the weights that ship",
            "In every planned layer, each group of four weights along k holds at least two zeros, "
            "in both graphs; where the layer is INT8, in its integers.",
            findings.masks(run),
        ),
        _claim(
            "Both graphs carry equal integers",
            "both graphs carry equal integers",
            "The graph for TensorRT and the one for ONNX Runtime hold the same quantized weights "
            "and scales, with zero points 0, so what is proven of one holds for the other.",
            findings.integers(run),
        ),
        _claim(
            "ONNX Runtime computes the student",
            "ONNX Runtime computes the student",
            "The graph gives what the trained network gives. Sums of floats are taken in another "
            "order, so an activation on a rounding boundary may fall one step to the other side, "
            "which depth carries on: each layer is compared on its own, then the whole.",
            findings.parity(run),
        ),
        _claim(
            "Every planned layer runs in INT8",
            "every planned layer runs in INT8",
            "The engine's own layer table shows a gemm or convolution with an Int8 weight and an "
            "Int8 input. Outputs alone cannot show it: a widened weight gives the same numbers.",
            engines.int8(run),
        ),
        _claim(
            "Attention is fused",
            "attention is fused",
            "One kernel for each attention block, and neither a softmax nor a batched gemm left.",
            engines.attention(run),
        ),
        _claim(
            "Accuracy is kept",
            "accuracy is kept",
            "Top-1 of the graph that ships, minus the teacher's on the same samples, in percentage "
            "points, with its 95% interval.",
            findings.accuracy(run),
        ),
        _claim(
            "Sparse kernels are chosen",
            "sparse kernels are chosen",
            "TensorRT times sparse and dense kernels and takes the faster; weights that are 2:4 "
            "make a layer eligible, no more.",
            engines.sparse_kernels(run),
        ),
        _claim(
            "Latency",
            "latency",
            "Time for one batch on the device, in the state its target requires.",
            measured.latency(run),
        ),
    ]


def _claim(name: str, phrase: str, meaning: str, found: Iterable[Finding]) -> Claim:
    """A claim whose findings of equal state and text are told once, for all they are about."""
    merged: dict[tuple[State, str], Finding] = {}
    for finding in found:
        key = (finding.state, finding.text)
        earlier = merged.get(key)
        merged[key] = replace(earlier, on=earlier.on + finding.on) if earlier else finding
    question = f"whether {phrase}" if " " in phrase else phrase
    return Claim(name, phrase, question, meaning, tuple(merged.values()))
