"""A first recipe for somebody's model: every choice written down, with the reason beside it.

The model's own files decide: its weights where it has some, its processor or tokenizer through the
data section, its kind (image or text) and whether it has convolutions. What cannot be known, the
data, is noise unless it is named, so that the recipe runs as it is: noise shows latency, parity and
what the engine makes of the graph, and accuracy then reads "not measured".
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from edgekd import artifact, models, plan, recipe, structure, weights
from edgekd.errors import ConfigError
from edgekd.target import Target

WEIGHTS = ("pytorch_model.bin", "model.pt", "model.pth")
SOURCES = {".parquet": "hf:parquet", ".csv": "hf:csv", ".tsv": "hf:csv"}


def init(
    model: str,
    target: Target,
    path: Path,
    train: Path | None = None,
    evaluation: Path | None = None,
) -> Path:
    """Write a commented recipe that runs unedited.

    Args:
        model: ``hf:<directory or config.json>``, ``timm:<name>`` or ``python:<module>:<callable>``;
            a directory is looked up from here.
        target: The device it is for.
        path: The recipe; it must not exist yet.
        train: Examples to train on: a directory of one directory a class, or a parquet, csv or tsv
            file; default: noise.
        evaluation: The same, of examples that are not trained on.

    Returns:
        The path.

    Raises:
        ConfigError: The recipe exists, the model or the data are not there, only one of the two
            splits is given, or they are of a form that no source reads.
        UnsupportedError: The target cannot run what the recipe would ask for.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already: name another file with --recipe, or remove it")
    spec, file = _model(model, path.parent)
    lines = [
        *_head(model, target, path),
        *_teacher(spec, file, model),
        *_data(train, evaluation, path.parent),
        *_training(train is not None, _repeats(model)),
        *_rest(target),
    ]
    text = "\n".join(lines) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.replace_file(path, lambda place: place.write_text(text, encoding="utf-8"))
    try:
        plan.refuse(recipe.load(path), [target])
    except BaseException:
        path.unlink()
        raise
    return path


def _model(model: str, base: Path) -> tuple[str, Path | None]:
    """The model as the recipe names it, and its weights where they lie beside its configuration."""
    scheme, _, rest = model.partition(":")
    if scheme in ("timm", "python") and rest:
        return model, None
    if scheme != "hf" or not rest:
        raise ConfigError(
            f"model: found {model!r}, expected hf:<directory or config.json>, timm:<name> or "
            "python:<module>:<callable>"
        )
    place = weights.place(model, Path())
    config = place / "config.json" if place.is_dir() else place
    if not config.is_file():
        raise ConfigError(f"model {model!r}: no such file: {config}")
    found = [config.parent / name for name in WEIGHTS]
    file = weights.in_directory(config.parent) or next(filter(Path.is_file, found), None)
    spec = f"hf:{_from(place, base)}" if place == Path(rest) else model  # a hub id stays one
    return spec, file


def _head(model: str, target: Target, path: Path) -> list[str]:
    last = model.rpartition(":")[2].partition("?")[0].removesuffix("/config.json").rstrip("/")
    name = re.sub(r"[^a-z0-9]+", "-", Path(last).name.lower()).strip("-") or "student"
    return [
        f"# {model} for {target.name}. Before anything else, what to expect of it there:",
        f"#   edgekd plan {path} --target {target.name}",
        "# and then the whole chain, measured on this machine's CPU too:",
        f"#   edgekd run {path} --target {target.name} --target cpu --scenario single-stream",
        f"name = {_text(name)}",
        "seed = 0",
        "# What is compared side by side: the float network, the dense INT8 student, the 2:4 one.",
        'arms = ["fp16", "dense", "sparse"]',
        "",
    ]


