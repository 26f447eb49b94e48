"""What a training step costs in forward passes: where the constants of `edgekd.plan` come from.

    python bench/export/training.py           two minutes or more; prints, and writes nothing

The product's own loop runs on the product's own networks and losses. Before each step the plain
network answers the step's rows, as `edgekd plan` times it, so both are of one process and one
moment, and their ratio is worth something on a machine that is shared. A run's number is the median
over its steps; what is printed is the median run and, in brackets, the least and the most.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STEPS, WARM, RUNS = 16, 4, 3
VIT = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "image_size": 64,
    "patch_size": 16, "num_labels": 10, "hidden_size": 384, "intermediate_size": 1536,
    "num_hidden_layers": 2, "num_attention_heads": 6,
}  # fmt: skip
RESNET = {
    "architectures": ["ResNetForImageClassification"], "model_type": "resnet", "image_size": 32,
    "num_labels": 10, "embedding_size": 64, "hidden_sizes": [64, 128], "depths": [1, 1],
    "layer_type": "basic",
}  # fmt: skip


def recipes(folder: Path) -> Iterator[Any]:
    """The demo's recipe, a vision transformer's wider layers, and a ResNet of two blocks."""
    from edgekd import recipe

    yield recipe.load("digits-vit").model_copy(update={"threads": 1})
    for name, config in (("vit", VIT), ("resnet", RESNET)):
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
        document = {
            "name": name,
            "threads": 1,
            "teacher": {"model": f"hf:{name}.json"},
            "data": {"source": "random"},
            "quantization": {"calibration_samples": 32, "convolutions": True},
            "distill": {"steps": STEPS, "batch_size": 32},
        }
        asked = recipe.parse(document, name)
        asked._base = folder
        yield asked


def fit(asked: Any, keep: Path) -> Any:
    """A teacher's fit, as `edgekd.distill.teacher` runs it."""
    from edgekd import models, sources
    from edgekd.distill import loop, losses

    examples = sources.load(asked)
    model = models.build(models.describe(asked.teacher.model, asked.base))
    task = losses.task(None, examples.io)

    def loss(inputs: Any, target: Any) -> Any:
        return {"labels": task(models.forward(model, inputs, examples.io), target)}

    return loop.Run("fit", model, loss, examples.train, settings(asked), 0, keep)


def distill(asked: Any, keep: Path) -> Any:
    """A 2:4 INT8 student's training beside its teacher, as `edgekd.distill.student` runs it."""
    from edgekd import models, sources
    from edgekd.distill import loop
    from edgekd.distill.prepare import Prepared

    examples, described = sources.load(asked), models.describe(asked.teacher.model, asked.base)
    teacher, student = models.build(described), models.build(described)
    student.load_state_dict(teacher.state_dict())
    teacher.eval().requires_grad_(False)
    made = Prepared(asked, "sparse", examples, teacher, student, described, keep)
    return loop.Run("distill", student, made.loss, examples.train, settings(asked), 0, keep)


def settings(asked: Any) -> Any:
    """The recipe's own training, cut to a few steps."""
    return asked.distill.model_copy(update={"steps": STEPS, "batchnorm_warmup": 0})


def passes(asked: Any, make: Callable[[Any, Path], Any]) -> float:
    """Median over the steps of a run: a step's time over that of one plain forward pass."""
    from edgekd import models, sources
    from edgekd.distill import device, loop
    from edgekd.traffic import forward_ns

    device.prepare(asked)
    found: list[float] = []
    with tempfile.TemporaryDirectory() as keep:
        run = make(asked, Path(keep))
        plain = models.build(models.describe(asked.teacher.model, asked.base))
        rows = run.split.take(loop.batch_rows(run, 0))[0]
        inputs, io = models.tensors(rows, plain), sources.load(asked).io
        started = one = 0

        def between(_step: int) -> None:
            nonlocal started, one
            ended = time.perf_counter_ns()
            if started:
                found.append((ended - started) / one)
            one = forward_ns(plain, inputs, io)
            started = time.perf_counter_ns()

        run.begin = between
        loop.train(run)
    return statistics.median(found[WARM:])


def main() -> None:
    """Every recipe, fit and distill in turn."""
    with tempfile.TemporaryDirectory() as directory:
        for asked in recipes(Path(directory)):
            found: dict[str, list[float]] = {"fit": [], "distill": []}
            for _ in range(RUNS):
                found["fit"].append(passes(asked, fit))
                found["distill"].append(passes(asked, distill))
            for what, values in found.items():
                middle, least, most = statistics.median(values), min(values), max(values)
                print(f"{asked.name} {what}: {middle:.1f} ({least:.1f} to {most:.1f})", flush=True)


if __name__ == "__main__":
    main()
