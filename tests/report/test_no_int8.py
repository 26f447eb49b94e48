"""Students without INT8, of convolutions or of few bits, told as that and as nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from tiny import configs
from tiny.recipes import tiny

from edgekd import artifact, evaluate
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.export.model import export
from edgekd.report import layers, report
from edgekd.report.claims import claims
from edgekd.report.collection import Collection, arm_name
from edgekd.report.describe import describe
from edgekd.report.summary import glance, verdict

from .conftest import A100, Maker
from .latencies import latency, samples, scenario


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """The whole chain of a ResNet under the default, which keeps convolutions in float16."""
    base = tmp_path_factory.mktemp("resnet")
    out = base / "out"
    quantization = {"calibration_samples": 32, "convolutions": False}
    student = distill(tiny(base, configs.RESNET, "images", quantization=quantization), out)
    teacher = artifact.parent(student, "teacher")
    models = [export(source, out) for source in (student, teacher)]
    engines = Maker(out).engines(models)  # as ONNX Runtime's: built of both, and not run here
    timed = latency(Maker(out), engines[::-1], samples([400, 200], scenario(), spread=0))
    return [teacher, student, *models, evaluate.evaluate(models[0], out), *engines, timed]


def test_no_layer_is_said_to_be_int8(run: list[Artifact], tmp_path: Path) -> None:
    page = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    # But for how bytes are counted, which is of all students.
    told = page.replace("0.625 in 2:4 INT8", "")
    assert "ONNX Runtime uses no 2:4: dense and 2:4 weights in float are expected" in told
    assert "2:4 INT8" not in told
    assert "2:4 float: ort.onnx" in told
    assert "convolution: stays in float16, INT8 is opt-in" in told


def test_the_first_screen_tells_2_4_first(run: list[Artifact]) -> None:
    collected = Collection(run)
    made = next(s.text for s in verdict(collected, claims(collected)) if s.lead == "Made")
    assert made == (
        "The teacher became a 2:4 float student, with the float teacher beside it to compare. "
        "Planned, of 7 layers (and of the multiply-accumulates): 5 in 2:4 (46.52%) and none in "
        "INT8. Of batch norm: 6 batch norms folded into the layer before."
    )
    first, weights = glance(collected)[:2]
    assert first == ("Planned in 2:4", "46.52%", "of MACs, 0% in INT8")
    assert weights.note == "of float32, computed, 2:4 float"
    latencies = next(s.text for s in verdict(collected, []) if s.lead == "Latency")
    assert latencies.startswith("2:4 float takes 0.50 times the float teacher's p90")


def test_claims_of_int8_and_attention_say_that_nothing_was_planned(run: list[Artifact]) -> None:
    found = {claim.name: claim.findings for claim in claims(Collection(run))}
    (mask,) = found["The 2:4 mask is exact"]
    assert (mask.state, mask.text) == (
        "proven",
        "5 layers 2:4 in float: no nonzero off the mask in either file.",
    )
    (int8,) = found["Every planned layer runs in INT8"]
    assert (int8.state, int8.on[0].text) == ("not measured", "2:4 float")
    assert int8.text.startswith("Not measured: no layer is planned in INT8; the layer table")
    (attention,) = found["Attention is fused"]
    assert attention.text == "Not measured: the model has no attention block."
    assert [f.state for f in found["Both graphs carry equal integers"]] == ["not measured"]


def test_a_bundle_and_a_lone_engine_find_what_their_arm_is(run: list[Artifact]) -> None:
    model, engine = (next(m for m in run if m.kind == kind) for kind in ("OnnxModel", "Engine"))
    alone = Collection([engine])  # its graph lies beside it
    assert alone.name(engine) == "2:4 float"
    bundle = Maker(engine.path.parent).bundle(model, A100)
    assert Collection([bundle]).name_of(model.id, "sparse", bundle) == "2:4 float"


def test_inspect_tells_the_same(run: list[Artifact]) -> None:
    student, model = (next(m for m in run if m.kind == k) for k in ("Student", "OnnxModel"))
    text = describe(student)
    assert "\n  batchnorm_folded    6\n  batchnorm_frozen    none\n" in text
    assert "\n  layers_int8         0\n" in text
    assert "no [3]  yes" in text
    assert "\n  loose_products     0\n" in describe(model)


def test_an_arm_is_named_by_its_plan() -> None:
    names = [
        arm_name("sparse", {"layers_int8": a, "layers_sparse": b}) for a, b in ((2, 3), (0, 3))
    ]
    assert names == ["2:4 INT8", "2:4 float"]
    assert arm_name("sparse", {"layers_int8": 4, "layers_sparse": 0}) == "INT8 without 2:4"
    assert arm_name("sparse", {}) == "2:4 INT8"
    assert arm_name("dense", {"layers_int8": 4}) == "dense INT8"


@pytest.mark.parametrize(("arm", "name"), [("sparse", "2:4"), ("dense", "dense")])
def test_a_student_of_few_bits_is_not_called_int8(
    arm: Literal["sparse", "dense"], name: str, tmp_path: Path
) -> None:
    quantization = {"calibration_samples": 32, "weights": "ternary"}
    untrained = {"steps": 0, "batch_size": 16}
    recipe = tiny(tmp_path, quantization=quantization, distill=untrained)
    student = distill(recipe, tmp_path / "out", arm)
    assert Collection([student]).name(student) == f"{name}, weights of 2 bits"
    (share,) = layers.shares(Collection([student]))
    assert share.both == share.int8 == 0.0
    assert share.text_int8 == "0%"
    assert "  2 bits  " in describe(student)
    page = report([student], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "weights of 2 bits" in page
    assert "<td>yes</td><td" not in page
    assert "dense INT8" not in page


def test_mixed_widths_are_named() -> None:
    planned = {"layers_by_bits": {"2": 1, "4": 2}, "layers_int8": 1, "layers_sparse": 4}
    assert arm_name("sparse", planned) == "2:4, weights of 2, 4 and 8 bits"
