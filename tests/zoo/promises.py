"""What is promised of every family, as tests for classes to inherit."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file

from edgekd import artifact, data, kinds, qdq, sparse24
from edgekd.export import parity

from .conftest import OPT_IN, Chain, Made
from .families import FAMILIES

VARIATION_FLOOR = 0.1  # of an output's size; comparing answers that are all alike proves nothing
GRAPHS = ("ort.onnx", "trt.onnx")


class Promises:
    """The tests of every family; a class that inherits them says of which in `names`."""

    names: tuple[str, ...] = ()

    def test_the_plan_is_what_was_exported(self, chain: Chain, name: str) -> None:
        made = chain(name)
        batch = made.plan.batch
        planned = [row for row in made.plan.rows if row.type != "attention"]
        wanted = [
            (r["layer"], r["n"], r["k"], r["macs"], r["int8"], r["sparse"]) for r in made.layers
        ]
        assert [(r.layer, r.n, r.k, r.macs // batch, r.int8, r.sparse) for r in planned] == wanted
        assert all(row.m * row.n * row.k == row.macs > 0 for row in planned)
        assert all(bool(row.int8_reason) != row.int8 for row in planned)
        assert all(bool(row.sparse_reason) != row.sparse for row in planned)

    def test_every_planned_row_ran_in_int8_and_attention_is_fused_as_planned(
        self, chain: Chain, name: str
    ) -> None:
        made = chain(name)
        table = made.engine.read_json("layers.json")
        ran = {row["layer"] for row in table["ran"] if row["int8"]}
        assert ran == {row.layer for row in made.plan.rows if row.int8}
        assert all(row["weight_dtype"] == "Int8" for row in table["ran"])
        assert all(row["input_dtype"] == "Int8" for row in table["ran"])
        assert made.engine.results["evidence"] is True
        assert (
            made.engine.results["int8"] == made.engine.results["planned_int8"] == len(table["ran"])
        )
        family = FAMILIES[name.removesuffix(OPT_IN)]
        fused = made.engine.results["fused_attention"]
        assert fused == made.plan.attention_blocks == family.attention
        assert made.model.results["attention_blocks"] == family.attention
        # What no kernel fuses is told before training, at the export and beside the engine.
        rows = [row for row in made.plan.rows if row.type == "attention"]
        assert len(rows) == family.attention + family.unfused
        why = [row.int8_reason for row in rows if "not fused" in row.int8_reason]
        told = made.engine.results.get("attention_unfused", [])
        assert len(why) == len(told) == family.unfused
        assert all(sentence in reason for sentence, reason in zip(told, why, strict=True))

    def test_both_files_hold_equal_integers_that_are_2_4(self, chain: Chain, name: str) -> None:
        made = chain(name)
        sparse = {row["layer"] for row in made.layers if row["sparse"]}
        int8 = {row["layer"] for row in made.layers if row["int8"]}
        found = [_integers(made, file) for file in GRAPHS]
        assert found[0].keys() == found[1].keys() == int8
        for layer in int8:
            one, two = found[0][layer], found[1][layer]
            assert one.dtype == np.int8
            assert np.array_equal(one, two)
            assert np.abs(one.astype(int)).max() >= 120  # the scale fits the weights
            assert (sparse24.violations(one) == 0) == (layer in sparse)
        assert sparse

    def test_what_is_2_4_in_float_is_so_in_both_files(self, chain: Chain, name: str) -> None:
        made = chain(name)
        wanted = sorted((r["n"], r["k"]) for r in made.layers if r["sparse"] and not r["int8"])
        for file in GRAPHS:
            held = _sparse_floats(onnx.load(made.model.file(file)))
            assert len(held) >= len(wanted)
            for shape in wanted:
                held.remove(shape)

    def test_onnx_runtime_answers_as_the_student_does(self, chain: Chain, name: str) -> None:
        made = chain(name)
        found = made.model.results["parity"]
        assert found["samples"] == 8
        assert not found["vacuous"]
        half = parity.limit(parity.FLOAT16_LIMIT, found["float16_noise"])
        assert found["float16_relative"] <= half
        assert found.get("layers_relative", 0) <= 1e-4  # none where nothing is INT8
        assert found.get("integers_largest_step", 0) <= 1
        with np.load(made.student.file("samples.npz")) as arrays:
            wanted = data.recorded(arrays, "student")
        answers = np.load(made.model.file("outputs.npz"))
        assert set(answers) == set(wanted)
        for output, expected in wanted.items():
            size = np.sqrt((expected**2).mean())
            assert expected.std(axis=0).mean() / size > VARIATION_FLOOR
            gap = np.sqrt(((answers[output] - expected) ** 2).mean()) / size
            assert gap <= parity.limit(parity.FLOAT32_LIMIT, found["noise"])

    def test_a_few_steps_were_trained_from_the_teachers_weights(
        self, chain: Chain, name: str
    ) -> None:
        made = chain(name)
        lines = made.student.file("losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1]
        assert all(np.isfinite(list(json.loads(line).values())).all() for line in lines)
        teacher = artifact.parent(made.student, "teacher", kinds.TEACHER)
        files = (each.file("model.safetensors") for each in (made.student, teacher))
        ours, theirs = (load_file(file) for file in files)
        heads = [r["layer"] for r in made.layers if "output layer" in r["int8_reason"]]
        for head in heads:
            moved = np.abs(ours[f"{head}.weight"] - theirs[f"{head}.weight"]).max()
            assert 0 < moved < 10 * 1e-4  # four steps at most, of about the learning rate each
        assert heads


class Transformers(Promises):
    def test_nearly_all_linear_operations_are_int8_and_2_4(self, chain: Chain, name: str) -> None:
        linear = [row for row in chain(name).layers if row["type"] == "Linear"]
        for what in ("int8", "sparse"):
            planned = sum(row["macs"] for row in linear if row[what])
            assert planned / sum(row["macs"] for row in linear) >= 0.95


def _integers(made: Made, file: str) -> dict[str, npt.NDArray[np.int8]]:
    """Integers by layer; a layer that runs several times holds the same ones each time."""
    found: dict[str, npt.NDArray[np.int8]] = {}
    for weight in qdq.quantized_weights(qdq.load(made.model.file(file))):
        before = found.setdefault(weight.layer, weight.integers)
        assert np.array_equal(before, weight.integers)
    return found


def _sparse_floats(graph: onnx.ModelProto) -> list[tuple[int, int]]:
    """Sizes (n, k) of the initializers that are exactly 2:4 along k."""
    found = []
    for tensor in graph.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind != "f" or array.ndim not in (2, 4):
            continue
        forms = [array, array.T] if array.ndim == 2 else [sparse24.conv_as_matrix(array)]
        for form in forms:
            half = (form == 0).mean() >= 0.5 and form.shape[1] % 4 == 0
            if half and not sparse24.violations(np.ascontiguousarray(form)):
                found.append(form.shape)
                break
    return found
