"""The packed operator of torch on the emulator: everything of a launch but the GPU.

What a GPU adds is the device and its stream. They are shown with `launch.cu` on its stand-in, and
tensors that say they are on a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest
import torch

from edgekd import sparse24, torch_ops
from edgekd.engine.native import Kernels
from edgekd.errors import ToolchainError
from edgekd.sparse_gemm import OUTPUTS, Output
from kernels import gemms
from kernels.conftest import Runtime


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


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("residual", [True, False])
def test_what_a_gpu_does_with_canonical_weights(output: Output, residual: bool) -> None:
    """Packs and launches: the function that torch calls for a GPU, with tensors of the CPU."""
    gemm = gemms.random(6, 64, 128, output, residual=residual)
    x, _, *rest = arguments(gemm)
    pair = [torch.from_numpy(np.ascontiguousarray(e)) for e in sparse24.compress(gemm.weights)]
    y = torch_ops._cuda(x, *pair, *rest, output)
    np.testing.assert_array_equal(y.numpy(), gemm.expected())


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, each beside one that is not its own."""
    wide = torch.full((*tensor.shape, 2), 77, dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


@pytest.mark.parametrize("name", ["x", "weights", "scale", "bias", "extra", "every one"])
def test_an_operand_may_be_a_view(name: str) -> None:
    gemm = gemms.random(6, 64, 128, "f16")
    given: Any = arguments(gemm)
    for i, each in enumerate(("x", "weights", "scale", "bias", "extra")):
        if name in (each, "every one"):
            given[i] = strided(given[i])
            assert not given[i].is_contiguous()
    y = torch.ops.edgekd.sparse_gemm_s8_packed(*given, "f16")
    np.testing.assert_array_equal(y.numpy(), gemm.expected())


class OnGpu:
    """A tensor of the CPU that says it is on the second GPU."""

    device, is_cuda = torch.device("cuda:1"), True

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def contiguous(self) -> OnGpu:
        return OnGpu(self.tensor.contiguous())

    def new_empty(self, shape: list[int], dtype: torch.dtype) -> OnGpu:
        return OnGpu(self.tensor.new_empty(shape, dtype=dtype))


def test_a_launch_is_on_the_device_of_x_and_on_its_current_stream(
    launcher: Kernels, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemm = gemms.random(30, 128, 192, "f16")
    given = [OnGpu(each) for each in arguments(gemm) if isinstance(each, torch.Tensor)]

    class Device:
        """`torch.cuda.device` of the stand-in's runtime."""

        def __init__(self, device: torch.device) -> None:
            self.index, self.before = device.index, runtime.device

        def __enter__(self) -> None:
            runtime.device = self.index

        def __exit__(
            self, kind: type | None, error: Exception | None, trace: TracebackType | None
        ) -> None:
            runtime.device = self.before

    def current_stream(device: torch.device | None = None) -> SimpleNamespace:
        """Each device has its own."""
        return SimpleNamespace(cuda_stream=1000 + (runtime.device if device is None else 1))

    monkeypatch.setattr(torch_ops, "_libraries", {"used": launcher})
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    y = torch_ops.sparse_gemm_s8_packed._init_fn(*given, "f16")
    assert (runtime.launches, runtime.launched_on, runtime.stream) == (1, 1, 1001)
    assert runtime.device == 0
    addresses = [runtime.x, runtime.weights, runtime.scale, runtime.bias, runtime.extra, runtime.y]
    assert addresses == [each.data_ptr() for each in (*given, y)]
    assert (runtime.m, runtime.n, runtime.k) == (30, 128, 192)


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
