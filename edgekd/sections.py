"""The sections of a recipe: every key there is, its default and its limits.

Each section is frozen and refuses unknown keys; what its numbers mean stands beside them. `Recipe`
puts them together (see `edgekd.recipe`), and targets and scenarios are sections too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a recipe, target or scenario: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Training(Section):
    """How a network is trained: AdamW, linear warm-up, cosine decay to zero."""

    steps: int = Field(ge=0, description="optimizer steps")
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(default=0.01, ge=0)


class Teacher(Section):
    """The network whose knowledge is kept.

    `model` is ``hf:<directory or config.json>`` or ``python:<module>:<callable>``; `checkpoint` a
    safetensors file, or a ``.pt`` of tensors. Without one, `fit` trains the teacher first.
    """

    model: str
    checkpoint: str | None = None
    fit: Training | None = None


class Student(Section):
    """The network that ships; by default the teacher's own, weights included."""

    model: str | None = None


class Data(Section):
    """Where examples come from.

    Attributes:
        source: ``python:<module>:<callable>`` returning `data.Data`; ``hf:`` and imagefolder,
            parquet, csv (tsv too) or a hub's id; ``random``: noise, for latency and parity alone.
        samples: Evaluation examples that travel to the device.
        train: Files, patterns or directories relative to the recipe, or a split of the hub's.
        evaluation: The same, of examples that are not trained on.
        image, text, text_pair, label: Columns; default: the only one there is of its type.
        preprocess: ``hf:<directory>`` or ``timm:<name>``; default: the teacher's own.
        max_length: Ids of a sentence at most; default: what the teacher can take.
        metric: ``python:<module>:<callable>`` from (outputs, labels) to a score in 0..1 a sample.
    """

    source: str
    samples: int = Field(default=512, ge=1)
    train: str | list[str] | None = None
    evaluation: str | list[str] | None = None
    image: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    preprocess: str | None = None
    max_length: int | None = Field(default=None, ge=2)
    metric: str | None = None

    @model_validator(mode="after")
    def _read_by_somebody(self) -> Data:
        if self.source.startswith("hf:"):
            if missing := [name for name in ("train", "evaluation") if not getattr(self, name)]:
                raise ValueError(f"{missing[0]} is missing: source {self.source!r} reads it")
            return self
        names = ["train", "evaluation", "image", "text", "text_pair", "label"]
        names += ["preprocess", "max_length"] if self.source != "random" else []
        if unread := [name for name in names if getattr(self, name) is not None]:
            raise ValueError(f"source {self.source!r} does not read {', '.join(unread)}: remove it")
        return self


class Sparsity(Section):
    """Which layers get a 2:4 pattern. Patterns are shell-style, matched on module names."""

    method: Literal["magnitude"] = "magnitude"
    include: list[str] = ["*"]
    exclude: list[str] = []


class Quantization(Section):
    """Which layers get static symmetric INT8: per-channel weights, per-tensor activations."""

    calibration_samples: int = Field(default=128, ge=1)
    # INT8 convolutions answer in float32 and fuse with nothing in the engines built so far, where
    # fp16 ones fuse with everything: off until a device shows a gain.
    convolutions: bool = False
    include: list[str] = ["*"]
    exclude: list[str] = []
    # What else people ask for; `edgekd.plan.refusals` says for each why no target of ours runs it.
    format: Literal["int8", "uint8", "fp8"] = "int8"
    activation_scales: Literal["static", "dynamic", "per-channel"] = "static"


class Losses(Section):
    """Weights of the distillation loss terms; 0 turns a term off.

    logits: KL(teacher || student) at `temperature`, times temperature squared (arXiv 1503.02531,
    section 2). blocks: mean squared error of each block's output over the teacher's variance.
    labels: cross-entropy with the ground truth, or `task`, ``python:<module>:<callable>`` from
    (outputs, labels) to a scalar tensor. outputs: of a network with several, how much each counts
    by name; 1 where it is not named. Those that are not logits are compared by squared error.
    """

    logits: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    blocks: float = Field(default=1.0, ge=0)
    labels: float = Field(default=0.0, ge=0)
    outputs: dict[str, Annotated[float, Field(ge=0)]] = {}
    task: str | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> Losses:
        if self.logits == self.blocks == self.labels == 0 and not any(self.outputs.values()):
            raise ValueError("all loss weights are 0: give at least one of logits, blocks, labels")
        return self


