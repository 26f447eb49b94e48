"""Small networks, one for every form a recipe can meet; all take ``x`` float32[batch, 32]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, CLASSES = 32, 4


class Block(nn.Module):
    """A residual MLP block with dropout, so that training draws random numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.drop(torch.nn.functional.gelu(self.fc1(x))))


class MLP(nn.Module):
    """Stem, blocks, head; the names of the middle ones are what wildcards elsewhere exclude."""

    def __init__(
        self, width: int = WIDTH, classes: int = CLASSES, depth: int = 2, stem: int = WIDTH
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(stem, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mlp() -> nn.Module:
    return MLP()


def shallow() -> nn.Module:
    return MLP(depth=1)


def wide() -> nn.Module:
    return MLP(width=48)


def five_classes() -> nn.Module:
    return MLP(classes=5)


_THE_ONE = MLP()


def the_same_twice() -> nn.Module:
    """One object for teacher and student: what a cache or a module-level network does."""
    return _THE_ONE


class Odd(MLP):
    """A stem of k = 20: INT8 takes it, 2:4 kernels do not."""

    def __init__(self) -> None:
        super().__init__(stem=20)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :20])


def odd() -> nn.Module:
    return Odd()


class Excluded(nn.Module):
    """Layers whose names Model Optimizer's INT8 default excludes by wildcard."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.norm = nn.LayerNorm(WIDTH)
        self.proj_out = nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj_out(self.norm(self.vision_model(x))).relu()
        return self.classifier(self.lm_head(self.router(x).relu()).relu())


def excluded() -> nn.Module:
    return Excluded()


class Attention(nn.Module):
    """torch's own encoder: in_proj is packed and out_proj is never called as a module."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            16, 2, dim_feedforward=32, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.reshape(-1, 2, 16)).mean(1))


def attention() -> nn.Module:
    return Attention()


class Unreached(MLP):
    """A layer that sees only zeros: calibration can give it no scale."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x * 0)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def unreached() -> nn.Module:
    return Unreached()


class Shared(nn.Module):
    """One layer, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.fc(x)))


def shared() -> nn.Module:
    return Shared()


class Inner(nn.Module):
    """The network under the name that the exporter's wrapper once had."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(depth=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def inner() -> nn.Module:
    return Inner()


def no_layer() -> nn.Module:
    return nn.LayerNorm(CLASSES)


def not_a_module() -> str:
    return "weights"
