from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, kinds, runner, target
from edgekd.artifact import Artifact, Question, Work
from edgekd.bench import inputs
from edgekd.engine.build import build
from edgekd.errors import ArtifactError, ConfigError

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import graphs

Engines = Callable[..., Artifact]


def samples_of(engine: Artifact) -> Artifact:
    return artifact.parent(engine, "samples", kinds.SAMPLES)


def make_samples(out: Path, arrays: dict[str, Any]) -> Artifact:
    def write(work: Work) -> dict[str, Any]:
        np.savez(work.scratch / "samples.npz", **arrays)
        (work.scratch / "io.json").write_text("{}")
        return {}

    return artifact.make(out, Question(kinds.SAMPLES, {"names": sorted(arrays)}), write)


def with_io(engine: Artifact, out: Path, tensor: dict[str, Any]) -> Artifact:
    """An Engine that differs in what its io.json says of its input; it is not run."""

    def write(work: Work) -> dict[str, Any]:
        for name in ("layers.json", "io.json"):
            shutil.copyfile(engine.file(name), work.scratch / name)
        document = {**engine.read_json("io.json"), "inputs": [tensor]}
        (work.scratch / "io.json").write_text(json.dumps(document))
        return {}

    return artifact.make(out, Question(kinds.ENGINE, {"tensor": tensor}), write)


def test_an_engines_own_samples_come_with_recorded_answers(engine: Artifact) -> None:
    samples = inputs.default_samples(engine)
    assert samples is not None
    chosen = inputs.choose([engine], samples)
    assert list(chosen.arrays) == ["x"]
    assert chosen.arrays["x"].shape == (20, 64)
    assert chosen.source == f"20 rows of Samples {samples.id[:12]}, in turn"
    reference = chosen.references[0]
    assert reference is not None
    np.testing.assert_array_equal(reference["logits"], runner.outputs(engine)["logits"])


def test_arms_with_equal_inputs_keep_their_own_answers(new_engine: Engines) -> None:
    dense, sparse = new_engine(arm="dense"), new_engine(arm="sparse")
    assert samples_of(dense).id != samples_of(sparse).id
    chosen = inputs.choose([dense, sparse], samples_of(dense))
    found = [None if each is None else each["logits"] for each in chosen.references]
    assert found[0] is not None
    assert found[1] is not None
    assert not np.array_equal(found[0], found[1])


@pytest.fixture
def built_apart(tmp_path: Path) -> tuple[list[Artifact], list[Artifact]]:
    """Engines and their Samples as a Bundle's commands leave them: out/ARM, BUNDLE/artifacts."""
    models = [graphs.make_model(tmp_path / "artifacts", arm=arm) for arm in ("fp16", "sparse")]
    engines = [
        build(model, target.load("cpu"), tmp_path / "out" / model.config["arm"]) for model in models
    ]
    return engines, [samples_of(model) for model in models]


@pytest.mark.parametrize("given", [0, 1])
def test_arms_built_apart_from_their_samples_still_have_references(
    built_apart: tuple[list[Artifact], list[Artifact]], given: int
) -> None:
    engines, samples = built_apart
    assert [inputs.default_samples(each) for each in engines] == [None, None]
    chosen = inputs.choose(engines, samples[given])
    for engine, reference in zip(engines, chosen.references, strict=True):
        assert reference is not None
        np.testing.assert_array_equal(reference["logits"], runner.outputs(engine)["logits"])


def test_an_arms_samples_beside_others_are_no_reference_to_other_inputs(
    built_apart: tuple[list[Artifact], list[Artifact]],
) -> None:
    engines, samples = built_apart
    asked = {"input.x": runner.samples(samples[0])["input.x"] / 2}
    other = make_samples(samples[0].path.parent, asked)
    assert inputs.choose(engines, other).references == (None, None)


def test_altered_samples_of_another_arm_are_refused(
    built_apart: tuple[list[Artifact], list[Artifact]],
) -> None:
    engines, samples = built_apart
    with samples[1].file("samples.npz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"samples\.npz was altered"):
        inputs.choose(engines, samples[0])


def test_other_inputs_have_no_recorded_answers(engine: Artifact, tmp_path: Path) -> None:
    other = make_samples(tmp_path / "other", {"input.x": np.ones((3, 64), np.float32)})
    chosen = inputs.choose([engine], other)
    assert chosen.references == (None,)
    assert len(chosen.arrays["x"]) == 3


def test_an_engine_alone_has_no_samples_and_gets_generated_inputs(
    engine: Artifact, tmp_path: Path
) -> None:
    alone = tmp_path / "elsewhere" / engine.path.name
    shutil.copytree(engine.path, alone)
    moved = artifact.load(alone, kinds.ENGINE)
    assert inputs.default_samples(moved) is None
    chosen = inputs.choose([moved], None)
    assert chosen.source == "64 rows generated within io.json's ranges, seed 0"
    x = chosen.arrays["x"]
    assert (x.shape, x.dtype) == ((64, 64), np.float32)
    assert -1 <= x.min() < -0.9 < 0.9 < x.max() <= 1
    np.testing.assert_array_equal(x, inputs.choose([moved], None).arrays["x"])


def test_whole_numbers_are_drawn_from_their_range(engine: Artifact, tmp_path: Path) -> None:
    tensor = {"name": "ids", "dtype": "int64", "shape": ["batch", 40], "range": [3, 5]}
    ids = inputs.choose([with_io(engine, tmp_path / "o", tensor)], None).arrays["ids"]
    assert ids.dtype == np.int64
    assert set(ids.ravel().tolist()) == {3, 4, 5}


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"dtype": "int64", "shape": ["batch", 40]}, "'ids' is int64 and io.json gives no range"),
        ({"dtype": "float32", "shape": ["batch", "length"]}, "only its first size may be open"),
    ],
)
def test_inputs_that_cannot_be_generated_ask_for_samples(
    engine: Artifact, tmp_path: Path, tensor: dict[str, Any], words: str
) -> None:
    changed = with_io(engine, tmp_path / "o", {"name": "ids", **tensor})
    with pytest.raises(ConfigError, match=f"{words}.*measure with Samples"):
        inputs.choose([changed], None)


def test_samples_of_another_network_are_refused(engine: Artifact, tmp_path: Path) -> None:
    other = make_samples(tmp_path / "other", {"input.pixels": np.ones((3, 64), np.float32)})
    with pytest.raises(ConfigError, match=r"holds inputs pixels, the engine engine-\w+ takes x"):
        inputs.choose([engine], other)


def test_empty_samples_are_refused(engine: Artifact, tmp_path: Path) -> None:
    empty = make_samples(tmp_path / "other", {"input.x": np.ones((0, 64), np.float32)})
    with pytest.raises(ArtifactError, match="holds 0 samples, expected at least 1"):
        inputs.choose([engine], empty)
