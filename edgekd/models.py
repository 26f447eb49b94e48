"""Networks: how one is built, what it returns, which layers and blocks it has.

A network comes from ``hf:<directory or config.json>`` (transformers, never with remote code) or
from ``python:<module>:<callable>``. Weights are safetensors; a ``.pt`` is read with
``weights_only=True``, so no pickle of anybody's runs. Distillation and export both start here and
share nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekd.artifact import file_hash
from edgekd.data import IO, Arrays, python_object
from edgekd.errors import ConfigError, ContractError, EdgekdError

Tensors = dict[str, Tensor]
BATCH = 64


def describe(spec: str, base: Path) -> dict[str, Any]:
    """What is needed to build a network again, as plain values (``model.json``).

    Args:
        spec: ``hf:<directory or config.json>`` or ``python:<module>:<callable>``.
        base: Directory that a relative path starts from.

    Raises:
        ConfigError: Unknown form, or the file is missing or not a transformers configuration.
    """
    scheme, _, rest = spec.partition(":")
    if scheme == "python":
        python_object(spec, "model")
        return {"spec": spec, "config": None}
    if scheme != "hf":
        raise ConfigError(
            f"model: found {spec!r}, expected hf:<directory or config.json> or "
            "python:<module>:<callable>"
        )
    path = base / rest
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"model {spec!r}: no such file: {file}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model {spec!r}: {file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"model {spec!r}: {file} holds a JSON {type(config).__name__}, expected an object with "
            "'model_type' and 'architectures'"
        )
    for key, kind in (("model_type", str), ("architectures", list)):
        if not config.get(key) or not isinstance(config[key], kind):
            raise ConfigError(
                f"model {spec!r}: {file} has {key!r} = {config.get(key)!r}, expected a "
                f"{kind.__name__} that names the class it is"
            )
    return {"spec": spec, "config": config}


def weights_beside(spec: str, base: Path) -> Path | None:
    """``model.safetensors`` in the directory an ``hf:`` spec names, if it is there."""
    scheme, _, rest = spec.partition(":")
    file = base / rest / "model.safetensors"
    return file if scheme == "hf" and file.is_file() else None


def source_files(spec: str, base: Path) -> dict[str, str]:
    """Content hashes of the files a spec names, for an artifact's question."""
    scheme, _, rest = spec.partition(":")
    path = base / rest
    if scheme != "hf":
        return {}
    file = path / "config.json" if path.is_dir() else path
    return {"model config": file_hash(file)} if file.is_file() else {}


def build(description: Mapping[str, Any]) -> nn.Module:
    """Build the network with fresh random weights (torch's global generator), in float32.

    Raises:
        ConfigError: transformers has no such architecture or refuses the configuration,
            or the callable failed or returned no module.
    """
    # torch's fused encoder runs in eval mode only and steps over the Linears inside it: what is
    # planned, calibrated and traced would then be another computation than what trains.
    torch.backends.mha.set_fastpath_enabled(False)
    if description["config"] is None:
        make = python_object(description["spec"], "model")
        with _refusals(description["spec"], "cannot be built"):
            model = make()
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"model {description['spec']!r} returned {type(model).__name__}, expected a "
                "torch.nn.Module"
            )
        if next(model.parameters(), None) is None:
            raise ConfigError(
                f"model {description['spec']!r} has no parameters: nothing to compress"
            )
        return model.float()
    import transformers

    config = dict(description["config"])
    name = config["architectures"][0]
    architecture = getattr(transformers, name, None)
    if architecture is None or not hasattr(architecture, "_from_config"):
        raise ConfigError(
            f"model {description['spec']!r}: transformers {transformers.__version__} has no "
            f"architecture {name!r}; correct 'architectures' in its config.json"
        )
    with _refusals(description["spec"], "cannot be built"):
        parsed = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        # Eager attention: on a CPU it trains faster than the fused kernel, and the graph keeps the
        # plain MatMul-Softmax-MatMul that TensorRT fuses itself.
        model = architecture._from_config(parsed, attn_implementation="eager")
    return model.float()  # type: ignore[no-any-return]


