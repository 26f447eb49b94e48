"""The packed operator of torch on the emulator: everything of a launch but the GPU.

What a GPU adds is the stream and the device's addresses, and no test here runs them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekd import sparse24, torch_ops
from edgekd.engine.native import Kernels
from edgekd.errors import ToolchainError
from edgekd.sparse_gemm import OUTPUTS, Output
from kernels import gemms


@pytest.fixture(autouse=True)
def _library(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_ops, "_libraries", {"used": kernels})


def packed(weights: np.ndarray) -> torch.Tensor:
    pair = (torch.from_numpy(np.ascontiguousarray(each)) for each in sparse24.compress(weights))
    return torch.ops.edgekd.pack_sparse_s8(*pair)


def arguments(gemm: gemms.Gemm, *shape: int) -> list[object]:
    m, n, k = gemm.sizes
    leading = shape or (m,)
    extra = None if gemm.extra is None else torch.from_numpy(gemm.extra)
    if gemm.output == "f16" and extra is not None:
        extra = extra.reshape(*leading, n)
    floats = [torch.from_numpy(gemm.scale), torch.from_numpy(gemm.bias)]
    return [torch.from_numpy(gemm.x).reshape(*leading, k), packed(gemm.weights), *floats, extra]


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_launch_gives_the_contracts_numbers(output: Output) -> None:
    gemm = gemms.random(30, 128, 192, output)
    y = torch.ops.edgekd.sparse_gemm_s8_packed(*arguments(gemm, 2, 15), output)
    assert y.shape == (2, 15, 128)
    np.testing.assert_array_equal(y.numpy().reshape(30, 128), gemm.expected())


def test_what_pack_returns_is_what_the_kernels_packer_makes(kernels: Kernels) -> None:
    weights = gemms.random(1, 128, 192).weights
    y = packed(weights)
    assert y.shape == (128, 120)
    np.testing.assert_array_equal(y.numpy().ravel(), kernels.pack(weights, True))


def test_a_view_is_made_contiguous_and_no_token_launches_nothing() -> None:
    gemm = gemms.random(8, 64, 64, "s8")
    x, *rest = arguments(gemm)
    assert isinstance(x, torch.Tensor)
    every = torch.ops.edgekd.sparse_gemm_s8_packed(x[::2], *rest, "s8")
    np.testing.assert_array_equal(every.numpy(), gemm.expected()[::2])
    assert torch.ops.edgekd.sparse_gemm_s8_packed(x[:0], *rest, "s8").shape == (0, 64)


@pytest.mark.parametrize("output", OUTPUTS)
def test_torch_finds_no_fault_with_the_operators(output: Output) -> None:
    gemm = gemms.random(6, 64, 64, output)
    torch.library.opcheck(
        torch.ops.edgekd.sparse_gemm_s8_packed.default, [*arguments(gemm), output]
    )
    pair = [torch.from_numpy(np.ascontiguousarray(e)) for e in sparse24.compress(gemm.weights)]
    torch.library.opcheck(torch.ops.edgekd.pack_sparse_s8.default, pair)


def test_a_gpus_library_takes_no_tensors_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = arguments(gemms.random(8, 64, 64, "s8"))

    class WithoutEmulator:
        library = object()

    monkeypatch.setattr(torch_ops, "_libraries", {"used": WithoutEmulator()})
    sentence = "x is on cpu, where this library does not run: give EDGEKD_KERNELS_LIBRARY libedgekd"
    with pytest.raises(ToolchainError, match=sentence):
        torch.ops.edgekd.sparse_gemm_s8_packed(*made, "s8")
