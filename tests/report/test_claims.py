"""Each claim in each state it can have, and never a state that the artifacts do not show."""

from __future__ import annotations

import pytest

from edgekd.artifact import Artifact
from edgekd.report.claims import Claim, claims
from edgekd.report.collection import Collection

from .conftest import A100, CPU, ORIN, Maker

MASK, INTEGERS, PARITY, INT8, ATTENTION, ACCURACY, SPARSE, LATENCY = range(8)


def found(*artifacts: Artifact) -> list[Claim]:
    return claims(Collection(artifacts))


def told(claim: Claim) -> list[tuple[str, str]]:
    return [(finding.state, finding.text) for finding in claim.findings]


def graph(maker: Maker, arm: str = "sparse", **changes: object) -> Artifact:
    return maker.model(maker.student(maker.teacher(), arm), **changes)


def test_a_teacher_alone_leaves_every_claim_unmeasured_with_its_reason(maker: Maker) -> None:
    all_claims = found(maker.teacher())
    assert len(all_claims) == 8
    for claim in all_claims:
        assert claim.states == {"not measured"}
        assert all(f.text.startswith("Not measured: ") and len(f.text) > 20 for f in claim.findings)


def test_mask_and_integers_are_proven_on_the_files_with_their_numbers(maker: Maker) -> None:
    model = graph(maker)
    result = found(model)
    text = "1 layer, 512 weights: checked integer by integer in both files at export."
    assert told(result[MASK]) == [("proven", text)]
    assert result[MASK].findings[0].on[0].text == "2:4 INT8: trt.onnx and ort.onnx"
    assert told(result[INTEGERS]) == [
        ("proven", "1 layer, 512 integers compared with NumPy at export: none differs.")
    ]


def test_a_proof_of_another_file_has_failed(maker: Maker) -> None:
    model = graph(maker, graph_sha256={"trt.onnx": "a" * 64, "ort.onnx": "b" * 64})
    result = found(model)
    for claim in (result[MASK], result[INTEGERS], result[PARITY]):
        assert claim.states == {"failed"}
        assert "The proof is of ort.onnx bbbbbbbbbbbb, the file here is " in claim.findings[0].text


def test_either_file_may_be_another_than_the_proven_one(maker: Maker) -> None:
    proven = graph(maker).results["graph_sha256"]
    for name in ("trt.onnx", "ort.onnx"):
        result = found(graph(maker, graph_sha256={**proven, name: "a" * 64}))
        for claim in (result[MASK], result[INTEGERS], result[PARITY]):
            ((state, text),) = told(claim)
            assert state == "failed"
            assert text.startswith(f"The proof is of {name} aaaaaaaaaaaa, the file here is ")


def test_a_proof_that_covers_less_than_the_plan_has_failed(maker: Maker) -> None:
    result = found(graph(maker, layers_sparse=0, layers_int8=2))
    assert told(result[MASK]) == [("failed", "0 layers proven, 1 planned in layers.json.")]
    assert told(result[INTEGERS]) == [("failed", "2 layers proven, 1 planned in layers.json.")]


def test_a_dense_graph_claims_no_mask(maker: Maker) -> None:
    result = found(graph(maker, "dense"))
    assert told(result[MASK]) == [
        ("not measured", "Not measured: no 2:4 graph is among these artifacts.")
    ]
    assert result[INTEGERS].states == {"proven"}


def test_parity_within_one_step_is_proven(maker: Maker) -> None:
    ((state, text),) = told(found(graph(maker))[PARITY])
    assert state == "proven"
    assert "own integers: of 1,000 activation integers 0.2% differ, the largest step is 1." in text
    assert "Rounding alone moves the network's own outputs by 0.00030, and by 0.0050" in text
    assert "no answer changes on 200 samples" in text


