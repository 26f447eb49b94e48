"""What a network's own specification says of its inputs, its classes and its preprocessing.

A data source that is only files needs to know what the files must become. That is read from the
recipe's ``data.preprocess`` or else from the teacher's directory, its ``config.json`` or timm's
configuration. Where a teacher is trained from nothing and no processor lies beside it, an image is
squeezed to the network's size and scaled to -1..1; beside given weights that would be a guess that
costs accuracy in silence, so it is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd import models, processors, progress, weights
from edgekd.classes import networks_own
from edgekd.errors import ConfigError
from edgekd.io_json import IO, TOKENIZER, Image, Nothing, Preprocess, Tensor, Text
from edgekd.recipe import Recipe

Config = dict[str, Any]
FROM_NOTHING = 0.5  # mean and std: 0..1 becomes -1..1
SEQUENCE = "sequence"  # the open size of a text; [export.dynamic] gives its limits


@dataclass(frozen=True)
class Interface:
    """Inputs, classes and preprocessing of a network.

    Attributes:
        inputs: With shapes, dtypes and ranges.
        preprocess: How raw data becomes them.
        labels: Names of the classes in the network's order, as far as it names them.
        classes: Number of classes; None where it leaves that to its library.
        files: What travels beside ``io.json``.
    """

    inputs: list[Tensor]
    preprocess: Preprocess
    labels: Sequence[str] | None = None
    classes: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def io(self, labels: Sequence[str]) -> IO:
        """``io.json`` of a classifier of these inputs."""
        logits = Tensor(name="logits", dtype="float32", shape=["batch", len(labels)])
        return IO(
            inputs=self.inputs, outputs=[logits], labels=list(labels), preprocess=self.preprocess
        )


def of_recipe(recipe: Recipe) -> Interface:
    """The interface of a recipe's teacher.

    Raises:
        ConfigError: Nothing says how images or text become the inputs, or what says it is wrong.
    """
    spec = recipe.teacher.model
    config = models.describe(spec, recipe.base)["config"]
    asked = recipe.data.preprocess or spec
    scheme = asked.partition(":")[0]
    timm = spec.startswith("timm:")
    labels, classes = _classes(config or {})
    if timm:
        classes = int(config["arguments"].get("num_classes", 1000))
    name = "x" if timm else "pixel_values"  # what each library calls it
    if scheme == "timm":
        own = models.describe(asked, recipe.base)["config"]
        steps = processors.image_of_timm(own["name"], own["arguments"])
        return Interface([_pixels(steps, name)], steps, labels, classes)
    if scheme != "hf":
        raise ConfigError(
            f"recipe {recipe.name}: data.source {recipe.data.source!r} does not know how to feed "
            f'{asked!r}: give data.preprocess = "hf:<directory>" or "timm:<name>"'
        )
    directory = weights.place(asked, recipe.base, "data.preprocess")
    if not directory.exists():
        raise ConfigError(f"data.preprocess {asked!r}: no such directory: {directory}")
    directory = directory if directory.is_dir() else directory.parent
    if not timm and _takes_text(directory, config):
        return _text(recipe, directory, config or {}, labels, classes)
    if recipe.data.preprocess or (directory / "preprocessor_config.json").is_file():
        steps = processors.image_of_directory(directory, config)
    else:
        steps = _from_nothing(recipe, directory, config)
    return Interface([_pixels(steps, name)], steps, labels, classes)


def _takes_text(directory: Path, config: Config | None) -> bool:
    if config is not None:
        return "vocab_size" in full(config)
    held = [name for name in processors.VOCABULARIES if (directory / name).is_file()]
    return bool(held) and not (directory / "preprocessor_config.json").is_file()


def _text(
    recipe: Recipe, directory: Path, config: Config, labels: Any, classes: int | None
) -> Interface:
    known = full(config) if config else {}
    settings = recipe.data
    held = any((directory / name).is_file() for name in processors.VOCABULARIES)
    longest, is_open = _longest(recipe)
    if settings.source == "random" and settings.preprocess is None and not held:
        # Ids can be drawn without a tokenizer; with one, what is made also answers a sentence.
        limit = processors.positions(known)
        if longest and limit and longest > limit:
            raise ConfigError(
                f"recipe {recipe.name}: data.max_length (or export.dynamic.{SEQUENCE}.max) is "
                f"{longest}, the positions of the model in {directory} allow at most {limit}: "
                "lower it"
            )
        length = SEQUENCE if is_open else longest or limit or processors.LONGEST
        drawn = _ids(["input_ids", "attention_mask"], length, int(known["vocab_size"]))
        return Interface(drawn, Nothing(), labels, classes)
    pair = settings.text_pair is not None
    found = processors.text_of_directory(directory, known, longest, pair)
    vocabulary = int(known.get("vocab_size", found.vocabulary))
    if found.vocabulary > vocabulary:
        raise ConfigError(
            f"{directory}: its tokenizer makes ids up to {found.vocabulary - 1}, the network takes "
            f"up to {vocabulary - 1}: give the tokenizer of this network"
        )
    steps = found.steps
    if is_open:  # an engine refuses what is shorter than its profile, too
        shortest = recipe.export.dynamic[SEQUENCE].min
        steps = steps.model_copy(update={"min_length": shortest})
    inputs = _ids(found.inputs, SEQUENCE if is_open else steps.max_length, vocabulary)
    return Interface(inputs, steps, labels, classes, {TOKENIZER: found.content})


def _longest(recipe: Recipe) -> tuple[int | None, bool]:
    """Ids of the longest sentence, as far as the recipe says; whether shorter ones stay shorter."""
    asked, sizes = recipe.data.max_length, recipe.export.dynamic.get(SEQUENCE)
    if sizes is None:
        return asked, False
    if asked is not None and asked > sizes.max:
        raise ConfigError(
            f"recipe {recipe.name}: data.max_length is {asked} and export.dynamic.{SEQUENCE}.max "
            f"{sizes.max}: an engine would refuse the longer sentences: make them the same"
        )
    return asked or sizes.max, True


def _ids(names: Sequence[str], length: int | str, vocabulary: int) -> list[Tensor]:
    most = {"input_ids": vocabulary - 1}
    return [
        Tensor(name=name, dtype="int64", shape=["batch", length], range=(0, most.get(name, 1)))
        for name in names
    ]


def given_weights(recipe: Recipe) -> str | None:
    """The file a teacher's weights come from; None where it is trained from nothing."""
    beside = models.weights_beside(recipe.teacher.model, recipe.base)
    return recipe.teacher.checkpoint or (beside.name if beside else None)


