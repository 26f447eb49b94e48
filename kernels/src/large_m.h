// Many tokens (a batch of 8 and more): the MMA units are the limit, and shared memory right behind.
//
// A block owns `features` x `tokens` of the output; each warp 64 x `warp_tokens`. Tokens and weights
// both pass through shared memory, because several warps read each of them and L2 could not feed every
// warp on its own; `stages` deep, `slabs` slabs of k a stage. One block barrier a stage does two jobs:
// what was copied becomes visible, and the stage that is overwritten next has been read by all.
//
// Weights lie in shared memory as in the stream, in lane order: a lane reads its 16 bytes and the warp
// 512 consecutive ones, so there are no bank conflicts and no swizzle.
#pragma once

#include "epilogue.h"
#include "weights.h"

namespace edgekd {

// The dense twin's slabs are larger. It has a stage count of its own, so that a multiprocessor's shared
// memory holds as many blocks of either kind.
template <int features_, int tokens_, int warp_tokens_, int slabs_, int stages_, int dense_stages_>
struct LargeM {
  static constexpr int kFeatures = features_, kTokens = tokens_, kWarpTokens = warp_tokens_;
  static constexpr int kSlabs = slabs_;
  static constexpr int kK = kSlabs * kSlab;
  static constexpr int kFeatureWarps = kFeatures / kSlab;
  static constexpr int kWarps = kFeatureWarps * (kTokens / kWarpTokens);
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kGroups = kWarpTokens / kTileTokens;
  static constexpr int kTokenBytes = kTokens * kK;
  static_assert(kFeatures % kSlab == 0 && kTokens % kWarpTokens == 0, "whole warps");
  static_assert(kWarpTokens % kTileTokens == 0, "an MMA has 8 tokens");
  static_assert(kSlabs == 1 || kSlabs == 2, "token_offset knows rows of 64 and 128 bytes");
  static_assert(stages_ >= 2 && dense_stages_ >= 2, "something must be in flight");