def test_parity_beyond_one_step_is_evidence_only(maker: Maker) -> None:
    changes = {"integers_largest_step": 3, "argmax_differs": 0.005}
    ((state, text),) = told(found(graph(maker, parity=changes))[PARITY])
    assert state == "evidence"
    assert "the largest step is 3" in text
    assert "0.5% of the answers change" in text


def test_a_vacuous_comparison_is_no_measurement(maker: Maker) -> None:
    changes = {"vacuous": True, "output_variation": 0.0002}
    ((state, text),) = told(found(graph(maker, parity=changes))[PARITY])
    assert state == "not measured"
    assert "vary by only 0.00020 of their size" in text


def test_a_float_graph_is_compared_without_integers(maker: Maker) -> None:
    model = maker.model(maker.teacher(), parity={"integers_compared": 0})
    ((state, text),) = told(found(model)[PARITY])
    assert state == "proven"
    assert "integers" not in text


def test_a_stand_in_is_evidence_and_says_what_it_is_not(maker: Maker) -> None:
    model = graph(maker)
    engine = maker.engine(model, A100, "tensorrt-rtx")
    result = found(model, engine, maker.bundle(model, A100, engine), maker.bundle(model, ORIN))
    assert told(result[INT8]) == [
        (
            "evidence",
            "1 of 1 planned layer do, read from the layer table of tensorrt-rtx 1.7.1 for SM80: "
            "not TensorRT's engine, and never run.",
        ),
        (
            "not measured",
            "Not measured: no such device here; building there, from the Bundle, proves it or "
            "refuses.",
        ),
    ]
    assert result[ATTENTION].findings[0].text.startswith("2 of 2 attention blocks are, ")
    assert result[INT8].findings[1].on[0].text == "orin"


def test_tensorrts_own_engine_is_proof_and_its_device_is_here(maker: Maker) -> None:
    model = graph(maker)
    engine = maker.engine(model, A100, "tensorrt")
    result = found(model, engine, maker.bundle(model, A100))
    assert told(result[INT8]) == [
        ("proven", "1 of 1 planned layer do, read from the layer table of tensorrt 1.7.1.")
    ]
    assert told(result[SPARSE]) == [
        ("proven", "1 of 1 eligible layer took a sparse kernel, says the builder's log.")
    ]
    assert result[LATENCY].states == {"not measured"}
    assert "no such device" not in result[LATENCY].findings[0].text


def test_sparse_kernels_are_what_the_builders_log_says(maker: Maker) -> None:
    model = graph(maker)
    dense = maker.engine(
        model, A100, "tensorrt", sparse_kernels={"eligible": 12, "chosen": 0, "layers": []}
    )
    assert told(found(model, dense)[SPARSE]) == [
        (
            "failed",
            "0 of 12 eligible layers took a sparse kernel, says the builder's log. Elsewhere a "
            "dense kernel was timed as faster: an answer, and no defect.",
        )
    ]
    mute = maker.engine(
        model, A100, "tensorrt", sparse_kernels={"eligible": None, "chosen": None, "layers": []}
    )
    assert found(model, mute)[SPARSE].states == {"not measured"}


def test_layers_that_ran_otherwise_have_failed(maker: Maker) -> None:
    model = graph(maker)
    result = found(model, maker.engine(model, A100, "tensorrt", int8=0, fused_attention=1))
    assert told(result[INT8]) == [("failed", "Only 0 of 1 planned layer do.")]
    assert told(result[ATTENTION]) == [("failed", "Only 1 of 2 attention blocks are.")]


@pytest.mark.parametrize(
    ("products", "said"),
    [
        (0, "the model has no attention block."),
        (1, "no attention block was recognised, yet 1 product of two activations."),
        (3, "no attention block was recognised, yet 3 products of two activations."),
        (None, "no attention block was recognised."),  # counted by an earlier version
    ],
)
def test_a_model_has_no_attention_only_where_no_two_activations_meet(
    maker: Maker, products: int | None, said: str
) -> None:
    model = graph(maker)
    counts = {"attention_blocks": 0, "loose_products": products, "fused_attention": 0}
    engine = maker.engine(model, A100, "tensorrt-rtx", **counts)
    assert told(found(model, engine)[ATTENTION]) == [("not measured", f"Not measured: {said}")]


