// Canonical weights to the order in which lanes load them; on the host, once, when an engine is made.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.h"

namespace edgekd {

// One slab: 64 features x 64 of k. value(feature, column) is a stored column 0..31 of the kept values.
template <class Value, class Word>
void pack_sparse_slab(Value value, Word word, uint8_t* slab) {
  for (int tile = 0; tile < kTiles; ++tile)
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int reg = 0; reg < 4; ++reg)
        for (int byte = 0; byte < 4; ++byte) {
          const Place a = operand_a(lane, reg, byte);
          slab[sparse_value_offset(tile, lane, reg, byte)] = value(feature(tile, a.row), a.column);
        }
      const Place e = metadata(lane);
      const uint32_t bits = word(feature(tile, e.row), e.column);
      std::memcpy(slab + sparse_metadata_offset(tile, lane), &bits, 4);
    }
}

template <class Value>
void pack_dense_slab(Value value, uint8_t* slab) {
  for (int tile = 0; tile < kTiles; ++tile)
    for (int half = 0; half < 2; ++half)
      for (int lane = 0; lane < kLanes; ++lane)
        for (int reg = 0; reg < 4; ++reg)
          for (int byte = 0; byte < 4; ++byte) {
            const Place a = operand_a(lane, reg, byte);
            slab[dense_value_offset(tile, half, lane, reg, byte)] =
                value(feature(tile, a.row), 32 * half + a.column);
          }
}

// Slab by slab, [n/64][k/64].
template <class Pack>
void each_slab(int64_t n, int64_t k, size_t slab_bytes, uint8_t* packed, Pack pack) {
  for (int64_t row = 0; row < n; row += kSlab)
    for (int64_t column = 0; column < k; column += kSlab, packed += slab_bytes)
      pack(row, column, packed);
}

inline void pack_sparse(const int8_t* values, const int32_t* words, int64_t n, int64_t k,
                        uint8_t* packed) {
  each_slab(n, k, kSparseSlabBytes, packed, [&](int64_t row, int64_t column, uint8_t* slab) {
    pack_sparse_slab(
        [&](int f, int c) { return static_cast<uint8_t>(values[(row + f) * (k / 2) + column / 2 + c]); },
        [&](int f, int c) { return static_cast<uint32_t>(words[(row + f) * (k / 32) + column / 32 + c]); },
        slab);
  });
}

inline void pack_dense(const int8_t* weights, int64_t n, int64_t k, uint8_t* packed) {
  each_slab(n, k, kDenseSlabBytes, packed, [&](int64_t row, int64_t column, uint8_t* slab) {
    pack_dense_slab(
        [&](int f, int c) { return static_cast<uint8_t>(weights[(row + f) * k + column + c]); }, slab);
  });
}

// First word that names no two increasing positions in some group of four; count where there is none.
inline int64_t first_bad_word(const int32_t* words, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    for (int group = 0; group < 8; ++group) {
      const uint32_t nibble = static_cast<uint32_t>(words[i]) >> (4 * group) & 15;
      if ((nibble & 3) >= nibble >> 2) return i;
    }
  return count;
}

}  // namespace edgekd
