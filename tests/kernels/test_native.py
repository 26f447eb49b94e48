"""The C interface: what it refuses, in which words, and that it writes nothing then."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import sparse24
from edgekd.engine import native
from edgekd.engine.native import Kernels, aligned
from edgekd.errors import ContractError, EdgekdError, ToolchainError, UnsupportedError
from kernels import gemms

SIZES = (8, 64, 64)


def call(kernels: Kernels, **changes: Any) -> None:
    """A GEMM that is right, but for what is changed; nothing may be written where it is refused."""
    gemm = gemms.random(*SIZES, "s8")
    y = aligned((8, 64), np.int8)
    packed = kernels.pack(gemm.weights, True)
    assert gemm.extra is not None
    arguments: dict[str, Any] = {
        "output": "s8", "sizes": SIZES, "x": gemm.x.ctypes.data, "weights": packed.ctypes.data,
        "y": y.ctypes.data, "scale": gemm.scale.ctypes.data, "bias": gemm.bias.ctypes.data,
        "extra": gemm.extra.ctypes.data,
    }  # fmt: skip
    for name, value in changes.items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    try:
        kernels.gemm(**arguments)
    except EdgekdError:
        assert not y.any()
        raise


def test_a_right_call_passes(kernels: Kernels) -> None:
    call(kernels)


@pytest.mark.parametrize("name", ["x", "weights", "y", "scale", "bias", "extra"])
def test_a_null_pointer(kernels: Kernels, name: str) -> None:
    with pytest.raises(ContractError, match=f"sparse_gemm_s8: {name} is null, expected a pointer"):
        call(kernels, **{name: 0})


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("x", 16), ("weights", 16), ("y", 16), ("scale", 16), ("bias", 16), ("extra", 4)],
)
def test_a_misaligned_pointer(kernels: Kernels, name: str, multiple: int) -> None:
    sentence = f"{name} is 2 bytes past a multiple of {multiple}, expected 0: align it"
    with pytest.raises(ContractError, match=sentence):
        call(kernels, **{name: lambda address: address + 2})


@pytest.mark.parametrize("by", [2, 4, 8])
def test_a_residual_is_aligned_as_everything_that_is_read_in_vectors(
    kernels: Kernels, by: int
) -> None:
    sentence = f"extra is {by} bytes past a multiple of 16, expected 0: align it"
    with pytest.raises(ContractError, match=sentence):
        call(kernels, output="f16", extra=lambda address: address + by)


@pytest.mark.parametrize("output", ["s16", "S8", "", None])
def test_an_output_that_there_is_not(kernels: Kernels, output: Any) -> None:
    sentence = f"output is {output!r}, expected one of s32, f16, s8, gelu_s8"
    with pytest.raises(ContractError, match=f"^sparse_gemm_s8: {sentence}$"):
        call(kernels, output=output)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((0, 64, 64), "m is 0, expected a positive multiple of 1: give at least one token"),
        ((-1, 64, 64), "m is -1, expected a positive multiple of 1"),
        ((8, 96, 64), "n is 96, expected a positive multiple of 64: pad the layer"),
        ((8, 0, 64), "n is 0, expected a positive multiple of 64"),
        ((8, 64, 100), "k is 100, expected a positive multiple of 64: pad the layer"),
        ((2**26, 64, 64), "m n is 67108864 x 64, expected at most 2147483647 elements: split m"),
        ((2**24, 64, 128), "m k is 16777216 x 128, expected at most 2147483647 elements"),
        ((1, 2**20, 2**20), "n k is 1048576 x 1048576, expected .*: split the layer"),
        ((2**62, 64, 64), "m n is 4611686018427387904 x 64, expected at most"),
        # One more than 31 bits; one fewer, and only the grid is too small for it.
        ((33554432, 64, 64), "m n is 33554432 x 64, expected at most 2147483647 elements: split"),
        ((33554431, 64, 64), "m is 33554431, expected at most [0-9]+ with tile"),
        # ctypes would pass on the lower 64 bits, 8.
        ((2**64 + 8, 64, 64), "m, n and k are 18446744073709551624, 64, 64, expected at most 92"),
        ((8, 64, 2**64 + 64), "m, n and k are 8, 64, 18446744073709551680, expected at most 922"),
        ((8, 64 - 2**64, 64), "m, n and k are 8, -18446744073709551552, 64, expected at most 92"),
    ],
)
def test_sizes_that_no_kernel_takes(
    kernels: Kernels, sizes: tuple[int, int, int], sentence: str
) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        call(kernels, sizes=sizes)


def test_more_tokens_than_a_grid_has_blocks_for(kernels: Kernels) -> None:
    with pytest.raises(UnsupportedError, match="m is 600000, expected at most 524280 with tile"):
        call(kernels, sizes=(600_000, 64, 64), tile="small_t8")


@pytest.mark.parametrize(
    ("tile", "sizes", "sentence"),
    [
        ("tiny", SIZES, "there is no tile tiny; edgekd_tiles lists them"),
        (
            "large_128x64",
            SIZES,
            "tile large_128x64 takes n in multiples of 128 and k of 64,",
        ),
        (
            "large_128x128",
            (8, 128, 192),
            "multiples of 128 and k of 128, found n = 128, k",
        ),
    ],
)
def test_a_tile_that_is_not_there_or_does_not_fit(
    kernels: Kernels, tile: str, sizes: tuple[int, int, int], sentence: str
) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        call(kernels, tile=tile, sizes=sizes)


def test_a_sentence_that_is_cut_within_a_letter(kernels: Kernels) -> None:
    with pytest.raises(UnsupportedError, match=r"there is no tile xä+\ufffd$"):
        call(kernels, tile="x" + 300 * "ä")


@pytest.mark.parametrize(
    ("kind", "n", "k"), [(2, 64, 64), (-1, 64, 64), (0, 65, 64), (0, 2**31, 64)]
)
def test_weights_that_cannot_be_packed_take_no_bytes(
    kernels: Kernels, kind: int, n: int, k: int
) -> None:
    assert kernels.library.edgekd_packed_bytes(kind, n, k) == 0


def test_a_layer_too_large_to_pack(kernels: Kernels) -> None:
    byte, message = aligned((1,), np.int8), ctypes.create_string_buffer(200)
    address = byte.ctypes.data
    status = kernels.library.edgekd_pack_dense(address, 2**31, 64, address, message, 200)
    said = "n k is 2147483648 x 64, expected at most 2147483647 elements: split the layer"
    assert (status, message.value.decode()) == (4, said)


@pytest.mark.parametrize("group", range(8))
def test_metadata_that_is_not_canonical(kernels: Kernels, group: int) -> None:
    """In one group of one word: every pair of positions that does not increase, and every other."""
    values, right = np.zeros((64, 32), np.int8), 0x4E9D48EC  # of the six pairs that increase
    for first in range(4):
        for second in range(4):
            word = right & ~(15 << 4 * group) | (first | second << 2) << 4 * group
            metadata = np.full((64, 2), right, np.uint32)
            metadata[3, 1] = word
            packed, message = np.full(2560, 7, np.uint8), ctypes.create_string_buffer(200)
            data = (each.ctypes.data for each in (values, metadata))
            status = kernels.library.edgekd_pack_sparse(
                *data, 64, 64, packed.ctypes.data, message, 200
            )
            if first < second:
                assert (status, message.value) == (0, b"")
                continue
            assert (status, (packed == 7).all()) == (5, True)
            assert message.value.decode() == (
                f"metadata[3, 1] is 0x{word:08x}, in which a group of four names no two increasing "
                "positions: pass what sparse24.compress returned"
            )


@pytest.mark.parametrize(
    ("changes", "status", "sentence"),
    [
        ({"kind": 7}, 6, "kind is 7, expected 0 (sparse) or 1 (dense)"),
        ({"kind": -1}, 6, "kind is -1, expected 0 (sparse) or 1 (dense)"),
        ({"output": 9}, 6, "output is 9, expected 0 to 3"),
        ({"output": -1}, 6, "output is -1, expected 0 to 3"),
        (None, 1, "gemm is null, expected a pointer"),
    ],
)
@pytest.mark.parametrize("room", [200, 8, 0])
def test_a_struct_that_no_kernel_can_be_found_for(
    kernels: Kernels, changes: dict[str, int] | None, status: int, sentence: str, room: int
) -> None:
    """In full where there is room, cut where there is little, nowhere where there is none."""
    m, n, k = SIZES
    byte = aligned((m, n), np.int8)
    gemm = native._Gemm(0, 2, m, n, k, *[byte.ctypes.data] * 6, None)
    for name, value in (changes or {}).items():
        setattr(gemm, name, value)
    reference = None if changes is None else ctypes.byref(gemm)
    message = ctypes.create_string_buffer(b"?" * 200) if room else None
    assert kernels.library.edgekd_gemm_s8(reference, None, message, room) == status
    assert not byte.any()
    if message is not None:
        assert message.value.decode() == sentence[: room - 1]
        assert message.raw[room:].strip(b"?") == b"\0"  # of the buffer's own end


@pytest.mark.parametrize("told", [True, False], ids=["message", "no message"])
@pytest.mark.parametrize(
    ("kind", "changes", "status", "sentence"),
    [
        ("sparse", {"values": 0}, 1, "values is null, expected a pointer"),
        ("sparse", {"metadata": 0}, 1, "metadata is null, expected a pointer"),
        ("sparse", {"packed": 0}, 1, "packed is null, expected a pointer"),
        ("dense", {"weights": 0}, 1, "weights is null, expected a pointer"),
        ("dense", {"packed": 0}, 1, "packed is null, expected a pointer"),
        (
            "sparse",
            {"metadata": 2},
            2,
            "metadata is 2 bytes past a multiple of 4, expected 0: align it",
        ),
    ],
)
def test_what_cannot_be_packed(
    kernels: Kernels, kind: str, changes: dict[str, int], status: int, sentence: str, told: bool
) -> None:
    """0 makes a pointer null, 2 moves it by as many bytes."""
    values, metadata = sparse24.compress(gemms.random(1, 64, 64).weights)
    packed = np.full(4096, 7, np.uint8)
    held = {"values": gemms.at_16(values), "metadata": gemms.at_16(metadata)}
    if kind == "dense":
        held = {"weights": np.zeros((64, 64), np.int8)}
    addresses = {name: each.ctypes.data for name, each in {**held, "packed": packed}.items()}
    for name, by in changes.items():
        addresses[name] = addresses[name] + by if by else 0
    *inputs, out = (address or None for address in addresses.values())
    message = ctypes.create_string_buffer(200) if told else None
    pack = getattr(kernels.library, f"edgekd_pack_{kind}")
    assert pack(*inputs, 64, 64, out, message, 200) == status
    assert message is None or message.value.decode() == sentence
    assert (packed == 7).all()


def test_weights_that_are_not_sparse(kernels: Kernels) -> None:
    with pytest.raises(ContractError, match=r"compress: row 0, columns 0\.\.3 hold 4 nonzeros"):
        kernels.pack(np.ones((64, 64), np.int8), True)


def test_weights_whose_sizes_do_not_fit(kernels: Kernels) -> None:
    with pytest.raises(UnsupportedError, match="n is 10, expected a positive multiple of 64"):
        kernels.pack(np.zeros((10, 64), np.int8), True)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (np.zeros((64, 64), np.float32), r"float32\[64, 64\]"),
        (np.zeros((64, 64), np.int16), r"int16\[64, 64\]"),
        (np.zeros((64, 64), np.uint8), r"uint8\[64, 64\]"),
        (np.zeros(64, np.int8), r"int8\[64\]"),
        (np.zeros((1, 64, 64), np.int8), r"int8\[1, 64, 64\]"),
    ],
    ids=["float32", "int16", "uint8", "1-D", "3-D"],
)
def test_weights_that_are_not_an_int8_matrix(
    kernels: Kernels, wrong: Any, found: str, sparse: bool
) -> None:
    sentence = f"^pack: weights are {found}, expected int8\\[n, k\\]: quantize them first$"
    with pytest.raises(ContractError, match=sentence):
        kernels.pack(wrong, sparse)


@pytest.mark.parametrize("sparse", [True, False])
def test_weights_are_packed_by_value_and_not_by_where_they_lie(
    kernels: Kernels, sparse: bool
) -> None:
    weights = gemms.random(1, 128, 192, sparse=sparse).weights
    packed = kernels.pack(weights, sparse)
    assert packed.ctypes.data % 16 == 0
    lying = {
        "transposed": np.ascontiguousarray(weights.T).T,
        "every other": np.repeat(weights, 2, axis=1)[:, ::2],
        "backwards": np.ascontiguousarray(weights[::-1])[::-1],
    }
    for how, same in lying.items():
        assert not same.flags.c_contiguous, how
        np.testing.assert_array_equal(kernels.pack(same, sparse), packed, err_msg=how)


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"is not a library of our kernels .*: make one with"):
        Kernels(tmp_path / "libedgekd_kernels.so")


def test_every_packed_byte_comes_from_one_weight(kernels: Kernels) -> None:
    """The stream of a dense slab is a permutation of its weights; of a sparse one, of values."""
    rng = np.random.default_rng(0)
    dense = rng.integers(-128, 128, (128, 192), dtype=np.int8)
    packed = kernels.pack(dense, False).view(np.int8)
    assert len(packed) == dense.size
    assert np.array_equal(np.sort(packed), np.sort(dense.ravel()))
    sparse = dense * sparse24.mask(dense)
    values, metadata = sparse24.compress(sparse)
    slabs = kernels.pack(sparse, True).reshape(-1, 2560)
    assert np.array_equal(np.sort(slabs[:, :2048].view(np.int8).ravel()), np.sort(values.ravel()))
    words = np.ascontiguousarray(slabs[:, 2048:]).view(np.int32)
    assert np.array_equal(np.sort(words.ravel()), np.sort(metadata.ravel()))


def test_there_is_no_tile_for_what_31_bits_do_not_hold(kernels: Kernels) -> None:
    assert kernels.choose((33554431, 64, 64), 108) is not None  # 2147483584 elements of y
    for sizes in ((33554432, 64, 64), (1, 64, 33554432), (2**64 + 8, 64, 64)):
        assert kernels.choose(sizes, 108) is None
    assert kernels.choose((8, 64, 64), 0) is None
