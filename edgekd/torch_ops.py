"""``torch.ops.edgekd``: our sparse GEMM as operators of torch.

    sparse_gemm_s8(x, values, metadata, scale, bias, extra, output) -> Tensor
    pack_sparse_s8(values, metadata) -> Tensor
    sparse_gemm_s8_packed(x, weights, scale, bias, extra, output) -> Tensor

The first takes the canonical 2:4 form, as the ONNX operator does: on a CPU it is the NumPy contract
itself (slow and exact), on a GPU it packs and launches. Packing copies the weights to the host and
back, so a model packs once and calls the third. Shapes and types are known without data, so
torch.compile and torch.export trace all three. There is no backward: int8 has no gradient, and
training has its own fake-quant.

No integer stands for NaN. The first refuses a scale or a bias that would lead to one, on a CPU and
on a GPU. The third looks at no value, on either: to look at one it would have to wait for the GPU.

Packing and launching need a library of kernels/: ``EDGEKD_KERNELS_LIBRARY`` names
``libedgekd_kernels.so``, or `use_library` does. The emulator's library does the same with tensors
on the CPU, for tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekd import sparse24, sparse_gemm
from edgekd.engine.native import Kernels
from edgekd.errors import ContractError, ToolchainError, UnsupportedError
from edgekd.sparse_gemm import OUTPUTS, SLAB, Output

LIBRARY = "EDGEKD_KERNELS_LIBRARY"
_DTYPES = {"s32": torch.int32, "f16": torch.float16, "s8": torch.int8, "gelu_s8": torch.int8}
_WORD_COLUMNS = 32  # of k that one word of metadata describes
_PACKED_BYTES = 5  # for 8 weights: 4 values and a byte of metadata
_libraries: dict[str, Kernels] = {}


def use_library(path: Path) -> None:
    """Take the kernels from a library, instead of the one that ``EDGEKD_KERNELS_LIBRARY`` names.

    Args:
        path: ``libedgekd_kernels.so``, or the emulator's library for tensors on the CPU.

    Raises:
        ToolchainError: It is not there, or not such a library.
    """
    _libraries["used"] = Kernels(path)


@torch.library.custom_op("edgekd::sparse_gemm_s8", mutates_args=(), device_types="cpu")
def sparse_gemm_s8(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    output: str,
) -> Tensor:
    """The epilogue of x w^T for weights in canonical 2:4 form; see `edgekd.sparse_gemm`.

    Args:
        x: int8[..., k].
        values: int8[n, k/2] of `sparse24.compress`.
        metadata: int32[n, k/32] of `sparse24.compress`.
        scale: float32[n]; None for ``s32``.
        bias: float32[n]; None for ``s32``.
        extra: float32[1], the scale of an int8 output; for ``f16`` float16[..., n] or None.
        output: ``s32``, ``f16``, ``s8`` or ``gelu_s8``.

    Returns:
        int32, float16 or int8 [..., n].

    Raises:
        ContractError: Types, shapes or devices do not belong together, the metadata is illegal, or
            the output is int8 and a scale or bias is not finite or the output's scale not positive.
        ToolchainError: The tensors are on a GPU and there is no library of kernels.
        UnsupportedError: No kernel takes the sizes.
    """
    shape = _expected(x, _sizes(values, metadata, x), (scale, bias, extra), output).shape
    _require_numbers(scale, bias, extra, output)
    weights = sparse24.decompress(values.numpy(), metadata.numpy())
    acc = sparse_gemm.sums(x.reshape(-1, x.shape[-1]).numpy(), weights)
    y = acc
    if output != "s32":
        assert scale is not None, "checked by _expected"
        assert bias is not None, "checked by _expected"
        more = extra if extra is None or output != "f16" else extra.reshape(acc.shape)
        given = None if more is None else more.numpy()
        y = sparse_gemm.epilogue(acc, output, scale.numpy(), bias.numpy(), given)  # type: ignore[arg-type]
    return torch.from_numpy(np.ascontiguousarray(y)).reshape(shape)


@torch.library.custom_op("edgekd::pack_sparse_s8", mutates_args=())
def pack_sparse_s8(values: Tensor, metadata: Tensor) -> Tensor:
    """Weights in the order the kernels read them, on the device they came from.

    Args:
        values: int8[n, k/2].
        metadata: int32[n, k/32].

    Returns:
        uint8[n, k 5/8].

    Raises:
        ContractError: Types or shapes do not belong together, or the metadata is illegal.
        ToolchainError: There is no library of kernels.
        UnsupportedError: n or k is no multiple of 64.
    """
    n, _ = _sizes(values, metadata, values)
    weights = sparse24.decompress(values.cpu().numpy(), metadata.cpu().numpy())
    packed = torch.from_numpy(_kernels().pack(weights, sparse=True))
    return packed.reshape(n, -1).to(values.device, copy=True)


@torch.library.custom_op("edgekd::sparse_gemm_s8_packed", mutates_args=())
def sparse_gemm_s8_packed(
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    output: str,
) -> Tensor:
    """`sparse_gemm_s8` of weights that `pack_sparse_s8` packed; starts a kernel, does not wait.

    Args:
        x: int8[..., k].
        weights: uint8[n, k 5/8].
        scale: As there, and so are bias, extra and output. Values are not looked at: where they are
            not finite, or the output's scale is not positive, some int8 comes out.
        bias: float32[n].
        extra: float32[1] or float16[..., n].
        output: ``s32``, ``f16``, ``s8`` or ``gelu_s8``.

    Returns:
        int32, float16 or int8 [..., n].

    Raises:
        ContractError: Types, shapes or devices do not belong together.
        ToolchainError: There is no library of kernels, or it is the other device's.
        UnsupportedError: No kernel takes the sizes.
    """
    n, k = _packed_sizes(weights, x)
    y = _expected(x, (n, k), (scale, bias, extra), output)
    kernels = _kernels()
    if hasattr(kernels.library, "edgekd_emulator_options") == x.is_cuda:
        raise ToolchainError(
            f"sparse_gemm_s8: x is on {x.device.type}, where this library does not run: give "
            f"{LIBRARY} libedgekd_kernels.so for a GPU, libedgekd_emulator.so for a CPU"
        )
    if not x.numel():
        return y
    # Kept in a list until after the launch: the kernel gets addresses, which own nothing.
    inputs = [None if t is None else t.contiguous() for t in (x, weights, scale, bias, extra)]
    address = [0 if each is None else each.data_ptr() for each in inputs]
    # The library launches on the current device; torch makes x's current for none of our operators.
    with torch.cuda.device(x.device if x.is_cuda else -1):
        kernels.gemm(
            _output(output),
            (x.numel() // k, n, k),
            address[0],
            address[1],
            y.data_ptr(),
            scale=address[2],
            bias=address[3],
            extra=address[4],
            stream=torch.cuda.current_stream().cuda_stream if x.is_cuda else 0,
        )
    return y


@sparse_gemm_s8.register_kernel("cuda")
def _cuda(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    output: str,
) -> Tensor:
    _expected(x, _sizes(values, metadata, x), (scale, bias, extra), output)
    _require_numbers(scale, bias, extra, output)
    packed = pack_sparse_s8(values, metadata)
    y: Tensor = sparse_gemm_s8_packed(x, packed, scale, bias, extra, output)
    return y


@sparse_gemm_s8.register_fake
def _fake(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    output: str,
) -> Tensor:
    return _expected(x, _sizes(values, metadata, x), (scale, bias, extra), output)


@pack_sparse_s8.register_fake
def _fake_pack(values: Tensor, metadata: Tensor) -> Tensor:
    n, k = _sizes(values, metadata, values)
    return values.new_empty((n, k * _PACKED_BYTES // 8), dtype=torch.uint8)


@sparse_gemm_s8_packed.register_fake
def _fake_packed(
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    extra: Tensor | None,
    output: str,
) -> Tensor:
    return _expected(x, _packed_sizes(weights, x), (scale, bias, extra), output)


def _kernels() -> Kernels:
    """The library in use, loaded once."""
    if "used" not in _libraries:
        path = os.environ.get(LIBRARY)
        if not path:
            raise ToolchainError(
                f"sparse_gemm_s8: {LIBRARY} names no library of our kernels: make one with make -C "
                f"kernels and set {LIBRARY} to it, or call edgekd.torch_ops.use_library"
            )
        use_library(Path(path))
    return _libraries["used"]


def _output(output: str) -> Output:
    for known in OUTPUTS:
        if output == known:
            return known
    raise ContractError(
        f"sparse_gemm_s8: output is {output!r}, expected one of {', '.join(OUTPUTS)}"
    )


def _sizes(values: Tensor, metadata: Tensor, beside: Tensor) -> tuple[int, int]:
    """N and k of canonical weights, which must lie where another tensor does."""
    n, k = (values.shape[0], 2 * values.shape[1]) if values.dim() == 2 else (-1, -1)
    if values.dim() == 2:
        _require_slabs(n, k)
    whence = "pass what sparse24.compress returned, all on one device"
    _require("values", values, torch.int8, [n, k // 2], beside, whence)
    _require("metadata", metadata, torch.int32, [n, k // _WORD_COLUMNS], beside, whence)
    return n, k


def _packed_sizes(weights: Tensor, x: Tensor) -> tuple[int, int]:
    """N and k of packed weights, which must lie where x does."""
    n, row = weights.shape if weights.dim() == 2 else (-1, -1)
    k = row * 8 // _PACKED_BYTES
    whole = k * _PACKED_BYTES // 8 if weights.dim() == 2 else -1
    whence = "pass what pack_sparse_s8 returned, all on one device"
    _require("weights", weights, torch.uint8, [n, whole], x, whence)
    _require_slabs(n, k)
    return n, k


def _require_slabs(n: int, k: int) -> None:
    for name, size in (("n", n), ("k", k)):
        if size == 0 or size % SLAB:
            raise UnsupportedError(
                f"sparse_gemm_s8: {name} is {size}, expected a positive multiple of {SLAB}: "
                "pad the layer"
            )


def _expected(
    x: Tensor,
    sizes: tuple[int, int],
    operands: tuple[Tensor | None, Tensor | None, Tensor | None],
    output: str,
) -> Tensor:
    """An uninitialized result, once everything fits; `operands` are scale, bias and extra."""
    n, k = sizes
    wanted = _output(output)
    rows = list(x.shape[:-1])
    _require("x", x, torch.int8, [*rows, k], x, "quantize it, and give the weights' k")
    if wanted == "s32":
        return x.new_empty([*rows, n], dtype=_DTYPES[wanted])
    for name, operand in zip(("scale", "bias"), operands[:2], strict=True):
        _require(name, operand, torch.float32, [n], x, "give one for each output feature")
    extra = operands[2]
    if wanted != "f16":
        shape = [1] if extra is None or extra.dim() else []
        _require("extra", extra, torch.float32, shape, x, "give the output's scale")
    elif extra is not None:
        _require("extra", extra, torch.float16, [*rows, n], x, "give a residual of y's shape")
    return x.new_empty([*rows, n], dtype=_DTYPES[wanted])


def _require_numbers(
    scale: Tensor | None, bias: Tensor | None, extra: Tensor | None, output: str
) -> None:
    """Raise where an int8 output would be of NaN. A GPU is waited for: not before each launch."""
    if output not in ("s8", "gelu_s8"):
        return
    finite = "finite numbers: no integer stands for NaN, look for the step that diverged"
    positive = "a finite scale of 2**-126 at least: take scales from quant.scale_from_amax"
    operands = (("scale", scale, finite), ("bias", bias, finite), ("extra", extra, positive))
    for name, operand, wanted in operands:
        assert operand is not None, "checked by _expected"
        bad = ~operand.isfinite()
        if wanted is positive:
            bad |= operand < torch.finfo(torch.float32).tiny  # its reciprocal may be infinite
        if bad.any():
            found = operand[bad].flatten()[0].item()
            raise ContractError(f"sparse_gemm_s8: {name} holds {found}, expected {wanted}")


def _require(
    name: str, found: Tensor | None, dtype: torch.dtype, shape: list[int], beside: Tensor, how: str
) -> None:
    """Raise unless a tensor has this type and shape, on the device of another one."""
    right = found is not None and found.dtype == dtype and found.device == beside.device
    if found is None or not right or list(found.shape) != shape:
        raise ContractError(
            f"sparse_gemm_s8: {name} is {'None' if found is None else _described(found)}, expected "
            f"{_typed(dtype, shape)} on {beside.device}: {how}"
        )


def _described(tensor: Tensor) -> str:
    return f"{_typed(tensor.dtype, list(tensor.shape))} on {tensor.device}"


def _typed(dtype: torch.dtype, shape: list[int]) -> str:
    sizes = ", ".join("?" if size == -1 else str(size) for size in shape)
    return f"{str(dtype).removeprefix('torch.')}[{sizes}]"
