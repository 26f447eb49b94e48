"""Time and peak memory of `edgekd plan` and `edgekd export`, peers in the same run.

    python bench/export/run.py

Writes ``bench/results/export.json``. Two networks with random weights: one of ViT-B's size and one
of about 1.1 GB (ViT-L's). Each measurement is a fresh process, and none starts another; the peak is
that process's largest resident set, imports included. The ways take turns, and a number is the
median of the turns, beside the least and the most.

*Export's peer* is a bare torch.onnx.export of the same weights from the same file. Ours makes what
ships, the 2:4 INT8 student: two graphs, proven, compared and hashed. The bare one makes one float32
graph, unchecked. Both use the TorchScript exporter, at 64 x 64 pixels: what is exported is weights,
not tokens. The aim: at most the bare export's peak plus 1.2 times the weights.

*Plan's peer* is a floor: nothing else says before training what will run sparse and fused, so it is
the imports and the network on torch's meta device, where it has shapes and no weights. A plan holds
the weights once and runs the network at the published 224 x 224 pixels, to count what it moves and
to time it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import results  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "vit-b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vit-l": {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16},
}
REPETITIONS = 3
PIXELS, PLANNED_PIXELS = 64, 224
TARGET = "jetson-agx-orin-64gb-jp6.2"
ALLOWED = 1.2  # of the weights' bytes, above the bare export's peak


def config(size: str, pixels: int) -> dict[str, Any]:
    """A transformers configuration."""
    width = SIZES[size]["hidden_size"]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": pixels,
        "patch_size": 16,
        "num_labels": 1000,
        "initializer_range": 0.05,
        "intermediate_size": 4 * width,
        **SIZES[size],
    }


def asked(size: str, pixels: int, folder: Path) -> Any:
    """The recipe: random weights, noise, and no step of training."""
    from edgekd import recipe

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(size, pixels)), encoding="utf-8")
    document = {
        "name": size,
        "teacher": {"model": "hf:config.json", "fit": {"steps": 0}},
        "data": {"source": "random", "samples": 4},
        "quantization": {"calibration_samples": 4},
        "distill": {"steps": 0},
    }
    found = recipe.parse(document, size)
    found._base = folder
    return found


def prepare(size: str, folder: Path) -> Path:
    """Make the Student that both export: random weights, calibrated, no training."""
    from edgekd.distill.student import distill

    return distill(asked(size, PIXELS, folder), folder / "out").path


def export_ours(_size: str, student: Path, out: Path) -> None:
    """The stage; its artifacts lie beside the student."""
    from edgekd import artifact
    from edgekd.export.model import export
    from edgekd.recipe import Export

    export(artifact.load(student), out, Export(exporter="torchscript"))


def export_bare(_size: str, student: Path, out: Path) -> None:
    """torch.onnx.export alone, with what it needs."""
    import torch

    from edgekd import artifact, models
    from edgekd.weights import load_weights

    found = artifact.load(student)
    model = models.build(found.read_json("model.json"))
    load_weights(model, found.file("model.safetensors"))
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, PIXELS, PIXELS),),
        str(out / "model.onnx"),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def plan_ours(size: str, _student: Path, out: Path) -> None:
    """What `edgekd plan` runs."""
    from edgekd import target
    from edgekd.plan import plan

    plan(asked(size, PLANNED_PIXELS, out), target.load(TARGET))


def plan_floor(size: str, _student: Path, out: Path) -> None:
    """The network's shapes, and what has to be imported for them."""
    import torch

    from edgekd import models

    wanted = asked(size, PLANNED_PIXELS, out)
    with torch.device("meta"):
        models.build(models.describe(wanted.teacher.model, wanted.base))


WAYS: dict[str, Callable[[str, Path, Path], None]] = {
    "plan floor": plan_floor,
    "plan ours": plan_ours,
    "export bare": export_bare,
    "export ours": export_ours,
}


def child(way: str, size: str, student: Path, out: Path) -> None:
    """Measure one way in this process and print it."""
    started = time.perf_counter_ns()
    WAYS[way](size, student, out)
    took = time.perf_counter_ns() - started
    print(json.dumps({"took_ns": took, "peak_bytes": results.peak_bytes()}))


def call(*arguments: object) -> str:
    """The last line that this program prints in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return run.stdout.splitlines()[-1]


def measure(size: str) -> dict[str, Any]:
    """Every way of one network, in turn."""
    found: dict[str, list[dict[str, int]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        student = Path(call("prepare", size, folder))
        weights = (student / "model.safetensors").stat().st_size
        for _ in range(REPETITIONS):
            for way, rows in found.items():
                out = folder / "way"
                out.mkdir()
                rows.append(json.loads(call("way", way, size, student, out)))
                print(size, way, rows[-1], flush=True)
                shutil.rmtree(out)
    return {"weights_bytes": weights, "runs": found, **summary(found, weights)}


def summary(found: dict[str, list[dict[str, int]]], weights_bytes: int) -> dict[str, Any]:
    """Median, least and most of every way, ours against its peer, and whether the aim is kept.

    Args:
        found: Way -> its turns.
        weights_bytes: Of the network, in float32.
    """
    numbers = {
        way: {what: spread([row[what] for row in rows]) for what in ("took_ns", "peak_bytes")}
        for way, rows in found.items()
    }
    above = {
        stage: (numbers[f"{stage} ours"]["peak_bytes"]["most"] - peer["peak_bytes"]["least"])
        / weights_bytes
        for stage, peer in (("plan", numbers["plan floor"]), ("export", numbers["export bare"]))
    }
    return {
        **numbers,
        "above_peer_in_weights": {stage: round(value, 3) for stage, value in above.items()},
        "export_allowed_above_peer_in_weights": ALLOWED,
        "kept": above["export"] <= ALLOWED,
    }


def spread(values: list[int]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def tell(size: str, row: dict[str, Any]) -> None:
    """A line for each way, and the aim."""
    for way in WAYS:
        took, peak = row[way]["took_ns"], row[way]["peak_bytes"]
        print(
            f"{size} {way}: {took['median'] / 1e9:.1f} s ({took['least'] / 1e9:.1f} to "
            f"{took['most'] / 1e9:.1f}), peak {peak['median'] / 1e9:.2f} GB "
            f"({peak['least'] / 1e9:.2f} to {peak['most'] / 1e9:.2f})"
        )
    print(
        f"{size} export: {row['above_peer_in_weights']['export']:+.2f} of the weights above the "
        f"bare one's peak, at most {ALLOWED} allowed: {'kept' if row['kept'] else 'not kept'}"
    )


def main() -> None:
    """Measure both networks and keep the numbers."""
    started = time.monotonic()
    networks = {size: measure(size) for size in SIZES}
    content = {
        "what": "plan and export: time and peak resident memory, fresh processes, beside their "
        "peers (the network on the meta device; a bare torch.onnx.export)",
        "rerun_minutes": round((time.monotonic() - started) / 60),
        **networks,
    }
    results.write("export", "python bench/export/run.py", ("edgekd.export", "edgekd.plan"), content)
    for size, row in networks.items():
        tell(size, row)


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        print(prepare(sys.argv[2], Path(sys.argv[3])))
    elif sys.argv[1:2] == ["way"]:
        child(sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
