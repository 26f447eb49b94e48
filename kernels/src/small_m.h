// Few tokens (a batch of 1): latency is a stream of weights from memory and a handful of MMAs.
//
// A block owns 64 features and `tokens` tokens. Its warps share nothing but the result: warp w takes
// slabs w, w + warps, w + 2 warps, ... of k. So the main loop has no block barrier, every warp runs its
// own pipeline, and short k still feeds the whole block. (Splitting k between blocks would need a second
// kernel or atomics.) Weights go from global memory straight to registers, in lane order, `ahead` slabs
// early (as Marlin does, arXiv 2408.11743): through shared memory they would take half of its
// bandwidth, which the sparse MMA, needing tokens twice as fast, does not leave. Tokens pass through
// shared memory, `stages` deep, each warp's own.
//
// At the end the warps' sums meet in shared memory, in the lane order they were made in, and each warp
// finishes every `warps`-th group of 8 tokens. int32 sums are exact, so the order does not matter.
//
// Shared memory stays within 48 KiB: no launch attribute is needed, which a TensorRT plugin cannot set.
#pragma once

#include "epilogue.h"
#include "weights.h"

namespace edgekd {

template <int tokens_, int warps_, int stages_, int ahead_>
struct SmallM {
  static constexpr int kTokens = tokens_, kWarps = warps_, kStages = stages_, kAhead = ahead_;
  static constexpr int kFeatures = kSlab, kK = kSlab;
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kGroups = kTokens / kTileTokens;
  static constexpr int kStageBytes = kTokens * kSlab;
  static constexpr int kPipelineBytes = kWarps * kStages * kStageBytes;
  static constexpr int kSumsBytes = kWarps * kGroups * kTiles * kWarpVectorBytes;
  template <class Weights>  // the same for both kinds: weights never pass through it
  static constexpr int kSharedBytes = kPipelineBytes > kSumsBytes ? kPipelineBytes : kSumsBytes;
  // Wavefronts of shared memory for a slab of k: the tokens, written and read once.
  static constexpr int kSharedClocks = kGroups * kVectorWavefronts + kStageBytes / kBankBytes;
  static_assert(kTokens % kTileTokens == 0, "an MMA has 8 tokens");
  static_assert(kStages >= 2 && kAhead >= 1, "something must be in flight");
  static_assert(kPipelineBytes <= 48 * 1024 && kSumsBytes <= 48 * 1024, "no launch attribute");
};

template <class Tile, class Weights, Output output>
EDGEKD_DEVICE void small_m(EDGEKD_GEMM_PARAMETERS) {
  constexpr int kGroups = Tile::kGroups, kWarps = Tile::kWarps, kStages = Tile::kStages;
  const int warp = thread_index() / kLanes, lane = thread_index() % kLanes;
  const int first_feature = block_x() * kSlab, first_token = block_y() * Tile::kTokens;
  const int slabs = k / kSlab;
  const int steps = (slabs - warp + kWarps - 1) / kWarps;  // of this warp; 0 where k is that short
  const uint32_t shared = shared_base();

  // Tokens: a row of a slab is 4 chunks, so a warp copies 8 rows at a time. Rows past the end repeat
  // the last one: nothing is read out of bounds, and what they give is never stored.
  const uint32_t stage0 = shared + warp * kStages * Tile::kStageBytes;
  const uint32_t copy_to = stage0 + token_offset<kSlab>(lane / 4, lane % 4);
  const int8_t* copy_from[kGroups];
  EDGEKD_UNROLL for (int j = 0; j < kGroups; ++j) {
    const int row = first_token + 8 * j + lane / 4;
    copy_from[j] = x + static_cast<size_t>(row < m ? row : m - 1) * k + warp * kSlab + lane % 4 * 16;
  }
  auto copy_tokens = [&](int step, int stage) {
    EDGEKD_UNROLL for (int j = 0; j < kGroups; ++j)
      copy_async(copy_to + stage * Tile::kStageBytes + j * 8 * kSlab,
                 copy_from[j] + static_cast<size_t>(step) * kWarps * kSlab);
  };

  // Weights of a step, in registers.
  const uint8_t* from = weights +
                        (static_cast<size_t>(block_x()) * slabs + warp) * Weights::kSlabBytes +
                        lane * kVectorBytes;
  uint32_t slab[Tile::kAhead][Weights::kVectors][4];
  auto fetch_weights = [&](int step, int slot) {
    EDGEKD_UNROLL for (int v = 0; v < Weights::kVectors; ++v)
      load_weights(slab[slot][v],
                   from + static_cast<size_t>(step) * kWarps * Weights::kSlabBytes + v * kWarpVectorBytes);
  };

  int acc[kTiles][kGroups][4] = {};
  EDGEKD_UNROLL for (int p = 0; p < Tile::kAhead; ++p)
    if (p < steps) fetch_weights(p, p);
  EDGEKD_UNROLL for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) copy_tokens(s, s);
    commit_copies();  // empty groups too: the count of groups is what wait_copies goes by
  }

  int stage = 0;
  for (int step0 = 0; step0 < steps; step0 += Tile::kAhead) {
    EDGEKD_UNROLL for (int p = 0; p < Tile::kAhead; ++p) {  // a register array wants constant indices
      const int step = step0 + p;
      if (step >= steps) break;
      wait_copies<kStages - 2>();
      warp_barrier();  // the other lanes' copies are visible too, and all have read the stage below
      const int next = step + kStages - 1;
      if (next < steps) copy_tokens(next, stage == 0 ? kStages - 1 : stage - 1);
      commit_copies();
      EDGEKD_UNROLL for (int j = 0; j < kGroups; ++j) {
        uint32_t b[4];
        load_matrices(b, stage0 + stage * Tile::kStageBytes + j * 8 * kSlab +
                             token_offset<kSlab>(lane % 8, lane / 8));
        EDGEKD_UNROLL for (int i = 0; i < kTiles; ++i) Weights::multiply(acc[i][j], slab[p], i, b);
      }
      if (step + Tile::kAhead < steps) fetch_weights(step + Tile::kAhead, p);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
  }

  // Every copy has landed: the groups that may still be open are the empty ones past the last step.
  barrier();  // the pipeline's memory now takes the sums
  auto sums = [&](int of, int group, int tile) {
    return shared + ((of * kGroups + group) * kTiles + tile) * kWarpVectorBytes + lane * kVectorBytes;
  };
  EDGEKD_UNROLL for (int j = 0; j < kGroups; ++j)
    EDGEKD_UNROLL for (int i = 0; i < kTiles; ++i) store_shared(sums(warp, j, i), acc[i][j]);
  barrier();

  const int feature0 = first_feature + 8 * (lane / 4);
  const Channels c = channels<output>(scale, bias, extra, feature0);
  for (int j = warp; j < kGroups; j += kWarps) {
    int total[kTiles][4] = {};
    EDGEKD_UNROLL for (int i = 0; i < kTiles; ++i)
      EDGEKD_UNROLL for (int w = 0; w < kWarps; ++w) {
        uint32_t part[4];
        load_shared(part, sums(w, j, i));
        EDGEKD_UNROLL for (int r = 0; r < 4; ++r) total[i][r] = static_cast<int>(total[i][r] + part[r]);  // wraps
      }
    store_two_tokens<output>(y, extra, total, c, first_token + 8 * j + 2 * (lane % 4), feature0, m, n);
  }
}

}  // namespace edgekd
