"""A plan as text: what `edgekd plan` prints for a person."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgekd.plan import PREDICTION, Plan, Row

_NUMBER = re.compile(r"(?<![^. ])\d+(?![^. ])")  # a whole part of a module's name
_SPARSE = "2:4 INT8"
_HEAD = ("layer", "m", "n", "k", "INT8", "2:4", "fp16", "INT8", _SPARSE, "bound")


def planned(plan: Plan) -> str:
    """Lines for a person: the rows, those that repeat as one, then what it comes to."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in plan.rows:
        groups.setdefault(_alike(row), []).append(row)
    head = [_sparse(plan) if name == _SPARSE else name for name in _HEAD]
    table = [head, *(_cells(rows) for rows in groups.values())]
    widths = [max(len(line[i]) for line in table) for i in range(len(_HEAD))]
    lines = [
        f"{plan.recipe} for {plan.target}, {plan.batch} examples a query; times are predictions",
        f"({PREDICTION})",
        "",
    ]
    lines += [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    return "\n".join([*lines, "", *_reasons(plan), *_summary(plan)])


def _sparse(plan: Plan) -> str:
    """What the sparse arm is: by default convolutions are 2:4 and stay in fp16."""
    return _SPARSE if any(row.int8 for row in plan.rows) else "2:4 fp16"


def _alike(row: Row) -> tuple[object, ...]:
    return (
        _NUMBER.sub("*", row.layer),
        row.m,
        row.n,
        row.k,
        row.macs,
        row.int8_reason,
        row.sparse_reason,
    )


def _cells(rows: Sequence[Row]) -> list[str]:
    row = rows[0]
    many = len(rows) > 1
    name = f"{len(rows)} x {_NUMBER.sub('*', row.layer)}" if many else row.layer
    sizes = ["", "", ""] if row.type == "attention" else [str(row.m), str(row.n), str(row.k)]
    times = (
        ["", "", ""] if row.ns is None else [_us(value * len(rows)) for value in row.ns.values()]
    )
    yes = {True: "yes", False: "no"}
    fused = row.type == "attention"
    marks = ["fused", ""] if fused else [yes[row.int8], yes[row.sparse]]
    return [name, *sizes, *marks, *times, row.bound]


def _us(ns: float) -> str:
    return f"{ns / 1e3:.2f} us"


def _reasons(plan: Plan) -> list[str]:
    """Why layers stay in float or dense, each reason once with how many it holds for."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in plan.rows:
        if row.type == "attention":
            if "not fused" in row.int8_reason:
                found.setdefault(("in half precision", row.int8_reason), []).append(row)
            continue
        for what, reason in (("in float", row.int8_reason), ("dense", row.sparse_reason)):
            if reason:
                found.setdefault((what, reason), []).append(row)
    return [f"{_count(rows)} {what}: {reason}" for (what, reason), rows in found.items()] + (
        [""] if found else []
    )


def _count(rows: Sequence[Row]) -> str:
    return f"{rows[0].layer} stays" if len(rows) == 1 else f"{len(rows)} layers stay"


def _summary(plan: Plan) -> list[str]:
    lines = [
        f"attention: {plan.attention_blocks} blocks, each expected as one fused kernel"
        if plan.attention_blocks
        else "attention: none found",
        f"share of the layers' multiply-accumulates: {plan.macs_share_int8:.1%} in INT8, "
        f"{plan.macs_share_sparse:.1%} in 2:4",
    ]
    if plan.total_ns is None:
        lines.append("times: not predicted, the target has no peak rates or bandwidth")
    else:
        half, dense, sparse = (plan.total_ns[arm] for arm in ("fp16", "dense", "sparse"))
        lines.append(
            f"predicted in all: fp16 {_us(half)}, INT8 {_us(dense)} ({dense / half:.2f}x), "
            f"{_sparse(plan)} {_us(sparse)} ({sparse / half:.2f}x)"
        )
        idle = [row for row in plan.rows if row.pays is False]
        if idle:
            lines.append(
                f"2:4 cannot pay in {len(idle)} of {sum(row.sparse for row in plan.rows)} layers "
                f"planned for it (first {idle[0].layer}): the bytes of their activations decide"
            )
    seconds = plan.training_seconds
    words = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
    lines.append(f"training: about {words} on this machine (an estimate, within a factor of two)")
    return lines
