"""A layer and its tokens on the GPU, in the form each peer wants, and the calls that run them.

Every call ends as the layer does in its network: int8 for the next layer, after GELU where the
layer is the first of an MLP, or float16 added to the residual. A library's kernel answers INT32
sums, so scale, bias and what follows are a kernel of their own behind it, compiled into one where
torch can (`peers_epilogue` says which): that is what a network without a fused kernel runs. Its
bare product is timed beside it, and where a library can end in int8 by itself that is, too.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd import sparse24
from edgekd.engine.native import Kernels
from edgekd.sparse_gemm import Output

DEVICE = "cuda"
OUT_SCALE = 0.0428
# torch._int_mm wants more than 16 tokens; cuSPARSELt a multiple of 16 by torch's rules, of 32 by
# its own documentation: what it takes is tried.
_FEWEST_ROWS, _ROWS = 17, (16, 32)
_DTYPES = {"s32": torch.int32, "f16": torch.float16, "s8": torch.int8, "gelu_s8": torch.int8}
Call = Callable[[], Any]
Product = Callable[[], Tensor]


class Layer:
    """2:4 weights int8[n, k], scales and biases, from a seed that the shape decides."""

    def __init__(self, kernels: Kernels, n: int, k: int) -> None:
        """Draw and pack them."""
        rng = np.random.default_rng([n, k])
        weights = rng.integers(-128, 128, (n, k), dtype=np.int8)
        self.n, self.k, self.kernels = n, k, kernels
        self.output, self.residual = ending(n, k)
        self.host_weights = weights * sparse24.mask(weights)
        scale = (rng.random(n, np.float32) + np.float32(0.5)) * np.float32(2 / (5080 * np.sqrt(k)))
        self.host_scale, self.host_bias = scale, rng.standard_normal(n).astype(np.float32)
        self.weights = placed(self.host_weights)
        self.scale, self.bias = placed(self.host_scale), placed(self.host_bias)
        self.out_scale = placed(np.array([OUT_SCALE], np.float32))
        self.packed = {
            sparse: placed(kernels.pack(self.host_weights, sparse)) for sparse in (True, False)
        }


def ending(n: int, k: int) -> tuple[Output, bool]:
    """What a layer of a transformer writes, and whether it adds a residual: QKV, MLP, the rest."""
    if n == 3 * k:
        return "s8", False
    return ("gelu_s8", False) if n == 4 * k else ("f16", True)


@dataclass(frozen=True)
class Peers:
    """What torch has for a shape.

    Attributes:
        calls: ``<library>_s32``, the bare product, and ``<library>_and_epilogue``;
            ``cusparselt_fused`` where its own epilogue can do the work.
        not_measured: The words of each that refused, or gave other numbers than ours.
        algorithms: How a library's algorithm was found, and which it is.
    """

    calls: dict[str, Call]
    not_measured: dict[str, str]
    algorithms: dict[str, str]


class Case:
    """A layer and the m tokens it is given."""

    def __init__(self, layer: Layer, m: int) -> None:
        """Draw the tokens."""
        self.layer, self.m, self.sizes = layer, m, (m, layer.n, layer.k)
        self._rng = np.random.default_rng(self.sizes)
        self.host_x = self._rng.integers(-128, 128, (m, layer.k), dtype=np.int8)
        self.x = placed(self.host_x)
        self._y: dict[Output, Tensor] = {}

    @functools.cached_property
    def host_residual(self) -> np.ndarray[Any, Any]:
        """float16[m, n], drawn where it is wanted."""
        return self._rng.standard_normal((self.m, self.layer.n), np.float32).astype(np.float16)

    @functools.cached_property
    def residual(self) -> Tensor:
        """The same on the device."""
        return placed(self.host_residual)

    def y(self, output: Output) -> Tensor:
        """Where our kernels write that output: always the same tensor."""
        if output not in self._y:
            self._y[output] = torch.empty(
                self.m, self.layer.n, dtype=_DTYPES[output], device=DEVICE
            )
        return self._y[output]

    def extra(self, output: Output, residual: bool) -> Tensor | None:
        """The last operand: the output's scale of int8 outputs, or a residual, or none."""
        return (
            self.layer.out_scale if output.endswith("s8") else self.residual if residual else None
        )

    def ours(
        self, output: Output, sparse: bool, tile: str | None = None, residual: bool = False
    ) -> Call:
        """A call of one of our kernels on the stream that is current then."""
        layer, extra = self.layer, self.extra(output, residual)
        pointers = [each.data_ptr() for each in (self.x, layer.packed[sparse], self.y(output))]
        return lambda: layer.kernels.gemm(
            output, self.sizes, *pointers, scale=layer.scale.data_ptr(),
            bias=layer.bias.data_ptr(), extra=0 if extra is None else extra.data_ptr(),
            sparse=sparse, tile=tile, stream=torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def whole(self, sparse: bool) -> Call:
        """One of our kernels with all that the layer does."""
        return self.ours(self.layer.output, sparse, residual=self.layer.residual)

    @functools.cached_property
    def peers(self) -> Peers:
        """The products of the shape that torch has, searched and tried once.

        One that fails in whatever way, gives other sums than ours, out of a CUDA graph too, or
        cannot be captured into one is not measured: neither its time nor an end of the others' is
        worth anything.
        """
        self.ours("s32", True)()
        self.whole(True)()
        ours, found = self.y("s32"), Peers({}, {}, {})
        for name, prepare in (("cublaslt", _cublaslt), ("cusparselt", _cusparselt)):
            try:
                product, algorithm = prepare(self.x, self.layer.weights)
                wrong = max(int((each[: self.m] != ours).sum()) for each in _twice(product))
                if wrong:
                    found.not_measured[name] = f"not measured: {wrong} sums are not ours"
                    continue
                whole = functools.partial(_finish, product, self)
                if wrong := self._far(_twice(whole)):
                    found.not_measured[name] = f"not measured: {wrong}"
                    continue
            except Exception as error:
                found.not_measured[name] = reason(error)
                continue
            found.algorithms[name] = algorithm
            found.calls[f"{name}_s32"] = product
            found.calls[f"{name}_and_epilogue"] = whole
        if self.layer.output == "s8":
            self._fused(found)
        return found

    def _fused(self, found: Peers) -> None:
        """Also cuSPARSELt with an epilogue of its own; it rounds otherwise: a step off at most."""
        name, layer = "cusparselt_fused", self.layer
        try:
            ending = (layer.bias / layer.out_scale, layer.scale / layer.out_scale, torch.int8)
            fused, algorithm = _cusparselt(self.x, layer.weights, *ending)
            if wrong := self._far(_twice(fused)):
                found.not_measured[name] = f"not measured: {wrong}"
                return
        except Exception as error:
            found.not_measured[name] = reason(error)
            return
        found.algorithms[name], found.calls[name] = algorithm, fused

    def _far(self, results: Sequence[Tensor]) -> str:
        """How many results lie further from ours than a step, of int8 or of float16's spacing."""
        ours = self.y(self.layer.output)
        for each in results:
            got = each[: self.m].reshape(ours.shape)
            if ours.dtype == torch.float16:
                far = ~torch.isclose(got, ours, rtol=2e-3, atol=2e-3)
            else:
                far = (got.int() - ours.int()).abs() > 1
            if wrong := int(far.sum()):
                return f"{wrong} of {ours.numel()} results are more than a step from ours"
        return ""


def _twice(call: Product) -> tuple[Tensor, Tensor]:
    """What a call gives by itself, and out of a CUDA graph: a workspace may not outlive one."""
    alone = call().clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    graph.replay()
    torch.cuda.synchronize()
    return alone, captured


def reason(error: Exception) -> str:
    """Why something has no number, in one line."""
    words = " ".join(str(error).split())[:160]
    return f"not measured: {words or type(error).__name__}"


def placed(array: np.ndarray[Any, Any]) -> Tensor:
    """An array on the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


@functools.cache
def peers_epilogue(output: Output) -> tuple[Callable[..., Tensor], str]:
    """What makes a layer's output of a library's INT32 sums, and how torch runs it.

    One kernel instead of eight where torch's compiler works. Compiled for every shape at once, for
    one after another would take the minutes that there are; a shape that it does not cover fails,
    and does not silently run eight.
    """
    eager = {"s8": _s8, "gelu_s8": _gelu_s8, "f16": _f16}[output]
    if DEVICE != "cuda" or importlib.util.find_spec("triton") is None:
        return eager, "eager"
    compiled = torch.compile(eager, dynamic=True, fullgraph=True)
    try:
        # Its blocks are chosen by the first sums it sees: a ViT's of one image.
        acc = torch.zeros(197, 768, dtype=torch.int32, device=DEVICE)
        one = torch.ones(768, device=DEVICE)
        compiled(acc, one, one, acc.half() if output == "f16" else one[:1].clone())
    except Exception as error:
        return eager, f"eager: {reason(error).removeprefix('not measured: ')}"
    return compiled, "compiled"


def _finish(product: Product, case: Case) -> Tensor:
    layer = case.layer
    epilogue, _ = peers_epilogue(layer.output)
    extra = case.extra(layer.output, layer.residual)
    return epilogue(product()[: case.m], layer.scale, layer.bias, extra)


def _s8(acc: Tensor, scale: Tensor, bias: Tensor, out_scale: Tensor) -> Tensor:
    return ((acc.float() * scale + bias) / out_scale).round().clamp(-128, 127).to(torch.int8)


def _gelu_s8(acc: Tensor, scale: Tensor, bias: Tensor, out_scale: Tensor) -> Tensor:
    y = torch.nn.functional.gelu(acc.float() * scale + bias)
    return (y / out_scale).round().clamp(-128, 127).to(torch.int8)


def _f16(acc: Tensor, scale: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return (acc.float() * scale + bias + residual.float()).half()


def _cublaslt(x: Tensor, weights: Tensor) -> tuple[Product, str]:
    tokens, columns = _padded(x, max(len(x), _FEWEST_ROWS)), weights.t()
    return lambda: torch._int_mm(tokens, columns), "torch._int_mm's own choice"


def _cusparselt(
    x: Tensor, weights: Tensor, bias: Tensor | None = None, alpha: Tensor | None = None,
    answer: torch.dtype = torch.int32,
) -> tuple[Product, str]:  # fmt: skip
    compressed = torch._cslt_compress(weights)
    refusal: RuntimeError | None = None
    for rows in _ROWS:
        tokens = _padded(x, -(-len(x) // rows) * rows).t()
        # By position: torch has renamed the last of them (split_k_one_kernel, split_k_mode).
        operands = (compressed, tokens, bias, alpha, answer, True)
        try:
            *found, how = _searched(operands)
            torch._cslt_sparse_mm(*operands, *found)
        except RuntimeError as error:
            refusal = error
        else:
            return functools.partial(torch._cslt_sparse_mm, *operands, *found), how
    assert refusal is not None
    raise refusal


def _searched(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The fastest algorithm's numbers for `torch._cslt_sparse_mm`, and how they were found.

    The search times every algorithm, and k cut into parts, on these operands: with few tokens the
    cut is what fills a GPU. An older torch tells the algorithm alone and never cuts.
    """
    try:
        search = torch._C._cusparselt.mm_search  # type: ignore[attr-defined]
    except AttributeError:
        best = int(torch._cslt_sparse_mm_search(*operands))
        return best, f"torch._cslt_sparse_mm_search, which cuts no k: algorithm {best}"
    best, split_k, mode, _ = search(*operands)
    how = f"torch._C._cusparselt.mm_search: algorithm {best}, split_k {split_k}, mode {mode}"
    return best, split_k, mode, how


def _padded(x: Tensor, rows: int) -> Tensor:
    padded = torch.zeros(rows, x.shape[1], dtype=x.dtype, device=x.device)
    padded[: len(x)] = x
    return padded
