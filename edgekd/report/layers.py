"""Layer by layer: what was planned, what an engine ran, and what that does to MACs and bytes.

Weight bytes are computed from the plan, not read from a file: an ONNX graph keeps quantized weights
as floats in front of their QuantizeLinear, so its size says nothing about what a device stores.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from edgekd.artifact import Artifact
from edgekd.eligible import LayerPlan, share_of_macs
from edgekd.report.collection import Collection, anchor
from edgekd.report.words import NOT_MEASURED, count, listed, macs, percent, plural, size

# Bytes of one weight. 2:4 keeps two of four values, each with two bits that say which (NVIDIA's
# canonical form, `edgekd.sparse24`).
FLOAT32_BYTES, FLOAT16_BYTES, INT8_BYTES = 4.0, 2.0, 1.0
SPARSE_SHARE, SPARSE_METADATA_BYTES = 0.5, 0.125


@dataclass(frozen=True)
class LayerRow:
    """One layer: what was planned and what an engine ran (empty texts: nothing to show)."""

    plan: LayerPlan
    macs: str
    share: str
    share_width: float
    ran: str
    weight: str
    tensors: str
    ran_int8: bool | None


@dataclass(frozen=True)
class LayerTable:
    """The layers of one graph, beside the engines that ran exactly these rows."""

    title: str
    engines: tuple[tuple[str, str], ...]
    rows: tuple[LayerRow, ...]
    total_macs: str


def layer_tables(run: Collection) -> list[LayerTable]:
    """One table for each student's graph and each different way an engine ran it.

    The teacher's graph has one only where there is no other: it plans nothing. A Student stands in
    for a graph that was not exported.
    """
    exported = {run.arm(model) for model in run.models}
    holders = run.compressed or run.models
    holders = holders + [found for found in run.of("Student") if run.arm(found) not in exported]
    tables = []
    for holder in holders:
        ways: dict[str, list[Artifact]] = {}
        for engine in run.tables:
            if engine.manifest.parents.get("model") == holder.id:
                ways.setdefault(str(engine.read_json("layers.json")["ran"]), []).append(engine)
        for engines in ways.values() or [[]]:
            tables.append(_layer_table(run, holder, engines))
    return tables


def _layer_table(run: Collection, holder: Artifact, engines: list[Artifact]) -> LayerTable:
    plan = run.plan(holder)
    total = sum(row.macs for row in plan) or 1
    widest = max((row.macs for row in plan), default=1) or 1
    ran = engines[0].read_json("layers.json")["ran"] if engines else []
    by_layer = {row["layer"]: row for row in ran}
    together = Counter(row["engine_layer"] for row in ran)
    return LayerTable(
        title=run.name(holder),
        engines=tuple(
            (f"{e.results['runtime']} {e.config['version']} for {run.target(e)}", anchor(e.id))
            for e in engines
        ),
        rows=tuple(
            _layer_row(row, row.macs / total, row.macs / widest, by_layer.get(row.layer), together)
            for row in plan
        ),
        total_macs=macs(sum(row.macs for row in plan)),
    )


def _layer_row(
    row: LayerPlan, share: float, width: float, ran: dict[str, Any] | None, together: Counter[str]
) -> LayerRow:
    shared = together[ran["engine_layer"]] if ran else 0
    ran_as = "" if ran is None else ran["type"] or "in no engine layer"
    return LayerRow(
        plan=row,
        macs=macs(row.macs),
        share=percent(share),
        share_width=round(100 * width, 1),
        ran=f"{ran_as}, {shared} in one" if shared > 1 else ran_as,
        weight=ran["weight_dtype"] if ran else "",
        tensors=f"{ran['input_dtype']} to {ran['output_dtype']}" if ran else "",
        ran_int8=ran["int8"] if ran else None,
    )


@dataclass(frozen=True)
class Permuted:
    """What reordering a student's channels gained; each pair is without it and with it."""

    arm: str
    layers: str
    undone: str
    kept: tuple[str, str]
    accuracy: tuple[str, str]
    samples: str


