"""A graph whose external data lie outside its directory never reaches a parser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edgekd import target
from edgekd.artifact import Artifact
from edgekd.engine.build import build
from edgekd.errors import ArtifactError

Models = Callable[..., Artifact]


def elsewhere(model: onnx.ModelProto) -> None:
    """Name a file above the artifact as the place of a weight, in the float16 graph alone."""
    if model.graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT16:
        return
    weight = next(each for each in model.graph.initializer if each.name == "fc.weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../outside.bin")


def test_it_is_refused_before_anything_reads_it(onnx_model: Models, tmp_path: Path) -> None:
    model = onnx_model(graph=elsewhere)
    (model.path.parent / "outside.bin").write_bytes(b"\0" * 64 * 64 * 2)
    with pytest.raises(ArtifactError) as caught:
        build(model, target.load("a100-sxm4-80gb-trt11.4"), tmp_path / "out")
    sentence = str(caught.value)
    assert "trt.onnx" in sentence
    assert "is not a valid ONNX model" in sentence.replace("are not", "is not")
    assert "outside.bin" in sentence
    assert not list((tmp_path / "out").glob("bundle-*"))
