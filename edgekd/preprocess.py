"""The one place that turns an image file or a sentence into a network's inputs.

Calibration, training, evaluation and `edgekd infer` all come through here, on the host and on the
device, so there is no second version to drift from the first. What is done is read from ``io.json``
alone (see `edgekd.io_json`). Images are decoded and resized by Pillow, which is what transformers'
and timm's processors use too, so that pixels can be equal to theirs and not merely close; text is
cut into ids by the `tokenizers` library from the ``tokenizer.json`` that travels with the artifact.

Left out: decoders and resizers of our own. Antialiased resizing differs between libraries by more
than INT8 rounding does.
"""

from __future__ import annotations

import io as streams
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekd.artifact import Artifact
from edgekd.errors import ArtifactError, ConfigError, EdgekdError, ToolchainError, install
from edgekd.io_json import IO, IO_JSON, TOKENIZER, Image, Text

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# What Pillow widens or clips when it makes 8 bits of it: a 16-bit scan would turn out white.
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


class Preprocessor:
    """Raw examples to a network's inputs, as ``io.json`` says."""

    def __init__(self, io: IO, tokenizer: bytes | None, where: str) -> None:
        """Prepare what every example needs.

        Args:
            io: Inputs of the network, and the steps.
            tokenizer: Content of ``tokenizer.json``, where the steps are those of text.
            where: What the network is, to begin messages with.

        Raises:
            ConfigError: The network takes arrays only, or inputs that no such step makes.
            ArtifactError: ``tokenizer.json`` is missing or cannot be read.
            ToolchainError: tokenizers is not installed.
        """
        self._io, self._where, self._steps = io, where, io.preprocess
        names = [tensor.name for tensor in io.inputs]
        if isinstance(self._steps, Image) and len(names) != 1:
            raise ConfigError(
                f"{where}: an image makes 1 input, the network takes {len(names)}: "
                f"{', '.join(names)}: give the inputs as .npz"
            )
        if isinstance(self._steps, Text):
            known = ("input_ids", "attention_mask", "token_type_ids")
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ConfigError(
                    f"{where}: text makes {', '.join(known)}, the network takes {unknown[0]!r}: "
                    "give the inputs as .npz"
                )
            self._encoder = _encoder(self._steps, tokenizer, self._padded_length(), where)
        elif not isinstance(self._steps, Image):
            raise ConfigError(
                f"{where}: io.json does not say how an image or a sentence becomes its inputs "
                f"({', '.join(names)}): give them as .npz"
            )

    @property
    def kind(self) -> str:
        """``image`` or ``text``."""
        return self._steps.kind

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> dict[str, Any]:
        """Inputs {name: dtype[len(items), ...]}.

        Args:
            items: Images (a path, the file's bytes, a PIL image, or uint8[height, width(, 3)]), or
                sentences (text, or two of them where `Text.pair` is set).
            names: What to call each item in a message; default: its position.

        Raises:
            ConfigError: An item cannot be read, or does not become the shape the network takes.
            ToolchainError: Pillow is not installed.
        """
        called = names or [f"{self.kind} {index}" for index in range(len(items))]
        if isinstance(self._steps, Text):
            return self._text(items, self._steps, called)
        assert isinstance(self._steps, Image)
        tensor = self._io.inputs[0]
        pixels = [image(item, self._steps, name) for item, name in zip(items, called, strict=True)]
        for name, array in zip(called, pixels, strict=True):
            if list(array.shape) != tensor.shape[1:]:
                raise ConfigError(
                    f"{name}: becomes {list(array.shape)}, the network takes {tensor.shape[1:]}: "
                    "correct resize and crop of its preprocessing"
                )
        return {tensor.name: np.stack(pixels).astype(tensor.dtype)}

    def _padded_length(self) -> int | None:
        """Length that every text gets; None where the network takes any."""
        sizes = [tensor.shape[1] for tensor in self._io.inputs]
        assert isinstance(self._steps, Text)
        return self._steps.max_length if isinstance(sizes[0], int) else None

    def _text(self, items: Sequence[Any], steps: Text, names: Sequence[str]) -> dict[str, Any]:
        wanted = "a pair of sentences" if steps.pair else "one sentence"
        for item, name in zip(items, names, strict=True):
            parts = item if isinstance(item, (tuple, list)) else (item,)
            if len(parts) != (2 if steps.pair else 1) or not all(isinstance(p, str) for p in parts):
                raise ConfigError(f"{name}: found {item!r:.80}, expected {wanted} as text")
        given = [tuple(item) if steps.pair else item for item in items]
        found = self._encoder.encode_batch(given)
        for encoding in found if self._padded_length() is None else ():
            encoding.pad(  # does nothing to one that is long enough
                steps.min_length,
                direction=steps.padding_side,
                pad_id=steps.pad_id,
                pad_type_id=steps.pad_type_id,
            )
        columns = {
            "input_ids": [encoding.ids for encoding in found],
            "attention_mask": [encoding.attention_mask for encoding in found],
            "token_type_ids": [encoding.type_ids for encoding in found],
        }
        return {t.name: np.array(columns[t.name], dtype=t.dtype) for t in self._io.inputs}


