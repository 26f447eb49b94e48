"""A student made ready to train, in our loop or in anybody's.

The order is fixed and each step proves what it did before the next begins: plan (which layers, and
why not the others), masks (2:4, on float weights), batch norm (warmed up, frozen, folded), the
float stage where there is one, calibration (of the masked network), quantizers. Model Optimizer
would accept some other orders in silence and sparsify nothing; here there is no other order to ask
for.

`edgekd distill` trains what comes out with its own loop. A loop of one's own does the same with
four calls::

    prepared = edgekd.prepare(student, teacher, recipe)
    for step, (inputs, labels) in enumerate(batches):
        prepared.begin(step)                       # teacher intervention's schedule
        sum(prepared.loss(inputs, labels).values()).backward()
        ...
    artifact = prepared.finish(out)                # proven, ready for edgekd export

What such a loop does is not known here, so the Student it ends in is named by its weights and is
never answered from cache.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from edgekd import (
    artifact,
    classes,
    data,
    io_json,
    kinds,
    models,
    sources,
    structure,
    unpack,
)
from edgekd.artifact import Artifact, Question, versions
from edgekd.distill import (
    bits,
    device,
    equalise,
    lsq,
    prune,
    quantize,
    record,
    samples,
    stages,
    start,
)
from edgekd.distill.calibrate import Calibration, calibrate, calibration
from edgekd.distill.intervention import Intervention, intervene
from edgekd.eligible import LayerPlan
from edgekd.errors import ConfigError, ContractError
from edgekd.models import Tensors
from edgekd.recipe import Recipe
from edgekd.weights import save_weights, state

TOOLS = ("torch", "transformers", "timm", "numpy", "safetensors")
StudentArm = Literal["dense", "sparse"]


def prepare(
    student: nn.Module, teacher: nn.Module, recipe: Recipe, arm: StudentArm = "sparse"
) -> Prepared:
    """Make a student of one's own ready for a training loop of one's own.

    On a GPU, float32 stays float32 in this process from here on: TF32 is off.

    Args:
        student: As ``student.model`` (or else ``teacher.model``) of the recipe builds it, with
            the weights to start from. Changed in place, and left in training mode.
        teacher: Likewise of ``teacher.model``, trained. Frozen and put into evaluation mode.
        recipe: Its model, data, sparsity, quantization and loss sections are used; the steps, batch
            size and learning rate are the loop's.
        arm: ``sparse`` for 2:4 INT8, ``dense`` for INT8 alone.

    Raises:
        ConfigError: A network is not the recipe's, does not take its data, or lies elsewhere than
            the other.
        ContractError: A step did not do what it promises (mask, quantizers, calibration).
    """
    if recipe.distill.sparse is not None:
        raise ConfigError(
            "prepare: [distill.sparse] is a stage of edgekd distill's own loop: take the section "
            "out, or run edgekd distill; a student that is 2:4 already keeps its zeros, since "
            "sparsity.method = 'magnitude' finds them again"
        )
    places = [{str(p.device) for p in network.parameters()} for network in (student, teacher)]
    if len(places[0] | places[1]) > 1:
        mine, theirs = (" and ".join(sorted(place)) for place in places)
        raise ConfigError(
            f"prepare: the student is on {mine}, the teacher on {theirs}, expected one device for "
            "both: move them with .to(device) first"
        )
    device.float32()  # for the whole process: proofs and integers are of float32
    examples = sources.load(recipe)
    for network in (student, teacher):
        unpack.canonical(network)
    descriptions = {
        who: _described(network, spec, recipe, examples.io.labels, who)
        for who, network, spec in (
            ("teacher", teacher, recipe.teacher.model),
            ("student", student, recipe.student.model or recipe.teacher.model),
        )
    }
    teacher.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as keep:
        prepared = Prepared(
            recipe, arm, examples, teacher, student, descriptions["student"], Path(keep)
        )
    prepared.taught_by = descriptions["teacher"]
    student.train()
    return prepared


class Prepared:
    """A student with its masks, quantizers and losses, beside its teacher.

    Attributes:
        student: Trains on exactly the numbers that ship.
        teacher: Frozen.
        io: Names of the inputs and outputs.
        taught_by: The teacher's description, where the networks came from outside.
    """

    def __init__(
        self,
        recipe: Recipe,
        arm: StudentArm,
        examples: data.Data,
        teacher: nn.Module,
        student: nn.Module,
        description: Mapping[str, Any],
        keep: Path,
    ) -> None:
        """Take the steps before the first training step; see the module.

        Args:
            recipe: What to compress and how.
            arm: ``sparse`` or ``dense``.
            examples: The recipe's data.
            teacher: Frozen, in evaluation mode.
            student: Changed in place.
            description: What `models.build` makes the student from.
            keep: Where batch norm's warm-up and the float stage keep their checkpoints.
        """
        self.student, self.teacher, self.io = student, teacher, examples.io
        self.taught_by: Mapping[str, Any] | None = None
        self._recipe, self._arm, self._examples = recipe, arm, examples
        one = models.tensors(samples.batches(examples, 1)[0], student)
        models.probe(student, one, examples.io, description["spec"])
        sparsity = recipe.sparsity if arm == "sparse" else None
        self.rows = structure.plan(student, one, examples.io, sparsity, recipe.quantization)
        _anything_planned(recipe, self.rows, arm)
        # Tried before anything is trained: a mode that these networks cannot take ends here.
        tried = _intervention(recipe, student, teacher, one, examples.io)
        if tried is not None:
            tried.attempt(one, examples.io)
        feed = samples.batches(examples, recipe.quantization.calibration_samples)
        self._equalised = equalise.asked(recipe, student, self.rows, feed, examples.io)
        self._masks, self._pruned = prune.masks(recipe, student, self.rows, examples, feed)
        self._norms = stages.warm_up(recipe, examples, student, teacher, self._masks, keep)
        folded = {"folded": self._norms["folded"]} if self._norms["folded"] else {}
        self._description = {**description, **folded}
        self._float = stages.float_stage(recipe, arm, examples, student, teacher, self._masks, keep)
        self._calibration = self._quantize(lambda twin: _feed(twin, feed, examples))
        self.check()
        taught_by = self._float.teacher
        self._intervention = _intervention(recipe, student, taught_by, one, examples.io)
        self._objective = self._float.objective(
            recipe, student, teacher, examples.io, self._intervention
        )

    def _quantize(self, run: Callable[[nn.Module], None]) -> Calibration:
        """Widths, calibration and quantizers, on the masked float student."""
        settings, recipe = self._recipe.quantization, self._recipe
        if settings.mean_bits is not None:
            self.rows = bits.allocate(
                self.student,
                self.rows,
                self._masks,
                calibrate(self.student, self.rows, self._masks, run),
                settings.mean_bits,
                lambda twin: self._float.objective(recipe, twin, self.teacher, self.io, None),
                bits.batches_of(self._examples, recipe.distill.batch_size, self.student),
            )
        found = calibration(self.student, self.rows, self._masks, run, settings)
        quantize.attach(
            self.student,
            self.rows,
            self._masks,
            found.scales,
            learned=settings.scales == "learned",
            same_input=found.same_input,
        )
        return found

    def begin(self, step: int) -> None:
        """Tell which step comes next, for losses that follow a schedule over ``distill.steps``."""
        if self._intervention is not None:
            self._intervention.at(step)

    def loss(self, inputs: Tensors, labels: Tensor) -> Tensors:
        """Weighted loss terms {name: float32[]}; their sum is to be minimised.

        Args:
            inputs: {name: tensor[batch, ...]} as the networks take them.
            labels: int64[batch], or what the recipe's task takes.
        """
        return self._objective(inputs, labels)

    @property
    def observed(self) -> Mapping[str, float]:
        """What the latest step adds to its row of the curve: agreement, the loss of each block."""
        return self._objective.observed

    @property
    def units(self) -> Mapping[str, float]:
        """How much of each loss term is one of its own unit; see `edgekd.distill.loop`."""
        settings = self._recipe.distill.intervention
        own = {} if settings is None else {"intervention": settings.weight}
        return {**self._objective.units, **own}

    def check(self) -> None:
        """Assert that masks and quantizers are what was planned; call it as often as you like.

        Raises:
            ContractError: They are not.
        """
        quantize.verify(self.student, self.teacher, self.rows, self._masks)

    def save(self, scratch: Path, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Take every hook off and write what a Student holds.

        Args:
            scratch: Directory to write into.
            curve: Rows of ``losses.jsonl``.

        Returns:
            The Student's results.
        """
        self.check()
        self._objective.remove()
        rows = self._float.both(curve)
        record.save(scratch, self.student, self.rows, rows, self._description)
        results = record.record(
            scratch, self._recipe, self._examples, self.student, self.teacher, self.rows
        )
        return results | {
            "intervention_sites": self._intervention.sites if self._intervention else [],
            "batchnorm_folded": len(self._norms["folded"]),
            "batchnorm_frozen": self._norms["frozen"],
            "calibration": self._calibration.as_json(),
            "equalised": self._equalised,
            **self._pruned,
            **self._float.results,
        }

    def finish(self, out: Path, curve: Sequence[Mapping[str, float]] = ()) -> Artifact:
        """End a training loop of one's own: the Student, and the Teacher beside it.

        Args:
            out: Directory of artifacts.
            curve: Rows for the loss plot, ``{"step": .., <term>: ..}``; default: none.

        Raises:
            ContractError: A mask or quantizer did not survive the loop.
        """
        assert self.taught_by is not None, "finish belongs to prepare; edgekd distill saves itself"
        self.check()
        self.student.eval()
        recipe = self._recipe
        teacher = self._teacher(out, self.taught_by)
        config = {
            "arm": self._arm,
            "name": recipe.name,
            "seed": recipe.seed,
            "student": {"model": recipe.student.model or recipe.teacher.model},
            "data": recipe.data.model_dump(),
            "sparsity": recipe.sparsity.model_dump() if self._arm == "sparse" else None,
            "quantization": recipe.quantization.model_dump(),
            "distill": recipe.distill.model_dump(),
            **device.resolved(recipe),
            "loop": "the user's own",
        }
        question = Question(
            kinds.STUDENT,
            config=config,
            parents={"teacher": teacher, **start.parents(recipe)},
            sources={
                "weights": _content(
                    {**quantize.plain_state(self.student), **lsq.scales(self.student)}
                )
            },
            tools=versions(*TOOLS, "nvidia-modelopt"),
        )
        return artifact.make(out, question, lambda work: self.save(work.scratch, curve))

    def _teacher(self, out: Path, description: Mapping[str, Any]) -> Artifact:
        """The teacher that was given, as an artifact."""
        question = Question(
            kinds.TEACHER,
            config={
                "teacher": self._recipe.teacher.model_dump(),
                "data": self._recipe.data.model_dump(),
                "name": self._recipe.name,
                "seed": self._recipe.seed,
                **device.resolved(self._recipe),
                "loop": "the user's own",
            },
            sources={"weights": _content(state(self.teacher))},
            tools=versions(*TOOLS),
        )

        def write(work: artifact.Work) -> dict[str, Any]:
            chosen = samples.choose(self._examples, self._recipe.data.samples)
            outputs = models.run(self.teacher, data.inputs_of(chosen), self.io)
            samples.save(work.scratch / "samples.npz", chosen, teacher=outputs)
            save_weights(self.teacher, work.scratch / "model.safetensors")
            text = json.dumps(description, indent=1, sort_keys=True)
            (work.scratch / "model.json").write_text(text, encoding="utf-8")
            io_json.save(self.io, self._examples.files, work.scratch)
            return {
                "fitted": False,
                "accuracy": samples.accuracy(outputs, chosen["labels"], self.io),
                "samples": len(chosen["labels"]),
                "parameters": sum(p.numel() for p in self.teacher.parameters()),
            }

        return artifact.make(out, question, write)