  template <class Weights>
  static constexpr int kStages = Weights::kSlabBytes == kSparseSlabBytes ? stages_ : dense_stages_;
  template <class Weights>
  static constexpr int kWeightBytes = kFeatureWarps * kSlabs * Weights::kSlabBytes;
  template <class Weights>
  static constexpr int kSharedBytes = kStages<Weights> * (kWeightBytes<Weights> + kTokenBytes);
  // Wavefronts of shared memory for a slab of k: every warp reads, once it is written.
  static constexpr int kSharedClocks = kWarps * (kSparseVectors + kGroups) * kVectorWavefronts +
                                       (kFeatureWarps * kSparseSlabBytes + kTokens * kSlab) / kBankBytes;
};

// The 16-byte chunks of something, shared out over the block's threads: chunk `thread + j threads`.
template <int threads, int chunks, class Copy>
EDGEKD_DEVICE void each_chunk(Copy copy) {
  EDGEKD_UNROLL for (int j = 0; j * threads < chunks; ++j)
    if ((j + 1) * threads <= chunks || thread_index() + j * threads < chunks) copy(j);
}

template <class Tile, class Weights, Output output>
EDGEKD_DEVICE void large_m(EDGEKD_GEMM_PARAMETERS) {
  constexpr int kGroups = Tile::kGroups, kSlabs = Tile::kSlabs;
  constexpr int kStages = Tile::template kStages<Weights>;
  constexpr int kWeightBytes = Tile::template kWeightBytes<Weights>;
  constexpr int kStageBytes = kWeightBytes + Tile::kTokenBytes;
  constexpr int kRowChunks = Tile::kK / kVectorBytes;
  constexpr int kTokenChunks = Tile::kTokens * kRowChunks;
  // 64 features of a stage lie together in the weight stream, the next 64 a row of slabs further on.
  constexpr int kRowOfSlabsChunks = kSlabs * Weights::kSlabBytes / kVectorBytes;
  constexpr int kWeightChunks = Tile::kFeatureWarps * kRowOfSlabsChunks;
  constexpr int kWeightCopies = (kWeightChunks + Tile::kThreads - 1) / Tile::kThreads;
  constexpr int kTokenCopies = (kTokenChunks + Tile::kThreads - 1) / Tile::kThreads;
  const int warp = thread_index() / kLanes, lane = thread_index() % kLanes;
  const int feature_warp = warp % Tile::kFeatureWarps, token_warp = warp / Tile::kFeatureWarps;
  const int first_feature = block_x() * Tile::kFeatures, first_token = block_y() * Tile::kTokens;
  const int slabs = k / kSlab, steps = k / Tile::kK;
  const uint32_t shared = shared_base();

  // Addresses are made once: in the loop they would cost more instructions than the MMAs. A thread's
  // chunks lie a multiple of 8 rows apart, so the swizzle is that of its first. Rows past the end
  // repeat the last one: nothing is read out of bounds, and what they give is never stored.
  constexpr int kRowsApart = Tile::kThreads / kRowChunks;
  static_assert(kRowsApart % 8 == 0, "one swizzle for all chunks of a thread");
  const int own_row = thread_index() / kRowChunks, own_chunk = thread_index() % kRowChunks;
  const uint32_t token_to = shared + kWeightBytes + token_offset<Tile::kK>(own_row, own_chunk);
  int token_from[kTokenCopies];  // 32 bits are enough for m k, and half the registers of pointers
  EDGEKD_UNROLL for (int j = 0; j < kTokenCopies; ++j) {
    const int row = first_token + own_row + j * kRowsApart;
    token_from[j] = (row < m ? row : m - 1) * k + own_chunk * kVectorBytes;
  }
  uint32_t weight_from[kWeightCopies];
  EDGEKD_UNROLL for (int j = 0; j < kWeightCopies; ++j) {
    const int chunk = thread_index() + j * Tile::kThreads;
    const uint32_t row_of_slabs = first_feature / kSlab + chunk / kRowOfSlabsChunks;
    weight_from[j] = row_of_slabs * slabs * Weights::kSlabBytes + chunk % kRowOfSlabsChunks * kVectorBytes;
  }
  const uint32_t weight_to = shared + thread_index() * kVectorBytes;
  auto copy_stage = [&](int step, int stage) {
    const uint8_t* weights_of_step = weights + step * (kSlabs * Weights::kSlabBytes);
    each_chunk<Tile::kThreads, kWeightChunks>([&](int j) {
      copy_async(weight_to + stage * kStageBytes + j * Tile::kThreads * kVectorBytes,
                 weights_of_step + weight_from[j]);
    });
    each_chunk<Tile::kThreads, kTokenChunks>([&](int j) {
      copy_async(token_to + j * kRowsApart * Tile::kK + stage * kStageBytes,
                 x + token_from[j] + step * Tile::kK);
    });
  };

  int acc[kTiles][kGroups][4] = {};
  EDGEKD_UNROLL for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) copy_stage(s, s);
    commit_copies();  // empty groups too: the count of groups is what wait_copies goes by
  }
  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    barrier();
    const uint32_t here = shared + stage * kStageBytes;
    EDGEKD_UNROLL for (int s = 0; s < kSlabs; ++s) {
      uint32_t slab[Weights::kVectors][4], tokens[kGroups][4];
      EDGEKD_UNROLL for (int v = 0; v < Weights::kVectors; ++v)
        load_shared(slab[v], here + (feature_warp * kSlabs + s) * Weights::kSlabBytes +
                                 v * kWarpVectorBytes + lane * kVectorBytes);
      EDGEKD_UNROLL for (int j = 0; j < kGroups; ++j)
        load_matrices(tokens[j], here + kWeightBytes +
                                     token_offset<Tile::kK>(
                                         token_warp * Tile::kWarpTokens + 8 * j + lane % 8, 4 * s + lane / 8));
      if (s == 0) {  // behind the first loads: the MMAs wait for those, and for these copies nobody does
        const int next = step + kStages - 1;
        if (next < steps) copy_stage(next, stage == 0 ? kStages - 1 : stage - 1);
        commit_copies();
      }
      EDGEKD_UNROLL for (int j = 0; j < kGroups; ++j)
        EDGEKD_UNROLL for (int i = 0; i < kTiles; ++i) Weights::multiply(acc[i][j], slab, i, tokens[j]);
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  const int feature0 = first_feature + feature_warp * kSlab + 8 * (lane / 4);
  const int token0 = first_token + token_warp * Tile::kWarpTokens + 2 * (lane % 4);
  const Channels c = channels<output>(scale, bias, extra, feature0);
  EDGEKD_UNROLL for (int j = 0; j < kGroups; ++j) {
    int total[kTiles][4];
    EDGEKD_UNROLL for (int i = 0; i < kTiles; ++i)
      EDGEKD_UNROLL for (int r = 0; r < 4; ++r) total[i][r] = acc[i][j][r];
    store_two_tokens<output>(y, extra, total, c, token0 + 8 * j, feature0, m, n);
  }
}

}  // namespace edgekd
