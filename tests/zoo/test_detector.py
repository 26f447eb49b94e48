"""A network of several outputs: taught output by output, and its suppression outside the graph."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from edgekd import data
from edgekd.data import Arrays
from edgekd.evaluate import evaluate

from .conftest import OPT_IN, Chain, Made
from .detector import OBJECTS, detections, score
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

    def test_the_users_metric_judges_the_graph(self, chain: Chain, name: str) -> None:
        made = chain(name)
        report = evaluate(made.model, made.model.path.parent)
        rows = {row["who"]: row for row in report.results["rows"]}
        with np.load(made.student.file("samples.npz")) as arrays:
            labels = arrays["labels"]
        _, _, graph = _answers(made)
        assert score(graph, labels).mean() > 0.5
        assert rows["model"]["top1"] == pytest.approx(score(graph, labels).mean())
