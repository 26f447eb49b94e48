"""The recipe: one TOML file that says what to compress and how.

(A Bundle carries it as JSON, resolved: the values that were used, defaults included.)

A recipe is frozen once read. Every key is checked where it enters, all problems are reported
together, and an unknown key names its nearest neighbour: a misspelt key that is silently ignored is
a training run wasted. Paths in a recipe are relative to the recipe. The resolved recipe travels in
the manifest of whatever was made from it; files enter a question by their content, never by their
path.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from edgekd import problems
from edgekd.errors import ConfigError, names_that_exist

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Arm = Literal["fp16", "dense", "sparse"]


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
        latency_ms: Most milliseconds that `percentile` of the scenario's latency may be.
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


class Recipe(Section):
    """Everything `edgekd run` needs to know; see the shipped recipes for commented examples."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: all cores")
    arms: list[Arm] = Field(["fp16", "dense", "sparse"], min_length=1)
    teacher: Teacher
    student: Student = Student()
    data: Data
    sparsity: Sparsity = Sparsity()
    quantization: Quantization = Quantization()
    distill: Distill
    export: Export = Export()
    gate: Gate = Gate()

    _base: Path = PrivateAttr(default_factory=Path)

    @property
    def base(self) -> Path:
        """Directory that relative paths in the recipe start from."""
        return self._base

    def as_json(self) -> dict[str, Any]:
        """Plain values, what is not given left out; `load` reads them back from a ``.json``."""
        return self.model_dump(mode="json", exclude_none=True)

    def without(self, arm: Arm) -> Recipe:
        """The same recipe with one arm less; the dense student where none would be left.

        Args:
            arm: The arm to leave out.
        """
        arms = [each for each in self.arms if each != arm]
        return self.model_copy(update={"arms": arms or ["dense"]})

    @model_validator(mode="after")
    def _teacher_has_weights(self) -> Recipe:
        if self.teacher.checkpoint is not None and self.teacher.fit is not None:
            raise ValueError("teacher.checkpoint and teacher.fit are both given: keep one")
        return self


def load(name: str | Path) -> Recipe:
    """Read a recipe from a file, or a shipped one by name.

    No file that the recipe names is looked for: on a device, where the model and the data are not,
    its ``[gate]`` section can still be used.

    Args:
        name: Path of a ``.toml`` file or of a Bundle's ``recipe.json``, or a name such as
            ``digits-vit``.

    Raises:
        ConfigError: No such recipe, not TOML, or keys that are wrong; all of them in one message.
    """
    path = Path(name)
    if not path.is_file():
        shipped = {Path(p.name).stem: p for p in _shipped().iterdir() if p.name.endswith(".toml")}
        if str(name) not in shipped:
            raise ConfigError(
                f"recipe {str(name)!r}: no such file, and no shipped recipe has that name. "
                f"{names_that_exist(str(name), shipped)}"
            )
        path = Path(str(shipped[str(name)]))
    recipe = parse(read(path), str(path))
    recipe._base = path.parent
    return recipe


def parse(document: dict[str, Any], where: str) -> Recipe:
    """Check a recipe given as plain values.

    Raises:
        ConfigError: Every problem found, one line each.
    """
    recipe: Recipe = check(Recipe, document, where)
    return recipe


def read(path: Path) -> dict[str, Any]:
    """Parse a file that a person wrote in TOML, or that a Bundle carries as ``.json``.

    Raises:
        ConfigError: It is missing, cannot be read, or is not what its name says.
    """
    return _read_json(path) if path.suffix == ".json" else read_toml(path)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: It is missing, cannot be read, or is not TOML (with line and column).
    """
    try:
        return tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds a JSON {type(document).__name__}, expected an object")
    return document


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def check(model: type[Any], document: dict[str, Any], where: str) -> Any:
    """Validate plain values against a `Section`, collecting every problem.

    Raises:
        ConfigError: One sentence a problem: where, what was found, what would be right.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = [problems.sentence(model, problem) for problem in error.errors()]
        count = f"{len(found)} problems: " if len(found) > 1 else ""
        raise ConfigError(f"{where}: {count}" + "; ".join(found)) from error


def _shipped() -> Any:
    return importlib.resources.files("edgekd") / "recipes"
