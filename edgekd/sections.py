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
    """The network that ships; by default the teacher's own, weights included.

    `start` is a Student artifact of the same network, plan and arm to go on from: its weights, and
    its 2:4 masks in every layer that is still planned for 2:4 (see `Sparsity.release`).
    """

    model: str | None = None
    start: str | None = None


class Data(Section):
    """Where examples come from.

    Attributes:
        source: ``python:<module>:<callable>`` returning `data.Data`; ``hf:`` and imagefolder,
            parquet, csv (tsv too) or a hub's id; ``random``: noise, for latency and parity alone.
        samples: Evaluation examples that travel to the device.
        train: Files, patterns or directories relative to the recipe, or a split of the hub's.
        evaluation: The same, of examples that are not trained on.
        image, text, text_pair, label: Columns; default: the only one there is of its type, and of
            labels the one called ``label``.
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
    """Which layers get a 2:4 pattern, and which weights stay.

    Attributes:
        method: ``magnitude`` keeps the larger ones; ``sparsegpt`` those whose loss hurts the
            layer's output most, and makes up for it in the others (arXiv 2301.00774).
        permute: Reorder channels first so that more magnitude is kept, folded into the layers
            around, so that the network computes what it did (Pool and Yu, NeurIPS 2021). Neither it
            nor `method` goes with ``student.start``, whose masks are kept.
        pattern_rows: Output rows that share one pattern, the V of V:2:4; 1 is plain 2:4. It must
            divide the output rows of every planned layer.
        include: Shell-style patterns, matched on module names.
        exclude: Likewise; these stay dense.
        release: Likewise; layers of ``student.start`` that were 2:4 and train on dense.
    """

    method: Literal["magnitude", "sparsegpt"] = "magnitude"
    permute: bool = False
    pattern_rows: int = Field(default=1, ge=1)
    include: list[str] = ["*"]
    exclude: list[str] = []
    release: list[str] = []


class Quantization(Section):
    """Which layers get static symmetric INT8: per-channel weights, per-tensor activations.

    Attributes:
        calibration_samples: Training examples that input scales are taken from, and what SparseGPT
            and `smooth` know of the inputs.
        calibration: How a scale follows from them: ``max``, ``percentile`` (99.99), ``mse``,
            ``entropy``, or ``best``, which takes for each layer the one whose output is nearest to
            the float layer's.
        scales: ``follow`` computes weight scales from the weights in every step and leaves input
            scales as calibrated; ``learned`` trains both (LSQ, arXiv 1902.08153).
        smooth: Share, 0 to 1, of the difficulty that moves from activations to weights before
            calibration (SmoothQuant's alpha, arXiv 2211.10438); not given: nothing is moved.
        weights: Width of the weights. ``int4`` and ``ternary`` train and are measured in torch; no
            target runs them, so export refuses.
        mean_bits: Give each layer 2, 4 or 8 bits by its gradient's norm so that a weight has this
            many on average (arXiv 1802.05668, section 5); not given: `weights` everywhere.
        convolutions: Whether convolutions are INT8 too.
        include: Shell-style patterns, matched on module names.
        exclude: Likewise; these stay in float.
    """

    calibration_samples: int = Field(default=128, ge=1)
    calibration: Literal["max", "percentile", "mse", "entropy", "best"] = "max"
    scales: Literal["follow", "learned"] = "follow"
    smooth: float | None = Field(default=None, ge=0, le=1)
    weights: Literal["int8", "int4", "ternary"] = "int8"
    mean_bits: float | None = Field(default=None, ge=2, le=8)
    # INT8 convolutions answer in float32 and fuse with nothing in the engines built so far, where
    # fp16 ones fuse with everything: off until a device shows a gain.
    convolutions: bool = False
    include: list[str] = ["*"]
    exclude: list[str] = []
    # What else people ask for; `edgekd.plan.refusals` says for each why no target of ours runs it.
    format: Literal["int8", "uint8", "fp8"] = "int8"
    activation_scales: Literal["static", "dynamic", "per-channel"] = "static"

    @model_validator(mode="after")
    def _one_width(self) -> Quantization:
        if self.mean_bits is not None and self.weights != "int8":
            raise ValueError(
                f"weights is {self.weights!r} and mean_bits is {self.mean_bits:g}: mean_bits gives "
                "each layer a width of its own, keep one of them"
            )
        return self


def _default(section: Section, name: str) -> object:
    return type(section).model_fields[name].default


class Losses(Section):
    """Weights of the distillation loss terms; 0 turns a term off.

    logits: KL(teacher || student) at `temperature`, times temperature squared (arXiv 1503.02531,
    section 2). blocks: mean squared error of each block's output over the teacher's variance.
    labels: cross-entropy with the ground truth, or `task`, ``python:<module>:<callable>`` from
    (outputs, labels) to a scalar tensor. outputs: of a network with several, how much each counts
    by name; 1 where it is not named. Those that are not logits are compared by squared error.

    GPUSQ's terms (arXiv 2305.10727, section 3) are these with alpha = labels, beta = logits and
    gamma = blocks, and with:

    Attributes:
        critical: Share of the blocks, the last ones, whose features are compared.
        agreement: Compare them only on samples where teacher and student give the same class.
        block_weights: What each block counts in the quantized stage, from its loss at the end of
            the sparse one: ``equal``, ``inverse`` (a larger loss counts less) or ``proportional``.
        labels_from: ``truth``, or ``teacher`` for the class that the dense teacher names; then
            the training split needs no labels, and those it has are not read.
    """

    logits: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    blocks: float = Field(default=1.0, ge=0)
    labels: float = Field(default=0.0, ge=0)
    critical: float = Field(default=1.0, gt=0, le=1)
    agreement: bool = False
    block_weights: Literal["equal", "inverse", "proportional"] = "equal"
    labels_from: Literal["truth", "teacher"] = "truth"
    outputs: dict[str, Annotated[float, Field(ge=0)]] = {}
    task: str | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> Losses:
        if self.logits == self.blocks == self.labels == 0 and not any(self.outputs.values()):
            raise ValueError("all loss weights are 0: give at least one of logits, blocks, labels")
        of_blocks = ("critical", "agreement", "block_weights")
        unread = [name for name in of_blocks if getattr(self, name) != _default(self, name)]
        if self.blocks == 0 and unread:
            raise ValueError(f"blocks is 0, so nothing reads {', '.join(unread)}: remove it")
        if self.labels_from == "teacher" and self.task is not None:
            raise ValueError(
                "labels_from is 'teacher', which gives class numbers, and task is a loss of its "
                "own: keep one of them"
            )
        return self


class TeacherIntervention(Section):
    """Teacher intervention (arXiv 2302.11812, section 4); off unless it is given.

    Over the first `share` of the steps a signal of the student's attention is replaced by the
    teacher's; after that the student runs on its own. All modes but ``output`` need attention,
    softmax(Q K) V with layers of their own for Q, K and V, and as many heads and tokens in both.

    Attributes:
        mode: Which signal: ``output`` (TI-O, the branch's output), ``context`` (TI-C, maps times
            values), ``map`` (TI-M, the softmax's result); ``gradual`` (TI-G) goes from output (the
            first sixth) over context (to a third) to map, ``inverted`` from map over context to
            output in thirds, ``stochastic`` draws one of the three in every step.
        withdraw: ``linear``: student and teacher are mixed, from the teacher's alone to the
            student's alone; ``two-step``: the teacher's alone, then the student's alone.
        share: Of the steps.
        weight: Of the loss between the student's own signals and the teacher's, without which a
            replaced signal learns nothing.
    """

    mode: Literal["output", "context", "map", "gradual", "inverted", "stochastic"] = "output"
    withdraw: Literal["linear", "two-step"] = "linear"
    share: float = Field(default=0.5, gt=0, le=1)
    weight: float = Field(default=1.0, gt=0)


class SparseStage(Training):
    """GPUSQ's first stage: the 2:4 network is distilled in float before it is quantized.

    `teaches`: the quantized stage has its result for a teacher; else the dense teacher goes on.
    """

    teaches: bool = True


class Distill(Training):
    """Quantization-aware distillation: training settings, losses and teacher intervention.

    `batchnorm_warmup` are steps before all others, in float and with the 2:4 masks, in which batch
    norm still follows its batches; then it is frozen and folded into the layer before it. `sparse`
    is a whole stage of its own before this one, with the same losses.
    """

    batchnorm_warmup: int = Field(default=0, ge=0, description="optimizer steps")
    sparse: SparseStage | None = None
    losses: Losses = Losses()
    intervention: TeacherIntervention | None = None

    @model_validator(mode="after")
    def _weights_from_somewhere(self) -> Distill:
        if self.losses.block_weights != "equal" and not (self.sparse and self.sparse.steps):
            raise ValueError(
                f"losses.block_weights is {self.losses.block_weights!r} and takes them from the "
                "sparse stage's losses: give [distill.sparse] with steps, or set it to 'equal'"
            )
        return self


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