def probe(model: nn.Module, inputs: Tensors, io: IO, spec: str) -> None:
    """Pass one example through a network: where network and data first meet.

    Args:
        model: The network; left as it was.
        inputs: {name: tensor[batch, ...]}.
        io: Names and shapes of inputs and outputs.
        spec: What the recipe calls the network, to begin messages with.

    Raises:
        ConfigError: The network fails on the data, or its outputs are not of io's shapes.
    """
    training = model.training
    model.eval()
    try:
        with (
            _refusals(spec, f"does not take the data's inputs {', '.join(inputs)}"),
            torch.no_grad(),
        ):
            outputs = forward(model, inputs, io)
    finally:
        model.train(training)
    for tensor in io.outputs:
        found = list(outputs[tensor.name].shape)
        fits = len(found) == len(tensor.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(tensor.shape, found, strict=True)
        )
        if not fits:
            raise ConfigError(
                f"model {spec!r}: its output {tensor.name!r} is {found} for "
                f"{len(next(iter(inputs.values())))} examples, the data's io says {tensor.shape}: "
                "correct the network's size or the io"
            )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a network; every parameter must be there and fit.

    Args:
        model: Changed in place.
        path: ``.safetensors``, or ``.pt`` / ``.bin`` / ``.pth`` holding a mapping of tensors.

    Raises:
        ConfigError: Missing file, unknown format, names or shapes that do not fit, NaN weights.
    """
    if not path.is_file():
        raise ConfigError(f"checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"checkpoint {path}: is not a safetensors file: {error}") from error
    elif path.suffix in {".pt", ".pth", ".bin"}:
        state = _load_pt(path)
    else:
        raise ConfigError(
            f"checkpoint {path}: unknown format {path.suffix!r}, expected .safetensors, or .pt, "
            ".pth or .bin with tensors only"
        )
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    unknown = sorted(set(state) - set(own))
    if missing or unknown:
        raise ConfigError(
            f"checkpoint {path}: {len(missing)} weights of the network are missing"
            f"{_first(missing)} and {len(unknown)} are unknown to it{_first(unknown)}"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"checkpoint {path}: {name} is {list(tensor.shape)}, expected "
                f"{list(own[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ConfigError(f"checkpoint {path}: {name} holds NaN or infinity")
    model.load_state_dict(state)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a network's parameters and buffers as safetensors, shared ones once per name."""
    save_file(state(model), path)


def state(model: nn.Module) -> Tensors:
    """The state dict in the form safetensors takes: contiguous, no two names sharing memory."""
    seen: set[int] = set()
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return tensors


def forward(model: nn.Module, inputs: Tensors, io: IO) -> Tensors:
    """Run a network and name its outputs as io does.

    Args:
        model: Any module taking the inputs by name; returns a tensor, a sequence or a mapping.
        inputs: {name: tensor[batch, ...]}.
        io: Names of the outputs.

    Raises:
        ContractError: The network does not return what io names.
    """
    result = model(**inputs)
    names = [tensor.name for tensor in io.outputs]
    if isinstance(result, Tensor):
        result = [result]
    if isinstance(result, Mapping):
        found = dict(result)
    else:
        found = dict(zip(names, result if isinstance(result, Sequence) else (), strict=False))
    missing = [name for name in names if not isinstance(found.get(name), Tensor)]
    if missing:
        raise ContractError(
            f"the network returned {', '.join(found) or type(result).__name__}, expected tensors "
            f"{', '.join(names)} as named in io"
        )
    return {name: found[name] for name in names}


def run(model: nn.Module, inputs: Arrays, io: IO, batch: int = BATCH) -> Arrays:
    """Outputs float32[n, ...] by name for inputs [n, ...] by name, in eval mode, no gradients."""
    count = len(next(iter(inputs.values())))
    training = model.training
    model.eval()
    parts: list[Arrays] = []
    with torch.no_grad():
        for start in range(0, count, batch):
            rows = {name: array[start : start + batch] for name, array in inputs.items()}
            outputs = forward(model, tensors(rows, model), io)
            parts.append({name: t.float().cpu().numpy() for name, t in outputs.items()})
    model.train(training)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def tensors(inputs: Arrays, model: nn.Module) -> Tensors:
    """Arrays as tensors on the network's device."""
    device = next(model.parameters()).device
    return {
        name: torch.from_numpy(np.ascontiguousarray(array)).to(device)
        for name, array in inputs.items()
    }


def _load_pt(path: Path) -> Tensors:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types on a file that is not tensors only
        raise ConfigError(
            f"checkpoint {path}: cannot be read as tensors only ({type(error).__name__}); convert "
            "it to safetensors where you trust it"
        ) from error
    entries = state.items() if isinstance(state, dict) else [("the whole file", state)]
    for name, value in entries:
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"checkpoint {path}: {name} is of type {type(value).__name__}, expected tensors by "
                "name: save the network's state_dict alone"
            )
    return dict(state)


@contextlib.contextmanager
def _refusals(spec: str, what: str) -> Iterator[None]:
    """Turn whatever a network's own code raises into one sentence; ours pass."""
    try:
        yield
    except EdgekdError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"model {spec!r} {what}: {type(error).__name__}: {reason}") from error


def _first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""
