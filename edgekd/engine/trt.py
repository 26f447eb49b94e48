"""Build a TensorRT plan from an ONNX file, with TensorRT or with TensorRT-RTX.

Both have the same Python API, so one path serves both; the networks are strongly typed, which means
the graph's own types and its Q/DQ nodes decide every precision and no builder flag does. TensorRT
10.x needs a flag for that, 11.x takes and ignores it. What really differs is this: TensorRT builds
for the GPU that is present, takes a timing cache, and shows the layers of an engine it has opened;
TensorRT-RTX builds for a named compute capability without any GPU, and prints the layers into its
log.

Everything TensorRT says is kept. What matters of it travels in the plan, and all of it behind a
failure, as the cause of the error. A few warnings bypass the logger and go to C's stdout; they are
caught there, since stdout belongs to results.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from edgekd.engine import sparsity
from edgekd.engine.layers import EngineLayer, parse_dump, parse_inspector
from edgekd.engine.sparsity import Sparsity
from edgekd.errors import (
    ArtifactError,
    ConfigError,
    EdgekdError,
    ToolchainError,
    UnsupportedError,
    install,
    names_that_exist,
)
from edgekd.progress import say

Runtime = Literal["tensorrt", "tensorrt-rtx"]
Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]  # min, opt, max
Log = list[tuple[str, str]]  # severity, message

_INSTALL = {  # an extra, and what else there is
    "tensorrt": (
        "trt",
        " on x86-64, or on Jetson sudo apt install python3-libnvinfer and an environment made with "
        "--system-site-packages",
    ),
    "tensorrt-rtx": ("rtx", ""),
}
_UINT8_WARNING = "UINT8 zero_point"
_CACHE_WARNING = "Failed to deserialize timing cache"


@dataclass(frozen=True)
class Plan:
    """A built engine.

    Attributes:
        plan: The serialized engine.
        layers: What it runs, in order.
        runtime: "tensorrt" or "tensorrt-rtx"; neither opens the other's plans.
        version: Version of the runtime that built it and must run it.
        log: The builder's warnings and errors.
        sparsity: What the builder said of sparse kernels.
        timing_cache: The tactic timings of this build, for the next; none from TensorRT-RTX.
        timings_given: Whether timings of an earlier build were given and taken.
    """

    plan: bytes
    layers: tuple[EngineLayer, ...]
    runtime: str
    version: str
    log: tuple[str, ...]
    sparsity: Sparsity
    timing_cache: bytes = b""
    timings_given: bool = False


def load(runtime: Runtime) -> ModuleType:
    """Import the runtime's Python module.

    Raises:
        ToolchainError: It is not installed, or its libraries cannot be loaded.
    """
    try:
        return importlib.import_module(runtime.replace("-", "_"))
    except (ImportError, OSError) as error:
        extra, otherwise = _INSTALL[runtime]
        raise ToolchainError(
            f"{runtime} cannot be imported ({error}): {install(extra)}{otherwise}"
        ) from error


def version(module: ModuleType) -> str:
    """The runtime's full version, for example 10.3.0."""
    return str(module.__version__)


def new_logger(module: ModuleType) -> tuple[Any, Log]:
    """A TensorRT logger that prints nothing, and the list it fills."""
    log: Log = []

    def keep(_: Any, severity: Any, message: str) -> None:
        log.append((severity.name, message))

    return type("Logger", (module.ILogger,), {"log": keep})(), log


def deserialize(module: ModuleType, logger: Any, log: Log, plan: bytes) -> Any:
    """Open a plan on the GPU that is present.

    Raises:
        ToolchainError: There is no GPU, or the plan is of another version or for another GPU.
    """
    engine = module.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise ToolchainError(
            f"{module.__name__} {version(module)} cannot open the plan ({_last_error(log)}): it "
            "needs a CUDA device, and the version and GPU that the plan was built for"
        )
    return engine


