// Where every byte of a GEMM lives: in a warp's registers, in the weight stream, in shared memory.
//
// Each map below is a constexpr function, and each is proven to be a bijection when this file is
// compiled: no byte is forgotten, none is read twice. Nothing else in kernels/ computes an index into
// a fragment, so a wrong layout can only be wrong here.
//
// The orientation is Y^T = W X^T. Weights are the MMA's operand A, because only A can be sparse, so
// output features are rows of the MMA (16 of them) and tokens are its columns (8 of them). A tile of
// tokens is then any multiple of 8: 197 tokens of a ViT cost 200, not 256.
//
// 2:4 means that of each four weights along k, a group, at most two are not zero. Stored are two values a
// group, and where they stood: 4 bits, the first's place in the lower two, the second's, which is larger,
// in the upper two. Group c of 32 columns is bits 4c .. 4c + 3 of a 32-bit word:
//
//     weights   0 0 7 0   5 0 0 9   0 0 0 0      a lone value takes any other place beside it,
//     values    0 7       5 9       0 0          an empty group two: they still have to increase
//     places    0 2       0 3       0 1
//     bits      1000      1100      0100         word 0x...4C8
//
// The MMA reads a token's value at each place. So the kept values of columns 8t .. 8t + 7, two groups, are
// the word of stored columns 4t .. 4t + 3: what lane t of four holds in a0 (row g) and a1 (row g + 8), and
// of columns 32 + 8t .. in a2 and a3, below.
//
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k32 / mma.m16n8k64 with .s8" and "Sparse matrix
// storage". Which lane supplies whose metadata it shows as a picture; CUTLASS's reordering of it says the
// same (tests/kernels/test_fragments.py), and so does what nvcc makes of unordered metadata for sm_100.
// A lane is 4 g + t: g = lane / 4 names a row or column, t = lane % 4 a place along k.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define EDGEKD_ANYWHERE __host__ __device__
#else
#define EDGEKD_ANYWHERE
#endif

namespace edgekd {

constexpr int kLanes = 32;
constexpr int kSlab = 64;        // a slab is 64 features x 64 of k, what a warp multiplies in one step
constexpr int kTiles = 4;        // 16-row MMA tiles of a slab
constexpr int kTileRows = 16;
constexpr int kTileTokens = 8;

struct Place {
  int row, column;
};

// ---- fragments ---------------------------------------------------------------------------------

// Operand A, register 0..3, byte 0..3 -> row 0..15 and column 0..31 of what is stored of a tile.
// Dense (m16n8k32): the 32 columns themselves. Sparse (m16n8k64): the 32 kept values of 64 columns.
constexpr Place operand_a(int lane, int reg, int byte) {
  return {lane / 4 + 8 * (reg % 2), 16 * (reg / 2) + 4 * (lane % 4) + byte};
}

// Operand B, register 0..3, byte 0..3 -> k 0..63 (as row) and token 0..7 (as column).
// A dense MMA takes registers 0,1 for the first 32 of k and 2,3 for the second.
constexpr Place operand_b(int lane, int reg, int byte) {
  return {16 * reg + 4 * (lane % 4) + byte, lane / 4};
}

// Accumulator, register 0..3 -> row 0..15 and token 0..7.
constexpr Place accumulator(int lane, int reg) {
  return {lane / 4 + 8 * (reg / 2), 2 * (lane % 4) + reg % 2};
}

// Metadata: the one word of a lane -> row 0..15 and which 32 columns (0 or 1) it describes.
// All four lanes of a quad supply a word, and none is a copy of another.
constexpr Place metadata(int lane) { return {lane / 4 + 8 * (lane % 2), lane % 4 / 2}; }

// ---- order of the features ---------------------------------------------------------------------

// Row of tile 0..3 -> feature 0..63 of the slab. A lane holds rows g and g + 8 of every tile; in this
// order they are the 8 consecutive features 8g .. 8g + 7, so that results leave as one vector store
// and neither a transpose nor shared memory is needed for them.
constexpr int feature(int tile, int row) { return 8 * (row % 8) + 2 * tile + row / 8; }

// ---- the weight stream -------------------------------------------------------------------------
// [n/64][k/64] slabs; in each, 16-byte vectors in the order in which lanes load them, so that a warp
// reads 512 consecutive bytes at a time and straight into the registers an MMA wants.

constexpr int kVectorBytes = 16;
constexpr int kWarpVectorBytes = kLanes * kVectorBytes;
constexpr int kBankBytes = 128;  // what shared memory moves in a wavefront, one a clock
constexpr int kVectorWavefronts = kWarpVectorBytes / kBankBytes;

// Sparse: vectors 0..3 hold the kept values of tile 0..3; vector 4 holds a metadata word of each tile.
constexpr int kSparseVectors = 5;
constexpr int kSparseSlabBytes = kSparseVectors * kWarpVectorBytes;
constexpr int sparse_value_offset(int tile, int lane, int reg, int byte) {
  return tile * kWarpVectorBytes + lane * kVectorBytes + 4 * reg + byte;
}
constexpr int sparse_metadata_offset(int tile, int lane) {
  return kTiles * kWarpVectorBytes + lane * kVectorBytes + 4 * tile;
}

// Dense twin: vectors 0..3 hold the first 32 of k of tile 0..3, vectors 4..7 the second 32.
constexpr int kDenseVectors = 8;
constexpr int kDenseSlabBytes = kDenseVectors * kWarpVectorBytes;
constexpr int dense_value_offset(int tile, int half, int lane, int reg, int byte) {
  return (half * kTiles + tile) * kWarpVectorBytes + lane * kVectorBytes + 4 * reg + byte;
}

// ---- tokens in shared memory -------------------------------------------------------------------

// A row of `kBytes` (64 or 128) of k, in 16-byte chunks; returns the byte offset of a chunk. Chunks
// are exchanged within a row so that the 8 rows that one ldmatrix phase reads lie in 8 different
// 16-byte columns of the banks. Adding a multiple of 8 rows adds a multiple of 8 kBytes, so a loop
// needs no swizzle of its own.
template <int kBytes>
EDGEKD_ANYWHERE constexpr int token_offset(int row, int chunk) {
  static_assert(kBytes == 64 || kBytes == 128, "one or two slabs of k");
  return kBytes == 128 ? row * 128 + ((chunk ^ (row & 7)) << 4)
                       : row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4);
}

