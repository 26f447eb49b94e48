"""A small anchor-free detector (after FCOS, arXiv 1904.01355) that ends before the suppression.

Two feature levels share one head. Its outputs are numbers for every position: a distribution over
the classes and the background, distances to the four sides of a box in pixels, and centerness. What
makes detections of them, decoding and non-maximum suppression, is `detections`: NumPy, outside the
graph, since neither is a product that INT8 or 2:4 could help, and parsers differ in what they take.
Background is a class here, so that one softmax gives the distribution that distillation compares.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd import data

from .data import data as splits
from .data import pixels

SIZE, OBJECTS, STRIDES = 64, 3, (8, 16)
POSITIONS = sum((SIZE // stride) ** 2 for stride in STRIDES)


def _step(channels: int, features: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(features), nn.ReLU())


class Detector(nn.Module):
    """Backbone of strides 8 and 16, one head that runs on both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _step(3, 32, 2)
        self.stage2 = _step(32, 64, 2)
        self.stage3 = _step(64, 128, 2)
        self.stage4 = _step(128, 128, 2)
        self.tower = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU())
        self.classes = nn.Conv2d(128, OBJECTS + 1, 3, padding=1)
        self.sides = nn.Conv2d(128, 4, 3, padding=1)
        self.center = nn.Conv2d(128, 1, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        fine = self.stage3(self.stage2(self.stem(pixel_values)))
        levels = []
        for features, stride in zip((fine, self.stage4(fine)), STRIDES, strict=True):
            seen = self.tower(features)
            sides = nn.functional.softplus(self.sides(seen)) * stride
            maps = (self.classes(seen), sides, self.center(seen))
            levels.append([each.flatten(2).transpose(1, 2) for each in maps])
        names = ("classes", "distances", "centerness")
        return {
            n: torch.cat(parts, 1)
            for n, parts in zip(names, zip(*levels, strict=True), strict=True)
        }


def detector() -> nn.Module:
    return Detector()


def scenes() -> data.Data:
    """``pixel_values`` float32[n, 3, 64, 64] of faint noise with one bright rectangle in each.

    The labels are float32[n, 5]: the class, which is the rectangle's channel, and its box in
    pixels.
    """
    random = np.random.default_rng(9)
    images = 0.3 * pixels(SIZE)
    rows = len(images)
    labels = np.empty((rows, 5), np.float32)
    for image, label in zip(images, labels, strict=True):
        kind, corner = random.integers(OBJECTS), random.integers(4, 28, 2)
        far = corner + random.integers(16, 32, 2)
        image[kind, corner[1] : far[1], corner[0] : far[0]] += 3.0
        label[:] = kind, *corner, *far
    shape: list[int | str] = ["batch", POSITIONS]
    outputs = [
        data.Tensor(name=name, dtype="float32", shape=[*shape, size], role=role)
        for name, size, role in (
            ("classes", OBJECTS + 1, "logits"),
            ("distances", 4, "values"),
            ("centerness", 1, "values"),
        )
    ]
    made = splits({"pixel_values": images}, labels, outputs)
    after = {"postprocess": "python:zoo.detector:suppressed"}
    return replace(made, io=made.io.model_copy(update=after))


def loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """``distill.losses.task``: classes everywhere, sides and centerness within the box."""
    centers = torch.from_numpy(_centers()).to(labels)
    sides = torch.cat([centers - labels[:, None, 1:3], labels[:, None, 3:5] - centers], dim=2)
    inside = sides.amin(2) > 0
    wanted = torch.where(inside, labels[:, :1].long(), torch.tensor(OBJECTS))
    classes = nn.functional.cross_entropy(outputs["classes"].transpose(1, 2), wanted)
    gaps = (outputs["distances"] - sides).abs()[inside].mean() / STRIDES[0]
    pairs = [sides[..., axis::2] for axis in (0, 1)]
    center = torch.sqrt(torch.stack([p.amin(-1) / p.amax(-1) for p in pairs]).clamp_min(0).prod(0))
    centered = nn.functional.binary_cross_entropy_with_logits(
        outputs["centerness"][..., 0][inside], center[inside]
    )
    return classes + gaps + centered


def score(outputs: dict[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """``data.metric``: 1 where the best detection is of the class and meets the box."""
    scores = np.zeros(len(labels))
    for row, (label, *box) in enumerate(labels):
        best = next(iter(detections(outputs, row)), None)
        if best is not None and best.label == int(label):
            scores[row] = _overlap(np.array(best.box), np.array(box)) > 0.5
    return scores


@dataclass(frozen=True)
class Detection:
    """A box in pixels (left, top, right, bottom) with its class and score in 0..1."""

    label: int
    score: float
    box: tuple[float, float, float, float]


def detections(
    outputs: dict[str, np.ndarray], row: int, floor: float = 0.05, overlap: float = 0.5
) -> list[Detection]:
    """What is outside the graph: decoding, and non-maximum suppression within each class.

    Args:
        outputs: The three outputs of a batch.
        row: Which example.
        floor: Least score.
        overlap: Intersection over union above which the lower score goes.
    """
    logits = outputs["classes"][row].astype(np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    chances = odds[:, :OBJECTS] / odds.sum(-1, keepdims=True)
    centered = 1 / (1 + np.exp(-outputs["centerness"][row].astype(np.float64)))
    scores = np.sqrt(chances * centered)
    centers, sides = _centers(), outputs["distances"][row].astype(np.float64)
    boxes = np.concatenate([centers - sides[:, :2], centers + sides[:, 2:]], axis=1)
    found = []
    for label in range(OBJECTS):
        order = [i for i in np.argsort(-scores[:, label]) if scores[i, label] > floor]
        while order:
            best, *order = order
            box = tuple(float(side) for side in boxes[best])
            found.append(Detection(label, float(scores[best, label]), box))
            order = [i for i in order if _overlap(boxes[best], boxes[i]) <= overlap]
    return sorted(found, key=lambda each: -each.score)


def suppressed(outputs: dict[str, np.ndarray]) -> list[list[dict[str, Any]]]:
    """``io.postprocess``: the detections of every row."""
    rows = range(len(outputs["classes"]))
    return [[asdict(each) for each in detections(outputs, row)] for row in rows]


def _centers() -> np.ndarray:
    """Pixel in the middle of every position, float64[positions, 2] as (x, y)."""
    grids = []
    for stride in STRIDES:
        steps = (np.arange(SIZE // stride) + 0.5) * stride
        down, across = np.meshgrid(steps, steps, indexing="ij")
        grids.append(np.stack([across.ravel(), down.ravel()], axis=1))
    return np.concatenate(grids)


def _overlap(one: np.ndarray, two: np.ndarray) -> float:
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    areas = float(np.prod(one[2:] - one[:2]) + np.prod(two[2:] - two[:2]))
    return shared / (areas - shared)
