"""The plan: sizes on a real pass, predictions worked out by hand, and what is refused early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configs
from tiny.recipes import tiny

from edgekd import plan as planning
from edgekd import recipe, target
from edgekd.data import IO, Tensor
from edgekd.distill.student import distill
from edgekd.errors import ContractError, UnsupportedError
from edgekd.plan import Plan, Row, plan, refusals, refuse

A100 = target.load("a100-sxm4-80gb-trt11.4")
ORIN = target.load("jetson-agx-orin-64gb-jp6.2")
CPU = target.load("cpu")


def _rows(found: Plan) -> dict[str, Row]:
    return {row.layer: row for row in found.rows}


def test_sizes_and_times_of_an_mlp_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    found = plan(tiny(tmp_path, export={"batch_opt": 16}), A100)
    row = _rows(found)["blocks.0.fc1"]
    assert (row.m, row.n, row.k, row.macs) == (16, 64, 32, 16 * 64 * 32)
    assert (row.int8, row.sparse) == (True, True)
    # Weights 64 x 32, inputs 16 x 32, outputs 16 x 64; INT8 in, half out; half the weights and two
    # bits for each one kept.
    assert row.bytes_ == {
        "fp16": 2 * (2048 + 512 + 1024),
        "dense": 2048 + 512 + 2 * 1024,
        "sparse": 1024 + 256 + 512 + 2 * 1024,
    }
    assert row.ns is not None
    assert row.ns["dense"] == pytest.approx(4608 / 2039)  # 2,039 bytes a nanosecond
    assert row.bound == "memory"
    assert row.pays is True  # 3840 of 4608 bytes
    head = _rows(found)["head"]
    assert not head.int8
    assert "output layer" in head.int8_reason
    assert head.ns is not None
    assert head.ns["fp16"] == head.ns["dense"] == head.ns["sparse"]


def test_totals_are_sums_and_shares_are_of_the_weights(tmp_path: Path) -> None:
    found = plan(tiny(tmp_path), A100)
    assert found.total_ns is not None
    for arm in ("fp16", "dense", "sparse"):
        assert found.total_ns[arm] == pytest.approx(
            sum(row.ns[arm] for row in found.rows if row.ns is not None)
        )
    planned = sum(row.macs for row in found.rows if row.int8)
    assert found.macs_share_int8 == pytest.approx(planned / sum(row.macs for row in found.rows))


def test_a_large_product_is_bound_by_compute_and_gains_what_the_peaks_say() -> None:
    from edgekd.eligible import LayerPlan
    from edgekd.plan import _row
    from edgekd.traffic import Moved

    layer = LayerPlan("fc", "Linear", 4096, 4096, 4096 * 4096 * 512, True, "", True, "")
    row = _row(layer, Moved(512 * 4096, 512 * 4096), 8, A100)
    assert (row.bound, row.m, row.pays) == ("compute", 8 * 512, True)
    assert row.ns is not None
    assert row.ns["fp16"] / row.ns["dense"] == pytest.approx(2.0)
    assert row.ns["dense"] / row.ns["sparse"] == pytest.approx(2.0)


def test_where_activations_decide_2_4_does_not_pay() -> None:
    from edgekd.eligible import LayerPlan
    from edgekd.plan import _row
    from edgekd.traffic import Moved

    layer = LayerPlan("fc", "Linear", 64, 64, 64 * 64 * 3136, True, "", True, "")
    row = _row(layer, Moved(64 * 3136, 64 * 3136), 8, ORIN)
    assert (row.bound, row.pays) == ("memory", False)


def test_attention_is_planned_as_one_fused_kernel_a_block(tmp_path: Path) -> None:
    found = plan(tiny(tmp_path, configs.VIT, "images"), A100)
    blocks = [row for row in found.rows if row.type == "attention"]
    assert found.attention_blocks == len(blocks) == 2
    assert not any(row.int8 or row.sparse for row in blocks)
    assert all("fused in half precision" in row.int8_reason for row in blocks)


def test_without_facts_nothing_is_predicted(tmp_path: Path) -> None:
    found = plan(tiny(tmp_path), CPU)
    assert found.total_ns is None
    assert all(row.ns is None and row.bound == "" and row.pays is None for row in found.rows)
    assert found.training_seconds > 0


def test_training_costs_every_student_s_steps_and_the_teacher_s_fit(tmp_path: Path) -> None:
    training = {"steps": 10, "batchnorm_warmup": 5, "batch_size": 4}
    fit = {"model": "python:tiny.models:mlp", "fit": {"steps": 20, "batch_size": 8}}
    asked = tiny(tmp_path, distill=training, teacher=fit, arms=["fp16", "dense", "sparse"])
    # A second for an example's forward pass; two students of 15 steps, and 20 steps of the teacher.
    expected = 2 * 15 * 4 * planning.DISTILL_PASSES + 20 * 8 * planning.FIT_PASSES
    assert planning._training(asked, 1e9) == pytest.approx(expected)


@pytest.mark.parametrize(("long_ns", "rows"), [(0, {1}), (10**15, {1, 8})])
def test_a_batch_is_timed_only_where_one_example_is_quick(
    long_ns: int, rows: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    class Counts(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.add(len(x))
            return super().forward(x)

    io = IO(
        inputs=[Tensor(name="x", dtype="float32", shape=["batch", 4])],
        outputs=[Tensor(name="logits", dtype="float32", shape=["batch", 2])],
        labels=["a", "b"],
    )
    monkeypatch.setattr(planning, "LONG_NS", long_ns)
    several = {"x": torch.zeros(8, 4)}
    assert planning._example_ns(Counts(4, 2), {"x": several["x"][:1]}, several, io) > 0
    assert seen == rows


def test_no_weights_are_needed(tmp_path: Path) -> None:
    missing = {"model": "python:tiny.models:mlp", "checkpoint": "absent.safetensors"}
    assert plan(tiny(tmp_path, teacher=missing), A100).rows


def test_as_json_says_what_the_times_are(tmp_path: Path) -> None:
    document = plan(tiny(tmp_path), A100).as_json()
    assert "not measured" in document["prediction"]
    assert set(document["rows"][0]) >= {"m", "n", "k", "bytes", "ns", "int8_reason"}


@pytest.mark.parametrize(
    ("changes", "device", "words"),
    [
        ({"quantization": {"format": "fp8"}}, A100, ["8.9 or later", "8.0", '"int8"']),
        ({"quantization": {"format": "fp8"}}, ORIN, ["8.9 or later", "8.7", '"int8"']),
        ({"quantization": {"format": "uint8"}}, A100, ["zero points", '"int8"']),
        (
            {"quantization": {"activation_scales": "dynamic"}},
            A100,
            ["static activation scales only", '"static"'],
        ),
        (
            {"quantization": {"activation_scales": "per-channel"}},
            ORIN,
            ["one scale for a whole activation", '"static"'],
        ),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], device: target.Target, words: list[str]
) -> None:
    asked = tiny(tmp_path, **changes)
    with pytest.raises(UnsupportedError) as caught:
        plan(asked, device)
    for word in [*words, device.name]:
        assert word in str(caught.value)


def test_the_parser_s_opset_is_a_limit(tmp_path: Path) -> None:
    old = ORIN.model_copy(update={"parser": target.Parser(opset_max=16)})
    (sentence,) = refusals(tiny(tmp_path, export={"opset": 17}), old)
    assert sentence == "its parser takes opset 16 at most, the recipe asks 17: lower export.opset"


def test_jetpack_6_has_no_tensorrt_11(tmp_path: Path) -> None:
    wrong = ORIN.model_copy(update={"runtime_version": "11.4"})
    (sentence,) = refusals(tiny(tmp_path), wrong)
    assert "JetPack 6 cannot run TensorRT 11.4" in sentence
    assert "JetPack 7.2.2" in sentence


def test_an_operator_the_parser_lacks_is_found_before_training(tmp_path: Path) -> None:
    asked = tiny(tmp_path, "drawing")
    with pytest.raises(UnsupportedError, match=r"lacks the ONNX operator Multinomial.*multinomial"):
        plan(asked, ORIN)
    assert plan(asked, A100).rows


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    section = {"format": "uint8", "activation_scales": "dynamic"}
    with pytest.raises(UnsupportedError, match="2 things cannot run") as caught:
        refuse(tiny(tmp_path, quantization=section), [A100, ORIN])
    assert "zero points" in str(caught.value)
    assert "static activation scales" in str(caught.value)


def test_the_shipped_recipe_can_run_on_every_shipped_target() -> None:
    shipped = recipe.load("digits-vit")
    for name in target.names():
        assert refusals(shipped, target.load(name)) == []


def test_rows_that_do_not_fall_into_patterns_are_refused_as_in_training(tmp_path: Path) -> None:
    asked = tiny(tmp_path, sparsity={"pattern_rows": 3})
    with pytest.raises(ContractError) as caught:
        plan(asked, CPU)
    with pytest.raises(ContractError) as trained:
        distill(asked, tmp_path / "out")
    assert str(caught.value) == str(trained.value)
    assert "stem: n is 32, expected a multiple of pattern_rows, 3: exclude" in str(caught.value)
    assert "choose a divisor of n" in str(caught.value)
    # With a divisor of every n, or without the arm, it can run.
    assert plan(tiny(tmp_path, sparsity={"pattern_rows": 32}), CPU).macs_share_sparse > 0
    assert plan(asked.without("sparse"), CPU).recipe == "tiny"
