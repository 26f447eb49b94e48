"""Attention blocks counted in graphs made by hand and by the exporter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny import configs
from tiny import data as tiny_data
from tiny import models as tiny_models
from torch import Tensor, nn

from edgekd import models
from edgekd.export.attention import count_attention
from edgekd.export.to_onnx import Form, export_float32

Nodes = Sequence[tuple[str, Sequence[str], str]]
CONSTANTS = {"w": np.ones((4, 4)), "s": np.float32(0.5), "b": np.ones((4, 4))}


def count(nodes: Nodes) -> int:
    """Attention blocks in a graph of inputs q, k, v, mask [2, 4, 4] and constants w, s, b."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4, 4])
        for name in ("q", "k", "v", "mask")
    ]
    made = [helper.make_node(op, list(ins), [out]) for op, ins, out in nodes]
    output = helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, None)
    constants = [
        numpy_helper.from_array(np.asarray(array, np.float32), name)
        for name, array in CONSTANTS.items()
    ]
    graph = helper.make_graph(made, "g", inputs, [output], constants)
    return count_attention(ir.from_proto(helper.make_model(graph)))


PLAIN: Nodes = [
    ("Transpose", ["k"], "kt"),
    ("MatMul", ["q", "kt"], "scores"),
    ("Softmax", ["scores"], "p"),
    ("MatMul", ["p", "v"], "y"),
]


def test_the_plain_form() -> None:
    assert count(PLAIN) == 1


def test_scale_mask_bias_cast_and_reshape_may_stand_between() -> None:
    nodes: Nodes = [
        ("MatMul", ["q", "k"], "a"),
        ("Mul", ["a", "s"], "a1"),
        ("Add", ["a1", "mask"], "a2"),
        ("Add", ["a2", "b"], "a3"),
        ("Where", ["a3", "a3", "s"], "a4"),
        ("Softmax", ["a4"], "p"),
        ("Identity", ["p"], "p1"),
        ("Dropout", ["p1"], "p2"),
        ("MatMul", ["p2", "v"], "y"),
    ]
    assert count(nodes) == 1


def test_two_blocks_in_a_row() -> None:
    second = [
        ("MatMul", ["y", "k"], "scores2"),
        ("Softmax", ["scores2"], "p2"),
        ("MatMul", ["p2", "v"], "z"),
    ]
    assert count([*PLAIN, *second]) == 2


@pytest.mark.parametrize(
    "nodes",
    [
        # A classifier: a product by a weight, and nothing after.
        [("MatMul", ["q", "w"], "a"), ("Softmax", ["a"], "y")],
        # A gate: the softmax of a product by a weight, times an activation.
        [("MatMul", ["q", "w"], "a"), ("Softmax", ["a"], "p"), ("MatMul", ["p", "v"], "y")],
        # A transposed weight is still a weight.
        [
            ("Transpose", ["w"], "wt"), ("MatMul", ["q", "wt"], "a"), ("Softmax", ["a"], "p"),
            ("MatMul", ["p", "v"], "y"),
        ],
        # A codebook: probabilities times a weight.
        [("MatMul", ["q", "k"], "a"), ("Softmax", ["a"], "p"), ("MatMul", ["p", "w"], "y")],
        # An activation between score and softmax is another computation.
        [
            ("MatMul", ["q", "k"], "a"), ("Erf", ["a"], "e"), ("Softmax", ["e"], "p"),
            ("MatMul", ["p", "v"], "y"),
        ],
        # Products of activations without any softmax.
        [("MatMul", ["q", "k"], "a"), ("MatMul", ["a", "v"], "y")],
    ],
)  # fmt: skip
def test_what_is_no_attention(nodes: Any) -> None:
    assert count(nodes) == 0


class Gated(nn.Module):
    """A softmax that is no attention, beside none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x) * self.gate(x).softmax(-1))


@pytest.mark.parametrize(
    ("name", "blocks"), [("SWIN", 3), ("CONVNEXT", 0), ("attention", 2), ("gated", 0)]
)
def test_what_the_exporter_writes(tmp_path: Path, name: str, blocks: int) -> None:
    """Relative positions, shifted windows and torch's packed form included."""
    torch.manual_seed(0)
    if name.isupper():
        model = models.build({"spec": "hf:x", "config": getattr(configs, name)})
        examples = tiny_data.images()
    else:
        model = Gated() if name == "gated" else getattr(tiny_models, name)()
        torch.backends.mha.set_fastpath_enabled(False)
        examples = tiny_data.vectors()
    inputs = models.tensors(examples.train.take(np.arange(2))[0], model)
    export_float32(model.eval(), inputs, examples.io, Form(), tmp_path / "m.onnx")
    assert count_attention(ir.load(tmp_path / "m.onnx")) == blocks
