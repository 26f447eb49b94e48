// The two kinds of weights a kernel is compiled for: 2:4-sparse, and its dense twin.
//
// The twin has the same tiles, pipeline and epilogue and differs in the bytes of a slab and in the MMA,
// so that "sparse against dense" compares two instructions and not two engineers.
#pragma once

#include "layout.h"
#include "primitives.h"

namespace edgekd {

struct Sparse {
  static constexpr int kVectors = kSparseVectors, kSlabBytes = kSparseSlabBytes;

  // d[16 features x 8 tokens] += one tile of a slab, all 64 of k.
  static EDGEKD_DEVICE void multiply(int (&d)[4], const uint32_t (&slab)[kVectors][4], int tile,
                                     const uint32_t (&tokens)[4]) {
    mma_sparse(d, slab[tile], tokens, slab[kTiles][tile]);
  }
};

struct Dense {
  static constexpr int kVectors = kDenseVectors, kSlabBytes = kDenseSlabBytes;

  static EDGEKD_DEVICE void multiply(int (&d)[4], const uint32_t (&slab)[kVectors][4], int tile,
                                     const uint32_t (&tokens)[4]) {
    mma_dense(d, slab[tile], tokens[0], tokens[1]);
    mma_dense(d, slab[kTiles + tile], tokens[2], tokens[3]);
  }
};

// y[m, n] = epilogue(x[m, k] w[n, k]^T): what every kernel is given. Pointers first, sizes, then the
// output, because TensorRT's ahead-of-time plugins pass arguments in that order and pass no floats.
#define EDGEKD_GEMM_PARAMETERS                                                                        \
  const int8_t *x, const uint8_t *weights, const float *scale, const float *bias, const void *extra, \
      int m, int n, int k, void *y
#define EDGEKD_GEMM_ARGUMENTS x, weights, scale, bias, extra, m, n, k, y

}  // namespace edgekd
