"""Every method of compression on the handwritten digits: what each one costs and where it ends.

    python bench/methods/run.py            all rows, and write bench/results/methods.json, .md
    python bench/methods/run.py gpusq      only groups so named, and print what comes out

A row is a recipe with a few keys changed, trained from each of several seeds, each with a teacher
of its own. It says the student's accuracy on 360 images it never saw, its mean KL from the teacher
(nats) and the share of images on which both name the same class. Rows of one group differ in one
thing and have the same number of steps; the first is what the others are held to, seed by seed.

This task is too easy to separate methods: one image is 0.28 percentage points, and every student
that trains comes near its teacher. What the table shows is that each method runs, and which of them
moves the KL in every seed; it ranks nothing that a larger task would.

A row that fails, a key that no recipe has, and a method whose student is the first row's to the
byte end the run: none of them may stand in the table as a method that makes no difference.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import results  # noqa: E402
import table as page  # noqa: E402

COVERS = ("edgekd.distill",)
WHAT = (
    "handwritten digits of 8 x 8 pixels, 360 of them to evaluate: too easy to separate methods; "
    "shows that each one runs and which way it moves the KL"
)
SEEDS = (0, 1, 2)
STEPS = 60
PROCESSES = 2
Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A method: what it changes in its group's recipe.

    Attributes:
        name: What a person calls it.
        changes: Sections and keys, nested as in a recipe.
        arm: ``sparse`` or ``dense``.
        may_equal: Why its student may be the first row's to the byte; empty where it may not.
    """

    name: str
    changes: Changes = field(default_factory=dict)
    arm: str = "sparse"
    may_equal: str = ""


BASE: dict[str, Any] = {
    "name": "methods",
    "threads": 1,
    "teacher": {
        "model": "hf:config.json",
        "fit": {"steps": 300, "learning_rate": 2e-3, "warmup": 0.2},
    },
    "data": {"source": "python:edgekd.recipes.digits:load", "samples": 360},
    "quantization": {"calibration_samples": 256},
    "distill": {"steps": STEPS, "learning_rate": 1e-3},
}
NETWORK = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
           "num_attention_heads": 2}  # fmt: skip
# GPUSQ's weights as they are told (alpha, beta, gamma of its section 3).
GPUSQ = {"labels": 1.0, "logits": 10.0, "blocks": 5.0}
CHOSEN = "it may choose what the first row chooses"


def _distill(**keys: Any) -> dict[str, Any]:
    return {"distill": keys}


def _gpusq(teaches: bool = True, **losses: Any) -> dict[str, Any]:
    sparse = {"steps": STEPS, "learning_rate": 1e-3, "teaches": teaches}
    return _distill(losses={**GPUSQ, **losses}, sparse=sparse)


def _sparsity(**keys: Any) -> dict[str, Any]:
    return {"sparsity": keys}


def _one_shot(row: Row) -> Row:
    return Row(row.name, merged(row.changes, _distill(steps=0)), row.arm, row.may_equal)


def _ternary(name: str, **intervention: Any) -> Row:
    changes: dict[str, Any] = {"quantization": {"weights": "ternary"}}
    if intervention:
        changes |= _distill(intervention=intervention)
    return Row(name, changes, "dense")


def _calibration(name: str, **keys: Any) -> Row:
    equal = "" if "smooth" in keys else CHOSEN
    return Row(name, {"quantization": keys, **_distill(steps=0)}, "dense", equal)


def merged(base: Changes, changes: Changes) -> dict[str, Any]:
    """Nested mappings, the second's values over the first's."""
    found = dict(base)
    for key, value in changes.items():
        below = found.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        found[key] = merged(below, value) if both else value
    return found


