"""The pass that names weights: where it fires, and where it must not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgekd.export.passes.name_weights import WRAPPER, NameWeightsPass


def model(*names: str) -> ir.Model:
    values = []
    for name in names:
        tensor = ir.tensor(np.zeros(2, np.float32), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT))
        value.const_value = tensor
        values.append(value)
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 17})
    return ir.Model(graph, ir_version=10)


def renamed(*names: str) -> set[str]:
    found = model(*names)
    NameWeightsPass()(found)
    return set(found.graph.initializers)


def test_it_takes_the_exporters_words_off() -> None:
    assert renamed(
        f"{WRAPPER}.vit.fc.parametrizations.weight.original",
        f"{WRAPPER}.vit.fc.parametrizations.weight.0.scale",
        f"{WRAPPER}.vit.fc.input_quantizer.scale",
        f"{WRAPPER}.vit.fc.bias",
        "onnx::MatMul_12",
    ) == {
        "vit.fc.weight", "vit.fc.weight_scale", "vit.fc.input_scale", "vit.fc.bias",
        "onnx::MatMul_12",
    }  # fmt: skip


def test_it_says_whether_it_changed_anything() -> None:
    assert NameWeightsPass()(model(f"{WRAPPER}.fc.weight")).modified
    assert not NameWeightsPass()(model("fc.weight")).modified


def test_the_wrapper_is_taken_off_once() -> None:
    assert renamed(f"{WRAPPER}.network.fc.weight") == {"network.fc.weight"}
    assert renamed("network.fc.weight") == {"network.fc.weight"}


def test_it_does_not_fire_where_the_name_is_taken() -> None:
    twice = model(f"{WRAPPER}.fc.parametrizations.weight.original", "fc.weight")
    with pytest.raises(ir.passes.PreconditionError, match="two initializers would get the same"):
        NameWeightsPass()(twice)
    assert "fc.weight" in twice.graph.initializers
    assert len(twice.graph.initializers) == 2


def test_what_is_left_over_is_noticed() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="kept the exporter's names"):
        NameWeightsPass().ensures(model(f"{WRAPPER}.fc.weight"))
