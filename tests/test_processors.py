"""Our pixels and ids are those of transformers' processors, timm's transform and its tokenizers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil
from PIL import ImageOps

from edgekd import preprocess, processors
from edgekd.errors import ConfigError
from edgekd.io_json import Image

# (class, module, its own settings): every class that is listed, and the forms of `size`.
CLASSES: list[tuple[str, str, dict[str, Any]]] = [
    ("ViT", "vit", {}),
    ("ViT", "vit", {"size": {"height": 30, "width": 44}, "resample": 3}),
    ("ViT", "vit", {"size": 32, "do_normalize": False}),
    ("ViT", "vit", {"size": 32, "do_rescale": False, "image_mean": [127, 127, 127]}),
    ("DeiT", "deit", {}),
    ("ConvNext", "convnext", {}),
    ("ConvNext", "convnext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("ConvNext", "convnext", {"size": {"shortest_edge": 37}, "crop_pct": 0.9, "resample": 2}),
    ("Bit", "bit", {"size": {"shortest_edge": 256}}),  # DINOv2's
    ("CLIP", "clip", {}),
    ("MobileNetV1", "mobilenet_v1", {}),
    ("MobileNetV2", "mobilenet_v2", {"size": 45, "crop_size": 33}),
    ("MobileNetV2", "mobilenet_v2", {"size": 20, "crop_size": {"height": 33, "width": 31}}),
    ("Pvt", "pvt", {}),
]
IDS = [f"{name}-{index}" for index, (name, _, _) in enumerate(CLASSES)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


def pictures() -> dict[str, pil.Image]:
    """Odd sizes, both ways up, in the modes that files come in."""
    rgba = np.concatenate([noise(61, 93, 3), noise(61, 93, 1, 1)[..., 0]], axis=2)
    turned = pil.fromarray(noise(53, 91, 3))
    turned.getexif()[0x0112] = 6  # the camera was on its side
    return {
        "wide": pil.fromarray(noise(67, 101, 3)),
        "tall": pil.fromarray(noise(203, 97, 3)),
        "small": pil.fromarray(noise(9, 7, 3)),
        "grey": pil.fromarray(noise(71, 50)),
        "transparent": pil.fromarray(rgba),
        "palette": pil.fromarray(noise(64, 80, 3)).quantize(17),
        "turned": turned,
    }


def transformers_processor(name: str, module: str, suffix: str, settings: dict[str, Any]) -> Any:
    file = f"transformers.models.{module}.image_processing{'_pil' if suffix else ''}_{module}"
    return getattr(importlib.import_module(file), f"{name}ImageProcessor{suffix}")(**settings)


@pytest.mark.parametrize(("name", "module", "settings"), CLASSES, ids=IDS)
def test_pixels_are_equal_to_transformers_on_pillow(
    name: str, module: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    theirs = transformers_processor(name, module, "Pil", settings)
    theirs.save_pretrained(tmp_path)
    steps = processors.image_of_directory(tmp_path)
    for kind, picture in pictures().items():
        upright = ImageOps.exif_transpose(picture)
        if not theirs.do_convert_rgb:
            upright = upright.convert("RGB")  # as transformers' load_image does
        wanted = theirs(upright, return_tensors="np")["pixel_values"][0]
        found = preprocess.image(picture, steps, kind)
        assert found.dtype == np.float32
        assert np.array_equal(found, wanted), kind


FAST = [CLASSES[0], CLASSES[4], CLASSES[7], CLASSES[11]]


@pytest.mark.parametrize(("name", "module", "settings"), FAST, ids=lambda case: str(case)[:9])
def test_pixels_are_within_a_rounding_of_transformers_on_torchvision(
    name: str, module: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """torchvision resizes in fixed point of its own: a level more or less where Pillow rounds.

    Of bicubic's negative lobes it saturates the sum between the two passes, which makes two levels
    of some pixels in a hundred thousand of pure noise.
    """
    theirs = transformers_processor(name, module, "", settings)
    theirs.save_pretrained(tmp_path)
    steps = processors.image_of_directory(tmp_path)
    for kind in ("wide", "grey", "turned"):
        picture = pictures()[kind]
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        wanted = theirs(upright, return_tensors="np")["pixel_values"][0]
        found = preprocess.image(picture, steps, kind)
        levels = np.abs(found - wanted) * np.array(steps.std)[:, None, None] / steps.rescale
        assert levels.max() <= 2.01, kind
        assert (levels > 1.01).mean() <= (0 if steps.interpolation == "bilinear" else 1e-4), kind


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56}),
        ("resnet50", {"in_chans": 1}),
        ("convnext_tiny", {}),
        ("convnext_tiny.fb_in22k_ft_in1k_384", {}),  # squash
        ("mobilenetv3_small_100", {}),
        ("efficientformer_l1", {}),
    ],
)
def test_pixels_are_equal_to_timms_transform(name: str, arguments: dict[str, Any]) -> None:
    import timm.data

    cfg = timm.models.get_pretrained_cfg(name).to_dict()
    size = arguments.get("img_size", cfg["input_size"][-1])
    channels = arguments.get("in_chans", 3)
    config = timm.data.resolve_data_config({"input_size": (channels, size, size)}, cfg)
    theirs = timm.data.create_transform(**{**config, "mean": config["mean"][:channels],
                                           "std": config["std"][:channels]})  # fmt: skip
    steps = processors.image_of_timm(name, arguments)
    assert steps.crop == (size, size)
    for kind, picture in pictures().items():
        upright = ImageOps.exif_transpose(picture).convert("RGB" if channels == 3 else "L")
        wanted = theirs(upright).numpy()
        found = preprocess.image(picture, steps, kind)
        # The same 8-bit pixels; timm divides by 255 where we multiply by its inverse.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def write(directory: Path, **config: Any) -> Path:
    (directory / "preprocessor_config.json").write_text(json.dumps(config))
    return directory


def test_an_old_configuration_gets_the_defaults_of_its_class(tmp_path: Path) -> None:
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "do_normalize": True}
    steps = processors.image_of_directory(write(tmp_path, **old))
    assert steps == Image(resize=(224, 224), rescale=1 / 255, mean=[0.5] * 3, std=[0.5] * 3)


def test_a_configuration_that_names_no_class_is_the_models(tmp_path: Path) -> None:
    write(tmp_path, size={"shortest_edge": 224}, crop_pct=0.875)
    steps = processors.image_of_directory(tmp_path, {"model_type": "resnet"})
    assert (steps.resize, steps.crop, steps.interpolation) == (256, (224, 224), "bicubic")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"image_processor_type": "LevitImageProcessor"},
            "of class 'LevitImageProcessor', whose pixels edgekd does not make: .*There are: Bit, ",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "do_flip_channel_order": True},
            "asks for do_flip_channel_order, expected do_center_crop, do_convert_rgb, ",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}},
            "cannot be followed: size is {'longest_edge': 9}, expected a number, height and width",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "image_std": [0, 1, 1]},
            r"cannot be followed: .*std \[0.0, 1.0, 1.0\]: expected 3 of each, std not 0",
        ),
    ],
)
def test_what_cannot_be_followed_is_told(config: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"preprocessor_config.json: .*{words}"):
        processors.image_of_directory(write(tmp_path, **config))


def test_a_missing_processor_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config.json: no such file: copy"):
        processors.image_of_directory(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds a JSON list, expected an object"):
        processors.image_of_directory(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        processors.image_of_directory(tmp_path)


def test_timm_crops_that_are_not_ours_are_told() -> None:
    with pytest.raises(ConfigError, match="takes 4 channels, expected 1 or 3"):
        processors.image_of_timm("resnet50", {"in_chans": 4})
    with pytest.raises(ConfigError, match="crop_mode 'center' to 96 x 64 by 'bicubic', expected"):
        processors.image_of_timm("resnet50", {"img_size": (96, 64)})