class TeacherIntervention(Section):
    """Teacher intervention, TI-O withdrawn gradually (arXiv 2302.11812); off unless it is given.

    Over the first `share` of the steps the outputs of the student's attention branches are mixed
    with the teacher's, from the teacher's alone to the student's alone; `weight` is that of the
    loss between the two, without which a replaced branch learns nothing.
    """

    mode: Literal["output"] = "output"
    share: float = Field(default=0.5, gt=0, le=1)
    weight: float = Field(default=1.0, gt=0)


class Distill(Training):
    """Quantization-aware distillation: training settings, losses and teacher intervention.

    `batchnorm_warmup` are steps before all others, in float and with the 2:4 masks, in which batch
    norm still follows its batches; then it is frozen and folded into the layer before it.
    """

    batchnorm_warmup: int = Field(default=0, ge=0, description="optimizer steps")
    losses: Losses = Losses()
    intervention: TeacherIntervention | None = None


class Range(Section):
    """Smallest, usual and largest size that an engine must take."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"sizes are min {self.min}, opt {self.opt}, max {self.max}: they must not decrease"
            )
        return self


class Export(Section):
    """The ONNX graphs: opset, sizes an engine must take, and how the graphs are made.

    Attributes:
        opset: ONNX operator set; torch.export's exporter has none below 18.
        batch_min: Smallest batch.
        batch_opt: Usual batch, for which an engine is tuned.
        batch_max: Largest batch.
        dynamic: The same of every other symbol in the inputs' shapes, such as ``sequence``.
        exporter: Which of torch's exporters; with ``auto``, `edgekd run` keeps the first whose
            engine is INT8 and fused as planned, and everything else takes torchscript.
        weights: Quantized weights as integers (a quarter the size) or as floats behind Q/DQ;
            ``auto`` is decided with the exporter, and is float elsewhere.
    """

    opset: int = Field(default=17, ge=17, le=20)
    batch_min: int = Field(default=1, ge=1)
    batch_opt: int = Field(default=8, ge=1)
    batch_max: int = Field(default=64, ge=1)
    dynamic: dict[str, Range] = {}
    exporter: Literal["auto", "torchscript", "dynamo"] = "auto"
    weights: Literal["auto", "int8", "float"] = "auto"

    @property
    def sizes(self) -> dict[str, Range]:
        """Sizes of every symbol, the batch among them."""
        batch = Range(min=self.batch_min, opt=self.batch_opt, max=self.batch_max)
        return {"batch": batch, **self.dynamic}

    @model_validator(mode="after")
    def _ordered(self) -> Export:
        if not self.batch_min <= self.batch_opt <= self.batch_max:
            raise ValueError(
                f"batch sizes are min {self.batch_min}, opt {self.batch_opt}, max {self.batch_max}"
                ": they must not decrease"
            )
        if "batch" in self.dynamic:
            raise ValueError(
                "dynamic.batch: the batch has keys of its own: batch_min, batch_opt, batch_max"
            )
        return self


class Gate(Section):
    """What `edgekd gate` holds an engine to; a budget that is not given is not checked.

    Budgets hold for whichever target is gated, so a recipe for two devices of different speed keeps
    to those that both must meet.

    Attributes:
        accuracy_drop_points: Most percentage points of top-1 the engine may be below the teacher.
        latency_ms: Most milliseconds that `percentile` of the scenario's latency may be; where
            nobody holds the machine's clocks, as on target ``cpu``, it is always inconclusive.
        percentile: 50, 90, 95 or 99; default: the scenario's own.
        size_bytes: Most bytes of the file that the runtime opens.
        minimum_effect: Share by which latency may be above the baseline's before it counts as
            slower; 0.02 is 2%.
        minimum_effect_points: Percentage points of top-1 that the engine may be below the
            baseline's before it counts as worse. Of 200 samples none of which differs, the interval
            reaches 1.9 points down: fewer samples need more than the default.
    """

    accuracy_drop_points: float | None = Field(default=None, ge=0, le=100)
    latency_ms: float | None = Field(default=None, gt=0)
    percentile: Literal[50, 90, 95, 99] | None = None
    size_bytes: int | None = Field(default=None, ge=1)
    minimum_effect: float = Field(default=0.02, ge=0)
    minimum_effect_points: float = Field(default=2.0, ge=0, le=100)

    @model_validator(mode="after")
    def _percentile_of_something(self) -> Gate:
        if self.percentile is not None and self.latency_ms is None:
            raise ValueError(
                f"percentile is {self.percentile} without latency_ms: give the latency it may have"
            )
        return self