def _teacher(spec: str, file: Path | None, model: str) -> list[str]:
    lines = ["[teacher] # the network whose knowledge is kept; the student starts as its copy"]
    lines.append(f"model = {_text(spec)}")
    if file is None:
        return [
            *lines,
            f"# {model} has no weights beside it. Name a .safetensors or a .pt of tensors here:",
            '# checkpoint = "weights.safetensors"',
            "",
            "[teacher.fit] # until then it is as it was initialised; remove this with a checkpoint",
            "steps = 0",
            "",
        ]
    if file.name in WEIGHTS or spec.endswith("config.json"):  # looked for in directories alone
        beside = str(Path(spec.partition(":")[2].removesuffix("config.json")) / file.name)
        lines.append(f"checkpoint = {_text(beside)} # read as tensors only")
    return [*lines, ""]


def _data(train: Path | None, evaluation: Path | None, base: Path) -> list[str]:
    if train is None and evaluation is None:
        return [
            "[data]",
            "# Noise of the right shape: it shows latency, parity and what the engine makes of the",
            '# graph; accuracy reads "not measured". With real examples:',
            '#   source = "hf:imagefolder" # or hf:parquet, hf:csv, python:<module>:<callable>',
            '#   train = "data/train"',
            '#   evaluation = "data/test"',
            'source = "random"',
            "",
        ]
    if train is None or evaluation is None:
        raise ConfigError(
            f"data: only {'train' if train else 'evaluation'} is given: give both, examples to "
            "train on and others to judge by"
        )
    source = {_source(place) for place in (train, evaluation)}
    if len(source) > 1:
        raise ConfigError(
            f"data: {train} and {evaluation} are of two forms ({', '.join(sorted(source))}): give "
            "both in one"
        )
    return [
        "[data] # image, text and label columns are found where there is one of each",
        f"source = {_text(source.pop())}",
        f"train = {_text(_from(train, base))}",
        f"evaluation = {_text(_from(evaluation, base))}",
        "samples = 512 # of the evaluation examples, that travel to the device",
        "",
    ]


def _source(place: Path) -> str:
    if place.is_dir():
        return "hf:imagefolder"
    if not place.is_file():
        raise ConfigError(f"data: no such file or directory: {place}")
    if place.suffix not in SOURCES:
        raise ConfigError(
            f"data: {place} ends in {place.suffix!r}, expected a directory of images or one of "
            f"{', '.join(SOURCES)}"
        )
    return SOURCES[place.suffix]


def _repeats(model: str) -> bool:
    """Whether the network, which must be one that can be built, has repeated blocks."""
    return bool(structure.blocks(models.build(models.describe(model, Path()))))


def _training(with_data: bool, repeats: bool) -> list[str]:
    """Post-training quantization on noise; with examples the steps that 2:4 needs to recover."""
    steps = (
        ["steps = 1000 # 0 is post-training quantization; 2:4 without training loses accuracy"]
        if with_data
        else ["steps = 0 # post-training quantization; noise teaches nothing"]
    )
    return [
        "[sparsity] # 2:4 on every layer that can take it",
        'method = "magnitude"',
        'exclude = [] # for example ["*.layers.0.*"]',
        "",
        "[quantization] # static symmetric INT8: per-channel weights, per-tensor activations",
        "calibration_samples = 128",
        "convolutions = false # INT8 ones fuse with nothing so far; they stay fp16, with 2:4",
        "",
        "[distill]",
        *steps,
        "batch_size = 32",
        "learning_rate = 2e-5",
        "batchnorm_warmup = 0 # float steps before batch norm is frozen and folded",
        "",
        "[distill.losses]",
        "logits = 1.0",
        "blocks = 1.0 # what each block returns, against the teacher's"
        if repeats
        else "blocks = 0.0 # the network has no repeated blocks to compare",
        "",
    ]


def _rest(target: Target) -> list[str]:
    opset = min(17, target.parser.opset_max or 17)
    return [
        "[export] # sizes the engine must take",
        f"opset = {opset}",
        "batch_min = 1",
        "batch_opt = 8",
        "batch_max = 32",
        "",
        "[gate] # budgets of `edgekd gate`; what is not given is not checked",
        "# accuracy_drop_points = 1.0",
        "# latency_ms = 5.0",
    ]


def _from(place: Path, base: Path) -> str:
    return Path(os.path.relpath(place, base)).as_posix()


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(value, ensure_ascii=False)