def open(artifact: Artifact) -> Preprocessor:
    """The preprocessor of whatever artifact holds an ``io.json``.

    Raises:
        ArtifactError: It holds none, or not the tokenizer it names.
        ConfigError: See `Preprocessor`.
    """
    io = IO.model_validate(artifact.read_json(IO_JSON))
    held = TOKENIZER in artifact.manifest.files
    tokenizer = artifact.file(TOKENIZER).read_bytes() if held else None
    return Preprocessor(io, tokenizer, str(artifact.path))


def image(source: Any, steps: Image, name: str) -> NDArray[np.float32]:
    """One image as float32[channels, height, width].

    Args:
        source: A path, the bytes of a file, a PIL image, or uint8[height, width(, 3 or 4)].
        steps: What is done.
        name: What to call it in a message.

    Raises:
        ConfigError: It is no image, cut short, or of more than 8 bits a channel.
        ToolchainError: Pillow is not installed.
    """
    picture = _decode(source, steps, name)
    if steps.resize is not None:
        picture = picture.resize(_size(picture, steps, name), FILTERS[steps.interpolation])
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if steps.crop is not None:
        pixels = _crop(pixels, steps.crop, steps.crop_offset)
    # In this order and these types as transformers does it: the result is equal to the last bit.
    scaled = (pixels.astype(np.float64) * steps.rescale).astype(np.float32)
    mean, std = np.array(steps.mean, np.float32), np.array(steps.std, np.float32)
    normalized: NDArray[np.float32] = ((scaled - mean) / std).transpose(2, 0, 1)
    return normalized


def _decode(source: Any, steps: Image, name: str) -> Picture:
    """An 8-bit image, upright, in the channels that are asked for."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ToolchainError(
            f"{name}: reading an image needs Pillow, which is not installed: "
            f"{install('preprocess')}, or give the inputs as .npz"
        ) from error
    try:
        if isinstance(source, np.ndarray):
            picture = PIL.Image.fromarray(source)
        elif isinstance(source, PIL.Image.Image):
            picture = source
        elif isinstance(source, bytes):
            picture = PIL.Image.open(streams.BytesIO(source))
        else:
            picture = PIL.Image.open(Path(source))
        picture = PIL.ImageOps.exif_transpose(picture)
        picture.load()
        if picture.mode in WIDE_MODES:
            raise ConfigError(
                f"{name}: has pixels of mode {picture.mode!r}, expected 8 bits a channel: convert "
                "it, choosing which range becomes 0 to 255"
            )
        return _channels(picture, steps)
    except EdgekdError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: no such file") from error
    except Exception as error:  # a decoder raises what it likes at somebody's file
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name}: cannot be read as an image ({type(error).__name__}: {reason}): replace or "
            "remove it"
        ) from error


def _channels(picture: Picture, steps: Image) -> Picture:
    import PIL.Image

    see_through = "A" in picture.getbands() or picture.info.get("transparency") is not None
    if steps.transparency == "white" and see_through:
        picture = picture.convert("RGBA")
        ground = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = PIL.Image.alpha_composite(ground, picture)
    return picture.convert("RGB" if steps.channels == "rgb" else "L")


def _size(picture: Picture, steps: Image, name: str) -> tuple[int, int]:
    """(width, height) after resizing."""
    if isinstance(steps.resize, tuple):
        return steps.resize[1], steps.resize[0]
    assert steps.resize is not None
    width, height = picture.size
    short, long = steps.resize, int(steps.resize * max(picture.size) / min(picture.size))
    if long > 64 * short:
        raise ConfigError(
            f"{name}: is {width} x {height} pixels, expected sides of at most 1 to 64: its shorter "
            f"side would become {short} and the longer one {long}"
        )
    return (short, long) if width <= height else (long, short)


def _crop(pixels: NDArray[Any], size: tuple[int, int], offset: str) -> NDArray[Any]:
    """The middle of uint8[height, width, channels], zeros around it where it is too small."""
    spans, padding = [], []
    for have, want in zip(pixels.shape, size, strict=False):
        lacking = max(want - have, 0)
        # Which side gets the odd pixel, of the padding and of the rest, is each library's own.
        before = (lacking + 1) // 2 if offset == "floor" else lacking // 2
        padding.append((before, lacking - before))
        spare = have + lacking - want
        start = spare // 2 if offset == "floor" else round(spare / 2)
        spans.append(slice(start, start + want))
    return np.pad(pixels, (*padding, (0, 0)))[spans[0], spans[1]]


def _encoder(steps: Text, tokenizer: bytes | None, length: int | None, where: str) -> Any:
    if tokenizer is None:
        raise ArtifactError(
            f"{where}: {TOKENIZER} is missing beside {IO_JSON}, which names it: make the artifact "
            "again"
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ToolchainError(
            f"{where}: reading text needs tokenizers, which is not installed: "
            f"{install('preprocess')}, or give the inputs as .npz"
        ) from error
    try:
        found = tokenizers.Tokenizer.from_str(tokenizer.decode())
        found.enable_truncation(steps.max_length, direction=steps.truncation_side)
        found.enable_padding(
            length=length,
            direction=steps.padding_side,
            pad_id=steps.pad_id,
            pad_type_id=steps.pad_type_id,
        )
    except Exception as error:  # the library raises plain exceptions
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{where}: {TOKENIZER} cannot be used: {reason}") from error
    return found
