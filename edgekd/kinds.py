"""The ten kinds of artifact: which files each holds, by name.

| Kind | Made by | Holds |
|---|---|---|
| Teacher | distill | how to build the network, its weights, its outputs on the samples |
| Student | distill | the same, with masks and scales, the layer plan and the loss curve |
| Samples | export | preprocessed inputs, labels, recorded outputs, ids |
| OnnxModel | export | the graph for TensorRT, the graph for ONNX Runtime, io, layers |
| ExportChoice | run | the ways of exporting that were tried, and which engine decided |
| Engine | build | what a runtime executes, and its layer table |
| Bundle | build | everything a device needs to build, measure and judge by itself |
| LatencyReport, AccuracyReport, Verdict | bench, evaluate, gate | what was measured |
"""

from __future__ import annotations

from edgekd.artifact import Kind

TEACHER = Kind(
    "Teacher", "teacher", 2, ("model.json", "model.safetensors", "samples.npz", "io.json")
)
STUDENT = Kind(
    "Student",
    "student",
    2,
    (
        "model.json",
        "model.safetensors",
        "quantizers.safetensors",
        "layers.json",
        "losses.jsonl",
        "samples.npz",
        "io.json",
    ),
)
SAMPLES = Kind("Samples", "samples", 2, ("samples.npz", "io.json"))
ONNX_MODEL = Kind(
    "OnnxModel", "onnx-model", 3, ("trt.onnx", "ort.onnx", "io.json", "layers.json", "outputs.npz")
)
EXTERNAL = "ort.onnx.data"  # beside ort.onnx: weights of a graph too large for one file
EXPORT_CHOICE = Kind("ExportChoice", "export-choice", 1, ("choice.json",))
ENGINE = Kind("Engine", "engine", 2, ("io.json", "layers.json"))
BUNDLE = Kind("Bundle", "bundle", 2, ("bundle.json", "target.json", "COMMANDS.md"))
ACCURACY_REPORT = Kind("AccuracyReport", "accuracy", 2, ("accuracy.json",))
LATENCY_REPORT = Kind("LatencyReport", "latency", 1, ("latency.json", "samples.npz", "state.json"))
VERDICT = Kind("Verdict", "verdict", 1, ("verdict.json",))
