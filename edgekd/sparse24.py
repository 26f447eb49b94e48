"""The 2:4 contract: of every 4 consecutive weights along k, at most 2 are nonzero.

k is the reduction axis, the last one of weights[n, k]. Sparse Tensor Cores then skip half of the
multiplications: they read the 2 kept values of each group of 4 and two 2-bit indices that say which
activations meet them (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3).

The compressed form here is canonical: a function of the weights alone, so equal weights give equal
bytes, whoever packs them. It uses *ordered* metadata, index0 < index1 in every group, which is what
``mma.sp::ordered_metadata`` demands and what every plain ``mma.sp`` accepts too (PTX ISA,
"Multiply-and-accumulate instruction: mma.sp"). The order in which lanes of a warp hold these words
is not defined here; only kernels/ knows it.

Rows may share a pattern: in V:2:4 every V consecutive rows keep the same columns, chosen by the
magnitudes summed over them. Each row is 2:4 still, so whatever runs 2:4 runs it; what one pattern
for V rows can save beyond that (metadata, reads of activations) is up to a kernel.

Left out: permuting channels to keep more magnitude (it changes the network around the layer), N:M
patterns other than 2:4, VENOM's choice of 4 columns out of more (Castro et al. 2023, which is where
the name V:N:M comes from), and int4's pair-wise 4:8, which is another contract.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import ContractError

GROUP = 4
KEPT = 2
# One 32-bit metadata word describes 8 groups of 4 columns.
_WORD_COLUMNS = 32
_NIBBLE_SHIFTS = np.arange(0, 32, 4, dtype=np.uint32)


def mask(weights: npt.NDArray[Any], pattern_rows: int = 1) -> npt.NDArray[np.bool_]:
    """Keep the two largest magnitudes of each group of 4; among equals the lower index is kept.

    Args:
        weights: float or int[n, k], k a multiple of 4.
        pattern_rows: V, the consecutive rows that share one pattern, chosen by the sum of their
            magnitudes; a divisor of n.

    Returns:
        bool[n, k] with exactly two True per group, also where the group holds fewer nonzeros.

    Raises:
        ContractError: weights are not 2-D, hold a NaN, k is not a multiple of 4, or n not one of
            `pattern_rows`.
    """
    # Widened before abs: in int8, abs(-128) is -128.
    magnitude = np.abs(_groups(weights, "mask").astype(np.float64))
    if np.isnan(magnitude).any():
        raise ContractError(
            f"mask: {int(np.isnan(magnitude).sum())} of {magnitude.size} weights are NaN, expected"
            " numbers: magnitudes cannot be ranked, look for the step that diverged"
        )
    require_rows(len(weights), pattern_rows, "mask")
    n, groups, _ = magnitude.shape
    shared = magnitude.reshape(n // pattern_rows, pattern_rows, groups, GROUP).sum(axis=1)
    order = np.argsort(-shared, axis=-1, kind="stable")
    kept = np.zeros(shared.shape, dtype=np.bool_)
    np.put_along_axis(kept, order[..., :KEPT], True, axis=-1)
    return np.repeat(kept, pattern_rows, axis=0).reshape(weights.shape)


def violations(weights: npt.NDArray[Any]) -> int:
    """Count the groups of 4 that hold more than two nonzeros.

    Args:
        weights: float or int[n, k], k a multiple of 4.

    Returns:
        The number of such groups; 0 means exactly 2:4.

    Raises:
        ContractError: weights are not 2-D or k is not a multiple of 4.
    """
    return int((_nonzeros(weights, "violations") > KEPT).sum())


def check(weights: npt.NDArray[Any], where: str) -> None:
    """Raise unless every group of 4 along k holds at most two nonzeros.

    Args:
        weights: float or int[n, k], k the last axis.
        where: Name of the layer, begins the sentence.

    Raises:
        ContractError: A group holds three or four nonzeros, weights are not 2-D, or k is not a
            multiple of 4.
    """
    nonzeros = _nonzeros(weights, where)
    bad = nonzeros > KEPT
    if bad.any():
        row, group = (int(i) for i in np.argwhere(bad)[0])
        raise ContractError(
            f"{where}: row {row}, columns {group * GROUP}..{group * GROUP + GROUP - 1} hold"
            f" {nonzeros[row, group]} nonzeros, expected at most {KEPT} ({int(bad.sum())} of"
            f" {bad.size} groups break 2:4 along k): apply the mask along the reduction axis, or"
            " exclude the layer from the sparsity plan"
        )


def require_groups(k: int, where: str) -> None:
    """Raise unless k divides into groups of 4.

    Args:
        k: Length of the reduction axis; for a convolution its input channels (per group).
        where: Name of the layer, begins the sentence.

    Raises:
        ContractError: k is 0 or not a multiple of 4.
    """
    if k == 0 or k % GROUP:
        raise ContractError(
            f"{where}: k is {k}, expected a positive multiple of {GROUP}: exclude the layer from"
            " the sparsity plan or pad the layer"
        )


def require_rows(n: int, pattern_rows: int, where: str) -> None:
    """Raise unless n rows divide into runs that share a pattern.

    Args:
        n: Output rows; of a grouped convolution those of one group.
        pattern_rows: Rows that share a pattern, at least 1.
        where: Name of the layer, begins the sentence.

    Raises:
        ContractError: n is not a multiple of `pattern_rows`.
    """
    if pattern_rows < 1 or n % pattern_rows:
        raise ContractError(
            f"{where}: n is {n}, expected a multiple of pattern_rows, {pattern_rows}: exclude the"
            " layer from the sparsity plan or choose a divisor of n"
        )


def compress(q: npt.NDArray[np.int8]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Compress 2:4 weights to their kept values and the indices of these.

    A group keeps what `mask` keeps: its nonzeros, and where these are fewer than two, its zeros
    with the lowest index. So ``0 0 7 0`` keeps columns (0, 2) with values (0, 7), and ``0 0 0 0``
    keeps (0, 1). Both values and indices stand in increasing column order.

    Args:
        q: int8[n, k], exactly 2:4, k a multiple of 32.

    Returns:
        values int8[n, k/2], two per group, and metadata int32[n, k/32]: bits 4c..4c+3 of a word
        belong to group c of its 8 groups, index0 in the lower two bits, index1 > index0 above.

    Raises:
        ContractError: q is not int8, not 2-D, not 2:4, or k is not a multiple of 32.
    """
    if q.dtype != np.int8:
        raise ContractError(f"compress: weights are {q.dtype}, expected int8: quantize them first")
    check(q, "compress")
    n, k = q.shape
    if k % _WORD_COLUMNS:
        raise ContractError(
            f"compress: k is {k}, expected a multiple of {_WORD_COLUMNS}, the columns of one"
            " metadata word: pad the layer with zero columns or run it dense"
        )
    kept = mask(q)
    values = q[kept].reshape(n, k // 2)
    columns = np.nonzero(kept)[1].astype(np.uint32).reshape(n, k // _WORD_COLUMNS, 8, KEPT) % GROUP
    nibbles = columns[..., 0] | columns[..., 1] << np.uint32(2)
    words = np.bitwise_or.reduce(nibbles << _NIBBLE_SHIFTS, axis=-1)
    return values, words.view(np.int32)


def decompress(
    values: npt.NDArray[np.int8], metadata: npt.NDArray[np.int32]
) -> npt.NDArray[np.int8]:
    """Restore the weights `compress` was given.

    Args:
        values: int8[n, k/2].
        metadata: int32[n, k/32], as `compress` writes it.

    Returns:
        int8[n, k].

    Raises:
        ContractError: Types or shapes do not belong together, or a group's indices do not increase.
    """
    if values.dtype != np.int8 or metadata.dtype != np.int32:
        raise ContractError(
            f"decompress: values are {values.dtype} and metadata {metadata.dtype},"
            " expected int8 and int32: pass what compress returned"
        )
    n, words = metadata.shape if metadata.ndim == 2 else (-1, -1)
    if values.shape != (n, words * _WORD_COLUMNS // 2):
        raise ContractError(
            f"decompress: values have shape {list(values.shape)} and metadata"
            f" {list(metadata.shape)}, expected [n, k/2] and [n, k/32]: pass what compress returned"
        )
    unsigned = np.ascontiguousarray(metadata).view(np.uint32)
    nibbles = unsigned[..., None] >> _NIBBLE_SHIFTS & np.uint32(0xF)
    columns = np.stack([nibbles & 3, nibbles >> np.uint32(2)], axis=-1).reshape(n, -1, KEPT)
    bad = columns[..., 0] >= columns[..., 1]
    if bad.any():
        row, group = (int(i) for i in np.argwhere(bad)[0])
        raise ContractError(
            f"decompress: row {row}, group {group} has indices {columns[row, group, 0]} and"
            f" {columns[row, group, 1]}, expected increasing ones ({int(bad.sum())} of {bad.size}"
            " groups are out of order): the metadata is not compress's"
        )
    q = np.zeros((n, columns.shape[1], GROUP), dtype=np.int8)
    np.put_along_axis(q, columns.astype(np.intp), values.reshape(n, -1, KEPT), axis=-1)
    return q.reshape(n, -1)


def conv_as_matrix(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lay a convolution's weights out as [n, k] with the input channels fastest along k.

    TensorRT wants 2:4 along the input channels for each r, s (developer guide, "Structured
    sparsity"); with c fastest those groups are consecutive, provided c is a multiple of 4. See
    `require_groups`: for smaller c the groups would straddle filter taps.

    Args:
        weights: any dtype[n, c, r, s]; one or three filter axes work alike.

    Returns:
        The same dtype[n, r*s*c].
    """
    return np.moveaxis(weights, 1, -1).reshape(weights.shape[0], -1)


def _groups(weights: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """View weights[n, k] as [n, k/4, 4]."""
    if weights.ndim != 2:
        raise ContractError(
            f"{where}: weights have shape {list(weights.shape)}, expected [n, k]: lay a convolution"
            " out with sparse24.conv_as_matrix"
        )
    require_groups(weights.shape[1], where)
    return weights.reshape(weights.shape[0], -1, GROUP)


def _nonzeros(weights: npt.NDArray[Any], where: str) -> npt.NDArray[np.intp]:
    """Count the nonzeros of each group, [n, k/4]."""
    counts: npt.NDArray[np.intp] = np.count_nonzero(_groups(weights, where), axis=-1)
    return counts
