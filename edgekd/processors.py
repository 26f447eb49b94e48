"""The preprocessing a network was trained with, read from what its publisher ships.

Three sources: a transformers processor (``preprocessor_config.json``), a tokenizer's directory, and
timm's configuration of a pretrained model. Each becomes an `Image` or a `Text`, that is: plain
numbers which `edgekd.preprocess` follows. The classes of processors whose pixels the tests compare
are listed by name with their defaults, since old configurations leave most keys out; another class
may resize in a way of its own, so it is refused and not guessed.

Tokenizers go through transformers where a directory needs it (``vocab.txt`` alone, settings that it
writes into the tokenizer when it loads it), and are stored as the ``tokenizer.json`` that results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import edgekd.models  # noqa: F401 (makes timm and transformers importable beside any torchvision)
from edgekd.errors import ConfigError, names_that_exist
from edgekd.io_json import TOKENIZER, Image, Interpolation, Text
from edgekd.preprocess import FILTERS

STANDARD = [0.5, 0.5, 0.5]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
BILINEAR, BICUBIC = 2, 3


def _defaults(
    size: Any, resample: int, mean_std: tuple[list[float], list[float]], **more: Any
) -> dict[str, Any]:
    always = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    mean, std = mean_std
    own = {"size": size, "resample": resample, "image_mean": mean, "image_std": std}
    return {**always, **own, **more}


HALF = (STANDARD, STANDARD)
SQUARE = {"height": 224, "width": 224}
CROP = {"do_center_crop": True, "crop_size": SQUARE}
# Class without its suffix -> what it does where its configuration is silent (transformers 5.23).
PROCESSORS = {
    "ViT": _defaults(SQUARE, BILINEAR, HALF),
    "DeiT": _defaults({"height": 256, "width": 256}, BICUBIC, HALF, **CROP),
    "ConvNext": _defaults({"shortest_edge": 384}, BICUBIC, HALF, crop_pct=224 / 256),
    "Bit": _defaults({"shortest_edge": 224}, BICUBIC, CLIP, do_convert_rgb=True, **CROP),
    "CLIP": _defaults({"shortest_edge": 224}, BICUBIC, CLIP, do_convert_rgb=True, **CROP),
    "MobileNetV1": _defaults({"shortest_edge": 256}, BILINEAR, HALF, **CROP),
    "MobileNetV2": _defaults({"shortest_edge": 256}, BILINEAR, HALF, **CROP),
    "Pvt": _defaults(SQUARE, BICUBIC, IMAGENET),
}
# What transformers takes for a model whose configuration names no class.
BY_MODEL = {"vit": "ViT", "deit": "DeiT", "swin": "ViT", "swinv2": "ViT", "convnext": "ConvNext",
            "convnextv2": "ConvNext", "resnet": "ConvNext", "dinov2": "Bit", "bit": "Bit",
            "mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2"}  # fmt: skip
SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
UNDERSTOOD = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
VOCABULARIES = (TOKENIZER, "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
                "sentencepiece.bpe.model")  # fmt: skip
LONGEST = 512  # ids, where a network does not say how many it takes
# Types that share RoBERTa's positions (transformers: create_position_ids_from_input_ids).
BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "ibert", "lilt",
                  "longformer", "luke", "mpnet", "roberta-prelayernorm", "xlm-roberta-xl",
                  "xmod")  # fmt: skip
MERGES = "merges.txt"  # of a byte-pair tokenizer, beside its vocab.json


@dataclass(frozen=True)
class Tokenizing:
    """A tokenizer as it travels.

    Attributes:
        steps: What `edgekd.preprocess` does with it.
        content: ``tokenizer.json``.
        inputs: The network's inputs it makes, in order.
        vocabulary: Number of ids.
    """

    steps: Text
    content: bytes
    inputs: list[str]
    vocabulary: int


def image_of_directory(directory: Path, model: Mapping[str, Any] | None = None) -> Image:
    """The steps of a transformers image processor.

    Args:
        directory: Holds ``preprocessor_config.json``.
        model: The network's configuration, to know the class where the file does not name it.

    Raises:
        ConfigError: The file is missing, is of a class that is not known here, or asks for a step
            that is not.
    """
    file = directory / "preprocessor_config.json"
    given = _read(file)
    named = given.get("image_processor_type") or given.get("feature_extractor_type") or ""
    name = next((named.removesuffix(s) for s in SUFFIXES if named.endswith(s)), named)
    name = name.replace("ConvNeXT", "ConvNext").replace("ConvNeXt", "ConvNext")
    if not named and model is not None:
        name = BY_MODEL.get(str(model.get("model_type")), "")
    if name not in PROCESSORS:
        raise ConfigError(
            f"{file}: is of class {named!r}, whose pixels edgekd does not make: "
            "preprocess in a python: data source instead. "
            f"{names_that_exist(name, PROCESSORS)}"
        )
    values = {**PROCESSORS[name], **{k: v for k, v in given.items() if v is not None}}
    asked = sorted(k for k, v in values.items() if k.startswith("do_") and v is True)
    unknown = [key for key in asked if key not in UNDERSTOOD]
    if unknown:
        raise ConfigError(
            f"{file}: asks for {unknown[0]}, expected {', '.join(sorted(UNDERSTOOD))} at most: "
            "preprocess in a python: data source instead"
        )
    try:
        return _image(name, values)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file}: cannot be followed: {reason}") from error


def _image(name: str, values: Mapping[str, Any]) -> Image:
    """Steps from the keys of a ``preprocessor_config.json``, all of them given."""
    resize, crop = _resize(values["size"], square=name in ("ViT", "DeiT", "Pvt")), None
    if values.get("do_center_crop"):
        crop = _pair(values["crop_size"])
    if name == "ConvNext":
        if not isinstance(resize, int):
            raise ValueError(f"size is {values['size']}, expected shortest_edge")
        if resize < 384:
            # The class's own rule: larger networks see the whole image, squeezed.
            resize, crop = int(resize / values["crop_pct"]), (resize, resize)
        else:
            resize = (resize, resize)
    scale = values["rescale_factor"] if values["do_rescale"] else 1.0
    mean, std = values["image_mean"], values["image_std"]
    if not values["do_normalize"]:
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    names = {number: filter_ for filter_, number in FILTERS.items()}
    return Image(
        channels="rgb" if len(mean) == 3 else "grey",
        transparency="white" if values.get("do_convert_rgb") else "drop",
        resize=resize if values["do_resize"] else None,
        interpolation=names[values["resample"]],  # type: ignore[arg-type]
        crop=crop,
        rescale=scale,
        mean=list(mean),
        std=list(std),
    )


def _resize(size: Any, square: bool) -> tuple[int, int] | int:
    if isinstance(size, int):
        return (size, size) if square else size
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    if set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise ValueError(f"size is {size}, expected a number, height and width, or shortest_edge")


def _pair(size: Any) -> tuple[int, int]:
    found = _resize(size, square=True)
    return (found, found) if isinstance(found, int) else found


def image_of_timm(name: str, arguments: Mapping[str, Any]) -> Image:
    """The steps that timm's configuration of a model asks for.

    Args:
        name: Of the model, known to timm.
        arguments: Those of ``timm.create_model``; ``img_size`` and ``in_chans`` change the input.

    Raises:
        ConfigError: It asks for steps that are not known here.
    """
    import timm.data
    import timm.models

    library: Any = timm  # untyped
    published = library.models.get_pretrained_cfg(name)
    known = published.to_dict() if published is not None else {}
    size = arguments.get("img_size") or known.get("input_size", (3, 224, 224))[1:]
    height, width = (size, size) if isinstance(size, int) else size
    channels = int(arguments.get("in_chans", 3))
    if channels not in (1, 3):
        raise ConfigError(f"model 'timm:{name}': takes {channels} channels, expected 1 or 3")
    asked = {"input_size": (channels, height, width)}
    found = library.data.resolve_data_config(asked, pretrained_cfg=known)
    mode, filter_ = found["crop_mode"], found["interpolation"]
    square = height == width or mode == "squash"
    if mode not in ("center", "squash") or filter_ not in get_args(Interpolation) or not square:
        raise ConfigError(
            f"model 'timm:{name}': asks for crop_mode {mode!r} to {height} x {width} by "
            f"{filter_!r}, expected center of a square, or squash, and a filter of Pillow's: "
            "preprocess in a python: data source instead"
        )
    scaled = [math.floor(side / found["crop_pct"]) for side in (height, width)]
    return Image(
        channels="rgb" if channels == 3 else "grey",
        resize=scaled[0] if mode == "center" else (scaled[0], scaled[1]),
        interpolation=filter_,
        crop=(height, width),
        crop_offset="half_even",
        rescale=1 / 255,
        mean=list(found["mean"])[:channels],
        std=list(found["std"])[:channels],
    )


def text_of_directory(
    directory: Path, model: Mapping[str, Any] | None, max_length: int | None, pair: bool
) -> Tokenizing:
    """The steps of a tokenizer, and the file that travels.

    Args:
        directory: Holds ``tokenizer.json``, or the files that transformers makes one from.
        model: The network's configuration, for its type, its longest input and its padding.
        max_length: What the recipe asks for; default: what network and tokenizer can take.
        pair: Whether two sentences make one input.

    Raises:
        ConfigError: Files are missing or cannot be read, nothing can pad, or `max_length` is more
            than the network can take.
    """
    held = _files(directory)
    import tokenizers
    import transformers

    library: Any = transformers  # untyped
    try:
        if (directory / "tokenizer_config.json").is_file() or not (directory / TOKENIZER).is_file():
            found = library.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        else:
            found = library.PreTrainedTokenizerFast(tokenizer_file=str(directory / TOKENIZER))
        backend = tokenizers.Tokenizer.from_str(found.backend_tokenizer.to_str())
    except Exception as error:  # transformers and tokenizers raise what they like
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{directory}: its tokenizer cannot be read from {', '.join(held)} "
            f"({type(error).__name__}: {reason}): copy all of its files there"
        ) from error
    config = model or {}
    pad = _padding(found, backend, config)
    if pad is None:
        raise ConfigError(
            f"{directory}: the tokenizer has no padding token, nor the model a pad_token_id: name "
            "pad_token in tokenizer_config.json"
        )
    backend.no_truncation()
    backend.no_padding()
    steps = Text(
        max_length=_length(found, config, max_length, directory),
        pad_id=pad,
        pad_type_id=found.pad_token_type_id,
        padding_side=found.padding_side,
        truncation_side=found.truncation_side,
        pair=pair,
    )
    inputs = ["input_ids", "attention_mask"]
    # A network with one segment has nothing to learn from the segments' ids.
    if int(config.get("type_vocab_size") or (2 if config.get("model_type") == "bert" else 0)) > 1:
        inputs.append("token_type_ids")
    return Tokenizing(steps, backend.to_str().encode(), inputs, backend.get_vocab_size())


def _files(directory: Path) -> list[str]:
    """The files of a tokenizer that lie there, enough of them to read one."""
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise ConfigError(
            f"{directory}: holds no tokenizer: found none of {', '.join(VOCABULARIES)}: copy the "
            "tokenizer's files there, or name their directory in data.preprocess"
        )
    held = [name for name in (*VOCABULARIES, MERGES) if (directory / name).is_file()]
    if held == ["vocab.json"]:
        raise ConfigError(
            f"{directory}: holds half a tokenizer: found vocab.json, expected {MERGES} (or a "
            f"{TOKENIZER}) beside it: copy the tokenizer's files there"
        )
    return held


def _padding(tokenizer: Any, backend: Any, config: Mapping[str, Any]) -> int | None:
    if tokenizer.pad_token is not None:
        return int(tokenizer.pad_token_id)
    if config.get("pad_token_id") is not None:
        return int(config["pad_token_id"])
    ids = (backend.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((found for found in ids if found is not None), None)


def positions(config: Mapping[str, Any]) -> int | None:
    """Ids of the longest text that a network's positions allow; None where it has no such limit.

    RoBERTa's kin count positions from behind the padding's id: 514 of them take 512 ids.

    Args:
        config: Of the network; empty where nothing is known of it.

    Raises:
        ConfigError: They are no number, or leave no id.
    """
    given = config.get("max_position_embeddings")
    if not given:
        return None
    if config.get("model_type") in BEHIND_PADDING:
        pad = 1 if config.get("pad_token_id") is None else config["pad_token_id"]
        given = given - pad - 1 if isinstance(given, int) and isinstance(pad, int) else None
    if not isinstance(given, int) or given < 1:
        raise ConfigError(
            f"config.json: max_position_embeddings is {config['max_position_embeddings']!r} and "
            f"pad_token_id {config.get('pad_token_id')!r}, expected whole numbers that leave at "
            "least 1 position: correct them"
        )
    return given


def _length(tokenizer: Any, config: Mapping[str, Any], asked: int | None, directory: Path) -> int:
    """Ids of the longest text."""
    limit = min(positions(config) or LONGEST, int(tokenizer.model_max_length))
    if asked is not None and asked > limit:
        raise ConfigError(
            f"data.max_length is {asked}, the model and the tokenizer in {directory} take at most "
            f"{limit}: lower it"
        )
    return asked or limit


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file}: no such file: copy the model's image processor there, or name its directory "
            "in data.preprocess"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file}: is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: holds a JSON {type(found).__name__}, expected an object")
    return found
