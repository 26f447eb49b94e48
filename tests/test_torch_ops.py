"""torch.ops.edgekd on the CPU: the contract's numbers, what torch wants of an operator, refusals.

The launch itself runs on the emulator in tests/kernels/test_torch_launch.py. No test runs on CUDA.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from edgekd import sparse24, torch_ops
from edgekd.errors import ContractError, ToolchainError, UnsupportedError
from edgekd.sparse_gemm import OUTPUTS, Output
from kernels import gemms

N, K = 64, 128


def operands(output: Output, shape: tuple[int, ...] = (5,), residual: bool = True) -> list[Any]:
    """Arguments of the operator; x has these leading sizes."""
    gemm = gemms.random(int(np.prod(shape)), N, K, output, residual=residual)
    values, metadata = sparse24.compress(gemm.weights)
    extra = None if gemm.extra is None else torch.from_numpy(gemm.extra)
    if output == "f16" and extra is not None:
        extra = extra.reshape(*shape, N)
    x = torch.from_numpy(gemm.x).reshape(*shape, K)
    rest = [torch.from_numpy(np.ascontiguousarray(a)) for a in (values, metadata)]
    floats = [torch.from_numpy(gemm.scale), torch.from_numpy(gemm.bias)]
    return [x, *rest, *(floats if output != "s32" else [None, None]), extra, output]


def expected(output: Output, rows: int, residual: bool = True) -> Tensor:
    return torch.from_numpy(gemms.random(rows, N, K, output, residual=residual).expected())


@pytest.mark.parametrize("shape", [(5,), (2, 3), (), (1, 2, 2), (0,)])
@pytest.mark.parametrize("output", OUTPUTS)
def test_it_gives_the_contracts_numbers(output: Output, shape: tuple[int, ...]) -> None:
    y = torch.ops.edgekd.sparse_gemm_s8(*operands(output, shape))
    wanted = expected(output, int(np.prod(shape))).reshape(*shape, N)
    assert y.dtype == wanted.dtype
    assert torch.equal(y, wanted)


def test_float16_without_a_residual() -> None:
    y = torch.ops.edgekd.sparse_gemm_s8(*operands("f16", residual=False))
    assert torch.equal(y, expected("f16", 5, residual=False))


def test_the_output_scale_may_be_a_scalar_and_x_a_view() -> None:
    x, values, metadata, scale, bias, extra, output = operands("s8", (4,))
    y = torch.ops.edgekd.sparse_gemm_s8(
        x[::2], values, metadata, scale, bias, extra.reshape(()), output
    )
    assert torch.equal(y, expected("s8", 4)[::2])


@pytest.mark.parametrize("output", OUTPUTS)
def test_torch_finds_no_fault_with_the_operator(output: Output) -> None:
    torch.library.opcheck(torch.ops.edgekd.sparse_gemm_s8.default, operands(output, (2, 3)))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, *held, _ = operands("gelu_s8")
        for name, tensor in zip(("values", "metadata", "scale", "bias", "out"), held, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.clamp(torch.round(x), -128, 127).to(torch.int8)
        return torch.ops.edgekd.sparse_gemm_s8(
            q, self.values, self.metadata, self.scale, self.bias, self.out, "gelu_s8"
        )


def test_it_is_exported_with_any_number_of_tokens() -> None:
    layer = Layer()
    x = torch.randn(3, K) * 50
    program = torch.export.export(
        layer, (x,), dynamic_shapes=({0: torch.export.Dim("m", min=1, max=64)},)
    )
    assert "edgekd.sparse_gemm_s8" in str(program.graph)
    more = torch.randn(7, K) * 50
    assert torch.equal(program.module()(more), layer(more))


def test_it_compiles_without_a_break() -> None:
    layer = Layer()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, K) * 50
    assert torch.equal(compiled(x), layer(x))


def test_shapes_are_known_without_data() -> None:
    meta = [each.to("meta") if isinstance(each, Tensor) else each for each in operands("f16")]
    y = torch.ops.edgekd.sparse_gemm_s8(*meta)
    assert (y.shape, y.dtype, y.device.type) == ((5, N), torch.float16, "meta")
    packed = torch.ops.edgekd.pack_sparse_s8(*meta[1:3])
    assert packed.shape == (N, K * 5 // 8)
    y = torch.ops.edgekd.sparse_gemm_s8_packed(meta[0], packed, *meta[3:])
    assert (y.shape, y.dtype) == ((5, N), torch.float16)


WRONG: list[tuple[Output, int, Any, str]] = [
    ("s8", 0, torch.zeros(5, K), "x is float32[5, 128] on cpu, expected int8[5, 128] on cpu"),
    (
        "s8", 0, torch.zeros(5, 64, dtype=torch.int8),
        "x is int8[5, 64] on cpu, expected int8[5, 128] on cpu: quantize it, and give the weights'",
    ),
    (
        "s8", 1, torch.zeros(N, K // 2),
        "values is float32[64, 64] on cpu, expected int8[64, 64] on cpu: pass what sparse24.",
    ),
    ("s8", 1, torch.zeros(N, dtype=torch.int8), "values is int8[64] on cpu, expected int8[?, ?]"),
    (
        "s8", 1, torch.zeros(N, K // 2, dtype=torch.int8, device="meta"),
        "values is int8[64, 64] on meta, expected int8[64, 64] on cpu: pass what sparse24.compress "
        "returned, all on one device",
    ),
    (
        "s8", 2, torch.zeros(N, K // 32, dtype=torch.int32, device="meta"),
        "metadata is int32[64, 4] on meta, expected int32[64, 4] on cpu: pass what sparse24.compr",
    ),
    (
        "s8", 2, torch.zeros(N, K // 32, dtype=torch.int64),
        "metadata is int64[64, 4] on cpu, expected int32[64, 4] on cpu",
    ),
    (
        "s8", 2, torch.zeros(N, 1, dtype=torch.int32),
        "metadata is int32[64, 1] on cpu, expected int32[64, 4]",
    ),
    ("s8", 3, torch.ones(1), "scale is float32[1] on cpu, expected float32[64] on cpu: give one"),
    ("s8", 3, None, "scale is None, expected float32[64]"),
    ("f16", 4, torch.ones(N).half(), "bias is float16[64] on cpu, expected float32[64]"),
    ("gelu_s8", 5, None, "extra is None, expected float32[1] on cpu: give the output's scale"),
    ("s8", 5, torch.ones(N), "extra is float32[64] on cpu, expected float32[1]"),
    (
        "f16", 5, torch.ones(5, N),
        "extra is float32[5, 64] on cpu, expected float16[5, 64] on cpu: give a residual of y's",
    ),
    ("s8", 5, torch.ones(1, device="meta"), "extra is float32[1] on meta, expected float32[1] on"),
    ("s8", 6, "s16", "output is 's16', expected one of s32, f16, s8, gelu_s8"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "place", "wrong", "sentence"), WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(
    output: Output, place: int, wrong: Any, sentence: str
) -> None:
    arguments = operands(output)
    arguments[place] = wrong
    with pytest.raises(ContractError, match=re.escape(f"sparse_gemm_s8: {sentence}")):
        torch_ops.sparse_gemm_s8(*arguments)


OPERANDS = ("x", "values", "metadata", "scale", "bias", "extra")


def empty(output: Output, devices: dict[str, str]) -> list[Any]:
    """Operands of which only types, shapes and devices are known."""
    named = zip(OPERANDS, operands(output), strict=False)
    return [
        each if each is None else torch.empty(each.shape, dtype=each.dtype, device=devices[name])
        for name, each in named
    ]


@pytest.mark.parametrize("output", ["f16", "s8"])
@pytest.mark.parametrize("name", OPERANDS)
def test_one_operand_on_another_device_than_x(name: str, output: Output) -> None:
    """In whichever direction: a kernel would take an address of one memory for one of the other."""
    for most, other in (("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cuda:0", "cuda:1")):
        with FakeTensorMode():
            x, values, metadata, *rest = empty(
                output, dict.fromkeys(OPERANDS, most) | {name: other}
            )
            found, wanted = (most, other) if name == "x" else (other, most)
            sentence = rf"\] on {found}, expected .*\] on {wanted}: "
            with pytest.raises(ContractError, match=sentence):
                torch.ops.edgekd.sparse_gemm_s8(x, values, metadata, *rest, output)
            if name in ("values", "metadata"):
                on = (values.device, metadata.device)
                with pytest.raises(
                    ContractError, match=rf"\] on {on[1]}, expected .* on {on[0]}: "
                ):
                    torch.ops.edgekd.pack_sparse_s8(values, metadata)
            if name != "metadata":
                packed = torch.empty(N, K * 5 // 8, dtype=torch.uint8, device=values.device)
                with pytest.raises(ContractError, match=sentence):
                    torch.ops.edgekd.sparse_gemm_s8_packed(x, packed, *rest, output)


def test_weights_of_the_cpu_beside_tokens_without_memory() -> None:
    x, values, metadata, *rest, output = operands("s8")
    rest = [each.to("meta") for each in rest]
    packed = torch.zeros(N, K * 5 // 8, dtype=torch.uint8)
    with pytest.raises(ContractError, match=r"values is int8\[64, 64\] on cpu, .* on meta: pass"):
        torch.ops.edgekd.sparse_gemm_s8(x.to("meta"), values, metadata, *rest, output)
    with pytest.raises(ContractError, match=r"weights is uint8\[64, 80\] on cpu, .* on meta: pass"):
        torch.ops.edgekd.sparse_gemm_s8_packed(x.to("meta"), packed, *rest, output)


@pytest.mark.parametrize("output", OUTPUTS)
def test_operands_of_one_gpu_go_together(output: Output) -> None:
    with FakeTensorMode():
        on_gpu = empty(output, dict.fromkeys(OPERANDS, "cuda:1"))
        y = torch.ops.edgekd.sparse_gemm_s8(*on_gpu, output)
        assert (str(y.device), y.shape) == ("cuda:1", (5, N))
        packed = torch.ops.edgekd.pack_sparse_s8(*on_gpu[1:3])
        assert (str(packed.device), packed.shape) == ("cuda:1", (N, K * 5 // 8))
        y = torch.ops.edgekd.sparse_gemm_s8_packed(on_gpu[0], packed, *on_gpu[3:], output)
        assert (str(y.device), y.shape) == ("cuda:1", (5, N))


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (3, float("inf"), "scale holds inf, expected finite numbers: no integer stands for NaN"),
        (4, float("nan"), "bias holds nan, expected finite numbers: no integer stands for NaN"),
        (5, 0.0, "extra holds 0.0, expected a finite scale of 2**-126 at least: take scales from"),
        (5, -0.5, "extra holds -0.5, expected a finite scale of 2**-126"),
        (5, float("inf"), "extra holds inf, expected a finite scale of 2**-126"),
        (5, 2.0**-127, "extra holds 5.877471754111438e-39, expected a finite scale of 2**-126"),
        (5, float("nan"), "extra holds nan, expected a finite scale of 2**-126"),
    ],
)
@pytest.mark.parametrize("output", ["s8", "gelu_s8"])
def test_numbers_that_no_int8_comes_of(
    output: Output, place: int, value: float, sentence: str
) -> None:
    """The same words on a GPU, whose implementation is called here with tensors of the CPU."""
    arguments = operands(output)
    arguments[place] = arguments[place].clone()
    arguments[place][-1] = value
    for operator in (torch.ops.edgekd.sparse_gemm_s8, torch_ops._cuda):
        with pytest.raises(ContractError, match=re.escape(f"sparse_gemm_s8: {sentence}")):
            operator(*arguments)


def test_float16_has_a_nan_of_its_own() -> None:
    arguments = operands("f16")
    arguments[4] = arguments[4].clone()
    arguments[4][7] = float("nan")
    y = torch.ops.edgekd.sparse_gemm_s8(*arguments)
    assert y.isnan().nonzero()[:, 1].tolist() == [7] * 5


def test_the_operators_are_there_for_tensors_of_a_gpu() -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("edgekd::sparse_gemm_s8", "CPU")
    assert has("edgekd::sparse_gemm_s8", "CUDA")
    for name in ("pack_sparse_s8", "sparse_gemm_s8_packed"):
        assert has(f"edgekd::{name}", "CompositeExplicitAutograd")  # of every device


def test_illegal_metadata_is_refused() -> None:
    arguments = operands("s32")
    arguments[2][3, 1] = 0
    with pytest.raises(ContractError, match="row 3, group 8 has indices 0 and 0, expected increas"):
        torch.ops.edgekd.sparse_gemm_s8(*arguments)


@pytest.mark.parametrize(
    ("n", "k", "sentence"),
    [
        (96, 64, "n is 96, expected a positive multiple of 64: pad the layer"),
        (64, 96, "k is 96, expected a positive multiple of 64"),
        (0, 64, "n is 0, expected a positive multiple of 64"),
    ],
)
def test_sizes_that_no_kernel_takes(n: int, k: int, sentence: str) -> None:
    values, metadata = torch.zeros(n, k // 2).to(torch.int8), torch.zeros(n, k // 32).int()
    with pytest.raises(UnsupportedError, match=sentence):
        torch.ops.edgekd.pack_sparse_s8(values, metadata)


def test_packed_weights_of_another_type_or_shape() -> None:
    x, values, _, *rest = operands("s8")
    sentence = "weights is int8[64, 64] on cpu, expected uint8[64, 63] on cpu: pass what pack_spar"
    with pytest.raises(ContractError, match=re.escape(sentence)):
        torch.ops.edgekd.sparse_gemm_s8_packed(x, values, *rest)
    sentence = "weights is uint8[5120] on cpu, expected uint8[?, ?] on cpu: pass what pack_sparse"
    with pytest.raises(ContractError, match=re.escape(sentence)):
        torch.ops.edgekd.sparse_gemm_s8_packed(x, torch.zeros(5120, dtype=torch.uint8), *rest)


def test_packing_without_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_ops, "_libraries", {})
    monkeypatch.delenv(torch_ops.LIBRARY, raising=False)
    _, values, metadata, *_ = operands("s8")
    sentence = "EDGEKD_KERNELS_LIBRARY names no library of our kernels: make one with make -C"
    with pytest.raises(ToolchainError, match=sentence):
        torch.ops.edgekd.pack_sparse_s8(values, metadata)
    monkeypatch.setenv(torch_ops.LIBRARY, str(tmp_path / "absent.so"))
    with pytest.raises(ToolchainError, match=r"absent\.so: is not a library of our kernels"):
        torch.ops.edgekd.pack_sparse_s8(values, metadata)