def permutations(run: Collection) -> list[Permuted]:
    """A row for each student whose channels were permuted, as its results tell it."""
    found = []
    for student in run.of("Student"):
        told = student.results.get("permutation")
        if told is None:
            continue
        scored = [told["accuracy_before"], told["accuracy_after"]]
        before, after = (NOT_MEASURED if each is None else percent(each) for each in scored)
        found.append(
            Permuted(
                arm=run.name(student),
                layers=count(len(told["layers"])),
                undone=f"put back, for they changed the answers: {listed(told['undone'])}"
                if told["undone"]
                else "",
                kept=(percent(told["kept_before"], 2), percent(told["kept_after"], 2)),
                accuracy=(before, after),
                samples="" if None in scored else plural(student.results["samples"], "sample"),
            )
        )
    return found


@dataclass(frozen=True)
class Share:
    """How an arm's multiply-accumulates divide, in percent of all, and the same in words."""

    arm: str
    both: float
    int8: float
    sparse: float
    plain: float
    text_int8: str
    text_sparse: str


def shares(run: Collection) -> list[Share]:
    """Share of MACs planned in INT8 and in 2:4 for each graph, or student where none was made."""
    exported = {run.arm(model) for model in run.models}
    holders = run.models + [s for s in run.of("Student") if run.arm(s) not in exported]
    found = []
    for holder in holders:
        plan = run.plan(holder)
        total = sum(row.macs for row in plan) or 1

        def part(
            int8: bool, sparse: bool, plan: list[LayerPlan] = plan, total: int = total
        ) -> float:
            held = [(row, row.int8 and row.bits == 8) for row in plan]
            chosen = (row.macs for row, is_int8 in held if (is_int8, row.sparse) == (int8, sparse))
            return 100 * sum(chosen) / total

        found.append(
            Share(
                arm=run.name(holder),
                both=part(True, True),
                int8=part(True, False),
                sparse=part(False, True),
                plain=part(False, False),
                text_int8=percent(share_of_macs(plan, "int8"), 2),
                text_sparse=percent(share_of_macs(plan, "sparse"), 2),
            )
        )
    return found


@dataclass(frozen=True)
class SizeRow:
    """Sizes of one arm: files as they lie on disk, weights as computed (None: no such file)."""

    arm: str
    files: tuple[tuple[str, str], ...]
    weights: str
    weights_ratio: str
    width: float


def sizes(run: Collection) -> list[SizeRow]:
    """File sizes of each graph and its plans, beside the bytes its weights need."""
    rows = []
    for model in run.models:
        plan = run.plan(model)
        files = [(name, size(_file_bytes(model, name))) for name in ("trt.onnx", "ort.onnx")]
        for engine in run.of("Engine"):
            if engine.manifest.parents.get("model") == model.id and run.engine_layers(engine):
                name = f"model.plan, {engine.results['runtime']}"
                files.append((name, size(engine.manifest.files["model.plan"].bytes)))
        plain, weights = float32_bytes(plan), weight_bytes(plan)
        rows.append(
            SizeRow(
                arm=run.name(model),
                files=tuple(dict.fromkeys(files)),
                weights=size(weights),
                weights_ratio=f"{weights / plain:.0%}",
                width=round(100 * weights / plain, 2),
            )
        )
    return rows


def _file_bytes(model: Artifact, name: str) -> int:
    """Bytes of a graph, and of its weights where one file could not hold them."""
    held = model.manifest.files
    return sum(held[each].bytes for each in (name, f"{name}.data") if each in held)


def float32_bytes(plan: list[LayerPlan]) -> float:
    """Bytes the weights of a plan need as they were trained."""
    return FLOAT32_BYTES * sum(row.n * row.k for row in plan if not row.tied_to)


def weight_bytes(plan: list[LayerPlan]) -> float:
    """Bytes the weights of a plan need on a device: float16 where not INT8, half where 2:4."""
    total = 0.0
    for row in [each for each in plan if not each.tied_to]:
        each = INT8_BYTES if row.int8 else FLOAT16_BYTES
        if row.sparse:
            each = SPARSE_SHARE * each + SPARSE_METADATA_BYTES
        total += row.n * row.k * each
    return total
