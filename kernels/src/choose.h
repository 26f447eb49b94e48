// Which tile for which sizes: a table, each row with its reason.
//
// Few tokens are a matter of rules: the first row that fits. For more, the row that takes the fewest
// clocks of the busiest multiprocessor, by the arithmetic of `clocks` below. That is as far as judgement
// goes without a device: none has been tuned for. bench/kernels/gpu.py times every tile beside the chosen
// one; where another is faster, this table is wrong.
#pragma once

#include <cstdint>

#include "instances.h"

namespace edgekd {

namespace tile {
#define EDGEKD_TILE(name, ...) using name = __VA_ARGS__;
EDGEKD_SMALL_M_TILES(EDGEKD_TILE)
EDGEKD_LARGE_M_TILES(EDGEKD_TILE)
#undef EDGEKD_TILE
}  // namespace tile

struct Shape {
  int64_t m, n, k;
  int multiprocessors;

  int64_t blocks(int64_t features, int64_t tokens) const {
    return n / features * ((m + tokens - 1) / tokens);
  }
  // Blocks of the busiest multiprocessor.
  int64_t rounds(int64_t features, int64_t tokens) const {
    return (blocks(features, tokens) + multiprocessors - 1) / multiprocessors;
  }
};

template <class Tile>
bool whole(const Shape& s) {
  return s.n % Tile::kFeatures == 0 && s.k % Tile::kK == 0;
}

// Clocks of the busiest multiprocessor for a slab of k of all its blocks: what it moves takes longer than
// its sparse MMAs, through shared memory or from L2. L2 gives A100's 108 multiprocessors 5120 bytes a
// clock (NVIDIA A100 Tensor Core GPU Architecture, 2020); Orin's figure is not known to us. Starting and
// storing are left out.
template <class Tile>
int64_t clocks(const Shape& s) {
  constexpr int64_t kBytes = Tile::kFeatures / kSlab * kSparseSlabBytes + Tile::kTokens * kSlab;
  constexpr int64_t kFromL2 = kBytes * 108 / 5120;
  return s.rounds(Tile::kFeatures, Tile::kTokens) *
         (kFromL2 > Tile::kSharedClocks ? kFromL2 : int64_t{Tile::kSharedClocks});
}

struct Choice {
  const char* tile;
  bool (*fits)(const Shape&);
  int64_t (*clocks)(const Shape&);  // null: taken wherever it fits
  const char* reason;
};

constexpr int64_t kFewTokens = 400;

inline const Choice* choose(const Shape& shape) {
  static const Choice table[] = {
      {"small_t8", [](const Shape& s) { return s.m <= tile::small_t8::kTokens; }, nullptr,
       "at most 8 tokens: one MMA column group, the weights are all there is to read"},
      {"small_t24",
       [](const Shape& s) { return s.m <= kFewTokens && s.blocks(64, 40) < s.multiprocessors; }, nullptr,
       "blocks of 40 tokens would leave multiprocessors idle: smaller blocks, k in 8 slices"},
      {"small_t40", [](const Shape& s) { return s.m <= kFewTokens; }, nullptr,
       "batch 1: blocks of 40 tokens waste little on 197, weights go straight to registers"},
      {"large_256x128",
       // One block fills a multiprocessor, so nothing hides where it starts and stores: not for one.
       [](const Shape& s) { return whole<tile::large_256x128>(s) && s.rounds(256, 128) > 1; },
       clocks<tile::large_256x128>, "fewest clocks: several blocks each of the tile that moves the fewest bytes"},
      {"large_128x128", whole<tile::large_128x128>, clocks<tile::large_128x128>,
       "fewest clocks: its blocks fill the multiprocessors well, two slabs of k for each barrier"},
      {"large_128x64", whole<tile::large_128x64>, clocks<tile::large_128x64>,
       "fewest clocks: k is no multiple of 128, or larger blocks would leave multiprocessors idle"},
      {"large_64x128", whole<tile::large_64x128>, clocks<tile::large_64x128>,
       "fewest clocks: n is no multiple of 128, or larger blocks would leave multiprocessors idle"},
      {"small_t64", whole<tile::small_t64>, clocks<tile::small_t64>,
       "fewest clocks: too few blocks of 128 for the multiprocessors, 64 x 64 with k in 2 slices"},
  };
  const Choice* best = nullptr;
  for (const Choice& row : table) {
    if (!row.fits(shape)) continue;
    if (row.clocks == nullptr) return &row;
    if (best == nullptr || row.clocks(shape) < best->clocks(shape)) best = &row;
  }
  return best;
}

}  // namespace edgekd
