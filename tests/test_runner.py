from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edgekd import artifact, kinds, runner, target
from edgekd.artifact import Artifact
from edgekd.data import Arrays
from edgekd.engine import ort
from edgekd.engine import runner as engine_runner
from edgekd.engine.build import build
from edgekd.errors import ArtifactError, ConfigError, ToolchainError, UnsupportedError

sys.path.insert(0, str(Path(__file__).parent))
from tiny import graphs

Models = Callable[..., Artifact]


@pytest.fixture
def onnx_model(tmp_path: Path) -> Models:
    return lambda **options: graphs.make_model(tmp_path / "out", **options)


def rows(model: Artifact) -> Arrays:
    samples = artifact.parent(model, "samples", kinds.SAMPLES)
    return {"x": runner.samples(samples)["input.x"]}


def test_an_onnx_model_answers_what_was_recorded(onnx_model: Models) -> None:
    model = onnx_model()
    with runner.open(model) as run:
        found = run(rows(model))["logits"]
    np.testing.assert_allclose(found, runner.outputs(model)["logits"], rtol=0, atol=1e-6)
    assert found.shape == (20, 10)


def test_an_engine_answers_what_its_model_answers(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model()
    engine = build(model, target.load("cpu"), tmp_path / "out")
    with runner.open(engine) as run, runner.open(model) as reference:
        np.testing.assert_array_equal(run(rows(model))["logits"], reference(rows(model))["logits"])


def test_an_engine_is_opened_with_the_options_it_was_built_with(
    onnx_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Spy(ort.Session):
        def __init__(self, path: Path, session_options: dict[str, Any]) -> None:
            asked.append(session_options)
            super().__init__(path, session_options)

    default = ort.options()
    own = ort.options(threads=default["intra_op_num_threads"] + 1)
    with monkeypatch.context() as built:
        built.setattr(ort, "options", lambda *_: own)
        engine = build(onnx_model(), target.load("cpu"), tmp_path / "out")
    monkeypatch.setattr(ort, "Session", Spy)
    runner.open(engine).close()
    runner.open(onnx_model()).close()  # a graph has none of its own
    assert asked == [own, default]


def test_inputs_are_converted_to_the_engines_type(onnx_model: Models) -> None:
    model = onnx_model()
    x = rows(model)["x"]
    with runner.open(model) as run:
        np.testing.assert_array_equal(
            run({"x": x.astype(np.float64)})["logits"], run({"x": x})["logits"]
        )


class Counting:
    """Answers each row with itself and remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, inputs: Arrays) -> Arrays:
        self.batches.append(len(inputs["x"]))
        assert inputs["x"].dtype == np.float16
        return {"y": inputs["x"] + 1}


def batched(batch_min: int, batch_max: int) -> tuple[runner.Batched, Counting]:
    inner = Counting()
    return runner.Batched(inner, {"x": np.dtype("float16")}, batch_min, batch_max), inner


@pytest.mark.parametrize(
    ("count", "batches"),
    [(1, [1]), (8, [8]), (9, [5, 4]), (20, [7, 7, 6]), (65, [8] * 2 + [7] * 7)],
)
def test_rows_are_split_evenly_and_nothing_is_padded(count: int, batches: list[int]) -> None:
    run, inner = batched(1, 8)
    answer = run({"x": np.arange(count, dtype=np.float32)})
    assert inner.batches == batches
    assert answer["y"].tolist() == [row + 1 for row in range(count)]


def test_rows_that_cannot_be_split() -> None:
    run, _ = batched(4, 8)
    with pytest.raises(ConfigError, match="3 rows cannot be split into batches of 4 to 8"):
        run({"x": np.zeros(3)})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input 'x' is missing: given are none"),
        ({"x": np.zeros(2), "X": np.zeros(2)}, r"input 'X' is unknown\. There are: x"),
        ({"x": np.zeros(0)}, r"the inputs hold \{'x': 0\} rows, expected one number, at least 1"),
    ],
)
def test_inputs_the_engine_does_not_take(inputs: Arrays, words: str) -> None:
    run, _ = batched(1, 8)
    with pytest.raises(ConfigError, match=words):
        run(inputs)


def test_inputs_of_different_lengths() -> None:
    types = {"a": np.dtype("int64"), "b": np.dtype("int64")}
    run = runner.Batched(lambda inputs: inputs, types, 1, 8)
    with pytest.raises(ConfigError, match=r"the inputs hold \{'a': 2, 'b': 3\} rows"):
        run({"a": np.zeros(2), "b": np.zeros(3)})


def test_close_frees_what_the_runner_holds() -> None:
    freed: list[str] = []
    with runner.Batched(Counting(), {}, 1, 1, close=lambda: freed.append("engine")):
        assert freed == []
    assert freed == ["engine"]


def test_recorded_outputs_are_found_by_their_inputs_in_any_order(onnx_model: Models) -> None:
    samples = artifact.parent(onnx_model(), "samples")
    arrays = runner.samples(samples)
    teacher = runner.recorded(samples, "teacher")
    order = [5, 0, 19, 5]
    answer = teacher({"x": arrays["input.x"][order]})["logits"]
    np.testing.assert_array_equal(answer, arrays["teacher.logits"][order])


def test_a_row_that_was_never_recorded(onnx_model: Models) -> None:
    samples = artifact.parent(onnx_model(), "samples")
    x = runner.samples(samples)["input.x"].copy()
    x[3, 0] += 1
    with pytest.raises(ArtifactError, match="1 of 20 rows were never recorded, first row 3: use"):
        runner.recorded(samples, "teacher")({"x": x})


def test_somebody_who_recorded_nothing(onnx_model: Models) -> None:
    samples = artifact.parent(onnx_model(), "samples")
    with pytest.raises(ArtifactError) as caught:
        runner.recorded(samples, "techer")
    assert "holds no outputs of 'techer'" in str(caught.value)
    assert 'Did you mean "teacher"? There are: student, teacher' in str(caught.value)


def test_only_models_and_engines_open(onnx_model: Models) -> None:
    with pytest.raises(ArtifactError, match="is a Samples, expected an OnnxModel, an Engine, a S"):
        runner.open(artifact.parent(onnx_model(), "samples"))


def engine_of(tmp_path: Path, runtime: str) -> Artifact:
    """An Engine whose plan nobody here can open."""

    def write(work: artifact.Work) -> dict[str, Any]:
        for name in ("io.json", "layers.json"):
            (work.scratch / name).write_text(json.dumps({}), encoding="utf-8")
        (work.scratch / "model.plan").write_bytes(b"plan")
        return {}

    config = {"runtime": runtime, "export": {"batch_min": 1, "batch_max": 8}}
    return artifact.make(tmp_path, artifact.Question(kinds.ENGINE, config), write)


def test_evidence_is_never_run(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="tensorrt-rtx plan kept as evidence, which is neve"):
        runner.open(engine_of(tmp_path, "tensorrt-rtx"))


def test_a_tensorrt_engine_needs_tensorrt(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="tensorrt cannot be imported"):
        runner.open(engine_of(tmp_path, "tensorrt"))


def test_a_tensorrt_engine_gets_its_own_types_and_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StandIn(Counting):
        """In place of the runner of TensorRT, which needs a device."""

        dtypes: ClassVar = {"x": np.dtype("float16")}
        opened: ClassVar[list[Any]] = []

        def __init__(self, plan: bytes, runtime: str) -> None:
            super().__init__()
            self._dtypes, self._inputs = {**self.dtypes, "y": np.dtype("float16")}, ["x"]
            self.opened.append((plan, runtime))

        def close(self) -> None:
            self.opened.append("closed")

    monkeypatch.setattr(engine_runner, "EngineRunner", StandIn)
    with runner.open(engine_of(tmp_path, "tensorrt")) as run:
        assert run({"x": np.arange(9, dtype=np.float64)})["y"].tolist() == list(range(1, 10))
    assert StandIn.opened == [(b"plan", "tensorrt"), "closed"]


def test_a_plan_that_was_altered_is_never_opened(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, "tensorrt")
    (engine.path / "model.plan").write_bytes(b"evil")
    with pytest.raises(ArtifactError, match=r"model.plan was altered"):
        artifact.load(engine.path, kinds.ENGINE)
