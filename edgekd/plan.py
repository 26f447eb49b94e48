"""What will run sparse, in INT8 and fused on a target, and how long: before any training.

The network is built with random weights and one example goes through it, so every size is the real
one and no checkpoint is needed. Which layers take INT8 and 2:4 is asked of `edgekd.eligible`, as
the training will. The times are the roofline model's (Williams, Waterman, Patterson, CACM 52(4),
2009): a kernel takes as long as its operations at the device's peak or its bytes at the memory's,
whichever is longer. That is a lower bound nothing reaches: no launch, no cache, no epilogue. It is
a *prediction*, good for one question: can 2:4 pay here at all?

`refusals` finds what cannot run before anybody trains for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgekd import data, models, sources, structure, traffic
from edgekd.data import IO
from edgekd.distill.sparsify import require_rows
from edgekd.distill.teacher import require_loss
from edgekd.eligible import LayerPlan, asks_below_int8, share_of_macs
from edgekd.errors import UnsupportedError
from edgekd.models import Tensors
from edgekd.recipe import Recipe
from edgekd.target import Target

# A layer whose INT8 time 2:4 cannot shorten by more than this will not show it on a device.
PAYS = 0.05
# Above this one example is timed alone: a batch of 32 would be most of what a plan takes. On one
# thread that made a ViT-B's estimate an eighth shorter; cores that one example leaves idle make it
# longer.
LONG_NS = 50_000_000
# A whole training step in forward passes of its batch, the optimizer's included; distillation's has
# the teacher's pass in it. From `bench/export/training.py`, 2026-11-21, on a virtual machine of two
# cores under other load, step and pass by turns in one process; median run (least to most):
#   digits-vit          fit 3.6 (3.4 to 4.3)   distill 7.7 (7.2 to 9.1)   1 thread, 5 runs
#   digits-vit          fit 3.7 (3.6 to 7.6)   distill 8.1 (8.0 to 17.6)  2 threads, 5 runs
#   ViT, width 384      fit 3.4 (3.4 to 3.5)   distill 6.3 (6.1 to 6.4)   2 threads, 5 runs
#   ResNet, two blocks  fit 3.2 (3.1 to 3.3)   distill 4.6 (4.6 to 4.9)   1 thread, 3 runs
#   ResNet, two blocks  fit 3.8 (3.2 to 5.6)   distill 5.8 (4.8 to 12.9)  2 threads, 5 runs
# So one number for all is off by about a third, and by more where the machine is busy.
FIT_PASSES, DISTILL_PASSES = 3.5, 6.2
# ATen operators whose ONNX form some parser refuses; all others have forms that every target takes.
ONNX_FORMS = {
    "affine_grid_generator": "AffineGrid", "bernoulli": "Bernoulli", "bernoulli_": "Bernoulli",
    "bitwise_and": "BitwiseAnd", "bitwise_left_shift": "BitShift", "bitwise_not": "BitwiseNot",
    "bitwise_or": "BitwiseOr", "bitwise_right_shift": "BitShift", "bitwise_xor": "BitwiseXor",
    "_linalg_det": "Det", "_fft_c2c": "DFT", "_fft_r2c": "DFT", "_fft_c2r": "DFT",
    "_unique2": "Unique", "unique_consecutive": "Unique", "unique_dim": "Unique",
    "col2im": "Col2Im", "masked_select": "Compress", "max_unpool2d": "MaxUnpool",
    "multinomial": "Multinomial", "stft": "STFT",
}  # fmt: skip
_ACTIVATION_SCALES = {
    "dynamic": "TensorRT runs INT8 with static activation scales only",
    "per-channel": "TensorRT runs INT8 with one scale for a whole activation only",
}


@dataclass(frozen=True)
class Row:
    """One GEMM, convolution or attention block.

    Attributes:
        layer: Module name; of an attention block ``attention <number>``.
        type: ``Linear``, ``Conv2d``, ``attention``, or the class that owns a weight read by other
            code.
        m: Rows of the product (tokens or positions) for `Plan.batch` examples; 0 for attention.
        n: Output features; 0 for attention.
        k: Reduction; 0 for attention.
        macs: Multiply-accumulates for the batch.
        int8: Whether it is planned for INT8, and if not why in `int8_reason`.
        sparse: Whether it is planned for 2:4, and if not why in `sparse_reason`.
        bytes_: Arm -> bytes read and written for the batch.
        ns: Arm -> predicted nanoseconds; None where the target has no such facts.
        bound: ``memory`` or ``compute``, what its last arm's time is made of; empty without facts.
        pays: Whether 2:4 shortens its INT8 time by more than `PAYS`; None where not planned or not
            predicted.
    """

    layer: str
    type: str
    m: int
    n: int
    k: int
    macs: int
    int8: bool
    int8_reason: str
    sparse: bool
    sparse_reason: str
    bytes_: dict[str, int]
    ns: dict[str, float] | None
    bound: str
    pays: bool | None


@dataclass(frozen=True)
class Plan:
    """What is expected of a recipe on a target; every time in it is a prediction.

    Attributes:
        recipe: Its name.
        target: Its name.
        batch: Examples in one query.
        rows: In forward order, attention blocks last.
        attention_blocks: Blocks that must be fused, one kernel each; a row says why another is not.
        macs_share_int8: Share of the weights' multiply-accumulates planned for INT8, 0 to 1.
        macs_share_sparse: The same for 2:4.
        total_ns: Arm -> sum of the rows; None without facts.
        training_seconds: Estimate for this machine's CPU, from a measured forward pass of the
            student; a teacher of another network is taken to cost as much.
    """

    recipe: str
    target: str
    batch: int
    rows: list[Row]
    attention_blocks: int
    macs_share_int8: float
    macs_share_sparse: float
    total_ns: dict[str, float] | None
    training_seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain values; `prediction` says what the times are."""
        rows = [{k.rstrip("_"): v for k, v in asdict(row).items()} for row in self.rows]
        return {**asdict(self), "rows": rows, "prediction": PREDICTION}


