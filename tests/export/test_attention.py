"""Attention blocks counted in graphs made by hand and by the exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny import attention as forms
from tiny import configs
from tiny import data as tiny_data
from tiny import models as tiny_models
from torch import Tensor, nn

from edgekd import models
from edgekd.data import IO
from edgekd.export.attention import Attention, count_attention
from edgekd.export.to_onnx import Form, export_float32

Nodes = Sequence[tuple[str, Sequence[str], str]]
CONSTANTS = {"w": np.ones((4, 4)), "s": np.float32(0.5), "b": np.ones((4, 4))}


def count(nodes: Nodes) -> tuple[int, int]:
    """Blocks and loose products of a graph of inputs q, k, v, mask [2, 4, 4], constants w, s, b.

    An operator may carry an Einsum's equation or a domain: ``Einsum:ij,jk->ik``, ``d::Op``.
    """
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4, 4])
        for name in ("q", "k", "v", "mask")
    ]
    made = [_node(op, list(ins), out) for op, ins, out in nodes]
    output = helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, None)
    constants = [
        numpy_helper.from_array(np.asarray(array, np.float32), name)
        for name, array in CONSTANTS.items()
    ]
    graph = helper.make_graph(made, "g", inputs, [output], constants)
    found = count_attention(ir.from_proto(helper.make_model(graph)))
    return found.attention_blocks, found.loose_products


def _node(op: str, inputs: list[str], output: str) -> Any:
    if "::" in op:
        domain, name = op.split("::")
        return helper.make_node(name, inputs, [output], domain=domain)
    name, _, equation = op.partition(":")
    return helper.make_node(name, inputs, [output], **({"equation": equation} if equation else {}))


PLAIN: Nodes = [
    ("Transpose", ["k"], "kt"),
    ("MatMul", ["q", "kt"], "scores"),
    ("Softmax", ["scores"], "p"),
    ("MatMul", ["p", "v"], "y"),
]


def test_the_plain_form() -> None:
    assert count(PLAIN) == (1, 0)


def test_the_counts_have_the_names_that_results_hold() -> None:
    assert Attention(2, 1).as_json() == {"attention_blocks": 2, "loose_products": 1}


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
    assert count(nodes) == (1, 0)


def test_two_blocks_in_a_row() -> None:
    second = [
        ("MatMul", ["y", "k"], "scores2"),
        ("Softmax", ["scores2"], "p2"),
        ("MatMul", ["p2", "v"], "z"),
    ]
    assert count([*PLAIN, *second]) == (2, 0)


def test_products_before_a_block_are_not_its_second_one() -> None:
    """Queries, keys and values are all M = q k: three products, one block and one loose."""
    nodes: Nodes = [
        ("MatMul", ["q", "k"], "m"),
        ("MatMul", ["m", "m"], "scores"),
        ("Softmax", ["scores"], "p"),
        ("MatMul", ["p", "m"], "y"),
    ]
    assert count(nodes) == (1, 1)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # One path of the scores to the product, or two, or the quotient behind it.
        (
            [
                ("MatMul", ["q", "k"], "a"), ("Exp", ["a"], "e"), ("ReduceSum", ["e"], "t"),
                ("Div", ["e", "t"], "p"), ("MatMul", ["p", "v"], "y"),
            ],
            (1, 0),
        ),
        (
            [
                ("MatMul", ["q", "k"], "a"), ("ReduceMax", ["a"], "m"), ("Sub", ["a", "m"], "d"),
                ("Exp", ["d"], "e"), ("ReduceSum", ["e"], "t"), ("MatMul", ["e", "v"], "u"),
                ("Div", ["u", "t"], "y"),
            ],
            (1, 0),
        ),
        # Other functions of the scores.
        ([("MatMul", ["q", "k"], "a"), ("Relu", ["a"], "e"), ("MatMul", ["e", "v"], "y")], (1, 0)),
        ([("MatMul", ["q", "k"], "a"), ("Erf", ["a"], "e"), ("MatMul", ["v", "e"], "y")], (1, 0)),
        # Linear attention, and any chain of two products: nothing stands between.
        ([("MatMul", ["k", "v"], "a"), ("MatMul", ["q", "a"], "y")], (1, 0)),
        ([("Gemm", ["k", "v"], "a"), ("Gemm", ["q", "a"], "y")], (1, 0)),
        (
            [
                ("MatMul", ["q", "k"], "a"), ("MatMul", ["a", "v"], "c"),
                ("MatMul", ["c", "mask"], "y"),
            ],
            (1, 1),
        ),
        # Whole attentions.
        ([("Attention", ["q", "k", "v"], "y")], (1, 0)),
        ([("com.microsoft::MultiHeadAttention", ["q", "k", "v"], "y")], (1, 0)),
        (
            [
                ("com.microsoft::GroupQueryAttention", ["q", "k", "v"], "y"),
                ("Attention", ["y", "k", "v"], "z"), ("MatMul", ["z", "q"], "o"),
            ],
            (2, 1),
        ),
    ],
)  # fmt: skip
def test_other_ways_to_write_it(nodes: Any, expected: tuple[int, int]) -> None:
    assert count(nodes) == expected


@pytest.mark.parametrize(
    ("nodes", "loose"),
    [
        # A classifier: a product by a weight, and nothing after.
        ([("MatMul", ["q", "w"], "a"), ("Softmax", ["a"], "y")], 0),
        # A gate: the softmax of a product by a weight, times an activation.
        ([("MatMul", ["q", "w"], "a"), ("Softmax", ["a"], "p"), ("MatMul", ["p", "v"], "y")], 1),
        # A transposed weight is still a weight, and so is one divided by its norm.
        (
            [
                ("Transpose", ["w"], "wt"), ("MatMul", ["q", "wt"], "a"), ("Softmax", ["a"], "p"),
                ("MatMul", ["p", "v"], "y"),
            ],
            1,
        ),
        (
            [
                ("ReduceL2", ["w"], "l"), ("Div", ["w", "l"], "u"), ("MatMul", ["q", "u"], "a"),
                ("MatMul", ["a", "u"], "y"),
            ],
            0,
        ),
        # A weight repeated for each sample: its size is read off an activation.
        (
            [("Shape", ["q"], "n"), ("Expand", ["w", "n"], "u"), ("MatMul", ["q", "u"], "y")],
            0,
        ),
        ([("Constant", [], "c"), ("MatMul", ["q", "c"], "y")], 0),
        # A codebook: probabilities times a weight.
        ([("MatMul", ["q", "k"], "a"), ("Softmax", ["a"], "p"), ("MatMul", ["p", "w"], "y")], 1),
        # Talking heads: the scores meet a weight before the values.
        ([("MatMul", ["q", "k"], "a"), ("MatMul", ["a", "w"], "p"), ("MatMul", ["p", "v"], "y")],
         2),
        ([("MatMul", ["q", "k"], "a"), ("Conv", ["a", "w"], "p"), ("MatMul", ["p", "v"], "y")], 2),
        # Only sizes and places come from one product to the other.
        (
            [
                ("MatMul", ["q", "k"], "a"), ("Shape", ["a"], "n"), ("Reshape", ["v", "n"], "r"),
                ("MatMul", ["r", "k"], "y"),
            ],
            2,
        ),
        (
            [
                ("MatMul", ["q", "k"], "a"), ("Cast", ["a"], "at"), ("Slice", ["v", "at"], "r"),
                ("MatMul", ["r", "k"], "y"),
            ],
            2,
        ),
        # Element-wise, and no product at all.
        ([("Mul", ["q", "k"], "a"), ("Softmax", ["a"], "p"), ("Mul", ["p", "v"], "y")], 0),
        ([("MatMul", ["q", "k"], "y")], 1),
    ],
)  # fmt: skip
def test_what_is_no_attention(nodes: Any, loose: int) -> None:
    assert count(nodes) == (0, loose)


@pytest.mark.parametrize(
    ("equation", "second", "loose"),
    [
        ("bij,bjk->bik", "k", 1),
        ("bij, bjk", "k", 1),  # no arrow: the shared j and b are summed
        ("...ij,...jk->...ik", "k", 1),
        ("bij,bj->bi", "k", 1),  # a product with one vector for each sample
        ("bij,jk->bik", "w", 0),  # a linear
        ("bij,bij->bij", "k", 0),  # element-wise
        ("b i j, b i j->bij", "k", 0),
        ("...i,...j", "k", 0),  # no arrow and nothing shared
        ("bij,bjk->bijk", "k", 0),  # an outer product sums nothing
        ("bij,bkl->bkl", "k", 0),  # sums i and j of one operand alone
    ],
)
def test_an_einsum_is_a_product_where_two_activations_share_a_summed_axis(
    equation: str, second: str, loose: int
) -> None:
    assert count([(f"Einsum:{equation}", ["q", second], "y")]) == (0, loose)


def test_an_einsum_that_sums_nothing_shared_may_stand_between() -> None:
    nodes: Nodes = [
        ("Einsum:bqd,bkd->bqk", ["q", "k"], "a"),
        ("Einsum:bqk,qk->bqk", ["a", "w"], "scaled"),
        ("Einsum:bqk->bkq", ["scaled"], "p"),
        ("Einsum:bkq,bkd,q->bqd", ["p", "v", "w"], "y"),
    ]
    assert count(nodes) == (1, 0)
    by_a_weight: Nodes = [nodes[0], ("Einsum:bqk,kj->bqj", ["a", "w"], "p"), nodes[3]]
    assert count(by_a_weight) == (0, 2)


class Gated(nn.Module):
    """A softmax that is no attention, beside none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x) * self.gate(x).softmax(-1))


