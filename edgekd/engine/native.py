"""Our CUDA kernels' C interface (``kernels/include/edgekd_kernels.h``), bound with ctypes.

The same interface is served by two libraries: ``libedgekd_kernels.so``, which launches on a GPU,
and ``libedgekd_emulator.so``, which runs the same sources on a CPU for tests. Pointers are
integers: of device memory for the first, of host memory for the second. All arguments are checked
on the other side, whose status becomes an exception with its sentence; but for what would never
arrive there: an array's type and a number that C's does not hold.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd import sparse24
from edgekd.errors import ContractError, ToolchainError, UnsupportedError
from edgekd.sparse_gemm import OUTPUTS, Output

_SENTENCE_BYTES = 400
_ALIGNMENT = 16
_INT64_MAX = 2**63 - 1
_BAD_SIZE, _TOO_LARGE, _BAD_NAME, _LAUNCH_FAILED = 3, 4, 6, 7


class _Gemm(ctypes.Structure):
    """``edgekd_gemm`` of the header, field by field."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("output", ctypes.c_int),
        ("m", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("tile", ctypes.c_char_p),
    )


class Kernels:
    """One library of our kernels.

    Attributes:
        tiles: Names of the tile shapes it was compiled for.
    """

    def __init__(self, path: Path) -> None:
        """Load a library.

        Args:
            path: Of ``libedgekd_kernels.so`` or ``libedgekd_emulator.so``.

        Raises:
            ToolchainError: It is not there, or not such a library.
        """
        try:
            self.library = library = ctypes.CDLL(str(path))
            library.edgekd_packed_bytes.restype = ctypes.c_size_t
            library.edgekd_packed_bytes.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            library.edgekd_choose.restype = ctypes.c_char_p
            library.edgekd_choose.argtypes = [ctypes.c_int64] * 3 + [
                ctypes.c_int,
                ctypes.POINTER(ctypes.c_char_p),
            ]
            sizes: list[Any] = [ctypes.c_int64, ctypes.c_int64]
            says: list[Any] = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
            library.edgekd_pack_sparse.argtypes = [ctypes.c_void_p] * 2 + sizes + says
            library.edgekd_pack_dense.argtypes = [ctypes.c_void_p, *sizes, *says]
            library.edgekd_gemm_s8.argtypes = [ctypes.POINTER(_Gemm), *says]
            library.edgekd_tiles.restype = ctypes.POINTER(ctypes.c_char_p)
        except (OSError, AttributeError) as error:
            raise ToolchainError(
                f"{path}: is not a library of our kernels ({error}): make one with make -C kernels"
            ) from error
        self.tiles = tuple(name.decode() for name in _until_null(library.edgekd_tiles()))

    def pack(self, weights: npt.NDArray[np.int8], sparse: bool) -> npt.NDArray[np.uint8]:
        """Weights in the order the kernels read them.

        Args:
            weights: int8[n, k], n and k multiples of 64; 2:4 where `sparse`.
            sparse: For the sparse kernels, else for their dense twins.

        Returns:
            uint8[...], 16-byte aligned.

        Raises:
            ContractError: The weights are not int8[n, k], or not 2:4 where they should be.
            UnsupportedError: n or k is no multiple of 64.
        """
        if weights.dtype != np.int8 or weights.ndim != 2:
            raise ContractError(
                f"pack: weights are {weights.dtype}{list(weights.shape)}, expected int8[n, k]: "
                "quantize them first"
            )
        n, k = weights.shape
        packed = aligned((self.library.edgekd_packed_bytes(int(not sparse), n, k),), np.uint8)
        out = packed.ctypes.data
        if not sparse:
            plain = np.ascontiguousarray(weights)
            self._call(
                lambda *says: self.library.edgekd_pack_dense(plain.ctypes.data, n, k, out, *says)
            )
            return packed
        values, metadata = (np.ascontiguousarray(part) for part in sparse24.compress(weights))
        self._call(
            lambda *says: self.library.edgekd_pack_sparse(
                values.ctypes.data, metadata.ctypes.data, n, k, out, *says
            )
        )
        return packed

    def gemm(
        self,
        output: Output,
        sizes: tuple[int, int, int],
        x: int,
        weights: int,
        y: int,
        *,
        scale: int = 0,
        bias: int = 0,
        extra: int = 0,
        sparse: bool = True,
        tile: str | None = None,
        stream: int = 0,
    ) -> None:
        """Start a GEMM; see `edgekd.sparse_gemm` for what it computes.

        Args:
            output: What it writes.
            sizes: m, n and k.
            x: Address of int8[m, k], 16-byte aligned as all of them.
            weights: Of what `pack` returned.
            y: Of int32, float16 or int8 [m, n].
            scale: Of float32[n]; 0 for ``s32``.
            bias: Of float32[n]; 0 for ``s32``.
            extra: Of the output's scale or the residual; 0 where there is none.
            sparse: Which kind of weights.
            tile: One of `tiles`; default: what the table chooses.
            stream: A CUDA stream's handle, 0 for the default one.

        Raises:
            ContractError: A pointer is null or misaligned, or there is no such output.
            UnsupportedError: No kernel takes the sizes.
            ToolchainError: The launch failed.
        """
        if output not in OUTPUTS:
            raise ContractError(
                f"sparse_gemm_s8: output is {output!r}, expected one of {', '.join(OUTPUTS)}"
            )
        if not _fit(sizes):
            raise UnsupportedError(
                f"sparse_gemm_s8: m, n and k are {', '.join(map(str, sizes))}, expected at most "
                f"{_INT64_MAX}, what the library takes: split the layer"
            )
        gemm = _Gemm(
            int(not sparse),
            OUTPUTS.index(output),
            *sizes,
            *(x or None, weights or None, scale or None, bias or None, extra or None, y or None),
            None if tile is None else tile.encode(),
        )
        reference = ctypes.byref(gemm)
        self._call(lambda *says: self.library.edgekd_gemm_s8(reference, stream or None, *says))

    def choose(self, sizes: tuple[int, int, int], multiprocessors: int) -> tuple[str, str] | None:
        """The tile for the sizes m, n, k on a GPU, and why; None where no kernel takes them."""
        if not _fit(sizes):
            return None
        reason = ctypes.c_char_p()
        tile = self.library.edgekd_choose(*sizes, multiprocessors, ctypes.byref(reason))
        return None if tile is None else (tile.decode(), (reason.value or b"").decode())

    def _call(self, function: Callable[..., int]) -> None:
        """Call with room for a sentence; raise it where the status is not 0."""
        sentence = ctypes.create_string_buffer(_SENTENCE_BYTES)
        status = function(sentence, _SENTENCE_BYTES)
        if status == 0:
            return
        text = f"sparse_gemm_s8: {sentence.value.decode(errors='replace')}"
        if status == _LAUNCH_FAILED:
            raise ToolchainError(text)
        raise (UnsupportedError if status in (_BAD_SIZE, _TOO_LARGE, _BAD_NAME) else ContractError)(
            text
        )


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros whose data begins at a multiple of 16 bytes, as the kernels want it."""
    wanted = np.dtype(dtype)
    size = int(np.prod(shape)) * wanted.itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(wanted).reshape(shape)


def _fit(sizes: tuple[int, int, int]) -> bool:
    """Whether C's int64 holds them: ctypes drops the bits above without a word."""
    return all(abs(size) <= _INT64_MAX for size in sizes)


def _until_null(names: Any) -> list[bytes]:
    found: list[bytes] = []
    while names[len(found)] is not None:
        found.append(names[len(found)])
    return found
