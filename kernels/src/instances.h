// Every kernel that is compiled, and why it is there.
#pragma once

#include "large_m.h"
#include "small_m.h"

// X(name, tile): tile shapes. A tile is kept only for a named reason.
//                                    tokens warps stages ahead
#define EDGEKD_SMALL_M_TILES(X)                                                                      \
  /* a few tokens: the weights are all there is to read, so eight warps read ahead of each other */  \
  X(small_t8, SmallM<8, 8, 4, 2>)                                                                    \
  /* narrow layers (n = 192): too few blocks to fill a GPU, so k is cut into more slices */          \
  X(small_t24, SmallM<24, 8, 3, 2>)                                                                  \
  /* batch 1: the 197 tokens of a ViT are 5 x 40, 98% useful, where 64 leave 23% idle */             \
  X(small_t40, SmallM<40, 4, 4, 2>)                                                                  \
  /* batch 2 to 4, sequences of 128 and 256: the same weights serve more tokens */                   \
  X(small_t64, SmallM<64, 2, 4, 2>)
//                                  features tokens warp_tokens slabs, stages sparse and dense
// A warp has 64 tokens wherever it can: with 32 it reads its weights twice as often, and shared memory
// then holds a sparse MMA to 56 and 59% of its rate in the first two.
#define EDGEKD_LARGE_M_TILES(X)                                                                      \
  /* n = 192 and 576: no multiple of 128; one slab a stage, as k = 192 is three */                   \
  X(large_64x128, LargeM<64, 128, 64, 1, 4, 4>)                                                      \
  /* k no multiple of 128, or too few blocks for the next one */                                     \
  X(large_128x64, LargeM<128, 64, 64, 1, 4, 3>)                                                      \
  /* the workhorse: 64 MMAs of a warp for 16 token and 10 weight loads, barriers half as often */    \
  X(large_128x128, LargeM<128, 128, 64, 2, 3, 2>)                                                    \
  /* large batches: half of the token traffic, where there are blocks enough */                      \
  X(large_256x128, LargeM<256, 128, 64, 1, 4, 4>)

// X(output, name): what a kernel writes; see epilogue.h.
#define EDGEKD_OUTPUTS(X, ...)              \
  X(kInt32, s32, __VA_ARGS__)               \
  X(kFloat16, f16, __VA_ARGS__)             \
  X(kInt8, s8, __VA_ARGS__)                 \
  X(kGeluInt8, gelu_s8, __VA_ARGS__)

namespace edgekd {

#define EDGEKD_SMALL_M_KERNEL(output, suffix, kind, Weights, name, ...)                        \
  EDGEKD_KERNEL __launch_bounds__(__VA_ARGS__::kThreads, 1) void kind##_##name##_##suffix(      \
      EDGEKD_GEMM_PARAMETERS) {                                                                \
    small_m<__VA_ARGS__, Weights, Output::output>(EDGEKD_GEMM_ARGUMENTS);                      \
  }
#define EDGEKD_LARGE_M_KERNEL(output, suffix, kind, Weights, name, ...)                        \
  EDGEKD_KERNEL __launch_bounds__(__VA_ARGS__::kThreads, 1) void kind##_##name##_##suffix(      \
      EDGEKD_GEMM_PARAMETERS) {                                                                \
    large_m<__VA_ARGS__, Weights, Output::output>(EDGEKD_GEMM_ARGUMENTS);                      \
  }
#define EDGEKD_SMALL_M_BOTH(name, ...)                                       \
  EDGEKD_OUTPUTS(EDGEKD_SMALL_M_KERNEL, sparse, Sparse, name, __VA_ARGS__)   \
  EDGEKD_OUTPUTS(EDGEKD_SMALL_M_KERNEL, dense, Dense, name, __VA_ARGS__)
#define EDGEKD_LARGE_M_BOTH(name, ...)                                       \
  EDGEKD_OUTPUTS(EDGEKD_LARGE_M_KERNEL, sparse, Sparse, name, __VA_ARGS__)   \
  EDGEKD_OUTPUTS(EDGEKD_LARGE_M_KERNEL, dense, Dense, name, __VA_ARGS__)

EDGEKD_SMALL_M_TILES(EDGEKD_SMALL_M_BOTH)
EDGEKD_LARGE_M_TILES(EDGEKD_LARGE_M_BOTH)

}  // namespace edgekd
