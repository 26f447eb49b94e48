"""Time and peak memory of `edgekd export` beside a bare torch.onnx.export of the same network.

    python bench/export/run.py

Writes ``bench/results/export.json``. Two networks with random weights: one of ViT-B's size and one
of about 1.1 GB (ViT-L's). Each measurement is a fresh process that builds the network, loads its
weights from the same file and exports; the peak is that process's largest resident set (VmHWM), and
none starts another. Ours makes what ships: two graphs, proven, compared and hashed. The bare
one makes one float32 graph. Both use the TorchScript exporter; ours is the 2:4 INT8 student.

The aim: at most the bare export's peak plus 1.2 times the weights. (`edgekd plan` is to be measured
here too once it is there.)
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import results  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "vit-b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vit-l": {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16},
}
REPETITIONS = 2
ALLOWED = 1.2  # of the weights' bytes, above the bare export's peak


def config(size: str) -> dict[str, Any]:
    """A transformers configuration, 64 x 64 pixels: what is exported is weights, not tokens."""
    width = SIZES[size]["hidden_size"]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": 64,
        "patch_size": 16,
        "num_labels": 1000,
        "initializer_range": 0.05,
        "intermediate_size": 4 * width,
        **SIZES[size],
    }


def prepare(size: str, folder: Path) -> Path:
    """Make the Student that both export: random weights, calibrated, no training."""
    from edgekd import recipe
    from edgekd.distill.student import distill

    (folder / "config.json").write_text(json.dumps(config(size)))
    document = {
        "name": size,
        "teacher": {"model": "hf:config.json", "fit": {"steps": 0}},
        "data": {"source": "python:noise:load", "samples": 4},
        "quantization": {"calibration_samples": 4},
        "distill": {"steps": 0},
    }
    asked = recipe.parse(document, size)
    asked._base = folder
    return distill(asked, folder / "out").path


def ours(student: Path, out: Path) -> None:
    """The stage."""
    from edgekd import artifact
    from edgekd.export.model import export
    from edgekd.recipe import Export

    export(artifact.load(student), out, Export(exporter="torchscript"))


def bare(student: Path, out: Path) -> None:
    """torch.onnx.export alone, with what it needs."""
    import torch

    from edgekd import artifact, models
    from edgekd.weights import load_weights

    found = artifact.load(student)
    model = models.build(found.read_json("model.json"))
    load_weights(model, found.file("model.safetensors"))
    out.mkdir()
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, 64, 64),),
        str(out / "model.onnx"),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def child(which: str, student: Path, out: Path) -> None:
    """Measure one export in this process and print it."""
    started = time.perf_counter_ns()
    {"ours": ours, "bare": bare}[which](student, out)
    took = time.perf_counter_ns() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"took_ns": took, "peak_bytes": peak}))


def measure(size: str) -> dict[str, Any]:
    """Both exports of one network, in turn, each in fresh processes."""
    found: dict[str, list[dict[str, int]]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        made = subprocess.run(
            [sys.executable, __file__, "prepare", size, directory],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        student = Path(made.stdout.splitlines()[-1])
        weights = (student / "model.safetensors").stat().st_size
        for repetition in range(REPETITIONS):
            for which in found:
                out = student.parent if which == "ours" else folder / f"bare-{repetition}"
                command = [sys.executable, __file__, which, str(student), str(out)]
                run = subprocess.run(command, check=True, capture_output=True, text=True)
                found[which].append(json.loads(run.stdout.splitlines()[-1]))
                print(size, which, found[which][-1], flush=True)
                for old in [*student.parent.glob("onnx-model-*"), *folder.glob("bare-*")]:
                    subprocess.run(["rm", "-rf", str(old)], check=True)
    worst = {which: max(row["peak_bytes"] for row in rows) for which, rows in found.items()}
    return {
        "weights_bytes": weights,
        "runs": found,
        "peak_bytes": worst,
        "above_bare_in_weights": round((worst["ours"] - worst["bare"]) / weights, 3),
        "allowed_above_bare_in_weights": ALLOWED,
        "kept": worst["ours"] <= worst["bare"] + ALLOWED * weights,
    }


def main() -> None:
    """Measure both networks and keep the numbers."""
    networks = {size: measure(size) for size in SIZES}
    what = "export: time and peak resident memory, fresh processes, beside a bare torch.onnx.export"
    covers = ("edgekd.export", "edgekd.models", "edgekd.weights")
    results.write("export", "python bench/export/run.py", covers, {"what": what, **networks})
    for size, row in networks.items():
        print(
            f"{size}: bare {row['peak_bytes']['bare'] / 1e9:.2f} GB, ours "
            f"{row['peak_bytes']['ours'] / 1e9:.2f} GB, {row['above_bare_in_weights']:+.2f} of the "
            f"weights (allowed {ALLOWED})"
        )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] == "prepare":
        print(prepare(sys.argv[2], Path(sys.argv[3])))
    elif sys.argv[1:]:
        child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
