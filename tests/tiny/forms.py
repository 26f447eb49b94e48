"""Networks whose weights are shared, packed, grouped or normalised.

`repeated`, `aliased`, `tied`, `transposed` and `encoder` take ``x`` float32[batch, 32], the
convolutional ones ``pixel_values`` float32[batch, 3, 16, 16], `language` the ids of tiny.data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiny.models import CLASSES, MLP, WIDTH, Block


class Repeated(nn.Module):
    """One block, run three times, as ALBERT does."""

    def __init__(self, aliased: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        block = Block(WIDTH)
        self.blocks = nn.ModuleList([block] * 3) if aliased else block
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in range(3):
            block = self.blocks[step] if isinstance(self.blocks, nn.ModuleList) else self.blocks
            x = block(self.norm(x))
        return self.head(self.norm(x))


def repeated() -> nn.Module:
    return Repeated()


def aliased() -> nn.Module:
    """The same, and every run's block has a name of its own."""
    return Repeated(aliased=True)


class Tied(nn.Module):
    """An auto-encoder's two layers with one weight, and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.Linear(WIDTH, WIDTH)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(torch.tanh(self.encoder(x))) + x)


def tied() -> nn.Module:
    return Tied()


class Transposed(nn.Module):
    """An auto-encoder that decodes with the transposed weight: no Linear's own product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.encoder = nn.Linear(WIDTH, 16)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.encoder(self.stem(x)))
        return self.head(nn.functional.linear(hidden, self.encoder.weight.t()))


def transposed() -> nn.Module:
    return Transposed()


class Language(nn.Module):
    """transformers' BERT whose decoder is its embedding, answering for the first token."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=16, initializer_range=0.2,
        )  # fmt: skip
        self.lm = BertForMaskedLM._from_config(config, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.lm(input_ids=input_ids, attention_mask=attention_mask)
        return found.logits[:, 0, :CLASSES]


def language() -> nn.Module:
    return Language()


class Encoder(nn.Module):
    """torch's own encoder, with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 2, 16)
        padding = tokens[:, :, 0] > 1.0
        padding = torch.cat([torch.zeros_like(padding[:, :1]), padding[:, 1:]], dim=1)
        return self.head(self.encoder(tokens, src_key_padding_mask=padding)[:, 0])


def encoder() -> nn.Module:
    return Encoder()


class Convolutions(nn.Module):
    """Every place of a batch norm: after a stem, grouped and 1x1 convolutions, a sum, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=2)
        self.norm2 = nn.BatchNorm2d(64)
        self.pointwise = nn.Conv2d(64, 32, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(32, affine=False)
        self.summed = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 32)
        self.norm4 = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(self.first(pixel_values))))
        y = torch.relu(self.norm2(self.grouped(x)))
        x = self.summed(x + self.norm3(self.pointwise(y))).relu()
        return self.head(self.norm4(self.fc(x.mean((2, 3)))).relu())


def convolutions() -> nn.Module:
    return Convolutions()


class OnlyConvolutions(nn.Module):
    """Nothing but convolutions and the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.norm(self.body(torch.relu(self.stem(pixel_values))))
        return self.head(torch.relu(x).mean((2, 3)))


def only_convolutions() -> nn.Module:
    return OnlyConvolutions()


class ResNeXt(nn.Module):
    """Two residual bottlenecks with grouped 3x3 convolutions of 16 channels a group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 64, 1, bias=False),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, padding=1, groups=4, bias=False),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 32, 1, bias=False),
                nn.BatchNorm2d(32),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.stem(pixel_values)
        for stage in self.stages:
            x = torch.relu(x + stage(x))
        return self.head(x.mean((2, 3)))


def resnext() -> nn.Module:
    return ResNeXt()


class Scaled(MLP):
    """The first layer sees its input times a factor, and in float still answers as before."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x * 0 + 1) * self.factor)
        x = torch.nan_to_num(x).clamp(-1, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def denormal() -> nn.Module:
    return Scaled(1e-40)


def infinite() -> nn.Module:
    return Scaled(float("inf"))


def not_a_number() -> nn.Module:
    return Scaled(float("nan"))


def huge() -> nn.Module:
    return Scaled(1e6)


class Zeros(MLP):
    """A layer of zeros, one with rows of zeros, and one whose groups of four hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.blocks[0].fc1.weight.zero_()
            self.blocks[0].fc2.weight[::3] = 0
            self.blocks[1].fc1.weight[:, 1::4] = 0
            self.blocks[1].fc1.weight[:, 2::4] = 0
            self.blocks[1].fc1.weight[:, 3::4] = 0


def zeros() -> nn.Module:
    return Zeros()