def build_plan(
    onnx_path: Path,
    *,
    runtime: Runtime,
    profiles: Mapping[str, ShapeRange],
    compute_capability: tuple[int, int] | None,
    sparse_weights: bool = True,
    timing_cache: bytes = b"",
) -> Plan:
    """Build an engine.

    Args:
        onnx_path: The model, with Q/DQ where it is to run in INT8.
        runtime: Which TensorRT builds it.
        profiles: Smallest, usual and largest shape of each input that has a dynamic size.
        compute_capability: (8, 0) for A100 and so on, for TensorRT-RTX; None for the GPU that is
            present, the only choice TensorRT gives.
        sparse_weights: Let the builder try 2:4-sparse kernels for weights that are 2:4.
        timing_cache: What an earlier build on the same device and version returned; where TensorRT
            does not take it, the tactics are timed anew, with a word.

    Returns:
        The plan, its layer table and the builder's warnings.

    Raises:
        ArtifactError: The file is missing, or has no layer (TensorRT's parser accepts garbage).
        ConfigError: The profiles do not fit the model's inputs.
        UnsupportedError: The parser refuses a node, or the runtime the compute capability.
        ToolchainError: The runtime is absent or failed. Each error's cause holds the whole log.
    """
    module = load(runtime)
    if not onnx_path.is_file():
        raise ArtifactError(f"{onnx_path} is not a file, expected an ONNX model: export it again")
    logger, log = new_logger(module)
    try:
        with _stdout_into(log):
            builder = _create(module.Builder, logger, log)
            network, parser = _parse(module, builder, logger, log, onnx_path)
            config = builder.create_builder_config()
            _configure(module, config, compute_capability, sparse_weights)
            _set_profiles(builder, config, network, profiles)
            cache, given = _set_timing_cache(runtime, config, timing_cache, log)
            serialized = builder.build_serialized_network(network, config)
            del parser  # it owns the network's weights, so it lives until here
        plan = _checked(serialized, onnx_path, module, log)
        return Plan(
            plan=plan,
            layers=tuple(_layers(module, runtime, logger, log, plan)),
            runtime=runtime,
            version=version(module),
            log=tuple(f"{s}: {text}" for s, text in log if s not in ("INFO", "VERBOSE")),
            sparsity=sparsity.parse(text for _, text in log),
            timing_cache=bytes(cache.serialize()) if cache is not None else b"",
            timings_given=given,
        )
    except EdgekdError as error:
        raise error from RuntimeError("\n".join(f"{s}: {text}" for s, text in log))


def _checked(serialized: Any, onnx_path: Path, module: ModuleType, log: Log) -> bytes:
    if serialized is None:
        raise ToolchainError(
            f"{onnx_path.name}: {module.__name__} {version(module)} could not build an engine "
            f"({_last_error(log)})"
        )
    return bytes(serialized)


def inspect_engine(module: ModuleType, logger: Any, log: Log, plan: bytes) -> str:
    """The engine inspector's JSON for a plan. Needs a GPU: never run where this was written.

    A context at the profile's usual shapes is set, since without one TensorRT 10 answers "N/A due
    to dynamic shapes" where the types should stand.
    """
    engine = deserialize(module, logger, log, plan)
    context = engine.create_execution_context()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT:
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(module.LayerInformationFormat.JSON))


def _create(builder_class: Any, logger: Any, log: Log) -> Any:
    try:
        return builder_class(logger)
    except TypeError as error:  # a null pointer inside: TensorRT found no usable GPU
        raise ToolchainError(
            f"TensorRT cannot create a builder ({_last_error(log)}): it needs a CUDA device"
        ) from error


def _parse(
    module: ModuleType, builder: Any, logger: Any, log: Log, onnx_path: Path
) -> tuple[Any, Any]:
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        error = parser.get_error(0)
        code = error.code().name
        node = error.node_name() or error.node()
        if code == "MODEL_DESERIALIZE_FAILED":
            raise ArtifactError(f"{onnx_path.name} is not an ONNX model ({code}): export it again")
        raise UnsupportedError(
            f"{onnx_path.name}: {module.__name__} {version(module)} refuses node "
            f'"{node}" ({error.node_operator() or "no operator"}) with {code}, {error.desc()}: '
            "export the model without it, and quantize to symmetric int8 only"
        )
    # It reads uint8 as int8 with no more than a warning, and every value above 127 saturates.
    if any(_UINT8_WARNING in text for _, text in log):
        raise UnsupportedError(
            f"{onnx_path.name}: {module.__name__} {version(module)} would read uint8 Q/DQ as int8: "
            "quantize to int8 with zero point 0"
        )
    if network.num_layers == 0:
        raise ArtifactError(
            f"{onnx_path.name} ({onnx_path.stat().st_size} bytes) gave a network of 0 layers, "
            "expected at least 1, as TensorRT takes empty and garbage files for models: export it "
            "again"
        )
    return network, parser


