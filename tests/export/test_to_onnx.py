"""Tracing and the float16 twin: legal, symbolic, quiet, and refused in one sentence."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tiny import data, models
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.data import Tensor as Port
from edgekd.errors import ContractError, ToolchainError
from edgekd.export import to_onnx
from edgekd.models import forward

X = {"x": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}
VECTORS = data.vectors().io


def traced(model: nn.Module, path: Path, io: IO = VECTORS, inputs: Any = None) -> onnx.ModelProto:
    to_onnx.export_float32(model.eval(), inputs or X, io, to_onnx.Form(), path)
    return onnx.load(path)


def test_it_computes_the_network_and_keeps_its_names(tmp_path: Path) -> None:
    model = models.mlp()
    path = tmp_path / "m.onnx"
    graph = traced(model, path).graph
    assert [v.name for v in graph.input] == ["x"]
    assert [v.name for v in graph.output] == ["logits"]
    assert {t.name for t in graph.initializer} >= set(dict(model.named_parameters()))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)
        wanted = model(torch.from_numpy(x)).detach().numpy()
        assert np.allclose(session.run(["logits"], {"x": x})[0], wanted, atol=1e-5)


def test_axes_are_symbolic_where_io_says_so(tmp_path: Path) -> None:
    for file in (tmp_path / "full.onnx", tmp_path / "half.onnx"):
        if file.name == "full.onnx":
            traced(models.mlp(), file)
        else:
            to_onnx.convert_float16(tmp_path / "full.onnx", file)
        graph = onnx.load(file).graph
        for value in [*graph.input, *graph.output]:
            first, second = value.type.tensor_type.shape.dim
            assert first.dim_param == "batch"
            assert second.dim_value > 0


def test_several_inputs_and_outputs_keep_the_order_of_io(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, b: Tensor, a: Tensor) -> dict[str, Tensor]:
            return {"last": self.fc(a), "first": self.fc(b) * 2}

    ports = [Port(name=n, dtype="float32", shape=["batch", 4]) for n in ("a", "b", "first", "last")]
    io = IO(inputs=ports[:2], outputs=ports[2:], labels=[])
    inputs = {"a": torch.randn(2, 4), "b": torch.randn(2, 4)}
    graph = traced(Two(), tmp_path / "m.onnx", io, inputs).graph
    assert [v.name for v in graph.input] == ["a", "b"]
    assert [v.name for v in graph.output] == ["first", "last"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("untraceable", r"the network: ONNX has no operator for aten::special_bessel_j0 in .*line"),
        ("fails_in_forward", r"could not trace the network: no such branch"),
        ("says_nothing", r"could not trace the network: IndexError"),
    ],
)
def test_what_cannot_be_traced(tmp_path: Path, name: str, words: str) -> None:
    class Fails(models.MLP):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] == 32:
                raise KeyError("no such branch") if name == "fails_in_forward" else IndexError
            return super().forward(x)

    model = models.untraceable() if name == "untraceable" else Fails()
    with pytest.raises(ToolchainError) as caught:
        traced(model, tmp_path / "m.onnx")
    assert re.search(words, str(caught.value).replace("'", ""))
    assert "replace that operator or control flow by tensor operations" in str(caught.value)


def test_a_full_disk_is_not_taken_for_the_networks_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(OSError, match="No space left"):
        traced(models.mlp(), tmp_path / "m.onnx")


def test_stdout_belongs_to_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    traced(models.attention(), tmp_path / "m.onnx")
    to_onnx.convert_float16(tmp_path / "m.onnx", tmp_path / "h.onnx")
    assert capfd.readouterr().out == ""


class TestHalf:
    def test_weights_are_rounded_once_and_zeros_stay(self, tmp_path: Path) -> None:
        model = models.mlp()
        with torch.no_grad():
            model.stem.weight[:, ::2] = 0
        traced(model, tmp_path / "m.onnx")
        to_onnx.convert_float16(tmp_path / "m.onnx", tmp_path / "h.onnx")
        half = {
            t.name: onnx.numpy_helper.to_array(t)
            for t in onnx.load(tmp_path / "h.onnx").graph.initializer
        }
        weight = half["stem.weight"]
        assert weight.dtype == np.float16
        assert np.array_equal(weight, model.stem.weight.detach().numpy().astype(np.float16))
        assert not weight[:, ::2].any()

    def test_float32_left_inside_is_noticed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TensorRT would not fuse there, and nothing else would tell."""
        from modelopt.onnx import autocast

        traced(models.attention(), tmp_path / "m.onnx")
        real = autocast.convert_to_f16

        def keeps_softmax(graph: onnx.ModelProto, **settings: Any) -> onnx.ModelProto:
            return real(graph, op_block_list=["Softmax"], **settings)

        monkeypatch.setattr(autocast, "convert_to_f16", keeps_softmax)
        with pytest.raises(ContractError) as caught:
            to_onnx.convert_float16(tmp_path / "m.onnx", tmp_path / "h.onnx")
        assert "h.onnx kept float32 at 2 values, expected float16 at every input, output" in str(
            caught.value
        )
        assert "Softmax" in str(caught.value)

    def test_float32_kept_at_the_ends_is_noticed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from modelopt.onnx import autocast

        traced(models.mlp(), tmp_path / "m.onnx")
        real = autocast.convert_to_f16
        monkeypatch.setattr(
            autocast, "convert_to_f16", lambda graph, **_: real(graph, keep_io_types=True)
        )
        with pytest.raises(ContractError, match=r"kept float32 at 2 values.*: logits, x$"):
            to_onnx.convert_float16(tmp_path / "m.onnx", tmp_path / "h.onnx")

    def test_a_failing_conversion_is_a_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from modelopt.onnx import autocast

        def fails(*_: Any, **__: Any) -> None:
            raise Exception("Sanity Check\n Failed")

        traced(models.mlp(), tmp_path / "m.onnx")
        monkeypatch.setattr(autocast, "convert_to_f16", fails)
        with pytest.raises(ToolchainError) as caught:
            to_onnx.convert_float16(tmp_path / "m.onnx", tmp_path / "h.onnx")
        assert "Model Optimizer could not convert m.onnx to float16: Sanity Check Failed" in str(
            caught.value
        )


def test_the_wrapper_takes_inputs_by_position() -> None:
    model = models.mlp().eval()
    wrapped = to_onnx._Positional(model, VECTORS)
    assert torch.equal(wrapped(X["x"])[0], forward(model, X, VECTORS)["logits"])
    assert list(wrapped.state_dict()) == [f"{to_onnx.WRAPPER}.{n}" for n in model.state_dict()]