PREDICTION = (
    "roofline: the longer of operations at peak and bytes at the memory's bandwidth; a lower bound,"
    " not measured"
)


def plan(recipe: Recipe, target: Target) -> Plan:
    """Plan a recipe for a target.

    Args:
        recipe: What to compress; its checkpoint is not needed.
        target: The device.

    Raises:
        UnsupportedError: Something in it cannot run there; all of it in one sentence.
        ConfigError: The network cannot be built, does not take the data, or has nothing to learn.
        ContractError: A layer cannot be 2:4 as the recipe asks.
    """
    refuse(recipe, [target])
    examples = sources.load(recipe)
    data.require_sizes(examples.io, recipe.export)
    require_loss(recipe, examples.io)
    spec = recipe.student.model or recipe.teacher.model
    student = models.build(models.describe(spec, recipe.base, examples.io.labels))
    count = min(recipe.distill.batch_size, len(examples.train))
    several = models.tensors(examples.train.take(np.arange(count))[0], student)
    one = {name: tensor[:1] for name, tensor in several.items()}
    models.probe(student, one, examples.io, spec)
    seen = traffic.watch(student, one, examples.io)
    wrong = refused_operators(seen, target)
    if wrong:
        raise UnsupportedError(_refused(recipe, target, wrong))
    layers = structure.plan(student, one, examples.io, recipe.sparsity, recipe.quantization)
    for row in layers if "sparse" in recipe.arms else ():
        if row.sparse:
            module = student.get_submodule(row.layer)
            require_rows(row.layer, module, recipe.sparsity.pattern_rows)
    batch = recipe.export.batch_opt
    rows = [_row(layer, seen.layers.get(layer.layer), batch, target) for layer in layers]
    rows += [_attention(i, block, batch, target) for i, block in enumerate(seen.attention)]
    return Plan(
        recipe=recipe.name,
        target=target.name,
        batch=batch,
        rows=rows,
        attention_blocks=sum(not block.unfused for block in seen.attention),
        macs_share_int8=share_of_macs(layers, "int8"),
        macs_share_sparse=share_of_macs(layers, "sparse"),
        total_ns=_total(rows),
        training_seconds=_training(recipe, _example_ns(student, one, several, examples.io)),
    )