def _configure(
    module: ModuleType,
    config: Any,
    compute_capability: tuple[int, int] | None,
    sparse_weights: bool,
) -> None:
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if sparse_weights:
        config.set_flag(module.BuilderFlag.SPARSE_WEIGHTS)
    if compute_capability is None:
        return
    known = getattr(module, "ComputeCapability", None)
    if known is None:
        raise UnsupportedError(
            f"{module.__name__} builds for the GPU that is present, not for compute capability "
            f"{compute_capability[0]}.{compute_capability[1]}: build on the target"
        )
    name = f"SM{compute_capability[0]}{compute_capability[1]}"
    names = [member for member in known.__members__ if member.startswith("SM")]
    if name not in names:
        raise UnsupportedError(
            f"{module.__name__} {version(module)} cannot build for {name}: build with TensorRT on "
            f"the target (this one knows {', '.join(names)})"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known.__members__[name], 0)


def _set_profiles(
    builder: Any, config: Any, network: Any, profiles: Mapping[str, ShapeRange]
) -> None:
    inputs = {
        tensor.name: tuple(tensor.shape)
        for tensor in (network.get_input(index) for index in range(network.num_inputs))
    }
    for name in profiles:
        if name not in inputs:
            raise ConfigError(
                f'the profile names the input "{name}", which the model lacks. '
                f"{names_that_exist(name, inputs)}"
            )
    dynamic = [name for name, shape in inputs.items() if -1 in shape]
    for name in dynamic:
        if name not in profiles:
            raise ConfigError(
                f'the input "{name}" of shape {inputs[name]} has a dynamic size and no profile: '
                f"give its smallest, usual and largest shape (profiles given: "
                f"{', '.join(profiles) or 'none'})"
            )
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        if not _fits(inputs[name], shapes):
            raise ConfigError(
                f'the profile of "{name}" is {shapes}, expected three shapes that fit '
                f"{inputs[name]} and grow from smallest over usual to largest"
            )
        profile.set_shape(name, *shapes)
    if dynamic:
        config.add_optimization_profile(profile)


def _fits(shape: Shape, shapes: ShapeRange) -> bool:
    return all(len(given) == len(shape) for given in shapes) and all(
        0 < low <= usual <= high and size in (-1, low) and size in (-1, high)
        for size, low, usual, high in zip(shape, *shapes, strict=True)
    )


def _set_timing_cache(
    runtime: Runtime, config: Any, timing_cache: bytes, log: Log
) -> tuple[Any, bool]:
    """Give the builder the timings of an earlier build; returns its cache, and whether it did."""
    if runtime != "tensorrt":
        if timing_cache:
            raise UnsupportedError(
                f"{runtime} times no tactics while it builds: give a timing cache to tensorrt only"
            )
        return None, False
    cache = config.create_timing_cache(timing_cache)
    # Of bytes it cannot read it makes an empty cache, and only a warning tells them apart.
    taken = cache is not None and not any(_CACHE_WARNING in text for _, text in log)
    if taken and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, bool(timing_cache)
    say(
        f"the timing cache of {len(timing_cache)} bytes is damaged, or of another device or "
        "TensorRT, and not used: tactics are timed anew"
    )
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache, False


def _layers(
    module: ModuleType, runtime: Runtime, logger: Any, log: Log, plan: bytes
) -> list[EngineLayer]:
    if runtime == "tensorrt-rtx":
        return parse_dump("\n".join(text for _, text in log))
    return parse_inspector(inspect_engine(module, logger, log, plan))


def _last_error(log: Log) -> str:
    errors = [text for severity, text in log if severity in ("ERROR", "INTERNAL_ERROR")]
    return errors[-1].strip() if errors else "it logged no error"


@contextlib.contextmanager
def _stdout_into(log: Log) -> Iterator[None]:
    """Send what native code prints to the process's stdout to the log, as warnings."""
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        try:
            yield
        finally:
            ctypes.CDLL(None).fflush(None)  # C buffers what it writes to a file
            os.dup2(stdout, 1)
            os.close(stdout)
            sink.seek(0)
            printed = sink.read().decode(errors="replace").splitlines()
            log.extend(("WARNING", line) for line in printed if line.strip())
