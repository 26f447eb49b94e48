"""What an engine's table and log show, in full or in part, and how the verdict says so."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.artifact import Artifact
from edgekd.report.claims import Claim, claims
from edgekd.report.collection import Collection
from edgekd.report.findings import Finding
from edgekd.report.summary import Sentence, headline, verdict

from .conftest import A100, ORIN, Maker, rows

NARROW = (
    "not fused: a head has 8 features, fused kernels take at least 9; it runs as two products and "
    "a softmax"
)
RTX = (
    "read from the layer table of tensorrt-rtx 1.7.1 for SM80: not TensorRT's engine, and never run"
)
FLOAT = {"quantized": False, "layers_int8": 0}


def found(*artifacts: Artifact) -> dict[str, Claim]:
    return {claim.name: claim for claim in claims(Collection(artifacts))}


def attention(*artifacts: Artifact) -> list[Finding]:
    return list(found(*artifacts)["Attention is fused"].findings)


def model_of(maker: Maker, **changes: Any) -> Artifact:
    return maker.model(maker.student(maker.teacher(), "sparse"), **changes)


def page(*artifacts: Artifact) -> tuple[Sentence, dict[str, str]]:
    """The headline, and the verdict's sentences by what they begin with."""
    run = Collection(artifacts)
    made = claims(run)
    return headline(run, made), {each.lead: each.text for each in verdict(run, made)}


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_blocks_that_no_kernel_fuses_are_failed_and_named(maker: Maker, runtime: str) -> None:
    left = {"attention_unfused": [NARROW, NARROW]}
    model = model_of(maker, **left)
    engine = maker.engine(model, A100, runtime, **left)
    (finding,) = attention(model, engine)
    assert finding.state == "failed"
    assert finding.text.startswith("Only 2 of 4 attention blocks are, read from the layer table of")
    assert finding.text.endswith(f". Known at export: 2 are {NARROW}.")
    head, told = page(model, engine)
    assert head.state == ""  # nothing is broken: not alarmed
    assert head.text.startswith("1 claim does not hold, which is an answer and no defect: ")
    assert "Failed" not in told
    assert told["Not in full"] == ("2 of 4 attention blocks are fused, no kernel takes the rest.")
    assert "attention is fused" not in told["Proven"]
    assert "attention is fused" not in told.get("Evidence only", "")


def test_attention_that_no_kernel_fuses_is_not_said_to_be_absent(maker: Maker) -> None:
    left = {"attention_blocks": 0, "attention_unfused": [NARROW], "loose_products": 0}
    model = model_of(maker, **left)
    (unseen,) = attention(model, maker.bundle(model, ORIN))
    assert unseen.state == "not measured"
    assert unseen.text == f"Not measured: of 1 attention block, 1 is {NARROW}."
    engine = maker.engine(model, A100, "tensorrt-rtx", fused_attention=0, **left)
    seen, away = attention(model, engine, maker.bundle(model, ORIN))
    assert (seen.state, seen.text) == (
        "failed",
        f"None of 1 attention block is, {RTX}. Known at export: 1 is {NARROW}.",
    )
    # No build can prove it, and none refuses what export named.
    assert away.text.endswith("building there, from the Bundle, shows which blocks are.")


def test_a_block_that_should_be_fused_and_is_not_is_a_defect(maker: Maker) -> None:
    left = {"attention_unfused": [NARROW]}
    model = model_of(maker, **left)
    engine = maker.engine(model, A100, "tensorrt", fused_attention=1, **left)
    (finding,) = attention(model, engine)
    assert (finding.state, finding.text) == ("failed", "Only 1 of 3 attention blocks are.")
    head, told = page(model, engine)
    assert head.state == "failed"
    assert head.text.startswith("1 claim failed: ")
    assert told["Failed"] == "that attention is fused. Look there first."


