"""A network's weights in files: safetensors, nothing that runs code.

A checkpoint must fit the network in full, name by name. Three kinds of names are translated first:
those an older transformers gave its modules (its own table of renamings is asked), the packed ones
of torch's attention (`edgekd.unpack`), and those of a tied weight, which libraries store once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekd import unpack
from edgekd.errors import ConfigError

Tensors = dict[str, Tensor]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a network; every parameter must be there and fit.

    Args:
        model: Changed in place.
        path: ``.safetensors``, or ``.pt`` / ``.bin`` / ``.pth`` holding a mapping of tensors.

    Raises:
        ConfigError: Missing file, unknown format, names or shapes that do not fit, NaN weights, or
            two values for one tied weight.
    """
    own = model.state_dict()
    found = unpack.renamed(model, _renamed_by_transformers(model, _read(path)))
    found = _tied(model, found, path)
    missing = sorted(set(own) - set(found))
    unknown = sorted(set(found) - set(own))
    if missing or unknown:
        raise ConfigError(
            f"checkpoint {path}: {len(missing)} weights of the network are missing"
            f"{_first(missing)} and {len(unknown)} are unknown to it{_first(unknown)}"
        )
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"checkpoint {path}: {name} is {list(tensor.shape)}, expected "
                f"{list(own[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ConfigError(f"checkpoint {path}: {name} holds NaN or infinity")
    model.load_state_dict(found)


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


def holders(model: nn.Module) -> list[list[str]]:
    """Names of each parameter, one list a parameter; a tied one has several, in module order."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _read(path: Path) -> Tensors:
    if not path.is_file():
        raise ConfigError(f"checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"checkpoint {path}: is not a safetensors file: {error}") from error
    if path.suffix in {".pt", ".pth", ".bin"}:
        return _load_pt(path)
    raise ConfigError(
        f"checkpoint {path}: unknown format {path.suffix!r}, expected .safetensors, or .pt, "
        ".pth or .bin with tensors only"
    )


def _renamed_by_transformers(model: nn.Module, state: Tensors) -> Tensors:
    """A checkpoint under the names this version of transformers uses.

    Version 5 renamed modules (``encoder.layer.0.attention.attention.query`` is ``q_proj``) and
    still writes the old names; both are on every disk. Conversions that compute (merged experts)
    are left out: their names are then unknown, and said to be.
    """
    own = model.state_dict()
    if set(state) == set(own) or not hasattr(model, "base_model_prefix"):
        return state
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # before version 5 names are what they were
        return state
    rules = [
        rule
        for rule in get_model_conversion_mapping(cast(Any, model))
        if isinstance(rule, WeightRenaming)
    ]
    prefix = str(model.base_model_prefix) or None
    return {
        name if name in own else rename_source_key(name, rules, [], prefix, own)[0]: tensor
        for name, tensor in state.items()
    }


def _tied(model: nn.Module, state: Tensors, path: Path) -> Tensors:
    """The state with every name of a tied weight, which a file may hold under one of them."""
    filled = dict(state)
    for names in holders(model):
        first = next((name for name in names if name in state), "")
        for name in [other for other in names if first and other != first]:
            value = filled.setdefault(name, state[first])
            if value.shape == state[first].shape and not torch.equal(value, state[first]):
                raise ConfigError(
                    f"checkpoint {path}: {first} and {name} differ but are one weight in the "
                    "network: untie them there, or store one value"
                )
    return filled


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


def _first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""
