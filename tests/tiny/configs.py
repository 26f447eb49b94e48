"""transformers configurations of every family we promise, as small as their code allows."""

from __future__ import annotations

from typing import Any

_VISION: dict[str, Any] = {"num_channels": 3, "image_size": 16, "num_labels": 4}
_STD: dict[str, Any] = {"initializer_range": 0.2}  # tiny initialisations make comparisons vacuous

VIT: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    **_VISION,
    **_STD,
}
BERT: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 4,
    **_STD,
}
RESNET: dict[str, Any] = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
    **_VISION,
}
SWIN: dict[str, Any] = {
    "architectures": ["SwinForImageClassification"],
    "model_type": "swin",
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 2,
    "drop_path_rate": 0.0,
    **_VISION,
    **_STD,
}
CONVNEXT: dict[str, Any] = {
    "architectures": ["ConvNextForImageClassification"],
    "model_type": "convnext",
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "num_stages": 2,
    "patch_size": 2,
    **_VISION,
    **_STD,
}
