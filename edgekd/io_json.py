"""``io.json``: what goes into a network, what comes out, and how raw data becomes the inputs.

It lies beside every graph and every engine, and with it the files it names: wrong preprocessing on
a device is otherwise invisible, since a network answers anything. `Image` and `Text` say what
`edgekd.preprocess` does, step by step and in its order; they hold every number that decides a pixel
or an id and nothing that a library would have to look up. `Nothing` means that the data's own code
makes the inputs, so only arrays can be given. What is left to do with the outputs, such as the
suppression of a detector's boxes, is named beside them and is in no graph.

Plain values only (pydantic), so it reads on a device without Pillow or tokenizers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from edgekd.artifact import Artifact

IO_JSON = "io.json"
TOKENIZER: Final = "tokenizer.json"

Role = Literal["logits", "values"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Plain):
    """One named input or output of a network.

    Attributes:
        name: As the network's forward and the graphs name it.
        dtype: NumPy's name, for example ``float32``.
        shape: Sizes and symbols (``"batch"``).
        range: Closed interval of legal values.
        role: Of an output: ``logits`` are compared as distributions over the last axis (KL),
            ``values`` as numbers. Default: the first output is logits, the others are values.
    """

    name: str
    dtype: str
    shape: list[int | str]
    range: tuple[float, float] | None = None
    role: Role | None = None


class Image(_Plain):
    """An image file to float32[channels, height, width]; the steps in their order.

    Attributes:
        channels: ``rgb`` or ``grey``. The image is turned upright first (EXIF).
        transparency: What becomes of it: ``drop`` keeps the colour below, ``white`` puts the image
            on a white ground.
        resize: (height, width), or the length that the shorter edge gets, the longer one in
            proportion (rounded down); None leaves the size.
        interpolation: Pillow's filter of that name, on 8-bit pixels.
        crop: (height, width) cut from the middle, zeros where the image is smaller.
        crop_offset: Half a pixel that is left over: ``floor`` as transformers, ``half_even`` as
            torchvision and so timm.
        rescale: Factor from 0..255; 1/255 where the network was trained on 0..1.
        mean: Subtracted, one a channel.
        std: Divided by, one a channel.
    """

    kind: Literal["image"] = "image"
    layout: Literal["NCHW"] = "NCHW"
    channels: Literal["rgb", "grey"] = "rgb"
    transparency: Literal["drop", "white"] = "drop"
    resize: tuple[int, int] | int | None
    interpolation: Interpolation = "bilinear"
    crop: tuple[int, int] | None = None
    crop_offset: Literal["floor", "half_even"] = "floor"
    rescale: float
    mean: list[float]
    std: list[float]

    @model_validator(mode="after")
    def _one_a_channel(self) -> Image:
        count = 3 if self.channels == "rgb" else 1
        if (len(self.mean), len(self.std)) != (count, count) or 0 in self.std:
            raise ValueError(
                f"mean {self.mean} and std {self.std}: expected {count} of each, std not 0"
            )
        return self


class Text(_Plain):
    """A sentence, or a pair of them, to int64[length] ids and masks.

    Attributes:
        tokenizer: File beside ``io.json``, in the `tokenizers` library's form.
        max_length: Longer text is cut here, special tokens included; of a pair the longer
            sentence is cut first.
        min_length: Shorter text is filled up to here, where the length is open.
        pad_id: Id that fills up to the length.
        pad_type_id: Segment id of the filling.
        padding_side: Where the filling goes.
        truncation_side: Where a long text is cut.
        pair: Whether two sentences make one input.
    """

    kind: Literal["text"] = "text"
    tokenizer: Literal["tokenizer.json"] = TOKENIZER
    max_length: int = Field(ge=2)
    pad_id: int = Field(ge=0)
    pad_type_id: int = Field(default=0, ge=0)
    padding_side: Literal["left", "right"] = "right"
    truncation_side: Literal["left", "right"] = "right"
    pair: bool = False
    min_length: int = Field(default=1, ge=1)

    @model_serializer(mode="wrap")
    def _brief(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A limit that limits nothing is not written, so that data hash as they did before it.
        written: dict[str, Any] = write(self)
        if self.min_length == 1:
            written.pop("min_length", None)
        return written


class Nothing(_Plain):
    """The inputs are made elsewhere: only arrays can be given."""

    kind: Literal["none"] = "none"


Preprocess = Annotated[Image | Text | Nothing, Field(discriminator="kind")]


class IO(_Plain):
    """``io.json``, field for field.

    Attributes:
        inputs: By the names that the network's forward takes.
        outputs: The first is the one that answers.
        labels: Names of the classes, in the order of the first output's last axis; none where the
            network is no classifier.
        preprocess: How raw data becomes the inputs.
        metric: ``python:<module>:<callable>`` from (outputs, labels) to a score in 0..1 for each
            sample, in the place of top-1.
        random: The inputs were drawn at random, so that no answer is right or wrong.
        postprocess: What the host must do with the outputs after the graph: a sentence, or
            ``python:<module>:<callable>`` from {name: array[n, ...]} to n answers of plain values,
            which `edgekd.infer` then gives. Nothing to do where it is None.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    labels: list[str]
    preprocess: Preprocess = Nothing()
    metric: str | None = None
    random: bool = False
    postprocess: str | None = Field(default=None, min_length=1)

    def roles(self) -> dict[str, Role]:
        """How each output is compared, by name."""
        return {
            tensor.name: tensor.role or ("values" if index else "logits")
            for index, tensor in enumerate(self.outputs)
        }


def save(io: IO, files: Mapping[str, bytes], folder: Path) -> None:
    """Write ``io.json`` and the files that belong to it.

    Args:
        io: Inputs and outputs.
        files: Name -> content, `edgekd.data.Data.files`.
        folder: Where an artifact is being written.
    """
    (folder / IO_JSON).write_text(io.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_bytes(content)


def copy(source: Artifact, folder: Path) -> None:
    """Copy ``io.json`` and the files that belong to it from one artifact into the next."""
    for name in (IO_JSON, TOKENIZER):
        if name == IO_JSON or name in source.manifest.files:
            shutil.copyfile(source.file(name), folder / name)
