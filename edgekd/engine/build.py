"""The stage: an OnnxModel and a Target in, the Engine out, or the Bundle to build it elsewhere.

One code path. ONNX Runtime's Engine is the graph with the options its session must have.
TensorRT's is a plan, built on the device that will run it, since plans fit one version on one GPU;
any other machine gets a Bundle. Beside the Bundle of a device whose compute capability
TensorRT-RTX knows, its plan is made as *evidence*: the graph parses, every planned linear is a
gemm with an Int8 weight, and attention is fused in every block that export recognised. It is no
proof of sparse kernels, which only the device chooses.

What TensorRT's parser takes is checked before it sees the file: it answers True to garbage.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd import artifact, io_json, kinds, qdq
from edgekd.artifact import Artifact, Question, Work
from edgekd.data import IO
from edgekd.engine import bundle as bundles
from edgekd.engine import cache, layers, ort, trt
from edgekd.errors import ArtifactError, EdgekdError, UnsupportedError
from edgekd.origin import source_hash, versions
from edgekd.progress import say
from edgekd.recipe import Export, Recipe
from edgekd.target import Target

SOURCES = ("edgekd.engine", "edgekd.qdq", "edgekd.quant", "edgekd.sparse24", "edgekd.data",
           "edgekd.io_json")  # fmt: skip
# What tensorrt-rtx 1.7 can build for; a test holds this against the module itself.
RTX_COMPUTE_CAPABILITIES = ([7, 5], [8, 0], [8, 6], [8, 9], [12, 0], [12, 1])
EVIDENCE = (
    "evidence, not the target's engine: TensorRT-RTX parsed the graph, {shown}; it proves neither "
    "TensorRT's choices nor sparse kernels, and is never run"
)


def build(
    model: Artifact,
    target: Target,
    out: Path,
    *,
    bundle: bool = False,
    arms: Mapping[str, Artifact] | None = None,
    recipe: Recipe | None = None,
) -> Artifact:
    """Build the Engine where it can be built, and a Bundle where it cannot.

    Args:
        model: An OnnxModel.
        target: The device the result is for.
        out: Directory of artifacts.
        bundle: Make a Bundle even where the Engine could be built.
        arms: Further OnnxModels for the Bundle, by name (fp16, dense, sparse).
        recipe: What the model was made from; the Bundle's engines are judged by its ``[gate]``.

    Returns:
        The Engine, or the Bundle with its evidence among its parents.

    Raises:
        ArtifactError: The model is not an OnnxModel, or its graph is not valid ONNX.
        UnsupportedError: The target's parser refuses the graph, or this machine is another device.
        ContractError: A planned linear does not run in INT8, or attention is not fused.
        ToolchainError: A runtime is absent or failed.
    """
    for each in (model, *(arms or {}).values()):
        _check_graph(each, target)
    reason = "a Bundle was asked for"
    if target.runtime == "onnxruntime" and not bundle:
        return _build_ort(model, target, out)
    if target.runtime == "tensorrt" and not bundle:
        device = find_device()
        if device and _is_device(target, device) and importlib.util.find_spec("tensorrt"):
            _require_version(target, trt.version(trt.load("tensorrt")))
            return _build_plan(model, target, out, "tensorrt", device)
        here = device is not None and _is_device(target, device)
        reason = f"no {'TensorRT' if here else 'such device'} here"
        say(f"{target.name}: {reason}, so a Bundle is made to build on the device itself")
    packed = bundles.arms_of(model, arms or {})
    engines = {}
    if target.compute_capability in RTX_COMPUTE_CAPABILITIES:
        engines = {
            name: _build_plan(each, target, out, "tensorrt-rtx", None)
            for name, each in packed.items()
        }
    return bundles.make(
        model, target, out, arms=packed, evidence=engines, reason=reason, recipe=recipe
    )


def evidence(model: Artifact, target: Target, out: Path) -> Artifact:
    """Build TensorRT-RTX's engine of a graph, without any device, and prove what it runs.

    Args:
        model: An OnnxModel.
        target: A device whose compute capability is among `RTX_COMPUTE_CAPABILITIES`.
        out: Directory of artifacts.

    Returns:
        The Engine, which `build` takes from cache for its Bundle.

    Raises:
        EdgekdError: As `build`; a ContractError where the engine is not INT8 and fused as planned.
    """
    _check_graph(model, target)
    return _build_plan(model, target, out, "tensorrt-rtx", None)


@dataclass(frozen=True)
class Device:
    """A CUDA device as its driver describes it."""

    name: str
    compute_capability: list[int]
    multiprocessors: int
    driver: int


def find_device(libcuda: ctypes.CDLL | None = None) -> Device | None:
    """The first CUDA device, None where there is no driver or no device.

    Args:
        libcuda: The driver's library; without it the system's (CUDA Driver API, device management).
    """
    try:
        cuda = libcuda or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number)) or number.value == 0:
        return None
    handle, version, name = ctypes.c_int(0), ctypes.c_int(0), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(handle), 0)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDriverGetVersion(ctypes.byref(version))

    def attribute(index: int) -> int:
        value = ctypes.c_int(0)
        cuda.cuDeviceGetAttribute(ctypes.byref(value), index, handle)
        return value.value

    # CUdevice_attribute: compute capability major and minor, multiprocessor count.
    major, minor, multiprocessors = (attribute(index) for index in (75, 76, 16))
    return Device(name.value.decode(), [major, minor], multiprocessors, version.value)


def _is_device(target: Target, device: Device) -> bool:
    facts = (target.device, target.compute_capability, target.multiprocessors)
    return facts == (device.name, device.compute_capability, device.multiprocessors)


def _require_version(target: Target, version: str) -> None:
    """Refuse another TensorRT on the target's own device: its plans would not be the target's."""
    if not target.accepts_runtime(version):
        raise UnsupportedError(
            f"{target.name} has TensorRT {target.runtime_version}, this {target.device} has "
            f"{version}: install that version, name the target that is this machine, or ask for a "
            "Bundle with `edgekd build --bundle`"
        )


def _check_graph(model: Artifact, target: Target) -> None:
    """Refuse what is not an OnnxModel, and a graph the target's parser will not take.

    The device side has no onnx; there the check was made when the Bundle was, and hashes hold it.
    """
    if model.kind != kinds.ONNX_MODEL.name:
        raise ArtifactError(f"{model.path}: is a {model.kind}, expected an OnnxModel")
    if importlib.util.find_spec("onnx") is None:
        return
    path = model.file(_graph(target))
    graph = qdq.load(path)
    opset = max(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    limit = target.parser.opset_max
    if limit is not None and opset > limit:
        raise UnsupportedError(
            f"{path}: has opset {opset}, the parser of {target.name} takes at most {limit}: set "
            "export.opset in the recipe"
        )
    refused = [node for node in graph.graph.node if node.op_type in target.parser.unsupported]
    if refused:
        raise UnsupportedError(
            f"{path}: {len(refused)} of {len(graph.graph.node)} nodes use operators that the "
            f"parser of {target.name} refuses, first {refused[0].op_type} in "
            f"{refused[0].name!r}: export the model without them"
        )


def _graph(target: Target) -> str:
    return "ort.onnx" if target.runtime == "onnxruntime" else "trt.onnx"


def _build_ort(model: Artifact, target: Target, out: Path) -> Artifact:
    """The Engine of ONNX Runtime: the graph and its session options, opened once as a check."""
    options = ort.options()
    question = _question(model, target, "onnxruntime", {"device": ort.fingerprint(options)})

    def write(work: Work) -> dict[str, Any]:
        ort.Session(model.file("ort.onnx"), options)
        shutil.copyfile(model.file("ort.onnx"), work.scratch / "model.onnx")
        if kinds.EXTERNAL in model.manifest.files:  # the graph names this file
            shutil.copyfile(model.file(kinds.EXTERNAL), work.scratch / kinds.EXTERNAL)
        _write_json(work.scratch / "session.json", options)
        return _common(work, model, "onnxruntime", [], [], planned=0)

    return artifact.make(out, question, write)


def _build_plan(
    model: Artifact, target: Target, out: Path, runtime: trt.Runtime, device: Device | None
) -> Artifact:
    """A plan with its layer table, proven: TensorRT's Engine, or TensorRT-RTX's as evidence."""
    module = trt.load(runtime)
    evidence = runtime == "tensorrt-rtx"
    profiles = _profiles(model)
    sparse = model.config["arm"] == "sparse"
    where = f"{model.path.name} with {runtime} {trt.version(module)} for {target.name}"
    settings = {
        "device": asdict(device) if device else None,
        "evidence": evidence,
        "profiles": profiles,
        "sparse_weights": sparse,
        "version": trt.version(module),
    }
    question = _question(model, target, runtime, settings)
    timings = cache.timings(asdict(device), trt.version(module)) if device else None
    planned = [
        layers.Planned(row["layer"], node, _elements(row))
        for row in model.read_json("layers.json")
        if row["int8"]
        for node in row["node"].split(" + ")
    ]

    def write(work: Work) -> dict[str, Any]:
        major, minor = target.compute_capability or [0, 0]
        with _log_kept(work.keep / "build.log"):
            plan = trt.build_plan(
                model.file("trt.onnx"),
                runtime=runtime,
                profiles=profiles,
                compute_capability=(major, minor) if evidence else None,
                sparse_weights=sparse,
                timing_cache=cache.read(timings) if timings else b"",
            )
        if timings:
            cache.keep(timings, plan.timing_cache)
        # A graph without INT8 makes no promise; what it ran as is still kept.
        blocks = int(model.results["attention_blocks"])
        table = work.keep / "layers.json"
        table.write_text(layers.to_json(plan.layers), encoding="utf-8")
        whole = f"{where} (whole layer table: {table})"
        unfused = len(model.results.get("attention_unfused", ()))
        rows = layers.prove(plan.layers, planned, blocks, whole, unfused) if planned else []
        (work.scratch / "model.plan").write_bytes(plan.plan)
        (work.scratch / "build.log").write_text("\n".join(plan.log) + "\n", encoding="utf-8")
        results = _common(work, model, runtime, plan.layers, rows, planned=len(planned))
        means = (
            {"means": EVIDENCE.format(shown=_shown(results))}
            if evidence
            else {"sparse_kernels": plan.sparsity.as_json(), "timings_given": plan.timings_given}
        )
        return {**results, "evidence": evidence, **means}

    return artifact.make(out, question, write)


def _shown(results: Mapping[str, Any]) -> str:
    """What a layer table showed, by its counts: nothing is said of what was not counted."""
    blocks, fused = results["attention_blocks"], results["fused_attention"]
    left = len(results["attention_unfused"])
    weights = "no layer was planned in INT8"
    if planned := results["planned_int8"]:
        weights = f"kept Int8 weights in {results['int8']} of {planned} planned layers"
    if fused > blocks:  # in an arm without INT8, which is not judged
        return f"{weights}, {fused} fused attention kernels for {blocks} recognised blocks"
    if not blocks + left:
        return f"{weights}, and no attention block was recognised in it"
    unfused = f", no kernel fuses {left} of them" if left else ""
    return f"{weights}, fused attention in {fused} of {blocks + left} blocks{unfused}"


@contextlib.contextmanager
def _log_kept(path: Path) -> Iterator[None]:
    """Where a build fails, write the builder's whole log and name the file in the sentence."""
    try:
        yield
    except EdgekdError as error:
        if error.__cause__ is None:
            raise
        path.write_text(f"{error.__cause__}\n", encoding="utf-8")
        raise type(error)(f"{error} (the builder's log: {path})") from error.__cause__


