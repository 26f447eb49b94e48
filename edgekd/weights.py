"""A network's weights in files: where they are, and how they are read; nothing that runs code.

They are safetensors: one file, or shards with an index beside them, as ``save_pretrained`` writes
what exceeds its ``max_shard_size``. Every tensor of a shard must be in the index and every tensor
of the index in its shard, so that half a download is told and not trained on.

A checkpoint must fit the network in full, name by name. Three kinds of names are translated first:
those an older transformers gave its modules (its own table of renamings is asked), the packed ones
of torch's attention (`edgekd.unpack`), and those of a tied weight, which libraries store once.

Left aside is what a network computes for itself when it is built and older versions of its library
stored all the same, such as the numbers of BERT's positions. A batch normalisation's count of the
batches it saw, which files from elsewhere lack, stays the network's: nothing it answers reads it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekd import unpack
from edgekd.artifact import file_hash
from edgekd.errors import ConfigError

Tensors = dict[str, Tensor]
SINGLE = "model.safetensors"
INDEX = ".safetensors.index.json"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What libraries stored once and compute today: transformers' numbers of positions, and what the
# windows of timm's and transformers' Swin look up.
_DERIVED = ("position_ids", "relative_position_index", "attn_mask")
_COUNT = "num_batches_tracked"
# What describes a network and its inputs, and its weights as tensors; never pickles.
_HUB_FILES = ["config.json", "preprocessor_config.json", SINGLE, f"model{INDEX}",
              "model-*.safetensors", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
              "vocab.*", "merges.txt", "spiece.model", "sentencepiece.bpe.model"]  # fmt: skip


def place(spec: str, base: Path, what: str = "model") -> Path:
    """The directory or file that an ``hf:`` spec names.

    A path that exists is taken. What has the form of a hub id, ``org/name``, where ``org`` is no
    directory either, is huggingface_hub's affair: from its cache on this machine, else downloaded
    where it may (``HF_HUB_OFFLINE``).

    Args:
        spec: ``hf:<directory or config.json>`` or ``hf:<org>/<name>``.
        base: Directory that a relative path starts from.
        what: What the recipe calls it, to begin messages with.

    Raises:
        ConfigError: Neither here nor to be had from the hub.
    """
    rest = spec.partition(":")[2]
    path = base / rest
    if path.exists() or path.parent.is_dir() or not _HUB_ID.fullmatch(rest):
        return path
    try:
        return _from_hub(rest)
    except Exception as error:  # huggingface_hub and what it stands on raise what they like
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{what} {spec!r}: no such directory: {path}, and the hub's {rest!r} cannot be had "
            f"({type(error).__name__}: {reason}): copy it to a directory here, or correct the name"
        ) from error


@functools.cache
def _from_hub(name: str) -> Path:
    """The snapshot of a hub id, once a process: what it names may change meanwhile."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=_HUB_FILES))


def in_directory(directory: Path) -> Path | None:
    """The weights that lie in a directory: one file, else the index of its shards."""
    files = (directory / SINGLE, directory / f"model{INDEX}")
    return next((file for file in files if file.is_file()), None)


def content_hash(path: Path) -> str:
    """SHA-256 (hex) of a checkpoint; of an index, with all its shards.

    Raises:
        ConfigError: The index or a shard is missing or malformed.
    """
    if not path.name.endswith(INDEX):
        return file_hash(path)
    hashes = [file_hash(file) for file in (path, *_shards(path))]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a network; every parameter must be there and fit.

    Args:
        model: Changed in place.
        path: ``.safetensors``, the ``.safetensors.index.json`` of its shards, or ``.pt`` /
            ``.bin`` / ``.pth`` holding a mapping of tensors.

    Raises:
        ConfigError: Missing file or shard, unknown format, names or shapes that do not fit, NaN
            weights, or two values for one tied weight.
    """
    own = model.state_dict()
    found = unpack.renamed(model, _renamed_by_transformers(model, _read(path)))
    found = _tied(model, _without_derived(model, found), path)
    for name in [n for n in own if n.rpartition(".")[2] == _COUNT and n not in found]:
        found[name] = own[name]
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
            bad = int((~tensor.isfinite()).sum())
            raise ConfigError(
                f"checkpoint {path}: {name} holds NaN or infinity in {bad} of {tensor.numel()} "
                "numbers, expected none: take a checkpoint from before the training diverged"
            )
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
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in {".pt", ".pth", ".bin"}:
        return _load_pt(path)
    raise ConfigError(
        f"checkpoint {path}: unknown format {path.suffix!r}, expected .safetensors, the "
        ".safetensors.index.json of its shards, or .pt, .pth or .bin with tensors only"
    )


def _load_safetensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"checkpoint {path}: is not a safetensors file: {error}") from error


def _read_shards(index: Path) -> Tensors:
    """All tensors of the shards, each in the shard that the index says it is in."""
    found: Tensors = {}
    for shard, names in _shards(index).items():
        tensors = _load_safetensors(shard)
        missing, unknown = sorted(names - set(tensors)), sorted(set(tensors) - names)
        if missing or unknown:
            raise ConfigError(
                f"checkpoint {index}: of the {len(names)} tensors it names in {shard.name} "
                f"{len(missing)} are missing there{_first(missing)}, and {len(unknown)} others "
                f"are{_first(unknown)}: index and shards are not of one model, copy all again"
            )
        found |= tensors
    return found


def _shards(index: Path) -> dict[Path, set[str]]:
    """The shards an index names, which must lie beside it, and the tensors of each."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = sorted((str(shard), str(name)) for name, shard in found.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"checkpoint {index}: is no index of shards ({type(error).__name__}: {error}), "
            'expected {"weight_map": {tensor: file, ...}}'
        ) from error
    shards: dict[Path, set[str]] = {}
    for shard, name in pairs:
        # A bare name: what it reads must not lie elsewhere, nor be of another format.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ConfigError(
                f"checkpoint {index}: names {shard!r} for {name}, expected the bare name of a "
                ".safetensors file beside it"
            )
        shards.setdefault(index.with_name(shard), set()).add(name)
    if not shards:
        raise ConfigError(
            f"checkpoint {index}: names 0 shards, expected at least 1: copy the directory again"
        )
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ConfigError(
            f"checkpoint {index}: names {len(shards)} shards, of which "
            f"{len(shards) - len(missing)} lie beside it and {len(missing)} do not"
            f"{_first(missing)}: copy the directory again, whole"
        )
    return shards


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


def _without_derived(model: nn.Module, state: Tensors) -> Tensors:
    """The state without what the network does not know because it computes it for itself."""
    own = model.state_dict()
    # transformers' own word on what its published files hold beside the weights.
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {
        name: tensor
        for name, tensor in state.items()
        if name in own
        or not (
            name.rpartition(".")[2] in _DERIVED
            or any(re.search(pattern, name) for pattern in patterns)
        )
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