def tell_order(recipe: Recipe, what: Interface, labels: Sequence[str]) -> None:
    """Say how the data's words are numbered where given weights may number them otherwise."""
    if what.labels or not given_weights(recipe):
        return
    how = "as they sort" if list(labels) == sorted(labels) else "as the data list them"
    shown = ", ".join([*labels[:3], *(["..."] if len(labels) > 3 else [])])
    _say_once(
        f"labels: numbered {how} ({shown}): the network names no classes; check that its "
        "checkpoint counts so"
    )


@functools.cache
def _say_once(message: str) -> None:
    """Every stage of a run reads the data anew."""
    progress.say(message)


def _from_nothing(recipe: Recipe, directory: Path, config: Config | None) -> Image:
    trained = given_weights(recipe)
    if config is None or (trained and recipe.data.source != "random"):
        raise ConfigError(
            f"{directory / 'preprocessor_config.json'}: no such file, and "
            f"{trained or 'the network'} was trained with a preprocessing that nothing here tells: "
            "copy it there, or give data.preprocess"
        )
    known = full(config)
    size, channels = known.get("image_size", 224), int(known.get("num_channels", 3))
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if channels not in (1, 3):
        raise ConfigError(f"{directory}: the network takes {channels} channels, expected 1 or 3")
    return Image(
        channels="rgb" if channels == 3 else "grey",
        resize=sides,
        rescale=1 / 255,
        mean=[FROM_NOTHING] * channels,
        std=[FROM_NOTHING] * channels,
    )


def _pixels(steps: Image, name: str) -> Tensor:
    size = steps.crop or steps.resize
    if size is None or isinstance(size, int):
        raise ConfigError(
            f"its preprocessing leaves images of different sizes (resize {steps.resize}, no crop): "
            "give one that ends in one size"
        )
    # From black to white, whichever of them is the smaller number after the division.
    ends = [
        (value * 255 * steps.rescale - mean) / std
        for mean, std in zip(steps.mean, steps.std, strict=True)
        for value in (0, 1)
    ]
    shape: list[int | str] = ["batch", len(steps.mean), *size]
    return Tensor(name=name, dtype="float32", shape=shape, range=(min(ends), max(ends)))


def full(config: Config) -> Config:
    """A transformers configuration with the defaults of its class filled in.

    Raises:
        ConfigError: transformers does not know its type, or refuses it.
    """
    import transformers

    values = dict(config)
    try:
        parsed = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:  # transformers raises what it likes at a configuration
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"config.json: transformers refuses it: {reason}") from error
    return dict(parsed.to_dict())


def _classes(config: Config) -> tuple[list[str] | None, int | None]:
    """Names of the classes where the configuration gives real ones, and their number."""
    ordered = networks_own(config)
    if not ordered:
        return None, config.get("num_labels")
    made_up = all(name == f"LABEL_{index}" for index, name in enumerate(ordered))
    return (None if made_up else ordered), len(ordered)


__all__ = ["Interface", "Text", "full", "given_weights", "of_recipe", "tell_order"]
