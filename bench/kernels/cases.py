"""A layer and its tokens on the GPU, in the form each peer wants, and the calls that run them.

Every call ends in the same int8 result. A library's kernel answers INT32 sums, so its time includes
scale, bias, GELU and requantization as separate operators: that is what a network without a fused
kernel runs. Its bare product is timed beside it.
"""

from __future__ import annotations

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
_ROWS = 32  # both libraries want tokens in multiples of it
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

    def peers(self) -> tuple[dict[str, Call], dict[str, str]]:
        """The products of the shape that torch has, and the words of those that refuse it."""
        m, weights = self.m, self.layer.weights
        x = torch.zeros(-(-m // _ROWS) * _ROWS, self.layer.k, dtype=torch.int8, device=DEVICE)
        x[:m] = self.x
        calls: dict[str, Call] = {}
        refused: dict[str, str] = {}
        for name, prepare in (("cublaslt", _cublaslt), ("cusparselt", _cusparselt)):
            try:
                product = prepare(x, weights)
                product()
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                refused[name] = " ".join(str(error).split())[:120]
                continue
            calls[f"{name}_s32"] = product
            calls[f"{name}_and_epilogue"] = lambda product=product: self._finish(product()[:m])
        return calls, refused

    def _finish(self, acc: Tensor) -> Tensor:
        layer = self.layer
        y = torch.nn.functional.gelu(acc.float() * layer.scale + layer.bias)
        return (y / layer.out_scale).round().clamp(-128, 127).to(torch.int8)


def placed(array: np.ndarray[Any, Any]) -> Tensor:
    """An array on the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def _cublaslt(x: Tensor, weights: Tensor) -> Callable[[], Tensor]:
    columns = weights.t()
    return lambda: torch._int_mm(x, columns)


def _cusparselt(x: Tensor, weights: Tensor) -> Callable[[], Tensor]:
    compressed, tokens = torch._cslt_compress(weights), x.t()
    return lambda: torch._cslt_sparse_mm(compressed, tokens, out_dtype=torch.int32).t()