def refuse(recipe: Recipe, targets: Sequence[Target]) -> None:
    """Refuse what cannot run on a target, or on none, before anything is trained for it.

    Raises:
        UnsupportedError: Names the target and every reason.
    """
    # The graphs alone need no target, and there are none of such weights.
    if not targets and (below := asks_below_int8(recipe.quantization)):
        raise UnsupportedError(f"recipe {recipe.name}: {below}")
    for target in targets:
        reasons = refusals(recipe, target)
        if reasons:
            raise UnsupportedError(_refused(recipe, target, reasons))


def refusals(recipe: Recipe, target: Target) -> list[str]:
    """Why a recipe cannot run on a target, as far as it can be told without the network.

    The rules are TensorRT's for explicit quantization (symmetric, static, per-tensor activations),
    the compute capabilities' and JetPack's (NVIDIA TensorRT documentation: support matrix, "Work
    with quantized types").
    """
    section, found = recipe.quantization, []
    capability = tuple(target.compute_capability or ())
    if section.format == "fp8":
        known = f"its GPU has compute capability {'.'.join(map(str, capability)) or 'none'}"
        found.append(
            f'FP8 needs compute capability 8.9 or later, {known}: set quantization.format = "int8"'
            if capability < (8, 9)
            else 'edgekd makes no FP8 yet: set quantization.format = "int8"'
        )
    if section.format == "uint8":
        found.append(
            "UINT8 has nonzero zero points, which TensorRT's parser refuses: set "
            'quantization.format = "int8"'
        )
    if section.activation_scales != "static":
        found.append(
            f"{section.activation_scales} scales: {_ACTIVATION_SCALES[section.activation_scales]}: "
            'set quantization.activation_scales = "static"'
        )
    if below := asks_below_int8(section):
        found.append(below)
    limit = target.parser.opset_max
    if limit is not None and recipe.export.opset > limit:
        found.append(
            f"its parser takes opset {limit} at most, the recipe asks {recipe.export.opset}: lower "
            "export.opset"
        )
    major = int((target.runtime_version or "0").partition(".")[0])
    if "-jp6" in target.name and target.runtime == "tensorrt" and major >= 11:
        found.append(
            f"JetPack 6 cannot run TensorRT {target.runtime_version}, its last is 10.x: take a "
            "JetPack 7.2.2 target"
        )
    return found


def refused_operators(seen: traffic.Traffic, target: Target) -> list[str]:
    """ONNX operators the network will need and the target's parser lacks, each in a sentence."""
    needed = {ONNX_FORMS[name]: name for name in sorted(seen.operators) if name in ONNX_FORMS}
    return [
        f"its parser lacks the ONNX operator {form}, which torch's {needed[form]} becomes: write "
        "that part of the network without it"
        for form in sorted(set(needed) & set(target.parser.unsupported))
    ]


def _refused(recipe: Recipe, target: Target, reasons: Sequence[str]) -> str:
    count = f"{len(reasons)} things cannot run: " if len(reasons) > 1 else ""
    return f"recipe {recipe.name} for {target.name}: {count}{'; '.join(reasons)}"