SPARSITIES = [
    Row("magnitude"),
    Row("SparseGPT", _sparsity(method="sparsegpt")),
    Row("magnitude, channels permuted", _sparsity(permute=True)),
    Row("SparseGPT, channels permuted", _sparsity(method="sparsegpt", permute=True)),
    Row("magnitude, V:2:4 with V = 4", _sparsity(pattern_rows=4)),
    Row("no 2:4", arm="dense"),
]
GROUPS: dict[str, list[Row]] = {
    "sparsity": SPARSITIES,
    "sparsity without training": [_one_shot(row) for row in SPARSITIES],
    "scales": [
        Row("follow the weights"),
        Row("learned (LSQ)", {"quantization": {"scales": "learned"}}),
    ],
    "calibration without training": [
        _calibration("max", calibration="max"),
        *(
            _calibration(name, calibration=name)
            for name in ("percentile", "mse", "entropy", "best")
        ),
        _calibration("max, smoothed by 0.5", smooth=0.5),
    ],
    "gpusq": [
        Row("one stage, all steps", _distill(losses=GPUSQ, steps=2 * STEPS)),
        Row("two stages, blocks equal", _gpusq()),
        Row("two stages, blocks inverse", _gpusq(block_weights="inverse")),
        Row("two stages, blocks proportional", _gpusq(block_weights="proportional")),
        Row("two stages, last half where they agree", _gpusq(critical=0.5, agreement=True)),
        Row("two stages, the dense teacher goes on", _gpusq(teaches=False)),
        Row("two stages, without labels", _gpusq(labels_from="teacher")),
    ],
    "intervention, ternary weights": [
        _ternary("none"),
        *(
            _ternary(f"{mode}, {withdraw}", mode=mode, withdraw=withdraw)
            for mode, withdraw in (
                ("output", "linear"),
                ("output", "two-step"),
                ("context", "two-step"),
                ("map", "two-step"),
                ("gradual", "two-step"),
                ("inverted", "two-step"),
                ("stochastic", "two-step"),
            )
        ),
    ],
    "width of the weights": [
        Row("INT8", arm="dense"),
        Row("INT4", {"quantization": {"weights": "int4"}}, "dense"),
        Row("ternary", {"quantization": {"weights": "ternary"}}, "dense"),
        Row("4 bits on average, by gradient norm", {"quantization": {"mean_bits": 4.0}}, "dense"),
        Row(
            "INT4, quantized distillation",
            {
                "quantization": {"weights": "int4"},
                **_distill(losses={"logits": 0.7, "labels": 0.3, "blocks": 0.0}),
            },
            "dense",
        ),
    ],
}


def document(row: Row, seed: int) -> dict[str, Any]:
    """The recipe of a row, as plain values."""
    return merged(BASE, {**row.changes, "seed": seed})


def one_seed(groups: Sequence[str], seed: int, folder: str) -> list[dict[str, Any]]:
    """Train every row from one seed; raises what the product raises."""
    return [
        {"group": group, "row": row.name, **trained(row, seed, Path(folder))}
        for group in groups
        for row in GROUPS[group]
    ]


def trained(row: Row, seed: int, folder: Path) -> dict[str, Any]:
    """Train one row and say where it ended."""
    from edgekd import recipe
    from edgekd.distill.student import distill

    asked = recipe.parse(document(row, seed), row.name)
    asked._base = folder
    student = distill(asked, folder / f"out-{seed}", row.arm)
    files = student.manifest.files
    return {
        "seed": seed,
        **compared(student.file("samples.npz")),
        "accuracy": student.results["accuracy"],
        "teacher_accuracy": student.results["teacher_accuracy"],
        "seconds": student.manifest.provenance["seconds"],
        "sha256": [files[f"{name}.safetensors"].sha256 for name in ("model", "quantizers")],
    }


def compared(samples: Path) -> dict[str, float]:
    """Mean KL from teacher to student in nats, and the share of samples with one class."""
    import numpy as np

    with np.load(samples, allow_pickle=False) as arrays:
        logits = [arrays[f"{who}.logits"].astype(np.float64) for who in ("teacher", "student")]
    logs = [each - np.logaddexp.reduce(each, axis=1, keepdims=True) for each in logits]
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean()
    agree = (logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).mean()
    return {"kl": float(kl), "agreement": float(agree)}


