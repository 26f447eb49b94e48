"""Artifacts of a small run, made as the stages make them but with numbers chosen by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Kind, Question, Work, file_hash

A100 = {
    "name": "a100",
    "device": "NVIDIA A100-SXM4-80GB",
    "runtime": "tensorrt",
    "runtime_version": "10.13",
    "compute_capability": [8, 0],
    "python": "3.12",
}
ORIN = {**A100, "name": "orin", "device": "Orin", "compute_capability": [8, 7], "python": "3.10"}
CPU = {"name": "cpu", "device": "cpu", "runtime": "onnxruntime", "python": "3.10"}
IO = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 16], "range": [-1.0, 1.0]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3], "range": None}],
    "labels": ["0", "1", "2"],
    "preprocess": {
        "kind": "image",
        "channels": "grey",
        "resize": [8, 8],
        "rescale": 0.0625,
        "mean": [0.5],
        "std": [0.5],
    },
}
PARITY = {
    "samples": 200,
    "output_variation": 1.5,
    "vacuous": False,
    "relative": 2e-5,
    "largest_difference": 0.01,
    "argmax_differs": 0.0,
    "noise": 3e-4,
    "float16_relative": 0.004,
    "float16_noise": 0.005,
    "integers_compared": 1000,
    "integers_differ": 0.002,
    "integers_largest_step": 1,
}


def rows(arm: str, layer: str = "net.fc1") -> list[dict[str, Any]]:
    """A layer plan: 75% of the MACs in `layer`, which is planned, and 25% in the output layer."""
    sparse, int8 = arm == "sparse", arm != "fp16"
    shape = {"type": "Linear", "node": f"{layer}/MatMul"}
    planned = {"int8": int8, "int8_reason": "" if int8 else "INT8 is off in this arm"}
    planned |= {"sparse": sparse, "sparse_reason": "" if sparse else "2:4 is off in this arm"}
    reasons = {"int8_reason": "output layer: stays in float", "sparse_reason": "n is 3"}
    output = {"int8": False, "sparse": False, **reasons}
    return [
        {"layer": layer, "n": 16, "k": 32, "macs": 3000, **shape, **planned},
        {"layer": "net.out", "n": 3, "k": 16, "macs": 1000, **shape, **output},
    ]


class Maker:
    """Makes artifacts into one directory; keyword arguments replace results by name."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def make(
        self,
        kind: Kind,
        config: Mapping[str, Any],
        files: Mapping[str, Any],
        results: Mapping[str, Any],
        parents: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        """Publish one artifact; files a kind promises and nobody reads here are one byte."""

        def write(work: Work) -> Mapping[str, Any]:
            for name in {*kind.files, *files}:
                content = files.get(name, " ")
                if not isinstance(content, bytes):
                    text = content if isinstance(content, str) else json.dumps(content)
                    content = text.encode()
                (work.scratch / name).write_bytes(content)
            return results

        # Another answer needs another question, or the first one would come from cache.
        answer = json.dumps([files, results], default=bytes.hex)
        sources = {"edgekd": hashlib.sha256(answer.encode()).hexdigest()}
        question = Question(kind, config, parents or {}, sources, tools={"numpy": "2.4.6"})
        return artifact.make(self.out, question, write)

    def teacher(self, name: str = "tiny", fit: Any = None, **results: Any) -> Artifact:
        losses = "".join(f'{{"step": {s}, "lr": 1, "labels": {2 / (s + 1)}}}\n' for s in range(200))
        return self.make(
            kinds.TEACHER,
            {
                "name": name,
                "seed": 0,
                "teacher": {"model": "hf:tiny", "checkpoint": None, "fit": fit},
            },
            {"io.json": IO, "losses.jsonl": losses},
            {"accuracy": 0.9, "parameters": 560, "samples": 200, "fitted": True, **results},
        )

    def student(self, teacher: Artifact, arm: str, **results: Any) -> Artifact:
        sparsity = {"method": "magnitude"} if arm == "sparse" else None
        losses = '{"step": 0, "lr": 0.1, "logits": 0.5}\n{"step": 1, "lr": 0.1, "logits": 0.25}\n'
        return self.make(
            kinds.STUDENT,
            {"name": "tiny", "arm": arm, "seed": 0, "sparsity": sparsity},
            {"io.json": IO, "layers.json": rows(arm), "losses.jsonl": losses},
            {"accuracy": 0.89, "teacher_accuracy": 0.9, "samples": 200, **results},
            {"teacher": teacher},
        )

    def model(
        self,
        source: Artifact,
        layer: str = "net.fc1",
        parity: Any = None,
        name: str = "tiny",
        **results: Any,
    ) -> Artifact:
        arm = source.config.get("arm", "fp16")
        config = {"name": name, "arm": arm, "export": {"opset": 17}}
        graphs = {"trt.onnx": f"half {arm}", "ort.onnx": f"full {arm}"}
        hashes = {}
        for name, text in graphs.items():
            path = self.out.parent / name
            path.write_text(text)
            hashes[name] = file_hash(path)
        planned = int(arm != "fp16")
        found = {
            "quantized": arm != "fp16",
            "sparse": arm == "sparse",
            "attention_blocks": 2,
            "layers": 2,
            "layers_int8": planned,
            "layers_sparse": int(arm == "sparse"),
            "macs_share_int8": 0.75 * planned,
            "macs_share_sparse": 0.75 * (arm == "sparse"),
            "graph_sha256": hashes,
            "parity": {**PARITY, **(parity or {})},
        }
        files = {**graphs, "io.json": IO, "layers.json": rows(arm, layer)}
        return self.make(kinds.ONNX_MODEL, config, files, {**found, **results}, {"source": source})

    def choice(self, model: Artifact, refused: Artifact) -> Artifact:
        """A choice for an A100: `refused` was tried before `model`, which is kept."""
        ways = (("int8", refused, "1 of 12 layers is no INT8 gemm"), ("float", model, ""))
        counted = {"int8": 1, "planned_int8": 1, "fused_attention": 2, "attention_blocks": 2}
        rows = [
            {
                "exporter": "torchscript",
                "weights": weights,
                "model": graph.id,
                "graph_bytes": 2500,
                "counted": None if why else counted,
                "refused": why,
            }
            for weights, graph, why in ways
        ]
        kept = {"exporter": "torchscript", "weights": "float", "model": model.id, "tried": rows}
        config = {"name": "tiny", "arm": model.config["arm"], "target": A100}
        files = {"choice.json": kept}
        return self.make(kinds.EXPORT_CHOICE, config, files, kept)

    def engine(
        self,
        model: Artifact,
        target: Mapping[str, Any],
        runtime: str,
        plan: Sequence[Mapping[str, Any]] | None = None,
        merged: Sequence[str] = (),
        **results: Any,
    ) -> Artifact:
        arm, blind = model.config["arm"], runtime == "onnxruntime"
        planned = int(arm != "fp16" and not blind)
        config = {"runtime": runtime, "target": target, "arm": arm, "version": "1.7.1"}
        ran = {
            "layer": "net.fc1",
            "node": "net.fc1/MatMul",
            "engine_layer": "a+b",
            "type": "gemm",
            "weight_dtype": "Int8",
            "input_dtype": "Int8",
            "output_dtype": "Half",
            "int8": True,
        }
        whole = model.read_json("layers.json") if plan is None else plan
        document = {
            "engine_layers": [] if blind else [{"name": "a+b"}],
            "ran": [ran] * planned + [{**ran, "node": node} for node in merged],
            "planned": whole,
        }
        found = {
            "runtime": runtime,
            "planned_int8": planned,
            "int8": planned,
            "attention_blocks": 2,
            "fused_attention": 0 if blind else 2,
        }
        if not blind:
            found["evidence"] = runtime == "tensorrt-rtx"
            found["sparse_kernels"] = {"eligible": 1, "chosen": 1, "layers": ["a+b"]}
        files = {"io.json": IO, "layers.json": document, "model.plan": "plan"}
        return self.make(kinds.ENGINE, config, files, {**found, **results}, {"model": model})

    def engines(self, models: Sequence[Artifact]) -> list[Artifact]:
        """ONNX Runtime's Engine of each, for the cpu target."""
        return [self.engine(model, CPU, "onnxruntime") for model in models]

    def bundle(
        self, model: Artifact, target: Mapping[str, Any], evidence: Artifact | None = None
    ) -> Artifact:
        document = {
            "arms": {"sparse": {}},
            "commands": ["edgekd build model --out out/sparse", "edgekd evaluate out/sparse"],
            "missing_wheels": ["numpy"],
            "system_packages": ["tensorrt"],
            "wheels": {"edgekd.whl": "0" * 64},
        }
        parents = {"model": model} | ({"evidence": evidence} if evidence else {})
        config = {"target": target, "reason": "no such device here"}
        return self.make(kinds.BUNDLE, config, {"bundle.json": document}, {"arms": {}}, parents)

    def accuracy(
        self,
        model: Artifact,
        interval: tuple[float, float] = (-0.02, 0.01),
        metric: str = "top-1",
        not_measured: str | None = None,
        student: Mapping[str, Any] | None = None,
        **recorded: Any,
    ) -> Artifact:
        top1 = {"correct": 178, "top1": 0.89, "top1_interval": [0.84, 0.926]}
        fidelity = {
            "difference": -0.01,
            "difference_interval": list(interval),
            "agreement": 0.97,
            "agreement_interval": [0.936, 0.986],
            "kl_nats": 0.0123,
            "kl_nats_interval": [0.008, 0.02],
        }
        teacher = {"correct": 180, "top1": 0.9, "top1_interval": [0.85, 0.934]}
        if metric != "top-1":
            top1, teacher = {**top1, "correct": None}, {**teacher, "correct": None}
        if not_measured is not None:
            top1, teacher = dict.fromkeys(top1), dict.fromkeys(teacher)
            fidelity |= {"difference": None, "difference_interval": None}
        answers = {"compared": True, "equal": True, "largest_difference": 0.0, "argmax_differ": 0.0}
        results = {
            "model": {
                "id": model.id,
                "kind": model.kind,
                "arm": model.config["arm"],
                "runtime": model.config.get("runtime", "onnxruntime"),
            },
            "count": 200,
            "metric": metric,
            "not_measured": not_measured,
            "intervals": "95%: Wilson",
            "rows": [
                {"who": "teacher", "source": "recorded", **teacher},
                *([{"who": "student", **top1, **fidelity, **student}] if student else []),
                {"who": "model", "source": "run live", **top1, **fidelity},
            ],
            "recorded": {**answers, **recorded},
        }
        where = {"where": {"device": "A processor"}}
        files = {"accuracy.json": results}
        return self.make(kinds.ACCURACY_REPORT, where, files, results, {"model": model})


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "out")


