"""One network of every promised family: two blocks (or one a stage) at the width that is published.

``model`` is what a recipe takes: a transformers configuration, ``timm:...`` or ``python:...``. The
weights are random, and wide enough apart that answers differ from sample to sample.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd import recipe
from edgekd.recipe import Recipe

from .data import CLASSES, VOCABULARY

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A network and what is promised of it.

    Attributes:
        model: A transformers configuration, or a spec.
        data: A callable of `zoo.data`.
        attention: Attention blocks, each of which must be one kernel.
        convolutional: Whether convolutions carry it: by default they stay in float, 2:4.
        unfused: Attention blocks that no kernel fuses, which the product must say.
        include: Layers that INT8 is asked for where convolutions are; a deep network of random
            weights answers at random once all of them are.
        sections: Sections of the recipe other than the ones all share.
    """

    model: Config | str
    data: str
    attention: int = 0
    convolutional: bool = False
    unfused: int = 0
    include: tuple[str, ...] = ("*",)
    sections: dict[str, Any] = field(default_factory=dict)


def written(family: Family, base: Path, **sections: Any) -> Recipe:
    """The recipe of a family in a directory: random teacher, two steps, one thread.

    Args:
        family: What it is about.
        base: Where a transformers configuration is written to.
        **sections: Sections that replace the family's.
    """
    spec = family.model
    if not isinstance(spec, str):
        base.mkdir(parents=True, exist_ok=True)
        (base / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        spec = "hf:config.json"
    document: Config = {
        "name": "zoo",
        "threads": 1,
        "arms": ["sparse"],
        "teacher": {"model": spec, "fit": {"steps": 0}},
        "data": {"source": f"python:zoo.data:{family.data}", "samples": 8},
        "quantization": {"calibration_samples": 8},
        "distill": {"steps": 2, "batch_size": 4, "learning_rate": 1e-4},
        "export": {"batch_opt": 2, "batch_max": 4},
    }
    found = recipe.parse({**document, **family.sections, **sections}, "zoo")
    found._base = base
    return found


def _config(kind: str, architecture: str, **values: Any) -> Config:
    return {"model_type": kind, "architectures": [architecture], "num_labels": CLASSES, **values}


def _encoder(kind: str, architecture: str, **values: Any) -> Config:
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 1536, "image_size": 112, "patch_size": 16}
    return _config(kind, architecture, **{**sizes, "initializer_range": 0.06, **values})


def _language(kind: str, architecture: str, **values: Any) -> Config:
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 80, "initializer_range": 0.06}
    return _config(kind, architecture, **sizes, **values)


_TEXT = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 2}
_TEXT |= {"intermediate_size": 3072}
_NORMED = {"distill": {"steps": 2, "batch_size": 4, "batchnorm_warmup": 2, "learning_rate": 1e-4,
           "losses": {"blocks": 0.0}}}  # fmt: skip
_NO_BLOCKS = {"distill": {"steps": 2, "batch_size": 4, "learning_rate": 1e-4,
              "losses": {"blocks": 0.0}}}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "vit": Family(_encoder("vit", "ViTForImageClassification"), "images112", attention=2),
    "deit": Family(_encoder("deit", "DeiTForImageClassification"), "images112", attention=2),
    "dinov2": Family(
        _encoder("dinov2", "Dinov2ForImageClassification", patch_size=14, layerscale_value=0.5),
        "images112",
        attention=2,
    ),
    "swin": Family(
        _config(
            "swin", "SwinForImageClassification", image_size=56, patch_size=4, embed_dim=96,
            depths=[2, 2], num_heads=[3, 6], window_size=7, initializer_range=0.1,
        ),
        "images56",
        attention=4,
    ),
    "bert": Family(_language("bert", "BertForSequenceClassification", **_TEXT), "tokens", 2),
    "roberta": Family(
        _language("roberta", "RobertaForSequenceClassification", **_TEXT), "tokens", 2
    ),
    "distilbert": Family(
        _language(
            "distilbert", "DistilBertForSequenceClassification", dim=768, n_heads=12, n_layers=2,
            hidden_dim=3072,
        ),
        "tokens",
        attention=2,
    ),
    "convnext": Family(
        _config(
            "convnext", "ConvNextForImageClassification", hidden_sizes=[96, 192], depths=[1, 1],
            num_stages=2, image_size=64, initializer_range=0.1, layer_scale_init_value=0.5,
        ),
        "images64",
        convolutional=True,
        sections=_NO_BLOCKS,
    ),
    "resnet": Family(
        _config(
            "resnet", "ResNetForImageClassification", embedding_size=64, hidden_sizes=[256, 512],
            depths=[1, 1], layer_type="bottleneck",
        ),
        "images64",
        convolutional=True,
        sections=_NORMED,
    ),
    "mobilenetv2": Family(
        _config("mobilenet_v2", "MobileNetV2ForImageClassification", image_size=96),
        "images96",
        convolutional=True,
        include=tuple(f"*.layer.{index}.*" for index in range(11, 16)),
        sections=_NORMED,
    ),
    "timm-vit": Family(
        "timm:vit_small_patch16_224?img_size=112&depth=2&num_classes=8", "x112", attention=2
    ),
    "timm-deit": Family(
        "timm:deit_small_distilled_patch16_224?img_size=112&depth=2&num_classes=8",
        "x112",
        attention=2,
    ),
    "timm-swin": Family(
        "timm:swin_tiny_patch4_window7_224?img_size=112&depths=(2,2)&num_heads=(3,6)&num_classes=8",
        "x112",
        attention=4,
    ),
    "timm-resnet": Family(
        "timm:resnet50?layers=(1,1,1,1)&zero_init_last=False&num_classes=8",
        "x64",
        convolutional=True,
        sections=_NORMED,
    ),
    "timm-convnext": Family(
        "timm:convnext_tiny?depths=(1,1,1,1)&ls_init_value=0.5&num_classes=8",
        "x64",
        convolutional=True,
        sections=_NO_BLOCKS,
    ),
    "timm-mobilenetv3": Family(
        "timm:mobilenetv3_small_100?num_classes=8",
        "x96",
        convolutional=True,
        include=tuple(f"blocks.{index}.*" for index in range(4)),
        sections=_NORMED,
    ),
    "timm-efficientformer": Family(
        "timm:efficientformer_l1?depths=(1,1,1,2)&num_vit=1&num_classes=8",
        "x224",
        convolutional=True,
        unfused=1,
        sections=_NORMED,
    ),
    "torch-encoder": Family("python:zoo.networks:encoder", "frames", attention=2),
    "detector": Family(
        "python:zoo.detector:detector",
        "scenes",
        convolutional=True,
        sections={
            "teacher": {
                "model": "python:zoo.detector:detector",
                "fit": {"steps": 60, "batch_size": 16, "learning_rate": 2e-3},
            },
            "data": {
                "source": "python:zoo.detector:scenes",
                "samples": 8,
                "metric": "python:zoo.detector:score",
            },
            "distill": {
                "steps": 2,
                "batch_size": 4,
                "batchnorm_warmup": 2,
                "learning_rate": 1e-4,
                "losses": {
                    "blocks": 0.0,
                    "task": "python:zoo.detector:loss",
                    "outputs": {"distances": 2.0, "centerness": 0.5},
                },
            },
        },
    ),
}  # fmt: skip
