"""Networks of published size through the whole chain: what holds of each, on random weights.

    python bench/zoo/run.py              all of them, and write bench/results/zoo.json
    python bench/zoo/run.py vit-s        only these, and print what would be written

Each is planned, made 2:4 and INT8, trained two steps, exported, compared with ONNX Runtime, and
built by TensorRT-RTX for SM80 as evidence, in a process of its own, whose peak is its largest
resident set. Nothing here says anything of accuracy, or of speed on a GPU. What the product refuses
is a result too, in its own words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import results  # noqa: E402

TARGET = "a100-sxm4-80gb-trt11.4"
# Of the engine's package what builds the evidence: neither Bundles nor our own kernels.
COVERS = ("edgekd.distill", "edgekd.eligible", "edgekd.engine.build", "edgekd.engine.cache",
          "edgekd.engine.layers", "edgekd.engine.sparsity", "edgekd.engine.trt", "edgekd.export",
          "edgekd.models", "edgekd.plan", "edgekd.structure")  # fmt: skip


def _config(kind: str, architecture: str, **values: Any) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [architecture], "num_labels": 1000, **values}


_RESNET = _config("resnet", "ResNetForImageClassification")
# The defaults of these classes are the published sizes; ViT's are the base size. The weights are
# drawn wide enough for the answers to differ from sample to sample.
MODELS: dict[str, dict[str, Any]] = {
    "vit-s": _config(
        "vit", "ViTForImageClassification", hidden_size=384, num_attention_heads=6,
        intermediate_size=1536, initializer_range=0.03,
    ),
    "bert-base": _config("bert", "BertForSequenceClassification", initializer_range=0.04),
    "swin-t": _config("swin", "SwinForImageClassification", initializer_range=0.05),
    "resnet-50": _RESNET,
    "resnet-50-int8": _RESNET,
    "convnext-t": _config(
        "convnext", "ConvNextForImageClassification", initializer_range=0.05,
        layer_scale_init_value=0.1,
    ),
}  # fmt: skip


def document(name: str) -> dict[str, Any]:
    """The recipe of a model, as plain values."""
    normed = name.startswith("resnet")
    return {
        "name": name,
        "arms": ["sparse"],
        "teacher": {"model": "hf:config.json", "fit": {"steps": 0}},
        "data": {
            "source": f"python:noise:{'tokens' if name.startswith('bert') else 'images'}",
            "samples": 8,
        },
        "quantization": {"calibration_samples": 8, "convolutions": name.endswith("-int8")},
        "distill": {
            "steps": 2,
            "batch_size": 4,
            "learning_rate": 1e-5,
            "batchnorm_warmup": 2 if normed else 0,
            "losses": {"blocks": 0.0},
        },
        "export": {"batch_opt": 1, "batch_max": 8},
    }


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Run the chain on one model in this process; a refusal is told as the product tells it."""
    from edgekd import artifact, kinds, recipe, target
    from edgekd.distill.student import distill
    from edgekd.engine.build import build
    from edgekd.errors import EdgekdError
    from edgekd.export.model import export
    from edgekd.plan import plan

    (folder / "config.json").write_text(json.dumps(MODELS[name]), encoding="utf-8")
    (folder / "recipe.toml").write_text(_toml(document(name)), encoding="utf-8")
    asked, device, out = recipe.load(folder / "recipe.toml"), target.load(TARGET), folder / "out"
    found: dict[str, Any] = {"model": name, "seconds": {}}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        found["seconds"][stage] = round(time.perf_counter() - clock, 1)
        clock = time.perf_counter()

    try:
        planned = plan(asked, device)
        lap("plan")
        student = distill(asked, out)
        lap("distill")
        model = export(student, out, asked.export)
        lap("export")
        rows = model.read_json("layers.json")
        found |= _layers(planned, student, rows) | _graphs(model)
        engine = artifact.parent(build(model, device, out), "evidence", kinds.ENGINE)
        lap("build")
        found |= _evidence(engine)
    except EdgekdError as error:
        found["refused"] = str(error).replace(str(folder), "<out>")
    found["peak_rss_bytes"] = results.peak_bytes()
    return found


def _layers(planned: Any, student: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is planned, and that the plan before the training was the same."""
    facts = ("layer", "n", "k", "int8", "sparse")
    before = [r for r in planned.rows if r.type != "attention"]
    linear = [row for row in rows if row["type"] == "Linear"]
    return {
        "parameters": student.results["parameters"],
        "layers": len(rows),
        "layers_int8": sum(row["int8"] for row in rows),
        "layers_sparse": sum(row["sparse"] for row in rows),
        "macs": sum(row["macs"] for row in rows),
        "macs_share_int8": _share(rows, "int8"),
        "macs_share_sparse": _share(rows, "sparse"),
        "linear_macs_share_int8": _share(linear, "int8"),
        "linear_macs_share_sparse": _share(linear, "sparse"),
        "plan_equals_export": [[getattr(r, f) for f in facts] for r in before]
        == [[row[f] for f in facts] for row in rows],
        "predicted_us_batch_1": {
            arm: round(ns / 1e3, 1) for arm, ns in (planned.total_ns or {}).items()
        },
    }


def _share(rows: list[dict[str, Any]], what: str) -> float:
    total = sum(row["macs"] for row in rows)
    return round(sum(row["macs"] for row in rows if row[what]) / total, 4) if total else 0.0


def _graphs(model: Any) -> dict[str, Any]:
    """Parity as export measured it, and what the files weigh."""
    parity = model.results["parity"]
    names = ("relative", "noise", "float16_relative", "float16_noise", "layers_relative",
             "float16_layers_relative", "integers_largest_step", "output_variation", "vacuous",
             "argmax_differs")  # fmt: skip
    return {
        "parity": {name: parity.get(name) for name in names},
        "attention_blocks": model.results["attention_blocks"],
        "bytes": {file: model.file(file).stat().st_size for file in ("ort.onnx", "trt.onnx")},
    }


def _evidence(engine: Any) -> dict[str, Any]:
    """What TensorRT-RTX's table for SM80 shows."""
    names = ("planned_int8", "int8", "fused_attention")
    found = {name: engine.results[name] for name in names}
    plan_bytes = engine.file("model.plan").stat().st_size
    return {"evidence": {**found, "version": engine.config["version"], "plan_bytes": plan_bytes}}


def _toml(values: dict[str, Any], prefix: str = "") -> str:
    """Plain values as TOML: keys first, then sections."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for key, section in values.items():
        if isinstance(section, dict):
            lines += [f"[{prefix}{key}]", _toml(section, f"{prefix}{key}.")]
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Every model in a process of its own."""
    rows = []
    # A Bundle is made beside the evidence; no index is asked for its wheels.
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    for name in names or MODELS:
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, __file__, "--one", name, directory]
            answer = Path(directory) / "row.json"
            subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
            rows.append(json.loads(answer.read_text(encoding="utf-8")))
        print(json.dumps(rows[-1]), flush=True)
    if not names:
        what = "what holds of networks of published size with random weights; nothing of accuracy"
        results.write("zoo", "make zoo", COVERS, {"what": what, "target": TARGET, "rows": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        place = Path(sys.argv[3])
        (place / "row.json").write_text(json.dumps(measure(sys.argv[2], place)), encoding="utf-8")
    else:
        main(sys.argv[1:])
