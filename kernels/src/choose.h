// Which tile for which sizes: a table, first row that fits, each with its reason.
//
// The reasons are of arithmetic (how many blocks, how much padding), the limits of judgement: they have
// been tuned on no device. bench/kernels/gpu.py times the chosen tile beside its peers, and every tile
// alone, sparse to int8; where another tile is faster than the chosen one, this table is wrong.
#pragma once

#include <cstdint>

#include "instances.h"

namespace edgekd {

struct Shape {
  int64_t m, n, k;
  int multiprocessors;

  int64_t blocks(int64_t features, int64_t tokens) const {
    return n / features * ((m + tokens - 1) / tokens);
  }
};

struct Choice {
  const char* tile;
  bool (*fits)(const Shape&);
  const char* reason;
};

constexpr int64_t kFewTokens = 400, kMoreTokens = 800;

inline const Choice* choose(const Shape& shape) {
  static const Choice table[] = {
      {"small_t8", [](const Shape& s) { return s.m <= 8; },
       "at most 8 tokens: one MMA column group, the weights are all there is to read"},
      {"small_t24",
       [](const Shape& s) { return s.m <= kFewTokens && s.blocks(64, 40) < s.multiprocessors; },
       "blocks of 40 tokens would leave multiprocessors idle: smaller blocks, k in 8 slices"},
      {"small_t40", [](const Shape& s) { return s.m <= kFewTokens; },
       "batch 1: blocks of 40 tokens waste little on 197, weights go straight to registers"},
      {"small_t64",
       [](const Shape& s) { return s.m <= kMoreTokens && s.blocks(128, 128) < s.multiprocessors; },
       "too few tokens for blocks of 128: 64 tokens a block, weights still to registers"},
      {"large_256x128",
       [](const Shape& s) { return s.n % 256 == 0 && s.blocks(256, 128) >= 2 * s.multiprocessors; },
       "two blocks and more for each multiprocessor: the tile that moves the fewest bytes"},
      {"large_128x128",
       [](const Shape& s) {
         return s.n % 128 == 0 && s.k % 128 == 0 && s.blocks(128, 128) >= s.multiprocessors;
       },
       "every multiprocessor has a block: two slabs of k for each barrier"},
      {"large_128x64", [](const Shape& s) { return s.n % 128 == 0; },
       "k is no multiple of 128, or blocks of 128 x 128 would leave multiprocessors idle"},
      {"large_64x128", [](const Shape&) { return true; }, "n is no multiple of 128"},
  };
  for (const Choice& row : table)
    if (row.fits(shape)) return &row;
  return nullptr;
}

}  // namespace edgekd