def test_more_fused_kernels_than_blocks_prove_nothing(maker: Maker) -> None:
    model = model_of(maker)
    (finding,) = attention(model, maker.engine(model, A100, "tensorrt", fused_attention=3))
    assert finding.state == "failed"
    assert finding.text.startswith("3 fused attention kernels, yet 2 blocks to be fused, read from")
    unjudged = maker.engine(model, A100, "tensorrt", fused_attention=3, planned_int8=0, int8=0)
    (finding,) = attention(model, unjudged)
    assert (finding.state, finding.aside) == (
        "evidence",
        "3 fused attention kernels ran, more than the blocks recognised",
    )


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_layer_table_that_no_build_judged_proves_no_attention(maker: Maker, runtime: str) -> None:
    model = model_of(maker, **FLOAT)
    engine = maker.engine(model, A100, runtime, planned_int8=0, int8=0)
    seen, away = attention(model, engine, maker.bundle(model, {**A100, "name": "b"}))
    assert seen.state == "evidence"
    assert seen.text.startswith("2 of 2 attention blocks are, read from the layer table of ")
    assert seen.text.endswith(
        ". Whether a softmax or a batched gemm is left was not checked: no layer is planned in "
        "INT8."
    )
    assert away.text.endswith("building there, from the Bundle, shows which blocks are.")
    _, told = page(model, engine)
    assert told["Not in full"] == (
        "2 of 2 attention blocks are fused, what is left beside them was not checked."
    )
    assert "Evidence only" not in told


def sparse(maker: Maker, planned: int, eligible: int, chosen: int) -> list[Artifact]:
    """A model whose engine has so many layers planned in 2:4, eligible and run so."""
    model = model_of(maker)
    plan = [rows("sparse", f"net.{number}")[0] for number in range(planned)]
    said = {"eligible": eligible, "chosen": chosen, "layers": []}
    return [model, maker.engine(model, A100, "tensorrt", plan=plan, sparse_kernels=said)]


@pytest.mark.parametrize(
    ("planned", "eligible", "chosen", "state", "text"),
    [
        (48, 48, 48, "proven", ""),
        (48, 48, 1, "evidence", "Elsewhere a dense kernel was timed as faster: an answer, and no "),
        (48, 40, 40, "evidence", "48 layers of the engine are planned in 2:4."),
        (48, 48, 0, "failed", "Elsewhere a dense kernel was timed as faster: an answer, and no "),
        (48, 0, 0, "failed", "48 layers of the engine are planned in 2:4."),
    ],
)
def test_sparse_kernels_are_proven_where_all_that_is_planned_took_one(
    maker: Maker, planned: int, eligible: int, chosen: int, state: str, text: str
) -> None:
    (finding,) = found(*sparse(maker, planned, eligible, chosen))[
        "Sparse kernels are chosen"
    ].findings
    assert finding.state == state
    assert finding.text.startswith(f"{chosen} of {eligible} eligible layers took a sparse kernel")
    assert text in finding.text


def test_2_4_that_did_not_pay_is_an_answer_and_an_ineligible_plan_a_defect(maker: Maker) -> None:
    head, told = page(*sparse(maker, 48, 48, 0))
    assert head.state == ""
    assert "Failed" not in told
    assert told["Not in full"] == (
        "none of 48 layers in 2:4 took a sparse kernel, dense ones were timed as faster."
    )
    head, told = page(*sparse(maker, 48, 48, 12))
    assert head.text.startswith("No claim failed: ")
    assert told["Not in full"] == "12 of 48 layers in 2:4 took a sparse kernel."
    head, told = page(*sparse(maker, 48, 0, 0))
    assert head.state == "failed"
    assert told["Failed"] == "that sparse kernels are chosen. Look there first."


def test_rows_that_an_engine_runs_as_one_layer_are_planned_once(maker: Maker) -> None:
    model = model_of(maker)
    packed = [{**rows("sparse")[0], "node": name} for name in ("/q", "/k + /v")]
    engine = maker.engine(model, A100, "tensorrt", plan=packed, merged=("/q", "/k", "/v"))
    (finding,) = found(model, engine)["Sparse kernels are chosen"].findings
    assert finding.state == "proven"
    dense = maker.engine(model, A100, "tensorrt", plan=rows("dense"))
    (finding,) = found(model, dense)["Sparse kernels are chosen"].findings
    assert finding.text.startswith("Not measured: no layer is planned for 2:4; ")