def _described(
    network: nn.Module, spec: str, recipe: Recipe, labels: Sequence[str], who: str
) -> dict[str, Any]:
    """What a network of the recipe is built from, once it is shown to be that network."""
    description = models.describe(spec, recipe.base, labels)
    wanted = {name: tensor.shape for name, tensor in models.build(description).state_dict().items()}
    found = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if found != wanted:
        differ = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        shapes = [list(each.get(differ[0], ())) or "absent" for each in (found, wanted)]
        raise ConfigError(
            f"prepare: the {who} is not the network that {spec!r} builds: {len(differ)} weights "
            f"differ, first {differ[0]}: found {shapes[0]}, expected {shapes[1]}: name in the "
            f"recipe what builds it"
        )
    classes.answer_in(network, description.get("classes", ()))
    return description


def _content(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _intervention(
    recipe: Recipe, student: nn.Module, teacher: nn.Module, one: models.Tensors, io: data.IO
) -> Intervention | None:
    settings = recipe.distill.intervention
    if settings is None:
        return None
    return intervene(settings, recipe.distill.steps, recipe.seed, (student, teacher), one, io)


def _feed(model: nn.Module, batches: Sequence[data.Arrays], examples: data.Data) -> None:
    for batch in batches:
        models.run(model, batch, examples.io)


def _anything_planned(recipe: Recipe, rows: Sequence[LayerPlan], arm: StudentArm) -> None:
    if not rows:
        raise ContractError(f"recipe {recipe.name}: the student has no Linear or Conv2d layer")
    if any(row.int8 or row.sparse for row in rows):
        return
    # The first layer is often the odd one (three channels); the largest tells what to change.
    largest = max(rows, key=lambda row: row.macs)
    advice = "widen quantization.include or choose another student"
    if arm == "dense" and "quantization.convolutions" in largest.int8_reason:
        advice = "leave 'dense' out of the recipe's arms, or set quantization.convolutions = true"
    raise ContractError(
        f"recipe {recipe.name}: no layer of the {arm} student can be INT8"
        f"{' or 2:4' if arm == 'sparse' else ''}; {largest.layer}: {largest.int8_reason}; {advice}"
    )