def _question(
    model: Artifact, target: Target, runtime: str, settings: Mapping[str, Any]
) -> Question:
    config = {
        "runtime": runtime,
        "target": target.as_json(),
        "arm": model.config["arm"],
        "export": model.config["export"],
        **settings,
    }
    samples = artifact.parent(model, "samples", kinds.SAMPLES)
    return Question(
        kinds.ENGINE,
        config=config,
        parents={"model": model, "samples": samples},
        sources={"edgekd": source_hash(*SOURCES)},
        tools=versions("numpy"),
    )


def _common(
    work: Work,
    model: Artifact,
    runtime: str,
    table: Sequence[layers.EngineLayer],
    rows: Sequence[layers.Ran],
    planned: int,
) -> dict[str, Any]:
    """Write what every Engine holds; returns its results."""
    # The Engine must say by itself what goes in, and what ONNX Runtime answered to the Samples.
    io_json.copy(model, work.scratch)
    shutil.copyfile(model.file("outputs.npz"), work.scratch / "outputs.npz")
    document = {
        "engine_layers": json.loads(layers.to_json(table)),
        "ran": [asdict(row) for row in rows],
        "planned": model.read_json("layers.json"),
    }
    _write_json(work.scratch / "layers.json", document)
    return {
        "runtime": runtime,
        "layer_table": "kept" if table else f"not shown by {runtime}",
        "planned_int8": planned,
        "int8": sum(row.int8 for row in rows),
        "attention_blocks": model.results["attention_blocks"],
        "attention_unfused": model.results.get("attention_unfused", []),
        "loose_products": model.results.get("loose_products"),
        "fused_attention": sum(layer.is_fused_attention for layer in table),
    }


def _profiles(model: Artifact) -> dict[str, trt.ShapeRange]:
    """Smallest, usual and largest shape of every input with a changing size."""
    io = IO.model_validate(model.read_json("io.json"))
    sizes = Export.model_validate(model.config["export"]).sizes
    profiles = {}
    for tensor in io.inputs:
        symbols = [size for size in tensor.shape if isinstance(size, str)]
        for name in sorted(set(symbols) - set(sizes)):
            raise UnsupportedError(
                f"{model.path}: input {tensor.name!r} has the changing size {name!r}, the recipe "
                f"knows the sizes of {', '.join(sizes)}: add [export.dynamic.{name}] and export it "
                "again"
            )
        if symbols:
            low, usual, high = (
                tuple(
                    getattr(sizes[size], end) if isinstance(size, str) else size
                    for size in tensor.shape
                )
                for end in ("min", "opt", "max")
            )
            profiles[tensor.name] = (low, usual, high)
    return profiles


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _elements(row: Mapping[str, Any]) -> int:
    """Elements of the weight that one node of a layer multiplies: all, in each of its runs."""
    return int(row["n"]) * int(row["k"])
