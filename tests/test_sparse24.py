"""The 2:4 contract: goldens written by hand, properties, and every sentence it refuses with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekd import sparse24
from edgekd.errors import ContractError

MATRICES = st.tuples(st.integers(1, 5), st.integers(1, 4)).flatmap(
    lambda shape: hnp.arrays(np.int8, (shape[0], 32 * shape[1]))
)


def bits(rows: str) -> list[list[bool]]:
    return [[letter == "1" for letter in row] for row in rows.split()]


class TestMask:
    @pytest.mark.parametrize(
        ("weights", "kept"),
        [
            ([[1, -4, 3, 2]], "0110"),
            ([[5, 5, 5, 5]], "1100"),  # ties keep the lower index
            ([[1, 2, 2, 2]], "0110"),
            ([[0, 0, 0, 0]], "1100"),
            ([[0, 0, 7, 0]], "1010"),
            ([[-128, 127, 127, 1]], "1100"),  # abs(-128) does not fit int8
            ([[1, 2, 3, 4, 8, 7, 6, 5]], "00111100"),
        ],
    )
    def test_golden(self, weights: list[list[int]], kept: str) -> None:
        assert sparse24.mask(np.array(weights, np.int8)).tolist() == bits(kept)
        assert sparse24.mask(np.array(weights, np.float16)).tolist() == bits(kept)

    @given(hnp.arrays(np.float32, (3, 16), elements=st.floats(-9, 9, width=32)))
    def test_two_per_group_the_largest_and_idempotent(self, weights: np.ndarray) -> None:
        kept = sparse24.mask(weights)
        groups = kept.reshape(-1, 4)
        magnitude = np.abs(weights).reshape(-1, 4)
        assert (groups.sum(axis=1) == 2).all()
        smallest_kept = np.where(groups, magnitude, np.inf).min(axis=1)
        assert (smallest_kept >= np.where(groups, -1, magnitude).max(axis=1)).all()
        assert sparse24.violations(weights * kept) == 0
        assert (sparse24.mask(weights * kept) * weights == kept * weights).all()

    def test_refuses_nan(self) -> None:
        with pytest.raises(ContractError, match="mask: 1 of 4 weights are NaN"):
            sparse24.mask(np.array([[1.0, np.nan, 0.0, 2.0]]))


def best_pattern(weights: np.ndarray, pattern_rows: int) -> np.ndarray:
    """All six patterns of every tile of rows tried; the first of the best ones stays."""
    patterns = [p for p in itertools.product([True, False], repeat=4) if sum(p) == 2]
    kept = np.zeros(weights.shape, bool)
    for row in range(0, weights.shape[0], pattern_rows):
        for column in range(0, weights.shape[1], 4):
            tile = np.s_[row : row + pattern_rows, column : column + 4]
            sums = [np.abs(weights[tile].astype(float))[:, list(p)].sum() for p in patterns]
            kept[tile] = patterns[int(np.argmax(sums))]
    return kept


class TestSharedPattern:
    def test_golden(self) -> None:
        weights = np.array([[9, 0, 1, 2], [0, 3, 4, 5], [1, 1, 0, 0], [0, 0, 8, -8]], np.int8)
        # Sums over two rows: 9 3 5 7, and 1 1 8 8.
        assert sparse24.mask(weights, 2).tolist() == bits("1001 1001 0011 0011")
        # Over all four: 10 4 13 15. Alone, every row keeps its own.
        assert sparse24.mask(weights, 4).tolist() == bits("0011 0011 0011 0011")
        assert sparse24.mask(weights).tolist() == bits("1001 0011 1100 0011")

    def test_ties_keep_the_lower_index(self) -> None:
        weights = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], np.int8)
        assert sparse24.mask(weights, 2).tolist() == bits("1100 1100")

    @given(hnp.arrays(np.int8, (8, 12)), st.sampled_from([1, 2, 4, 8]))
    def test_no_pattern_keeps_more(self, weights: np.ndarray, rows: int) -> None:
        kept = sparse24.mask(weights, rows)
        assert (kept == best_pattern(weights, rows)).all()
        assert (kept.reshape(-1, 4).sum(axis=1) == 2).all()
        assert (kept.reshape(8 // rows, rows, 12) == kept[::rows, None]).all()
        sparse24.check(weights * kept, "shared")

    def test_compresses_as_any_other(self) -> None:
        q = np.random.default_rng(0).integers(-127, 128, (8, 32)).astype(np.int8)
        q *= sparse24.mask(q, 4)
        assert (sparse24.decompress(*sparse24.compress(q)) == q).all()

    @pytest.mark.parametrize("rows", [0, 3, 16])
    def test_rows_that_do_not_divide_n(self, rows: int) -> None:
        sentence = (
            f"mask: n is 8, expected a multiple of pattern_rows, {rows}: exclude the layer from"
            " the sparsity plan or choose a divisor of n"
        )
        with pytest.raises(ContractError, match=sentence):
            sparse24.mask(np.ones((8, 4)), rows)


class TestCheck:
    def test_counts_groups_not_elements(self) -> None:
        weights = np.array([[1, 1, 1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0, 2, 3]], np.int8)
        assert sparse24.violations(weights) == 2
        assert sparse24.violations(weights * sparse24.mask(weights)) == 0

    def test_names_the_first_bad_group(self) -> None:
        weights = np.zeros((3, 12), np.float32)
        weights[1, 8:11] = 1
        weights[2, :4] = 1
        sentence = (
            r"encoder\.0\.fc1: row 1, columns 8\.\.11 hold 3 nonzeros, expected at most 2"
            r" \(2 of 9 groups break 2:4 along k\): .* exclude the layer from the sparsity plan"
        )
        with pytest.raises(ContractError, match=sentence):
            sparse24.check(weights, "encoder.0.fc1")

    def test_sparse_along_the_wrong_axis_is_refused(self) -> None:
        weights = np.ones((8, 8), np.float32)
        along_n = weights * sparse24.mask(weights.T).T
        sparse24.check(along_n.T, "transposed")
        with pytest.raises(ContractError, match="hold 4 nonzeros"):
            sparse24.check(along_n, "fc")

    def test_subnormals_and_nan_are_nonzero_and_minus_zero_is_not(self) -> None:
        assert sparse24.violations(np.array([[1e-45, np.nan, 1.0, 0.0]], np.float32)) == 1
        assert sparse24.violations(np.array([[-0.0, 1.0, 1.0, -0.0]], np.float32)) == 0

    @pytest.mark.parametrize("k", [0, 3, 10])
    def test_k_not_a_multiple_of_4(self, k: int) -> None:
        sentence = f"stem: k is {k}, expected a positive multiple of 4: exclude .* or pad the layer"
        with pytest.raises(ContractError, match=sentence):
            sparse24.check(np.zeros((2, k)), "stem")

    def test_not_a_matrix(self) -> None:
        with pytest.raises(ContractError, match=r"conv: weights have shape \[8, 4, 3, 3\], expect"):
            sparse24.check(np.zeros((8, 4, 3, 3)), "conv")


class TestCompress:
    def test_golden_row(self) -> None:
        groups = [
            [1, 2, 0, 0],  # keeps (0, 1)
            [3, 0, 4, 0],  # (0, 2)
            [-5, 0, 0, 6],  # (0, 3)
            [0, 7, 8, 0],  # (1, 2)
            [0, 9, 0, -10],  # (1, 3)
            [0, 0, 11, -128],  # (2, 3)
            [0, 0, 12, 0],  # one nonzero: the lowest zero joins it, (0, 2)
            [0, 0, 0, 0],  # none: (0, 1)
        ]
        q = np.array(groups, np.int8).reshape(1, 32)
        values, metadata = sparse24.compress(q)
        kept = [1, 2, 3, 4, -5, 6, 7, 8, 9, -10, 11, -128, 0, 12, 0, 0]
        assert values.tolist() == [kept]
        # index0 + 4 * index1 from group 0 up: 4 8 C 9 D E 8 4, group 0 in the lowest nibble.
        assert metadata.dtype == np.int32
        assert metadata.view(np.uint32).tolist() == [[0x48ED9C84]]
        assert (sparse24.decompress(values, metadata) == q).all()

    def test_every_pattern_of_a_group(self) -> None:
        nibbles = {}
        for pattern in itertools.product([0, 5], repeat=4):
            if sum(map(bool, pattern)) <= 2:
                q = np.zeros((1, 32), np.int8)
                q[0, :4] = pattern
                nibbles["".join("1" if x else "." for x in pattern)] = int(
                    sparse24.compress(q)[1][0, 0] & 0xF
                )
        assert nibbles == {
            "....": 0x4, "1...": 0x4, ".1..": 0x4, "..1.": 0x8, "...1": 0xC,
            "11..": 0x4, "1.1.": 0x8, "1..1": 0xC, ".11.": 0x9, ".1.1": 0xD, "..11": 0xE,
        }  # fmt: skip

    @given(MATRICES)
    def test_round_trip(self, dense: np.ndarray) -> None:
        q = dense * sparse24.mask(dense)
        values, metadata = sparse24.compress(q)
        n, k = q.shape
        assert values.dtype == np.int8
        assert values.shape == (n, k // 2)
        assert metadata.shape == (n, k // 32)
        assert (sparse24.decompress(values, metadata) == q).all()

    @given(MATRICES)
    def test_a_group_alone_decides_its_nibble_and_values(self, dense: np.ndarray) -> None:
        q = dense * sparse24.mask(dense)
        values, metadata = sparse24.compress(q)
        alone = np.zeros((1, 32), np.int8)
        alone[0, 4:8] = q[-1, -4:]
        values_alone, metadata_alone = sparse24.compress(alone)
        assert values_alone[0, 2:4].tolist() == values[-1, -2:].tolist()
        nibble = metadata_alone.view(np.uint32)[0, 0] >> 4 & 0xF
        assert nibble == metadata.view(np.uint32)[-1, -1] >> 28

    def test_a_view_that_is_not_contiguous(self) -> None:
        dense = np.arange(32 * 6, dtype=np.int8).reshape(32, 6).T
        q = dense * sparse24.mask(dense)
        values, metadata = sparse24.compress(q[::2])
        assert (sparse24.decompress(values, metadata) == q[::2]).all()

    def test_refusals(self) -> None:
        with pytest.raises(ContractError, match="weights are float32, expected int8"):
            sparse24.compress(np.zeros((2, 32), np.float32))
        with pytest.raises(ContractError, match="k is 48, expected a multiple of 32, the columns"):
            sparse24.compress(np.zeros((2, 48), np.int8))
        with pytest.raises(ContractError, match=r"compress: row 0, columns 0\.\.3 hold 4 nonzeros"):
            sparse24.compress(np.ones((2, 32), np.int8))

    def test_decompress_refusals(self) -> None:
        values, metadata = sparse24.compress(np.zeros((2, 64), np.int8))
        with pytest.raises(ContractError, match="values are int8 and metadata int64, expected"):
            sparse24.decompress(values, metadata.astype(np.int64))
        with pytest.raises(ContractError, match=r"shape \[2, 16\] and metadata \[2, 2\], expected"):
            sparse24.decompress(values[:, :16], metadata)
        metadata[1, 1] &= ~0xF  # group 8: indices 0, 0
        with pytest.raises(ContractError, match=r"row 1, group 8 has indices 0 and 0, .*\(1 of 32"):
            sparse24.decompress(values, metadata)
        metadata[1, 0] ^= 0x40 ^ 0x10  # group 1: indices 0, 1 become 1, 0
        with pytest.raises(ContractError, match=r"row 1, group 1 has indices 1 and 0, .*\(2 of 32"):
            sparse24.decompress(values, metadata)


class TestConvAsMatrix:
    def test_channels_are_fastest(self) -> None:
        n, c, r, s = 2, 4, 3, 5
        weights = np.arange(n * c * r * s).reshape(n, c, r, s)
        matrix = sparse24.conv_as_matrix(weights)
        assert matrix.shape == (n, r * s * c)
        for i, j, y, x in itertools.product(range(n), range(c), range(r), range(s)):
            assert matrix[i, (y * s + x) * c + j] == weights[i, j, y, x]

    def test_sparse_along_channels_is_sparse_as_a_matrix(self) -> None:
        weights = np.ones((8, 8, 3, 3), np.float32)
        weights[:, 0::4] = weights[:, 3::4] = 0
        sparse24.check(sparse24.conv_as_matrix(weights), "conv")
        assert sparse24.violations(weights.reshape(8, -1)) > 0