def exported(model: nn.Module, inputs: dict[str, Tensor], io: IO, path: Path) -> tuple[int, int]:
    """Blocks and loose products of what the exporter writes."""
    torch.backends.mha.set_fastpath_enabled(False)
    export_float32(model.eval(), inputs, io, Form(), path / "m.onnx")
    found = count_attention(ir.load(path / "m.onnx"))
    return found.attention_blocks, found.loose_products


FORMS: list[tuple[forms.Mix, tuple[int, int]]] = [
    (forms.eager, (1, 0)),
    (forms.sdpa, (1, 0)),
    (forms.einsum, (1, 0)),
    (forms.exp_sum, (1, 0)),
    (forms.exp_sum_last, (1, 0)),
    (forms.relu, (1, 0)),
    (forms.cosine, (1, 0)),
    (forms.linear, (1, 0)),
    (forms.linear_normalised, (1, 1)),
    (forms.linear_in_one_einsum, (1, 0)),
    (forms.shared_kv, (1, 0)),
    (forms.scores_used_twice, (2, 0)),
    (forms.difference, (1, 0)),
    (forms.mask_of_products, (2, 0)),
    (forms.bilinear, (0, 1)),
    (forms.squeeze_excite, (0, 0)),
]


@pytest.mark.parametrize(("mix", "expected"), FORMS, ids=[mix.__name__ for mix, _ in FORMS])
def test_each_way_to_write_it_in_torch(
    tmp_path: Path, mix: forms.Mix, expected: tuple[int, int]
) -> None:
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    assert exported(forms.network(mix), {"x": x}, tiny_data.vectors().io, tmp_path) == expected