def _row(layer: LayerPlan, moved: traffic.Moved | None, batch: int, target: Target) -> Row:
    m = batch * layer.macs // (layer.n * layer.k) if layer.n * layer.k else 0
    moved = moved or traffic.Moved(m * layer.k // batch, m * layer.n // batch)
    bytes_ = _bytes(layer, moved, batch)
    ns = _times(batch * layer.macs, bytes_, layer, target)
    pays = None
    if ns is not None and layer.sparse:
        pays = ns["sparse"] < (1 - PAYS) * ns["dense"]
    return Row(
        layer=layer.layer,
        type=layer.type,
        m=m,
        n=layer.n,
        k=layer.k,
        macs=batch * layer.macs,
        int8=layer.int8,
        int8_reason=layer.int8_reason,
        sparse=layer.sparse,
        sparse_reason=layer.sparse_reason,
        bytes_=bytes_,
        ns=ns,
        bound="" if ns is None else _bound(batch * layer.macs, bytes_, layer, target),
        pays=pays,
    )


def _bytes(layer: LayerPlan, moved: traffic.Moved, batch: int) -> dict[str, int]:
    """Bytes of weight, input and output by arm.

    INT8 linears were seen to write half precision, INT8 convolutions float32. 2:4 stores half the
    values and two bits for each that is kept.
    """
    weights, read, written = layer.n * layer.k, batch * moved.read, batch * moved.written
    half = 2 * (weights + read + written)
    result = 4 if layer.type == "Conv2d" else 2
    dense = weights + read + result * written if layer.int8 else half
    width = 1 if layer.int8 else 2
    saved = weights * width // 2 - weights // 8 if layer.sparse else 0
    return {"fp16": half, "dense": dense, "sparse": dense - saved}


def _peak(target: Target, int8: bool, sparse: bool) -> float:
    """Operations per nanosecond; half precision runs at half INT8's rate on these GPUs."""
    tops = target.int8_sparse_tops if sparse else target.int8_dense_tops
    assert tops is not None
    return tops * 1e3 * (1.0 if int8 else 0.5)


def _times(
    macs: int, bytes_: dict[str, int], layer: LayerPlan, target: Target
) -> dict[str, float] | None:
    if None in (target.int8_dense_tops, target.int8_sparse_tops):
        return None
    if target.bandwidth_bytes_per_s is None:
        return None
    kinds = {
        "fp16": (False, False),
        "dense": (layer.int8, False),
        "sparse": (layer.int8, layer.sparse),
    }
    bytes_per_ns = target.bandwidth_bytes_per_s / 1e9
    return {
        arm: max(2 * macs / _peak(target, *kind), bytes_[arm] / bytes_per_ns)
        for arm, kind in kinds.items()
    }


def _bound(macs: int, bytes_: dict[str, int], layer: LayerPlan, target: Target) -> str:
    assert target.bandwidth_bytes_per_s is not None
    compute = 2 * macs / _peak(target, layer.int8, layer.sparse)
    return (
        "compute"
        if compute >= bytes_["sparse"] / (target.bandwidth_bytes_per_s / 1e9)
        else "memory"
    )


def _attention(number: int, block: traffic.AttentionBlock, batch: int, target: Target) -> Row:
    """An attention block, in half precision in every arm."""
    how = block.unfused or "fused in half precision"
    reason = f"attention's products have no weights; {how}"
    layer = LayerPlan(
        layer=f"attention {number}",
        type="attention",
        n=0,
        k=0,
        macs=block.macs,
        int8=False,
        int8_reason=reason,
        sparse=False,
        sparse_reason=reason,
    )
    return replace(_row(layer, traffic.Moved(block.elements, 0), batch, target), pays=None)


def _total(rows: Sequence[Row]) -> dict[str, float] | None:
    times = [row.ns for row in rows]
    if any(each is None for each in times):
        return None
    return {
        arm: math.fsum(each[arm] for each in times if each) for arm in ("fp16", "dense", "sparse")
    }


def _example_ns(student: Any, one: Tensors, several: Tensors, io: IO) -> float:
    """Nanoseconds of one example in a batch's forward pass; see `LONG_NS`."""
    alone = traffic.forward_ns(student, one, io)
    if alone >= LONG_NS:
        return alone
    return traffic.forward_ns(student, several, io) / len(next(iter(several.values())))


def _training(recipe: Recipe, example_ns: float) -> float:
    """Seconds: every student arm's steps, and the teacher's where it is fitted first."""
    students = sum(arm != "fp16" for arm in recipe.arms)
    steps = recipe.distill.batchnorm_warmup + recipe.distill.steps
    passes = students * steps * recipe.distill.batch_size * DISTILL_PASSES
    fit = recipe.teacher.fit
    if fit is not None:
        passes += fit.steps * fit.batch_size * FIT_PASSES
    return passes * example_ns / 1e9
