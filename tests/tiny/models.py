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
        self.network = MLP()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def inner() -> nn.Module:
    return Inner()


def no_layer() -> nn.Module:
    return nn.LayerNorm(CLASSES)


def not_a_module() -> str:
    return "weights"


def fails() -> nn.Module:
    raise KeyError("width")


def no_weights() -> nn.Module:
    return nn.ReLU()


class Doubtful(nn.Module):
    """Products by weights that are no Linear's or Conv2d's."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(8, 8))
        self.scale = nn.Parameter(torch.randn(8, 8))
        self.conv1 = nn.Conv1d(8, 16, 3)
        self.unused = nn.Linear(9, 9)
        self.table = nn.Embedding(4, 8)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 8) @ self.mix + self.table.weight
        x = x.transpose(1, 2) * self.scale[:, :4]
        return self.head(self.conv1(x).mean(2))


def doubtful() -> nn.Module:
    return Doubtful()


class Keyword(MLP):
    """Calls a layer with its input by name."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(input=x)))


def keyword() -> nn.Module:
    return Keyword()


def weight_norm() -> nn.Module:
    model = MLP()
    torch.nn.utils.parametrizations.weight_norm(model.stem)
    return model


def tied() -> nn.Module:
    model = MLP()
    model.blocks[1].fc1.weight = model.blocks[0].fc1.weight
    return model


class OwnForward(nn.Linear):
    """A Linear by class only."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight, self.bias)


class OnlyNorm(nn.Module):
    """No Linear, no Conv2d, yet it takes the data and answers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).reshape(-1, CLASSES, WIDTH // CLASSES).mean(2)


def only_norm() -> nn.Module:
    return OnlyNorm()


class Untraceable(MLP):
    """Uses an operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.special.bessel_j0(y)


def untraceable() -> nn.Module:
    return Untraceable()


class FixedBatch(MLP):
    """Takes the batch size as a number, which tracing then keeps."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.reshape(int(x.shape[0]), 2, 2).reshape(int(x.shape[0]), 4)


def fixed_batch() -> nn.Module:
    return FixedBatch()


class RepeatsBatch(MLP):
    """Adds a constant of the batch it was traced with, which broadcasts against one row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(int(x.shape[0]), 1)


def repeats_batch() -> nn.Module:
    return RepeatsBatch()


class Overflows(MLP):
    """Fine in float32, beyond float16's 65504 on the way."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e6 / 1e5


def overflows() -> nn.Module:
    return Overflows()


class HardlyVaries(MLP):
    """Outputs that are the same for every input but for a trace."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e-6 + 1.0


def hardly_varies() -> nn.Module:
    return HardlyVaries()


class Drawing(MLP):
    """Draws from a distribution, which ONNX calls Multinomial and few parsers take."""

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.multinomial(x.softmax(-1), 1)
        return super().forward(x + drawn)


def drawing() -> nn.Module:
    return Drawing()
