"""Networks: how one is described, built and run.

A network comes from ``hf:<directory, config.json or hub id>`` (transformers, never with remote
code), from ``timm:<name>?<argument>=<value>&...`` or from ``python:<module>:<callable>``. However
it is written, what is built has one canonical form (`edgekd.unpack`). Its description is plain
values, its weights are files of their own (`edgekd.weights`). Distillation and export both start
here.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd import classes, unpack, weights
from edgekd.artifact import file_hash
from edgekd.data import IO, Arrays, python_object
from edgekd.errors import ConfigError, ContractError, EdgekdError, ToolchainError, install

Tensors = dict[str, Tensor]
BATCH = 64


def _define_vision_operators() -> torch.library.Library | None:
    """Let a torchvision that was built for CUDA be imported beside a torch that was not.

    Its import looks up two operators that its extension would have defined, and fails without
    them; with it timm and the image models of transformers. None of what we build calls them, so
    their schemas are enough. With a torchvision that fits the torch nothing is done.
    """
    found = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or found is None or found.origin is None:
        return None
    version = Path(found.origin).with_name("version.py")
    if not version.is_file() or not re.search(r"\+cu\d", version.read_text(encoding="utf-8")):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = "Tensor dets, Tensor scores, float iou_threshold"
            library.define(f"{name}({schema}) -> Tensor")  # type: ignore[no-untyped-call]
    return library


_VISION_OPERATORS = _define_vision_operators()  # what it defined lasts as long as it


def describe(spec: str, base: Path, labels: Sequence[str] = ()) -> dict[str, Any]:
    """What is needed to build a network again, as plain values (``model.json``).

    Args:
        spec: ``hf:<directory or config.json>``, ``timm:<name>?<argument>=<value>&...`` or
            ``python:<module>:<callable>``.
        base: Directory that a relative path starts from.
        labels: Names of the data's classes, in its order. Where the network's own names are others
            and the data's all are among them, ``classes`` says which of its answers are theirs.

    Raises:
        ConfigError: Unknown form, the file is missing or not a transformers configuration, or timm
            has no such model.
        ToolchainError: timm is not installed.
    """
    scheme = spec.partition(":")[0]
    if scheme == "python":
        python_object(spec, "model")
        return {"spec": spec, "config": None}
    if scheme == "timm":
        return {"spec": spec, "config": _timm_config(spec)}
    if scheme != "hf":
        raise ConfigError(
            f"model: found {spec!r}, expected hf:<directory or config.json>, timm:<name> or "
            "python:<module>:<callable>"
        )
    config = _hf_config(spec, weights.place(spec, base))
    chosen = classes.chosen(config, labels)
    return {"spec": spec, "config": config, **({"classes": chosen} if chosen else {})}


def weights_beside(spec: str, base: Path) -> Path | None:
    """Weights in the directory an ``hf:`` spec names, if it has some (`weights.in_directory`)."""
    is_hf = spec.startswith("hf:")
    return weights.in_directory(weights.place(spec, base)) if is_hf else None


def source_files(spec: str, base: Path) -> dict[str, str]:
    """Content hashes of the files a spec names, for an artifact's question."""
    if not spec.startswith("hf:"):
        return {}
    path = weights.place(spec, base)
    file = path / "config.json" if path.is_dir() else path
    return {"model config": file_hash(file)} if file.is_file() else {}


def build(description: Mapping[str, Any]) -> nn.Module:
    """Build the network with fresh random weights (torch's global generator), in float32.

    Args:
        description: What `describe` returned; with ``folded``, pairs of a layer and the norm that
            was folded into it, the structure without those norms; with ``classes``, it answers in
            those of its classes, in that order.

    Raises:
        ConfigError: The library has no such architecture or refuses the configuration, or the
            callable failed or returned no module.
        UnsupportedError: See `unpack.canonical`.
    """
    # torch's fused encoder runs in eval mode only and steps over the Linears inside it: what is
    # planned, calibrated and traced would then be another computation than what trains.
    torch.backends.mha.set_fastpath_enabled(False)
    make: dict[str, Callable[[str, Any], nn.Module]] = {
        "hf": _from_transformers,
        "timm": _from_timm,
        "python": _from_python,
    }
    scheme = description["spec"].partition(":")[0]
    model = unpack.canonical(make[scheme](description["spec"], description["config"]).float())
    unpack.without_batchnorm(model, description.get("folded", ()))
    classes.answer_in(model, description.get("classes", ()))
    return model


def probe(model: nn.Module, inputs: Tensors, io: IO, spec: str) -> None:
    """Pass examples through a network, one and two at a time: where network and data first meet.

    Args:
        model: The network; left as it was.
        inputs: {name: tensor[batch, ...]}.
        io: Names and shapes of inputs and outputs.
        spec: What the recipe calls the network, to begin messages with.

    Raises:
        ConfigError: The network fails on the data, or its outputs are not of io's shapes.
        ContractError: It returns others than io's, or takes one example at a time and no more.
    """
    training = model.training
    model.eval()
    try:
        with (
            _refusals(spec, f"does not take the data's inputs {', '.join(inputs)}"),
            torch.no_grad(),
        ):
            try:
                outputs = forward(model, inputs, io)
            except ContractError as error:
                raise ContractError(
                    f"model {spec!r}: {error}: return these (teacher and student need the same "
                    "outputs), or name in the data's io what both return"
                ) from error
        rows = len(next(iter(inputs.values())))
        for tensor in io.outputs:
            found = list(outputs[tensor.name].shape)
            if not _fits(found, tensor.shape, rows):
                raise ConfigError(
                    f"model {spec!r}: its output {tensor.name!r} is {found} for {rows} examples, "
                    f"the data's io says {tensor.shape}: correct the network's size or the io"
                )
        if rows == 1:
            _require_two(model, {n: torch.cat([t, t]) for n, t in inputs.items()}, io, spec)
    finally:
        model.train(training)