def test_onnx_runtime_shows_no_layer_table_and_no_sparse_kernel(maker: Maker) -> None:
    model = graph(maker)
    result = found(model, maker.engine(model, CPU, "onnxruntime"))
    assert told(result[INT8]) == [
        ("not measured", "Not measured: ONNX Runtime shows no layer table.")
    ]
    assert "ONNX Runtime has none" in result[SPARSE].findings[0].text
    assert told(result[LATENCY]) == [("not measured", "Not measured: no benchmark was run.")]


def test_what_no_device_ran_is_not_measured(maker: Maker) -> None:
    model = graph(maker)
    engine = maker.engine(model, A100, "tensorrt-rtx")
    result = found(model, engine, maker.bundle(model, A100, engine), maker.bundle(model, ORIN))
    assert told(result[LATENCY]) == [("not measured", "Not measured: no such device here.")]
    assert [where.text for where in result[LATENCY].findings[0].on] == ["a100", "orin"]
    assert told(result[SPARSE]) == [
        (
            "not measured",
            "Not measured: no such device here; tensorrt-rtx, which stands in, names no kernels.",
        ),
        ("not measured", "Not measured: no such device here."),
    ]


def test_a_bundle_for_the_cpu_is_for_no_other_device(maker: Maker) -> None:
    model = graph(maker)
    result = found(model, maker.bundle(model, CPU))
    assert not any("no such device" in f.text for claim in result for f in claim.findings)


def test_accuracy_is_judged_by_its_interval(maker: Maker) -> None:
    expected = {
        (-0.031, -0.004): ("failed", "95% interval \u22123.1 to \u22120.4: a loss."),
        (-0.02, 0.01): ("evidence", "a loss above 2.0 points is excluded."),
        (0.0, 0.02): ("proven", "95% interval 0.0 to +2.0: no loss."),
    }
    for interval, (state, words) in expected.items():
        model = graph(maker)
        ((found_state, text),) = told(found(model, maker.accuracy(model, interval))[ACCURACY])
        assert found_state == state
        assert words in text
        assert "89.0% of 200 samples right; the teacher's answer on 97.0%." in text


def test_accuracy_is_that_of_what_ships_and_not_of_the_student_in_torch(maker: Maker) -> None:
    model = graph(maker)
    in_torch = {"correct": 199, "top1": 0.995, "difference": 0.095, "agreement": 0.5}
    in_torch |= {"difference_interval": [0.05, 0.12]}
    ((state, text),) = told(found(model, maker.accuracy(model, student=in_torch))[ACCURACY])
    assert state == "evidence"
    assert text.startswith("\u22121.0 points, 95% interval \u22122.0 to +1.0: a loss above 2.0 ")
    assert "89.0% of 200 samples right; the teacher's answer on 97.0%." in text


def test_equal_findings_are_told_once(maker: Maker) -> None:
    model = graph(maker)
    engine = maker.engine(model, CPU, "onnxruntime")
    reports = [maker.accuracy(model), maker.accuracy(engine)]
    (finding,) = found(model, engine, *reports)[ACCURACY].findings
    assert [where.text for where in finding.on] == [
        "2:4 INT8: ort.onnx",
        "2:4 INT8: Engine for cpu",
    ]


def test_accuracy_in_torch_is_not_that_of_what_ships(maker: Maker) -> None:
    student = maker.student(maker.teacher(), "dense")
    ((state, text),) = told(found(student)[ACCURACY])
    assert state == "not measured"
    assert "what ships was not run" in text
    assert "89.0% were right, the teacher 90.0%, of 200 samples" in text
