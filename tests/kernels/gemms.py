"""GEMMs on the emulator beside the contract in NumPy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd import sparse24, sparse_gemm
from edgekd.engine.native import Kernels, aligned
from edgekd.sparse_gemm import Output

# A scale at which sums of random int8 spread over the int8 range of the output and beyond.
OUT_SCALE = np.float32(0.03125 * 1.37)


@dataclass(frozen=True)
class Gemm:
    """Random operands of one GEMM, and what it must give."""

    output: Output
    sparse: bool
    x: npt.NDArray[np.int8]
    weights: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    extra: npt.NDArray[Any] | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.x), len(self.weights), self.x.shape[1]

    def expected(self) -> npt.NDArray[Any]:
        acc = sparse_gemm.sums(self.x, self.weights)
        return sparse_gemm.epilogue(acc, self.output, self.scale, self.bias, self.extra)

    def run(
        self, kernels: Kernels, tile: str | None = None, seed: int = 0, late: bool = True
    ) -> npt.NDArray[Any]:
        """What the emulator gives; the whole output is poisoned first."""
        schedule(kernels, seed, late)
        expected = self.expected()
        y = aligned(expected.shape, expected.dtype)
        y.view(np.uint8)[...] = 0x5A
        packed = kernels.pack(self.weights, self.sparse)
        kernels.gemm(
            self.output,
            self.sizes,
            self.x.ctypes.data,
            packed.ctypes.data,
            y.ctypes.data,
            scale=self.scale.ctypes.data,
            bias=self.bias.ctypes.data,
            extra=0 if self.extra is None else self.extra.ctypes.data,
            sparse=self.sparse,
            tile=tile,
        )
        return y


def schedule(kernels: Kernels, seed: int, late: bool, multiprocessors: int = 108) -> None:
    """How the next launches run: the order of warps, and when asynchronous copies land."""
    kernels.library.edgekd_emulator_options(ctypes.c_uint64(seed), int(late), multiprocessors)


def counted(kernels: Kernels) -> dict[str, int]:
    """What the last launch counted."""
    names = (
        "mma_sparse", "mma_dense", "matrix_loads", "matrix_wavefronts", "shared_loads",
        "shared_wavefronts", "copies", "block_barriers", "global_stores",
        "global_loads",
    )  # fmt: skip
    values = np.zeros(len(names), np.uint64)
    kernels.library.edgekd_emulator_counters(ctypes.c_void_p(values.ctypes.data))
    return dict(zip(names, (int(value) for value in values), strict=True))


def random(
    m: int,
    n: int,
    k: int,
    output: Output = "s32",
    sparse: bool = True,
    seed: int = 0,
    residual: bool = True,
) -> Gemm:
    """Operands over the whole int8 range, -128 included."""
    rng = np.random.default_rng([seed, m, n, k])
    weights = rng.integers(-128, 128, (n, k), dtype=np.int8)
    if sparse:
        weights = weights * sparse24.mask(weights)
    scale = (rng.random(n, np.float32) + np.float32(0.5)) * np.float32(2 / (5080 * np.sqrt(k)))
    extra: npt.NDArray[Any] | None = None
    if output in ("s8", "gelu_s8"):
        extra = at_16(np.array([OUT_SCALE], np.float32))
    elif output == "f16" and residual:
        extra = at_16(rng.standard_normal((m, n)).astype(np.float16))
    return Gemm(
        output=output,
        sparse=sparse,
        x=at_16(rng.integers(-128, 128, (m, k), dtype=np.int8)),
        weights=weights,
        scale=at_16(scale),
        bias=at_16(rng.standard_normal(n).astype(np.float32)),
        extra=extra,
    )


def at_16(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy whose data begins at a multiple of 16 bytes."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy
