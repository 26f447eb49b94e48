"""An image file becomes what io.json says, and every file that cannot is told by name."""

from __future__ import annotations

import io as streams
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil

from edgekd import preprocess
from edgekd.data import IO, Tensor
from edgekd.errors import ConfigError, ToolchainError, install
from edgekd.io_json import Image, Nothing, Text
from edgekd.preprocess import Preprocessor

PLAIN = Image(resize=None, rescale=1.0, mean=[0.0] * 3, std=[1.0] * 3)
GREY = Image(channels="grey", resize=None, rescale=1 / 255, mean=[0.5], std=[0.5])
PIXELS = Tensor(name="pixels", dtype="float32", shape=["batch", 3, 4, 6])


def ramp(height: int, width: int, channels: int = 3) -> np.ndarray:
    count = height * width * channels
    return (np.arange(count) % 256).astype(np.uint8).reshape(height, width, channels)


def described(*inputs: Tensor, steps: Image | Text | Nothing = PLAIN) -> IO:
    return IO(inputs=list(inputs), outputs=[], labels=[], preprocess=steps)


def test_a_path_bytes_a_picture_and_an_array_are_one_image(tmp_path: Path) -> None:
    picture = pil.fromarray(ramp(4, 6))
    path, stream = tmp_path / "a.png", streams.BytesIO()
    picture.save(path)
    picture.save(stream, format="PNG")
    found = [
        preprocess.image(source, PLAIN, "it")
        for source in (path, str(path), stream.getvalue(), picture, ramp(4, 6))
    ]
    for array in found:
        assert array.dtype == np.float32
        assert np.array_equal(array, ramp(4, 6).transpose(2, 0, 1))


def test_scale_mean_and_deviation_by_hand() -> None:
    steps = Image(resize=None, rescale=0.5, mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 4.0])
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    assert preprocess.image(pixel, steps, "it").ravel().tolist() == [4.0, 4.0, 3.0]
    assert preprocess.image(np.array([[255]], np.uint8), GREY, "it").ravel().tolist() == [1.0]


def test_the_crop_is_the_middle_and_each_library_rounds_its_way() -> None:
    wide = ramp(1, 7)
    floor = PLAIN.model_copy(update={"crop": (1, 4)})
    even = PLAIN.model_copy(update={"crop": (1, 4), "crop_offset": "half_even"})
    # 3 pixels are left over: 1 before by the floor of 1.5, 2 by rounding it to the even number.
    assert preprocess.image(wide, floor, "it")[0, 0].tolist() == wide[0, 1:5, 0].tolist()
    assert preprocess.image(wide, even, "it")[0, 0].tolist() == wide[0, 2:6, 0].tolist()
    small = PLAIN.model_copy(update={"crop": (1, 10)})
    assert preprocess.image(wide, small, "it")[0, 0].tolist() == [0, 0, *wide[0, :, 0], 0]


def test_the_shorter_side_is_resized_the_longer_follows() -> None:
    steps = PLAIN.model_copy(update={"resize": 4})
    assert preprocess.image(ramp(8, 15), steps, "it").shape == (3, 4, 7)
    assert preprocess.image(ramp(15, 8), steps, "it").shape == (3, 7, 4)


def test_transparency_is_dropped_or_put_on_white() -> None:
    clear = np.array([[[10, 20, 30, 0]]], np.uint8)
    on_white = PLAIN.model_copy(update={"transparency": "white"})
    assert preprocess.image(clear, PLAIN, "it").ravel().tolist() == [10, 20, 30]
    assert preprocess.image(clear, on_white, "it").ravel().tolist() == [255, 255, 255]


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    picture = pil.fromarray(ramp(2, 3))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    found = preprocess.image(tmp_path / "turned.png", PLAIN, "it")
    assert np.array_equal(found[0], np.rot90(ramp(2, 3)[..., 0], -1))


def test_a_file_that_is_no_image_is_told_by_its_name(tmp_path: Path) -> None:
    whole = streams.BytesIO()
    pil.fromarray(ramp(64, 64)).save(whole, format="JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:400])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, words in [
        ("cut.jpg", r"\(OSError: .*[Tt]runcated"),
        ("text.png", r"\(UnidentifiedImageError: "),
        ("empty.png", r"\(UnidentifiedImageError: "),
    ]:
        with pytest.raises(ConfigError, match=f"^{name}: cannot be read as an image {words}"):
            preprocess.image(tmp_path / name, PLAIN, name)
    with pytest.raises(ConfigError, match=r"^no.png: no such file$"):
        preprocess.image(tmp_path / "no.png", PLAIN, "no.png")


def test_sixteen_bits_a_pixel_are_refused_not_clipped(tmp_path: Path) -> None:
    pil.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match=r"deep.png: has pixels of mode 'I;16', expected 8 bits"):
        preprocess.image(tmp_path / "deep.png", GREY, "deep.png")


def test_an_image_that_would_become_endless_is_told() -> None:
    steps = PLAIN.model_copy(update={"resize": 224})
    with pytest.raises(ConfigError, match=r"it: is 500 x 1 pixels, .* 1 to 64: .* one 112000"):
        preprocess.image(ramp(1, 500), steps, "it")


def test_images_that_end_in_another_size_are_told() -> None:
    prepare = Preprocessor(described(PIXELS), None, "a test")
    assert prepare([ramp(4, 6), ramp(4, 6)])["pixels"].shape == (2, 3, 4, 6)
    with pytest.raises(ConfigError, match=r"image 1: becomes \[3, 4, 5\], .* takes \[3, 4, 6\]"):
        prepare([ramp(4, 6), ramp(4, 5)])


def test_networks_that_take_something_else_are_told() -> None:
    mask = Tensor(name="mask", dtype="float32", shape=["batch", 4, 6])
    with pytest.raises(ConfigError, match="an image makes 1 input, the network takes 2: pixels, m"):
        Preprocessor(described(PIXELS, mask), None, "a test")
    with pytest.raises(
        ConfigError, match=r"how an image or a sentence becomes .* \(pixels\): give"
    ):
        Preprocessor(described(PIXELS, steps=Nothing()), None, "a test")


def test_without_pillow_or_tokenizers_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    expected = f"needs {{}}, which is not installed: {install('preprocess')}, or give the inputs as"
    with pytest.raises(ToolchainError, match=re.escape(expected.format("Pillow"))):
        preprocess.image(ramp(4, 6), PLAIN, "it")
    ids = Tensor(name="input_ids", dtype="int64", shape=["batch", 8])
    with pytest.raises(ToolchainError, match=re.escape(expected.format("tokenizers"))):
        Preprocessor(described(ids, steps=Text(max_length=8, pad_id=0)), b"{}", "a test")