// ---- proofs ------------------------------------------------------------------------------------

namespace proof {

// Whether index(i), i = 0 .. count-1, takes each value 0 .. count-1 exactly once.
template <int count, class Index>
constexpr bool bijective(Index index) {
  bool seen[count] = {};
  for (int i = 0; i < count; ++i) {
    const int to = index(i);
    if (to < 0 || to >= count || seen[to]) return false;
    seen[to] = true;
  }
  return true;
}

constexpr int a(int i) { return operand_a(i / 16, i / 4 % 4, i % 4).row * 32 + operand_a(i / 16, i / 4 % 4, i % 4).column; }
constexpr int b(int i) { return operand_b(i / 16, i / 4 % 4, i % 4).row * 8 + operand_b(i / 16, i / 4 % 4, i % 4).column; }
constexpr int c(int i) { return accumulator(i / 4, i % 4).row * 8 + accumulator(i / 4, i % 4).column; }
constexpr int e(int i) { return metadata(i).row * 2 + metadata(i).column; }
constexpr int f(int i) { return feature(i / 16, i % 16); }
constexpr int sparse(int i) {  // 4-byte words of a slab: values first, then metadata
  return i < 512 ? sparse_value_offset(i / 128, i / 4 % 32, i % 4, 0) / 4
                 : sparse_metadata_offset((i - 512) / 32, i % 32) / 4;
}
constexpr int dense(int i) { return dense_value_offset(i / 128 % 4, i / 512, i / 4 % 32, i % 4, 0) / 4; }
constexpr int tokens64(int i) { return token_offset<64>(i / 4, i % 4) / 16; }
constexpr int tokens128(int i) { return token_offset<128>(i / 8, i % 8) / 16; }

static_assert(bijective<512>(a), "A: 32 lanes x 16 bytes are 16 rows x 32 stored columns");
static_assert(bijective<512>(b), "B: 32 lanes x 16 bytes are 64 of k x 8 tokens");
static_assert(bijective<128>(c), "accumulators: 32 lanes x 4 are 16 rows x 8 tokens");
static_assert(bijective<32>(e), "metadata: 32 words are 16 rows x 2 halves");
static_assert(bijective<64>(f), "features: 4 tiles x 16 rows are 64 features");
static_assert(bijective<kSparseSlabBytes / 4>(sparse), "every word of a sparse slab has one place");
static_assert(bijective<kDenseSlabBytes / 4>(dense), "every word of a dense slab has one place");
static_assert(bijective<128 * 4>(tokens64), "every chunk of a token tile has one place");
static_assert(bijective<128 * 8>(tokens128), "every chunk of a token tile has one place");

// What the epilogue relies on: the results of a lane are 8 consecutive features of 2 tokens.
constexpr bool eight_in_a_row() {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int tile = 0; tile < kTiles; ++tile)
      for (int reg = 0; reg < 4; ++reg)
        if (feature(tile, accumulator(lane, reg).row) != 8 * (lane / 4) + 2 * tile + reg / 2)
          return false;
  return true;
}
static_assert(eight_in_a_row(), "register pair 2 tile + reg / 2 is feature 8g + 2 tile + reg / 2");

}  // namespace proof
}  // namespace edgekd
