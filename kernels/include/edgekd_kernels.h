/* 2:4-sparse INT8 GEMMs, y[m, n] = epilogue(x[m, k] w[n, k]^T): the C interface.
 *
 * Every function returns 0, or a status and one sentence in `message` (null: no sentence). Nothing is
 * launched and nothing is written unless every argument is right.
 *
 * Thread-safe. Pointers of `edgekd_gemm` are device pointers; those of the packers are host pointers.
 */
#ifndef EDGEKD_KERNELS_H
#define EDGEKD_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum edgekd_status {
  EDGEKD_OK = 0,
  EDGEKD_NULL_POINTER = 1,
  EDGEKD_MISALIGNED = 2,    /* a pointer is no multiple of 16 (of 4: a scale) */
  EDGEKD_BAD_SIZE = 3,      /* m, n or k is 0, negative, or n or k no multiple of 64 */
  EDGEKD_TOO_LARGE = 4,     /* m n, m k or n k does not fit in 31 bits */
  EDGEKD_BAD_METADATA = 5,  /* a group of four names no two increasing positions */
  EDGEKD_BAD_NAME = 6,      /* no such kind, output or tile, or the tile does not take the sizes */
  EDGEKD_LAUNCH_FAILED = 7  /* the runtime refused; its words are in the sentence */
};

enum edgekd_kind { EDGEKD_SPARSE = 0, EDGEKD_DENSE = 1 };

enum edgekd_output {
  EDGEKD_INT32 = 0,    /* the sums themselves */
  EDGEKD_FLOAT16 = 1,  /* half(acc * scale + bias), plus a residual where `extra` is given */
  EDGEKD_INT8 = 2,     /* saturate(round_half_even((acc * scale + bias) / *extra)) */
  EDGEKD_GELU_INT8 = 3 /* the same of gelu(acc * scale + bias) */
};

typedef struct {
  int kind, output;
  int64_t m, n, k;
  const int8_t *x;        /* int8[m, k] */
  const uint8_t *weights; /* edgekd_packed_bytes(kind, n, k) bytes, by edgekd_pack_* */
  const float *scale;     /* float32[n]: input scale x weight scale of each row; not read for int32 */
  const float *bias;      /* float32[n]; not read for int32 */
  const void *extra;      /* int8 outputs: float32[1], the output's scale; float16: float16[m, n] or null */
  void *y;                /* int32, float16 or int8[m, n] */
  const char *tile;       /* a name of edgekd_tiles, or null to let the table choose */
} edgekd_gemm;

/* Starts a GEMM on a CUDA stream of the current device (null: the default one). */
int edgekd_gemm_s8(const edgekd_gemm *gemm, void *stream, char *message, size_t message_bytes);

/* Bytes of the packed weights; 0 where n or k is no positive multiple of 64, n k is above 2147483647,
   or there is no such kind. */
size_t edgekd_packed_bytes(int kind, int64_t n, int64_t k);

/* Canonical 2:4, as edgekd.sparse24.compress writes it, to the order kernels read:
 * values int8[n, k/2], metadata int32[n, k/32]. */
int edgekd_pack_sparse(const int8_t *values, const int32_t *metadata, int64_t n, int64_t k,
                       uint8_t *packed, char *message, size_t message_bytes);

/* The same for the dense twin: weights int8[n, k]. */
int edgekd_pack_dense(const int8_t *weights, int64_t n, int64_t k, uint8_t *packed, char *message,
                      size_t message_bytes);

/* Name of the tile that the table chooses on a GPU of that many multiprocessors, and its reason (where
 * `reason` is not null); null where the sizes are wrong. */
const char *edgekd_choose(int64_t m, int64_t n, int64_t k, int multiprocessors, const char **reason);

/* Multiply-adds a second that the GPU's MMA instruction of that kind does from registers alone, the
 * zeros of a sparse one counted. Not in the emulator. */
int edgekd_raw_rate(int kind, double *multiply_adds_per_second);

/* Names of all tiles, ending with null. */
const char *const *edgekd_tiles(void);

#ifdef __cplusplus
}
#endif
#endif
