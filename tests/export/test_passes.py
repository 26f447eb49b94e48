"""The rewrites that store weights as integers: where they fire, where they must not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edgekd import qdq, quant
from edgekd.data import IO
from edgekd.data import Tensor as Port
from edgekd.eligible import LayerPlan
from edgekd.engine import layers, trt
from edgekd.export import qdq_form
from edgekd.export.passes.fold_weights import FoldWeightsPass
from edgekd.export.passes.split_qkv import SplitQKVPass
from edgekd.export.to_onnx import Exporter, Form, Weights, convert_float16, export_float32

WIDTH, HEADS, TOKENS = 64, 2, 17
X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
PORTS = [
    Port(name="x", dtype="float32", shape=["batch", TOKENS, WIDTH]),
    Port(name="logits", dtype="float32", shape=["batch", 10]),
]
IOS = IO(inputs=PORTS[:1], outputs=PORTS[1:], labels=[])
PROFILE = {"x": ((1, TOKENS, WIDTH), (4, TOKENS, WIDTH), (8, TOKENS, WIDTH))}
HOW = ["unbind", "index", "chunk", "slice"]


class Packed(nn.Module):
    """Attention with a packed projection, taken apart in each way that people write."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        b, n, c = x.shape
        y = self.qkv(x)
        if self.how == "unbind":
            return y.reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "index":
            y = y.reshape(b, n, 3, HEADS, c // HEADS)
            return [y[:, :, i].transpose(1, 2) for i in range(3)]
        cut = (
            y.chunk(3, -1)
            if self.how == "chunk"
            else [y[..., i * c : i * c + c] for i in (0, 1, 2)]
        )
        return [part.reshape(b, n, HEADS, c // HEADS).transpose(1, 2) for part in cut]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        y = (q @ k.transpose(-1, -2) * 0.2).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(x.shape))
        return self.head(y.mean(1))


class WholeToo(Packed):
    """One more reader of the packed result: it cannot be split."""

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        y = self.qkv(x)
        return [part * y.mean() for part in y.chunk(3, -1)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.head(self.proj(q * k + v).mean(1))


def quantized(model: nn.Module) -> nn.Module:
    scales = {}
    rows = []
    for name in ("qkv", "proj"):
        weight = model.get_submodule(name).weight.detach()
        assert isinstance(weight, Tensor)
        scale = quant.scale_from_amax(weight.abs().amax(1).numpy())
        scales[f"{name}.weight_scale"] = torch.from_numpy(np.asarray(scale))
        scales[f"{name}.input_scale"] = torch.tensor(2.0**-5)
        rows.append(LayerPlan(name, "Linear", len(weight), WIDTH, 1, True, "", False, ""))
    qdq_form.attach(model, rows, scales)
    return model


def exported(
    model: nn.Module, folder: Path, exporter: Exporter = "torchscript", weights: Weights = "int8"
) -> Path:
    torch.manual_seed(0)
    path = folder / f"{exporter}-{weights}.onnx"
    export_float32(model, {"x": X}, IOS, Form(exporter=exporter, weights=weights), path)
    return path


def answers(path: Path) -> Any:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X.numpy()})[0]


@pytest.fixture(params=HOW)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(1)
    return quantized(Packed(request.param))


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
class TestPacked:
    def test_same_layers_same_integers_same_answers(
        self, model: nn.Module, exporter: Exporter, tmp_path: Path
    ) -> None:
        whole, parts = (exported(model, tmp_path, exporter, w) for w in ("float", "int8"))
        one, two = (
            {w.layer: w for w in qdq.quantized_weights(qdq.load(p))} for p in (whole, parts)
        )
        assert set(one) == set(two) == {"qkv", "proj"}
        for layer, weight in one.items():
            assert np.array_equal(weight.integers, two[layer].integers)
            assert np.array_equal(weight.scale, two[layer].scale)
            assert weight.input_scale == two[layer].input_scale
            assert (weight.folded, two[layer].folded) == (False, True)
        assert two["qkv"].node.count(" + ") == 2
        names = {t.name: t for t in qdq.load(parts).graph.initializer}
        assert [names[f"qkv@{i * 64}:{i * 64 + 64}.weight"].dims for i in range(3)] == [
            [64, 64]
        ] * 3
        assert not {"qkv.weight", "qkv.weight_float"} & set(names)
        assert np.abs(answers(whole) - answers(parts)).max() <= 1e-7  # sums of another order
        assert parts.stat().st_size < 0.5 * whole.stat().st_size

    def test_an_engine_runs_all_three_in_int8(
        self, model: nn.Module, exporter: Exporter, tmp_path: Path
    ) -> None:
        path, half = exported(model, tmp_path, exporter), tmp_path / "trt.onnx"
        convert_float16(path, half)
        plan = trt.build_plan(
            half, runtime="tensorrt-rtx", profiles=PROFILE, compute_capability=(8, 0)
        )
        planned = [
            layers.Planned(weight.layer, node, WIDTH * WIDTH)
            for weight in qdq.quantized_weights(qdq.load(half))
            for node in weight.node.split(" + ")
        ]
        assert len(planned) == 4
        layers.prove(plan.layers, planned, 1, "packed")


def test_a_projection_that_is_read_whole_is_not_split(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = exported(quantized(WholeToo("chunk")), tmp_path)
    (weight,) = (w for w in qdq.quantized_weights(qdq.load(path)) if w.layer == "qkv")
    assert " + " not in weight.node
    assert weight.folded


def test_folding_alone_changes_no_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = exported(quantized(Packed("unbind")), tmp_path, weights="float")
    graph = ir.load(path)
    assert FoldWeightsPass()(graph).modified
    ir.save(graph, tmp_path / "folded.onnx")
    assert np.array_equal(answers(path), answers(tmp_path / "folded.onnx"))
    types = {t.name: t.data_type for t in onnx.load(tmp_path / "folded.onnx").graph.initializer}
    assert types["qkv.weight"] == types["proj.weight"] == onnx.TensorProto.INT8
    assert types["head.weight"] == onnx.TensorProto.FLOAT
    assert not FoldWeightsPass()(graph).modified


def test_a_weight_that_something_else_reads_stays_float() -> None:
    def make(nodes: Sequence[onnx.NodeProto]) -> ir.Model:
        constants = {"t.weight": np.ones((4, 4), np.float32), "s": np.ones((), np.float32),
                     "z": np.zeros((), np.int8)}  # fmt: skip
        return ir.from_proto(
            onnx.helper.make_model(
                onnx.helper.make_graph(
                    list(nodes),
                    "tied",
                    [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 4])],
                    [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 4])],
                    [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
                )
            )
        )

    node = onnx.helper.make_node
    product = [
        node("QuantizeLinear", ["t.weight", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["x", "d"], ["m"]),
    ]
    tied = make([*product, node("Add", ["m", "t.weight"], ["y"])])
    assert not FoldWeightsPass()(tied).modified
    assert tied.graph.initializers["t.weight"].dtype == ir.DataType.FLOAT
    alone = make([*product, node("Relu", ["m"], ["y"])])
    assert FoldWeightsPass()(alone).modified
    assert alone.graph.initializers["t.weight"].dtype == ir.DataType.INT8


def test_a_plain_product_is_left_alone() -> None:
    assert not SplitQKVPass()(ir.from_proto(_plain())).modified


def _plain() -> onnx.ModelProto:
    """A plain product, which is nobody's packed projection."""
    info = onnx.helper.make_tensor_value_info
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "plain")],
            "g",
            [info("x", onnx.TensorProto.FLOAT, [2, 6])],
            [info("y", onnx.TensorProto.FLOAT, [2, 9])],
            [onnx.numpy_helper.from_array(np.ones((6, 9), np.float32), "w")],
        )
    )