@pytest.mark.parametrize(
    ("make", "blocks"),
    [(Gated, 0), (forms.squeeze_excite_conv, 0), (tiny_models.attention, 2), (tiny_models.mlp, 0)],
)
def test_vectors(tmp_path: Path, make: Callable[[], nn.Module], blocks: int) -> None:
    """torch's own packed attention included."""
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    assert exported(make(), {"x": x}, tiny_data.vectors().io, tmp_path) == (blocks, 0)


BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
WIDE = {
    "VIT": {**configs.VIT, **BASE, "image_size": 224, "patch_size": 16},
    "BERT": {**configs.BERT, **BASE, "max_position_embeddings": 128},
    "SWIN": {
        **configs.SWIN, "image_size": 224, "patch_size": 4, "window_size": 7, "embed_dim": 96,
        "depths": [2, 2], "num_heads": [3, 6],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "blocks"),
    [
        ("VIT", configs.VIT, 2),
        ("BERT", configs.BERT, 2),
        ("SWIN", configs.SWIN, 3),
        ("CONVNEXT", configs.CONVNEXT, 0),
        ("RESNET", configs.RESNET, 0),
        ("VIT", WIDE["VIT"], 2),
        ("BERT", WIDE["BERT"], 2),
        ("SWIN", WIDE["SWIN"], 4),
    ],
    ids=lambda each: "wide" if each in WIDE.values() else each if isinstance(each, str) else "",
)
def test_families(tmp_path: Path, name: str, config: dict[str, Any], blocks: int) -> None:
    """Relative positions and shifted windows included, at a test's width and at a real one."""
    torch.manual_seed(0)
    model = models.build({"spec": "hf:x", "config": config})
    io = (tiny_data.tokens() if name == "BERT" else tiny_data.images()).io
    size = config.get("image_size", 16)
    inputs = {"pixel_values": torch.randn(2, 3, size, size)}
    if name == "BERT":
        length = config["max_position_embeddings"]
        inputs = {name: torch.ones(2, length, dtype=torch.long) for name in ("input_ids",
                  "attention_mask")}  # fmt: skip
    assert exported(model, inputs, io, tmp_path) == (blocks, 0)
