"""Sizes as the page tells them."""

from __future__ import annotations

from edgekd import kinds
from edgekd.report import layers
from edgekd.report.collection import Collection

from .conftest import Maker, rows


def test_a_graph_is_as_large_as_it_is_with_the_weights_beside_it(maker: Maker) -> None:
    source = maker.student(maker.teacher(), "sparse")
    small = maker.model(source)
    files = {"trt.onnx": "1" * 20, "trt.onnx.data": "2" * 3000, "ort.onnx": "3" * 40,
             "layers.json": rows("sparse")}  # fmt: skip
    large = maker.make(kinds.ONNX_MODEL, small.config, files, small.results, {"source": source})
    (found,) = layers.sizes(Collection([large]))
    assert found.files == (("trt.onnx", "3.0 kB"), ("ort.onnx", "40 B"))