def _require_two(model: nn.Module, inputs: Tensors, io: IO, spec: str) -> None:
    """Refuse a network that answered one example and does not answer two."""
    try:
        with torch.no_grad():
            outputs = forward(model, inputs, io)
    except Exception as error:  # the network's own code raises what it likes
        reason = " ".join(str(error).split())[:200]
        what = f"it fails{_place(error)} ({type(error).__name__}: {reason})"
        raise ContractError(f"{_ONE.format(spec)} {what}; {_ANY}") from error
    for tensor in io.outputs:
        found = list(outputs[tensor.name].shape)
        if not _fits(found, tensor.shape, 2):
            wanted = [2 if size == "batch" else size for size in tensor.shape]
            what = f"its output {tensor.name!r} is {found}, expected {wanted}"
            raise ContractError(f"{_ONE.format(spec)} {what}; {_ANY}")


_ONE = "model {!r}: takes a batch of 1 only: for 2 examples"
_ANY = (
    "training, calibration and an engine take any batch: take the batch size from the input's "
    "shape there, x.shape[0] or -1, not the number 1"
)


def _fits(found: Sequence[int], shape: Sequence[int | str], rows: int) -> bool:
    """Whether a shape is what io says; symbols other than the batch may be any size."""
    sizes = [rows if size == "batch" else size for size in shape]
    return len(found) == len(sizes) and all(
        isinstance(want, str) or want == have for want, have in zip(sizes, found, strict=True)
    )


def _place(error: Exception) -> str:
    """The last line of the network's own code that an exception passed."""
    ours = tuple(str(Path(file).parent) for file in (torch.__file__, __file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*ours, "<")):
            return f" in {frame.filename}, line {frame.lineno} (`{frame.line}`)"
    return ""


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


def _hf_config(spec: str, path: Path) -> dict[str, Any]:
    """A transformers configuration, checked as far as every architecture needs it."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"model {spec!r}: no such file: {file}: give a directory that save_pretrained wrote, "
            "its config.json, or a hub id, org/name"
        )
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
    if not isinstance(config["architectures"][0], str):
        raise ConfigError(
            f"model {spec!r}: {file} has 'architectures' = {config['architectures']!r}, expected "
            "the name of a class first"
        )
    return config


def _timm_config(spec: str) -> dict[str, Any]:
    """Name and arguments of a timm model; values are Python literals, other text is a string."""
    timm = _timm(spec)
    name, _, query = spec.removeprefix("timm:").partition("?")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ConfigError(
            f"model {spec!r}: timm {timm.__version__} has no model {name!r}; the nearest names "
            f"are: {', '.join(near) or 'none, see timm.list_models()'}"
        )
    arguments: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not key.isidentifier() or not equals or key in {"pretrained", "checkpoint_path"}:
            raise ConfigError(
                f"model {spec!r}: found argument {part!r}, expected <argument>=<value> of "
                "timm.create_model, joined by &; weights are given by a checkpoint of their own"
            )
        try:  # as model.json gives it back, where a tuple is a list
            arguments[key] = json.loads(json.dumps(ast.literal_eval(value)))
        except (ValueError, SyntaxError, TypeError):
            arguments[key] = value
    return {"name": name, "arguments": arguments}


def _timm(spec: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ToolchainError(
            f"model {spec!r}: timm cannot be imported ({str(error).splitlines()[0]}): "
            f"{install('timm')}"
        ) from error
    return timm


def _from_python(spec: str, _config: None) -> nn.Module:
    make = python_object(spec, "model")
    with _refusals(spec, "cannot be built"):
        model = make()
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model {spec!r} returned {type(model).__name__}, expected a torch.nn.Module"
        )
    if next(model.parameters(), None) is None:
        raise ConfigError(f"model {spec!r} has no parameters: nothing to compress")
    return model


def _from_timm(spec: str, config: Mapping[str, Any]) -> nn.Module:
    timm = _timm(spec)
    timm.layers.set_fused_attn(False)  # as in `_from_transformers`
    with _refusals(spec, "cannot be built"):
        model: nn.Module = timm.create_model(
            config["name"], pretrained=False, **config["arguments"]
        )
    return model


def _from_transformers(spec: str, config: Mapping[str, Any]) -> nn.Module:
    import transformers

    config = dict(config)
    name = config["architectures"][0]
    architecture = getattr(transformers, name, None)
    if architecture is None or not hasattr(architecture, "_from_config"):
        raise ConfigError(
            f"model {spec!r}: transformers {transformers.__version__} has no "
            f"architecture {name!r}; correct 'architectures' in its config.json"
        )
    with _refusals(spec, "cannot be built"):
        parsed = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        # Eager attention: on a CPU it trains faster than the fused kernel, and the graph keeps the
        # plain MatMul-Softmax-MatMul that TensorRT fuses itself.
        model: nn.Module = architecture._from_config(parsed, attn_implementation="eager")
    return model


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
