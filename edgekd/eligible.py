"""Which layers are planned for 2:4 and for INT8, and why the others are not: the one place.

Every Linear and Conv2d is planned for both unless a rule below names it; a reader of the report
sees the rule's sentence beside the layer. The rules are facts of the hardware and the libraries
(2:4 needs groups of four along k; NVIDIA's sparse kernels and Model Optimizer's masks want n % 8 ==
0 and k % 16 == 0 per group) or the field's standard practice (the output layer stays in float;
convolutional networks run in fp16 with 2:4 until INT8 is measured to be faster, see
``quantization.convolutions``).

Layers that share one weight are decided together: one mask and one set of integers serve them all,
so what one of them cannot be, none is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from edgekd.artifact import Artifact
from edgekd.errors import ConfigError, ContractError, UnsupportedError, names_that_exist
from edgekd.recipe import Quantization, Sparsity

# What a recipe calls a width of weights.
BITS = {"int8": 8, "int4": 4, "ternary": 2}
# TensorRT, "Work with quantized types": INT4 is for weights alone, dequantized for a product in
# half precision; of fewer bits there is no type.
NO_TARGET = (
    "no target multiplies weights of fewer than 8 bits with INT8 activations; `edgekd distill` "
    "trains such a student and measures it in torch, which is where it ends"
)

# Of a layer whose pruned weights a student goes on with, see `edgekd.distill.start`.
DENSE_ARM = "2:4 is off in this arm"
RELEASED = "released to dense (sparsity.release)"


@dataclass(frozen=True)
class Facts:
    """What a rule may look at.

    Attributes:
        layer: Module name, for example ``vit.layers.0.mlp.fc1``.
        type: ``Linear`` or ``Conv2d``.
        n: Output features.
        k: Length of one dot product: input features, or channels per group times kernel area.
        k_group: Run of k that groups of four lie in: k of a Linear, channels per group of a Conv2d
            (TensorRT's 2:4 for convolutions is along the input channels of each kernel position).
        groups: Groups of a Conv2d, 1 for a Linear.
        macs: Multiply-accumulates for one example over all its runs, counted on a real input.
        is_output: Whether it is the last layer on a way to an output of the network.
        runs: How often it runs in a forward pass.
        tied_to: The layer whose weight it uses, the first of them to run; empty where that is it.
        shared: What else reads its weight and is no Linear or Conv2d; empty where nothing does.
        output_of: Names of the outputs it is the last layer of; empty where there is one output.
    """

    layer: str
    type: str
    n: int
    k: int
    k_group: int
    groups: int
    macs: int
    is_output: bool
    runs: int = 1
    tied_to: str = ""
    shared: str = ""
    output_of: str = ""

    @property
    def head(self) -> str:
        """What it is called where it is an output layer."""
        return f"output layer of {self.output_of}" if self.output_of else "output layer"


@dataclass(frozen=True)
class LayerPlan:
    """One row of ``layers.json``: a layer, and whether 2:4 and INT8 are planned or why not.

    `int8` says that it is quantized; its inputs always are to INT8, its weights to `bits`.
    `node` names the ONNX node, or nodes joined by " + " where the layer runs several times. A row
    that is `tied_to` another counts in operations, and not again in weights.
    """

    layer: str
    type: str
    n: int
    k: int
    macs: int
    int8: bool
    int8_reason: str
    sparse: bool
    sparse_reason: str
    node: str = ""
    runs: int = 1
    tied_to: str = ""
    bits: int = 8

    def as_json(self) -> dict[str, Any]:
        """Plain values, as stored in ``layers.json``."""
        return asdict(self)


def plan(
    layers: Sequence[Facts], sparsity: Sparsity | None, quantization: Quantization | None
) -> list[LayerPlan]:
    """Decide for every layer.

    Args:
        layers: Every Linear and Conv2d of the network, in forward order.
        sparsity: The recipe's section, None where 2:4 is off.
        quantization: The recipe's section, None where INT8 is off.

    Raises:
        ConfigError: A pattern matches no layer (the names that exist are printed).
        ContractError: A layer named in full in ``sparsity.include`` cannot be 2:4.
    """
    names = [facts.layer for facts in layers]
    for where, section in (("sparsity", sparsity), ("quantization", quantization)):
        if section is not None:
            _check_patterns(f"{where}.include", section.include, names)
            _check_patterns(f"{where}.exclude", section.exclude, names)
    if sparsity is not None:
        _check_patterns("sparsity.release", sparsity.release, names)
    rows = []
    int8_reasons = _together(layers, [_int8_reason(facts, quantization) for facts in layers])
    sparse_reasons = _together(layers, [_sparse_reason(facts, sparsity) for facts in layers])
    for facts, int8, sparse in zip(layers, int8_reasons, sparse_reasons, strict=True):
        if sparsity is not None and facts.layer in sparsity.include and sparse:
            raise ContractError(
                f"sparsity.include names {facts.layer} (n={facts.n}, k={facts.k}), which cannot be "
                f"2:4: {sparse}; remove it from sparsity.include, or change the layer's size"
            )
        rows.append(
            LayerPlan(
                layer=facts.layer,
                type=facts.type,
                n=facts.n,
                k=facts.k,
                macs=facts.macs,
                int8=not int8,
                int8_reason=int8,
                sparse=not sparse,
                sparse_reason=sparse,
                runs=facts.runs,
                tied_to=facts.tied_to,
                bits=BITS[quantization.weights] if quantization and not int8 else 8,
            )
        )
    return rows


def below_int8(rows: Sequence[LayerPlan]) -> str:
    """Why a network with weights of fewer than 8 bits goes no further than torch; empty if none."""
    found = [row for row in rows if row.int8 and row.bits < 8]
    if not found:
        return ""
    widths = " and ".join(str(bits) for bits in sorted({row.bits for row in found}))
    names = ", ".join(row.layer for row in found[:3]) + (", ..." if found[3:] else "")
    return f"weights of {len(found)} layers have {widths} bits ({names}): {NO_TARGET}"


def refuse_below_int8(student: Artifact) -> None:
    """Refuse to export a Student that no target runs.

    Raises:
        UnsupportedError: Names the layers and their widths.
    """
    if "layers.json" in student.manifest.files:
        reason = below_int8([LayerPlan(**row) for row in student.read_json("layers.json")])
        if reason:
            raise UnsupportedError(f"{student.path}: {reason}")


def asks_below_int8(section: Quantization) -> str:
    """The same for a recipe; empty where all it asks for is INT8."""
    if section.mean_bits is not None and section.mean_bits < 8:
        return f"quantization.mean_bits = {section.mean_bits:g}: {NO_TARGET}"
    if section.mean_bits is None and section.weights != "int8":
        return f'quantization.weights = "{section.weights}": {NO_TARGET}'
    return ""


def share_of_macs(rows: Sequence[LayerPlan], what: str) -> float:
    """Share of multiply-accumulates, 0 to 1, planned for ``int8`` or ``sparse``.

    Weights of fewer than 8 bits are not INT8. The denominator is every Linear and Conv2d;
    attention's own products are not weights.
    """
    total = sum(row.macs for row in rows)
    planned = [row for row in rows if getattr(row, what) and (what != "int8" or row.bits == 8)]
    return sum(row.macs for row in planned) / total if total else 0.0


def _together(layers: Sequence[Facts], reasons: Sequence[str]) -> list[str]:
    """Reasons of layers that share one weight: where one of them has one, all have it."""
    first: dict[str, str] = {}
    for facts, reason in zip(layers, reasons, strict=True):
        if reason:
            owner = facts.tied_to or facts.layer
            first.setdefault(owner, f"shares its weight with {facts.layer}: {reason}")
    return [
        reason or first.get(facts.tied_to or facts.layer, "")
        for facts, reason in zip(layers, reasons, strict=True)
    ]


def _int8_reason(facts: Facts, section: Quantization | None) -> str:
    """Why a layer stays in float; empty when it is planned for INT8."""
    if section is None:
        return "INT8 is off in this arm"
    if facts.is_output:
        return f"{facts.head}: stays in float, its few operations decide the answer"
    if facts.groups > 1 and facts.k_group == 1:
        return "depthwise convolution: INT8 kernels pad each channel to four"
    if facts.k_group < 16:
        return f"k per group is {facts.k_group}, INT8 tensor-core kernels want at least 16"
    if facts.shared:
        return f"its weight is also read by {facts.shared}: stays in float"
    if facts.type == "Conv2d" and not section.convolutions:
        return "convolution: stays in float16, INT8 is opt-in (quantization.convolutions = true)"
    return _excluded(facts.layer, section.include, section.exclude, "quantization")


def _sparse_reason(facts: Facts, section: Sparsity | None) -> str:
    """Why a layer stays dense; empty when it is planned for 2:4."""
    if section is None:
        return DENSE_ARM
    if facts.k_group % 4:
        return f"k per group is {facts.k_group}, not a multiple of 4: 2:4 is not defined on it"
    if facts.k_group % 16:
        return f"k per group is {facts.k_group}, sparse kernels want a multiple of 16"
    if facts.n % 8:
        return f"n is {facts.n}, sparse kernels want a multiple of 8"
    if facts.is_output:
        return f"{facts.head}: stays dense"
    if facts.shared:
        return f"its weight is also read by {facts.shared}: stays dense"
    excluded = _excluded(facts.layer, section.include, section.exclude, "sparsity")
    released = any(fnmatchcase(facts.layer, pattern) for pattern in section.release)
    return excluded or (RELEASED if released else "")


def _excluded(layer: str, include: list[str], exclude: list[str], where: str) -> str:
    if not any(fnmatchcase(layer, pattern) for pattern in include):
        return f"not in {where}.include"
    if any(fnmatchcase(layer, pattern) for pattern in exclude):
        return f"in {where}.exclude"
    return ""


def _check_patterns(where: str, patterns: list[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{where}: {pattern!r} matches no Linear or Conv2d. "
                f"{names_that_exist(pattern, names)}"
            )