def table(groups: Sequence[str], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a method, its seeds side by side.

    Raises:
        SystemExit: A method's student is the first row's to the byte.
    """
    rows = []
    for group in groups:
        first: list[Mapping[str, Any]] = []
        for row in GROUPS[group]:
            runs = [run for run in found if (run["group"], run["row"]) == (group, row.name)]
            runs.sort(key=lambda run: int(run["seed"]))
            first = first or runs
            equal = [a["sha256"] == b["sha256"] for a, b in zip(runs, first, strict=True)]
            if runs is not first and any(equal) and not row.may_equal:
                raise SystemExit(
                    f"{group}: {row.name}: its student is the one of {GROUPS[group][0].name!r} to "
                    f"the byte in {sum(equal)} of {len(equal)} seeds: nothing reads its keys"
                )
            rows.append(_told(group, row, runs, first))
    return rows


def _told(
    group: str, row: Row, runs: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    ratios = [_ratio(a["kl"], b["kl"]) for a, b in zip(runs, first, strict=True)]
    told: dict[str, Any] = {"group": group, "row": row.name, "arm": row.arm}
    told["changes"] = dict(row.changes)
    for name in ("accuracy", "kl", "agreement"):
        values = [float(run[name]) for run in runs]
        told[name] = {
            "mean": round(statistics.fmean(values), 6),
            "spread": round(statistics.stdev(values), 6) if len(values) > 1 else None,
            "seeds": [round(value, 6) for value in values],
        }
    told["teacher_accuracy"] = [run["teacher_accuracy"] for run in runs]
    told["kl_over_first_row"] = [round(ratio, 4) for ratio in ratios]
    same_side = all(ratio < 1 for ratio in ratios) or all(ratio > 1 for ratio in ratios)
    told["kl_moves_one_way_in_every_seed"] = same_side
    told["seconds"] = round(statistics.median(float(run["seconds"]) for run in runs), 2)
    return told


def _ratio(one: float, other: float) -> float:
    return 1.0 if one == other else one / other if other else math.inf


def check(groups: Sequence[str]) -> None:
    """Parse every recipe before the first is trained: a key that there is not ends it here."""
    from edgekd import recipe

    for group in groups:
        for row in GROUPS[group]:
            recipe.parse(document(row, 0), f"{group}: {row.name}")


def main() -> None:
    """Train all rows, a seed a process, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"of: {'; '.join(GROUPS)}")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    given = parser.parse_args()
    groups = list(given.groups or GROUPS)
    if unknown := [name for name in groups if name not in GROUPS]:
        parser.error(f"no group {unknown[0]!r}; there are: {'; '.join(GROUPS)}")
    check(groups)
    import edgekd

    shipped = Path(edgekd.__file__).parent / "recipes" / "digits-vit" / "config.json"
    config = json.loads(shipped.read_text(encoding="utf-8")) | NETWORK
    started = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(PROCESSES, spawn) as pool:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        asked = [pool.submit(one_seed, groups, seed, folder) for seed in range(given.seeds)]
        found = [run for each in asked for run in each.result()]
    rows = table(groups, found)
    for row in rows:
        print(
            f"{row['group']:30} {row['row']:40} accuracy {row['accuracy']['mean']:.4f} KL "
            f"{row['kl']['mean']:.5f} (spread {row['kl']['spread'] or 0:.5f}) agreement "
            f"{row['agreement']['mean']:.4f} {row['seconds']:.1f} s"
        )
    if not given.groups:
        minutes = round((time.perf_counter() - started) / 60, 1)
        content = {
            "what": WHAT,
            "rerun_minutes": minutes,
            "seeds": list(range(given.seeds)),
            "steps": STEPS,
            "network": NETWORK,
            "rows": rows,
        }
        path = results.write("methods", "python bench/methods/run.py", COVERS, content)
        print(path, page.write(path))


if __name__ == "__main__":
    main()
