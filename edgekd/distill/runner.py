"""Running a torch network on arrays, and recording what it answers on the samples that travel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.data import IO, Arrays, Data
from edgekd.models import Tensors, forward

BATCH = 64


def run(model: nn.Module, inputs: Arrays, io: IO, batch: int = BATCH) -> Arrays:
    """Outputs float32[n, ...] by name for inputs [n, ...] by name, in eval mode without gradients."""
    count = len(next(iter(inputs.values())))
    training = model.training
    model.eval()
    parts: list[Arrays] = []
    with torch.no_grad():
        for start in range(0, count, batch):
            rows = {name: array[start : start + batch] for name, array in inputs.items()}
            outputs = forward(model, tensors(rows, model), io)
            parts.append({name: t.float().cpu().numpy() for name, t in outputs.items()})
    model.train(training)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def tensors(inputs: Arrays, model: nn.Module) -> Tensors:
    """Arrays as tensors on the network's device."""
    device = next(model.parameters()).device
    return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}


def sample_arrays(data: Data, count: int) -> Arrays:
    """The evaluation examples that travel: ``input.<name>``, ``labels`` and ``ids``.

    They are spread evenly over the evaluation split, so that a sorted one is not cut by class.
    """
    total = len(data.evaluation)
    rows = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    inputs, labels = data.evaluation.take(rows)
    named = {f"input.{name}": array for name, array in inputs.items()}
    return {**named, "labels": labels.astype(np.int64), "ids": rows}


def inputs_of(samples: Arrays) -> Arrays:
    """The network's inputs among the arrays of a samples file."""
    prefix = "input."
    return {n.removeprefix(prefix): a for n, a in samples.items() if n.startswith(prefix)}


def accuracy(outputs: Arrays, labels: np.ndarray, io: IO) -> float:
    """Top-1 of the first output, 0 to 1."""
    logits = outputs[io.outputs[0].name]
    return float((logits.argmax(axis=-1) == labels).mean())


def save_samples(path: Path, samples: Arrays, **recorded: Arrays) -> None:
    """Write ``samples.npz``: the samples and each network's outputs as ``<who>.<output>``."""
    named = {f"{who}.{name}": array for who, part in recorded.items() for name, array in part.items()}
    np.savez(path, **samples, **named)  # type: ignore[arg-type]
