"""What cannot be exported is refused with the operator or the line, by both exporters."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from tiny import data, models
from torch import Tensor, nn

from edgekd.errors import ContractError, EdgekdError, ToolchainError
from edgekd.export.to_onnx import Exporter, Form, export_float32

IO = data.vectors().io
X = {"x": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}
BOTH = pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])


@torch.library.custom_op("edgekd_tests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class OneAtATime(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, 2, 2).flatten(1)


class KeepsTwo(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(int(x.shape[0]), 4) + torch.zeros(2, 1)


class Branches(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.sum() > 0:
            return y
        return -y


class ComparesSizes(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 32:
            raise ValueError("width")
        return super().forward(x)


class Custom(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return halve(super().forward(x))


class Bessel(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.special.bessel_j0(y)


class Broken(models.MLP):
    def forward(self, x: Tensor) -> Tensor:
        raise IndexError(f"no branch for {x.ndim} axes")


def line(network: type[nn.Module], code: str) -> str:
    """``<this file>, line N (`code`)`` of a line of a network's forward."""
    lines, start = inspect.getsourcelines(network.forward)
    number = start + next(i for i, text in enumerate(lines) if text.strip() == code)
    return f"in {__file__}, line {number} (`{code}`)"


def refused(
    network: nn.Module, exporter: Exporter, tmp_path: Path, error: type[EdgekdError]
) -> str:
    path = tmp_path / "ort.onnx"
    with pytest.raises(error) as caught:
        export_float32(network, X, IO, Form(exporter=exporter), path)
    assert not list(tmp_path.iterdir())
    return str(caught.value)


@BOTH
def test_a_network_that_takes_one_row_at_a_time(exporter: Exporter, tmp_path: Path) -> None:
    sentence = refused(OneAtATime(), exporter, tmp_path, ContractError)
    assert "the network takes a batch of 1 only: on 2 rows it fails" in sentence
    assert line(OneAtATime, "return super().forward(x).reshape(1, 2, 2).flatten(1)") in sentence
    assert "take the batch size from the input's shape there" in sentence


def test_dynamo_sees_a_size_that_was_kept(tmp_path: Path) -> None:
    sentence = refused(KeepsTwo(), "dynamo", tmp_path, ContractError)
    assert "the network keeps a size of the example it was exported with" in sentence
    assert "(batch of 'x' became 2)" in sentence
    assert "take the batch size and every other changing size from the input's shape" in sentence


@BOTH
def test_control_flow_on_data(exporter: Exporter, tmp_path: Path) -> None:
    sentence = refused(Branches(), exporter, tmp_path, ToolchainError)
    assert "course depends on its data" in sentence
    assert line(Branches, "if y.sum() > 0:") in sentence
    assert "replace that operator or control flow by tensor operations (torch.where" in sentence


@BOTH
def test_comparing_sizes_is_no_control_flow_on_data(exporter: Exporter, tmp_path: Path) -> None:
    export_float32(ComparesSizes(), X, IO, Form(exporter=exporter), tmp_path / "ort.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["ort.onnx"]


@BOTH
@pytest.mark.parametrize(
    ("network", "operator", "code"),
    [
        (Custom, "edgekd_tests::halve", "return halve(super().forward(x))"),
        (Bessel, "aten::special_bessel_j0", "return y + torch.special.bessel_j0(y)"),
    ],
)
def test_an_operator_that_onnx_lacks(
    exporter: Exporter, network: type[nn.Module], operator: str, code: str, tmp_path: Path
) -> None:
    sentence = refused(network(), exporter, tmp_path, ToolchainError)
    assert f"ONNX has no operator for {operator} {line(network, code)}" in sentence
    assert "replace that operator or control flow by tensor operations" in sentence


@BOTH
def test_a_network_that_fails_by_itself(exporter: Exporter, tmp_path: Path) -> None:
    sentence = refused(Broken(), exporter, tmp_path, ToolchainError)
    assert "could not trace the network: no branch for 2 axes" in sentence
    assert line(Broken, 'raise IndexError(f"no branch for {x.ndim} axes")') in sentence
