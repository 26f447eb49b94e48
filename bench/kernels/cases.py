"""A layer and its tokens on the GPU, in the form each peer wants, and the calls that run them.

Every call ends in the same int8 result, contiguous as the next layer wants it. A library's kernel
answers INT32 sums, so scale, bias, GELU and requantization are a kernel of their own behind it,
compiled into one where torch can (`EPILOGUE` says which): that is what a network without a fused
kernel runs. Its bare product is timed beside it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd import sparse24
from edgekd.engine.native import Kernels
from edgekd.sparse_gemm import OUTPUTS, Output

DEVICE = "cuda"
OUT_SCALE = 0.0428
# torch._int_mm wants more than 16 tokens, cuSPARSELt's int8 a multiple of 16.
_FEWEST_ROWS, _ROWS = 17, 16
Call = Callable[[], Any]


class Layer:
    """2:4 weights int8[n, k], scales and biases, from a seed that the shape decides."""

    def __init__(self, kernels: Kernels, n: int, k: int) -> None:
        """Draw and pack them."""
        rng = np.random.default_rng([n, k])
        weights = rng.integers(-128, 128, (n, k), dtype=np.int8)
        self.n, self.k, self.kernels = n, k, kernels
        self.host_weights = weights * sparse24.mask(weights)
        scale = (rng.random(n, np.float32) + np.float32(0.5)) * np.float32(2 / (5080 * np.sqrt(k)))
        self.host_scale, self.host_bias = scale, rng.standard_normal(n).astype(np.float32)
        self.weights = placed(self.host_weights)
        self.scale, self.bias = placed(self.host_scale), placed(self.host_bias)
        self.out_scale = placed(np.array([OUT_SCALE], np.float32))
        self.packed = {
            sparse: placed(kernels.pack(self.host_weights, sparse)) for sparse in (True, False)
        }


class Case:
    """A layer and the m tokens it is given."""

    def __init__(self, layer: Layer, m: int) -> None:
        """Draw the tokens, and a residual of float16."""
        rng = np.random.default_rng([m, layer.n, layer.k])
        self.layer, self.m = layer, m
        self.host_x = rng.integers(-128, 128, (m, layer.k), dtype=np.int8)
        self.host_residual = rng.standard_normal((m, layer.n)).astype(np.float16)
        self.x, self.residual = placed(self.host_x), placed(self.host_residual)
        dtypes = (torch.int32, torch.float16, torch.int8, torch.int8)
        self.y = {
            output: torch.empty(m, layer.n, dtype=dtype, device=DEVICE)
            for output, dtype in zip(OUTPUTS, dtypes, strict=True)
        }

    def ours(
        self, output: Output, sparse: bool, tile: str | None = None, residual: bool = False
    ) -> Call:
        """A call of one of our kernels on the stream that is current then."""
        layer = self.layer
        extra = self.residual if residual else layer.out_scale if output.endswith("s8") else None
        pointers = (self.x.data_ptr(), layer.packed[sparse].data_ptr(), self.y[output].data_ptr())
        return lambda: layer.kernels.gemm(
            output, (self.m, layer.n, layer.k), *pointers, scale=layer.scale.data_ptr(),
            bias=layer.bias.data_ptr(), extra=0 if extra is None else extra.data_ptr(),
            sparse=sparse, tile=tile, stream=torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def peers(self, check: bool = True) -> tuple[dict[str, Call], dict[str, str]]:
        """The products of the shape that torch has, and the words of those that refuse it.

        A product that gives other sums than ours, or cannot be captured into a graph, counts as
        refused: neither its time nor an error in the middle of the others' is worth anything.

        Args:
            check: Whether `y` holds our own INT32 sums to compare with.
        """
        m, weights = self.m, self.layer.weights
        calls: dict[str, Call] = {}
        refused: dict[str, str] = {}
        for name, prepare in (("cublaslt", _cublaslt), ("cusparselt", _cusparselt)):
            try:
                product = prepare(self.x, weights)
                sums = product()[:m]
                if check and not torch.equal(sums, self.y["s32"]):
                    refused[name] = f"{int((sums != self.y['s32']).sum())} sums are not ours"
                    continue
                whole = functools.partial(_finish, product, m, self.layer)
                whole()
                torch.cuda.synchronize()
                with torch.cuda.graph(torch.cuda.CUDAGraph()):
                    whole()
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                refused[name] = " ".join(str(error).split())[:120]
                continue
            calls[f"{name}_s32"] = product
            calls[f"{name}_and_epilogue"] = whole
        return calls, refused


def _finish(product: Callable[[], Tensor], m: int, layer: Layer) -> Tensor:
    return _epilogue(product()[:m], layer.scale, layer.bias, layer.out_scale)


def _eager(acc: Tensor, scale: Tensor, bias: Tensor, out_scale: Tensor) -> Tensor:
    y = torch.nn.functional.gelu(acc.float() * scale + bias)
    return (y / out_scale).round().clamp(-128, 127).to(torch.int8)


# One kernel instead of eight, where torch's compiler has what it needs.
EPILOGUE = "compiled" if importlib.util.find_spec("triton") else "eager"
_epilogue = torch.compile(_eager, dynamic=True) if EPILOGUE == "compiled" else _eager


def placed(array: np.ndarray[Any, Any]) -> Tensor:
    """An array on the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def _cublaslt(x: Tensor, weights: Tensor) -> Callable[[], Tensor]:
    tokens, columns = _padded(x, max(len(x), _FEWEST_ROWS)), weights.t()
    return lambda: torch._int_mm(tokens, columns)


def _cusparselt(x: Tensor, weights: Tensor) -> Callable[[], Tensor]:
    compressed = torch._cslt_compress(weights)
    tokens = _padded(x, -(-len(x) // _ROWS) * _ROWS).t()
    options = {"out_dtype": torch.int32, "transpose_result": True}
    # Algorithm 0 is only the first; the search times all of them on these operands.
    best = torch._cslt_sparse_mm_search(compressed, tokens, **options)
    return lambda: torch._cslt_sparse_mm(compressed, tokens, alg_id=best, **options)


def _padded(x: Tensor, rows: int) -> Tensor:
    padded = torch.zeros(rows, x.shape[1], dtype=x.dtype, device=x.device)
    padded[: len(x)] = x
    return padded
