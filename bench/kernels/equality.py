"""Every kernel on the GPU beside the contract: equal to the last bit, or named.

Sums, scaling and quantization are compared with the contract in NumPy (`edgekd.sparse_gemm`). Its
GELU has another erf than the kernels', so of ``gelu_s8`` the kernels' own sources, compiled for a
CPU, give the numbers: a multiply-add contracted or a division rounded otherwise shows there. That
those are right is what ``tests/kernels`` proves.

A kernel that differs is told with its first shape and is left out from there on; the others go on,
so that one run on a lent GPU names all that is wrong. `torch.ops.edgekd` is called too: on a GPU
its operators are registrations of their own.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import torch
from cases import Case, Layer
from torch import Tensor

from edgekd import sparse24, sparse_gemm
from edgekd.engine.native import Kernels
from edgekd.errors import EdgekdError, UnsupportedError
from edgekd.sparse_gemm import OUTPUTS, Output

EPILOGUES: tuple[tuple[Output, bool], ...] = (
    ("s32", False), ("f16", False), ("f16", True), ("s8", False), ("gelu_s8", False),
)  # fmt: skip
CHOSEN = "chosen"  # the tile that the table takes, asked for by no name
OPERATOR_TOKENS = 53


@dataclass
class Found:
    """What `compare` saw so far; `last` names the launch that an error of CUDA belongs to."""

    launches: int = 0
    outputs: int = 0
    last: str = "no launch"
    ran: set[str] = field(default_factory=set)
    differ: dict[str, str] = field(default_factory=dict)


def compare(emulator: Kernels, layers: Sequence[Layer], tokens: Sequence[int]) -> dict[str, Any]:
    """Every instance on every shape it takes.

    Args:
        emulator: The same sources for a CPU, whose GELU is to be met.
        layers: Of the kernels to be compared.
        tokens: The m of each, the fewest first.

    Returns:
        What was compared, and under ``differ`` a sentence for each instance that is not equal, or
        that took no shape.
    """
    found = Found()
    try:
        for m, layer in itertools.product(tokens, layers):
            case = Case(layer, m)
            acc = sparse_gemm.sums(case.host_x, layer.host_weights)
            for output, residual in EPILOGUES:
                _instances(
                    case, output, residual, expected(emulator, case, acc, output, residual), found
                )
    except RuntimeError as error:  # torch's, so CUDA's own: it takes nothing more after it
        found.differ[found.last] = f"{found.last}: {_words(error)}"
    else:
        tiles = (*layers[0].kernels.tiles, CHOSEN)
        for instance in map(" ".join, itertools.product(("sparse", "dense"), tiles, OUTPUTS)):
            if instance not in found.ran:
                found.differ[instance] = f"{instance}: took no shape, expected one at least"
    return {
        "tokens": list(tokens), "launches": found.launches, "outputs": found.outputs,
        "instances": len(found.ran), "differ": found.differ,
    }  # fmt: skip


def _instances(
    case: Case, output: Output, residual: bool, wanted: npt.NDArray[Any], found: Found
) -> None:
    """Every tile, and the chosen one, sparse and dense, with one epilogue."""
    there, n, k = cases.placed(wanted), case.layer.n, case.layer.k
    for tile, sparse in itertools.product((*case.layer.kernels.tiles, None), (True, False)):
        instance = f"{'sparse' if sparse else 'dense'} {tile or CHOSEN} {output}"
        if instance in found.differ:
            continue
        found.last = f"{instance} {case.m} x {n} x {k}"
        y = case.y(output)
        y.view(torch.uint8).fill_(0x5A)  # what a kernel leaves out is seen
        try:
            case.ours(output, sparse, tile, residual)()
            wrong = difference(y, there)
        except UnsupportedError:  # a tile for larger layers
            continue
        except EdgekdError as error:
            wrong = _words(error)
        found.launches += 1
        found.outputs += wanted.size
        found.ran.add(instance)
        if wrong:
            found.differ[instance] = f"{found.last}: {wrong}"


def operators(library: Path, emulator: Kernels, layer: Layer) -> dict[str, str]:
    """Both of torch's operators, once for each epilogue; a sentence for each that differs."""
    from edgekd import torch_ops

    torch_ops.use_library(library)
    case = Case(layer, OPERATOR_TOKENS)
    acc = sparse_gemm.sums(case.host_x, layer.host_weights)
    pair = tuple(cases.placed(each) for each in sparse24.compress(layer.host_weights))
    differ = {}
    for output, residual in EPILOGUES:
        wanted = cases.placed(expected(emulator, case, acc, output, residual))
        scales = (None, None) if output == "s32" else (layer.scale, layer.bias)
        rest = (*scales, case.extra(output, residual), output)
        for name in ("sparse_gemm_s8", "sparse_gemm_s8_packed"):
            try:
                packed = name.endswith("packed")
                weights = (torch.ops.edgekd.pack_sparse_s8(*pair),) if packed else pair
                wrong = difference(getattr(torch.ops.edgekd, name)(case.x, *weights, *rest), wanted)
            except (EdgekdError, RuntimeError) as error:
                wrong = _words(error)
            if wrong:
                differ[f"{name} {output}"] = f"torch.ops.edgekd.{name} {output}: {wrong}"
    return differ


def expected(
    emulator: Kernels, case: Case, acc: npt.NDArray[np.int32], output: Output, residual: bool
) -> npt.NDArray[Any]:
    """What a kernel must write, to the bit."""
    layer = case.layer
    if output != "gelu_s8":
        scale = np.array([cases.OUT_SCALE], np.float32)
        extra = case.host_residual if residual else scale if output == "s8" else None
        return sparse_gemm.epilogue(acc, output, layer.host_scale, layer.host_bias, extra)
    y = acc.astype(np.float32) * layer.host_scale + layer.host_bias
    q = np.empty(y.shape, np.int8)
    address, count = ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(y.size)
    emulator.library.edgekd_emulator_gelu(address, count, address)
    emulator.library.edgekd_emulator_quantize(
        address, ctypes.c_float(cases.OUT_SCALE), count, ctypes.c_void_p(q.ctypes.data)
    )
    return q


def difference(got: Tensor, wanted: Tensor) -> str:
    """How two results differ, bit by bit; empty where they do not."""
    if got.dtype == torch.float16:  # 0 and -0 are not the same bits
        got, wanted = got.view(torch.int16), wanted.view(torch.int16)
    if torch.equal(got, wanted):
        return ""
    wrong = got != wanted
    row, column = (int(each) for each in wrong.nonzero()[0])
    return (
        f"{int(wrong.sum())} of {wrong.numel()} outputs differ, the first at [{row}, {column}]: "
        f"{int(got[row, column])}, expected {int(wanted[row, column])}"
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
