"""A network of several outputs: taught output by output, and its suppression outside the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd import artifact, data, kinds
from edgekd.data import Arrays
from edgekd.evaluate import evaluate
from edgekd.infer import infer

from .conftest import OPT_IN, Chain, Made
from .detector import OBJECTS, SIZE, detections, score
from .promises import Promises


def _answers(made: Made) -> tuple[Arrays, Arrays, Arrays]:
    """Outputs of teacher, student and graph on the samples."""
    with np.load(made.student.file("samples.npz")) as arrays:
        teacher, student = (data.recorded(arrays, who) for who in ("teacher", "student"))
    return teacher, student, dict(np.load(made.model.file("outputs.npz")))


class TestDetector(Promises):
    names = ("detector", f"detector{OPT_IN}")

    def test_every_output_has_a_loss_of_its_role(self, chain: Chain, name: str) -> None:
        made = chain(name)
        roles = {t["name"]: t["role"] for t in made.model.read_json("io.json")["outputs"]}
        assert roles == {"classes": "logits", "distances": "values", "centerness": "values"}
        for line in made.student.file("losses.jsonl").read_text().splitlines():
            terms = json.loads(line)
            assert all(terms[n] > 0 for n in ("logits", "values.distances", "values.centerness"))

    def test_what_runs_on_both_levels_is_one_layer_of_two_runs(
        self, chain: Chain, name: str
    ) -> None:
        made = chain(name)
        runs = {row["layer"]: row["runs"] for row in made.layers}
        assert {n: c for n, c in runs.items() if c > 1} == dict.fromkeys(
            ("tower.0", "classes", "sides", "center"), 2
        )
        planned = [row for row in made.layers if row["int8"]]
        assert made.engine.results["planned_int8"] == sum(row["runs"] for row in planned)

    def test_the_graph_ends_before_the_suppression(self, chain: Chain, name: str) -> None:
        made = chain(name)
        for file in ("ort.onnx", "trt.onnx"):
            graph = onnx.load(made.model.file(file)).graph
            assert [value.name for value in graph.output] == ["classes", "distances", "centerness"]
            assert not {"NonMaxSuppression", "TopK"} & {node.op_type for node in graph.node}

    def test_the_outputs_are_all_that_detections_need(self, chain: Chain, name: str) -> None:
        made = chain(name)
        teacher, student, graph = _answers(made)
        for row in range(len(graph["classes"])):
            ours, theirs = (detections(each, row) for each in (graph, student))
            assert ours
            assert [(d.label, round(d.score, 2)) for d in ours[:1]] == [
                (d.label, round(d.score, 2)) for d in theirs[:1]
            ]
            assert np.allclose(ours[0].box, theirs[0].box, atol=0.5)
        positions = teacher["classes"].shape[1]
        assert all(len(detections(graph, row)) < positions * OBJECTS / 4 for row in range(8))

    def test_every_head_is_the_output_layer_of_its_output(self, chain: Chain, name: str) -> None:
        rows = {row["layer"]: row for row in chain(name).layers}
        found = {n: r["int8_reason"] for n, r in rows.items() if "output layer" in r["int8_reason"]}
        assert {layer: reason.partition(":")[0] for layer, reason in found.items()} == {
            "classes": "output layer of classes",
            "sides": "output layer of distances",
            "center": "output layer of centerness",
        }

    def test_the_suppression_is_named_in_all_that_is_made(self, chain: Chain, name: str) -> None:
        made = chain(name)
        out = made.model.path.parent
        found = [artifact.load(path) for path in sorted(out.glob("*-*")) if path.is_dir()]
        with_io = [e for e in found if any(f.endswith("io.json") for f in e.manifest.files)]
        assert {each.kind for each in with_io} >= {"Teacher", "Student", "OnnxModel", "Bundle"}
        for each in with_io:
            for file in each.manifest.files:
                if file.endswith("io.json"):
                    assert each.read_json(file)["postprocess"] == "python:zoo.detector:suppressed"

    def test_infer_gives_what_is_left_after_it(
        self, chain: Chain, name: str, tmp_path: Path
    ) -> None:
        made = chain(name)
        samples = artifact.parent(made.model, "samples", kinds.SAMPLES)
        with np.load(samples.file("samples.npz")) as arrays:
            np.savez(tmp_path / "in.npz", **data.inputs_of(arrays))
        _, _, graph = _answers(made)
        for row, found in enumerate(infer(made.model, [str(tmp_path / "in.npz")])):
            wanted = detections(graph, row)
            assert [(d["label"], round(d["score"], 3)) for d in found["answer"]] == [
                (d.label, round(d.score, 3)) for d in wanted
            ]
            assert all(-SIZE < side < 2 * SIZE for d in found["answer"] for side in d["box"])

    def test_the_users_metric_judges_the_graph(self, chain: Chain, name: str) -> None:
        made = chain(name)
        report = evaluate(made.model, made.model.path.parent)
        rows = {row["who"]: row for row in report.results["rows"]}
        with np.load(made.student.file("samples.npz")) as arrays:
            labels = arrays["labels"]
        _, _, graph = _answers(made)
        assert score(graph, labels).mean() > 0.5
        assert rows["model"]["top1"] == pytest.approx(score(graph, labels).mean())
