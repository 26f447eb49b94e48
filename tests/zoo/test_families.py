"""What is promised of every family, held on what the product made of one network of each.

A class is what one process works through, so that several share the time.
"""

from __future__ import annotations

from .conftest import OPT_IN, Chain
from .promises import Promises, Transformers


class TestVision(Transformers):
    names = ("vit", "deit", "dinov2", "swin")


class TestLanguage(Transformers):
    names = ("bert", "distilbert", "roberta", "torch-encoder")


class TestTimmTransformers(Transformers):
    names = ("timm-vit", "timm-deit", "timm-swin")


class TestConvolutions(Promises):
    """Half precision and 2:4, as they are planned unless a recipe asks for INT8."""

    names = ("resnet", "convnext", "mobilenetv2", "timm-resnet", "timm-convnext",
             "timm-mobilenetv3", "timm-efficientformer")  # fmt: skip

    def test_no_convolution_is_int8_and_each_says_how_to_have_it(
        self, chain: Chain, name: str
    ) -> None:
        convolutions = [row for row in chain(name).layers if row["type"] == "Conv2d"]
        assert not any(row["int8"] for row in convolutions)
        assert sum("quantization.convolutions = true" in r["int8_reason"] for r in convolutions)


class TestInt8Convolutions(Promises):
    """The same with INT8 convolutions asked for."""

    names = tuple(f"{family}{OPT_IN}" for family in TestConvolutions.names)

    def test_every_wide_convolution_is_int8(self, chain: Chain, name: str) -> None:
        rows = chain(name).layers
        left = [row for row in rows if row["type"] == "Conv2d" and not row["int8"]]
        reasons = ("k per group is", "depthwise", "output layer", "in quantization.include")
        assert all(any(reason in row["int8_reason"] for reason in reasons) for row in left)
        assert any(row["int8"] for row in rows if row["type"] == "Conv2d")
