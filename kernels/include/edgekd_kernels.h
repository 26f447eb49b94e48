/* 2:4-sparse INT8 GEMMs, y[m, n] = epilogue(x[m, k] w[n, k]^T): the C interface.
 *
 * A GEMM and the packers return 0, or a status and one sentence in `message` (null: no sentence), whose
 * end is cut off where `message_bytes` are too few. Nothing is launched and nothing is written unless
 * every argument is right. edgekd_raw_rate returns a status without a sentence. edgekd_packed_bytes and
 * edgekd_choose return 0 and null where their arguments are wrong.
 *
 * Pointers of `edgekd_gemm` are device pointers of the stream's device; those of the packers are host
 * pointers. How much lies behind them cannot be seen: of a buffer shorter than said here, more is read or
 * written.
 *
 * The library for GPUs is thread-safe. The emulator's is not: how it runs and what it counted are globals.
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
  EDGEKD_MISALIGNED = 2,    /* a pointer is no multiple of 16 (of 4: the output's scale, metadata) */
  EDGEKD_BAD_SIZE = 3,      /* m, n or k is 0, negative, or n or k no multiple of 64 */
  EDGEKD_TOO_LARGE = 4,     /* m n, m k or n k is above 2147483647, or m above 65535 times a tile's tokens */
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
  const void *extra;      /* int8 outputs: float32[1], the output's scale, finite, at least 2^-126; float16:
                             float16[m, n] or null; not read for int32 */
  void *y;                /* int32, float16 or int8[m, n]; may overlap nothing that is read */
  const char *tile;       /* a name of edgekd_tiles, or null to let the table choose */
} edgekd_gemm;

/* Starts a GEMM on a CUDA stream of the current device (null: the default one). It does not wait, and
 * looks at no value: an int8 output of NaN, or of an output's scale that is none of those said above,
 * is some int8, which one is not said. */
int edgekd_gemm_s8(const edgekd_gemm *gemm, void *stream, char *message, size_t message_bytes);

/* Bytes of the packed weights; 0 where n or k is no positive multiple of 64, n k is above 2147483647,
   or there is no such kind. */
size_t edgekd_packed_bytes(int kind, int64_t n, int64_t k);

/* Canonical 2:4, as edgekd.sparse24.compress writes it, to the order kernels read:
 * values int8[n, k/2], metadata int32[n, k/32]. Not in place: `packed` may overlap neither. */
int edgekd_pack_sparse(const int8_t *values, const int32_t *metadata, int64_t n, int64_t k,
                       uint8_t *packed, char *message, size_t message_bytes);

/* The same for the dense twin: weights int8[n, k], which `packed` may not overlap. */
int edgekd_pack_dense(const int8_t *weights, int64_t n, int64_t k, uint8_t *packed, char *message,
                      size_t message_bytes);

/* Name of the tile that the table chooses on a GPU of that many multiprocessors, and its reason (where
 * `reason` is not null); null where a size is wrong, or there are no multiprocessors. */
const char *edgekd_choose(int64_t m, int64_t n, int64_t k, int multiprocessors, const char **reason);

/* Multiply-adds a second that the GPU's MMA instruction of that kind does from registers alone, the
 * zeros of a sparse one counted; waits for the GPU, and is 0 where the status is not. Not in the emulator. */
int edgekd_raw_rate(int kind, double *multiply_adds_per_second);

/* Names of all tiles, ending with null. */
const char *const *edgekd_tiles(void);

#ifdef __cplusplus
}
#endif
#endif