@pytest.fixture
def whole(maker: Maker) -> list[Artifact]:
    return make_whole(maker)


def make_whole(maker: Maker) -> list[Artifact]:
    """Three arms, a Bundle with its evidence, one without, Engines that ran, all that was measured.

    The Engines of another model were measured too; its LatencyReport alone is given.
    """
    from .latencies import foreign, latency, offline, samples, scenario, verdict

    teacher = maker.teacher()
    students = [maker.student(teacher, arm) for arm in ("sparse", "dense")]
    models = [maker.model(source) for source in [*students, teacher]]
    choice = maker.choice(models[0], maker.model(students[0], layers=3))
    evidence = [maker.engine(model, A100, "tensorrt-rtx") for model in models]
    here = maker.engines(models)
    bundles = [maker.bundle(models[0], A100, evidence[0]), maker.bundle(models[0], ORIN)]
    reports = [maker.accuracy(model) for model in [*models, here[0]]]
    by_first = here[::-1]  # ratios are to the float one
    timed = [
        latency(maker, by_first, samples([400, 210, 205], asked), asked)
        for asked in (scenario(), offline())
    ]
    timed += [foreign(maker), verdict(maker, here[0], (0.99, 0.95, 1.02))]
    return [teacher, *students, choice, *models, *evidence, *here, *bundles, *reports, *timed]
