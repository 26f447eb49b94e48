// How fast a GPU's two MMA instructions are by themselves: operands in registers, nothing else to do.
// Their ratio r is the most that sparsity can give on that GPU; bench/kernels/gpu.py judges by it.
#include <cuda_runtime.h>

#include "edgekd_kernels.h"
#include "layout.h"
#include "primitives.h"

namespace edgekd {

constexpr int kIterations = 4096, kChains = 8;  // independent sums hide the instruction's latency
constexpr int kMostWarps = 16;

template <bool sparse>
EDGEKD_DEVICE void rate(int* sink) {
  int d[kChains][4] = {};
  uint32_t a[4], b[4];  // bits of all kinds: operands of zeros draw less power, and clocks rise
  EDGEKD_UNROLL for (int i = 0; i < 4; ++i) {
    a[i] = (8u * thread_index() + i + 1) * 0x9E3779B9u;
    b[i] = (8u * thread_index() + i + 5) * 0x85EBCA6Bu;
  }
  for (int i = 0; i < kIterations; ++i)
    EDGEKD_UNROLL for (int j = 0; j < kChains; ++j) {
      if constexpr (sparse)
        mma_sparse(d[j], a, b, 0x44444444u);  // positions 0 and 1 of every group
      else
        mma_dense(d[j], a, b[0], b[1]);
    }
  uint32_t total = 0;  // stored, so that nothing is optimised away
  EDGEKD_UNROLL for (int j = 0; j < kChains; ++j)
    EDGEKD_UNROLL for (int r = 0; r < 4; ++r) total += d[j][r];
  sink[block_x() * kMostWarps * kLanes + thread_index()] = static_cast<int>(total);
}

EDGEKD_KERNEL void rate_of_sparse(int* sink) { rate<true>(sink); }
EDGEKD_KERNEL void rate_of_dense(int* sink) { rate<false>(sink); }

// The least milliseconds of a few; the first warms up.
inline cudaError_t measure(void (*kernel)(int*), int blocks, int threads, int* sink, float* milliseconds) {
  cudaEvent_t start = nullptr, end = nullptr;
  cudaError_t error = cudaEventCreate(&start);
  if (!error) error = cudaEventCreate(&end);
  *milliseconds = 1e30f;
  for (int repetition = 0; repetition < 6 && !error; ++repetition) {
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3(blocks), how.blockDim = dim3(threads);
    error = cudaEventRecord(start);
    if (!error) error = cudaLaunchKernelEx(&how, kernel, sink);
    if (!error) error = cudaEventRecord(end);
    if (!error) error = cudaEventSynchronize(end);
    float took = 0;
    if (!error) error = cudaEventElapsedTime(&took, start, end);
    if (!error && repetition > 0 && took < *milliseconds) *milliseconds = took;
  }
  if (start) cudaEventDestroy(start);
  if (end) cudaEventDestroy(end);
  return error;
}

}  // namespace edgekd

// Multiply-adds a second of one kind of MMA, the zeros of a sparse one counted; the best of 4, 8 and 16
// warps a multiprocessor. Returns a status; 0 operations where it fails.
extern "C" int edgekd_raw_rate(int kind, double* multiply_adds_per_second) {
  using namespace edgekd;
  if (multiply_adds_per_second == nullptr) return EDGEKD_NULL_POINTER;
  *multiply_adds_per_second = 0;
  if (kind != EDGEKD_SPARSE && kind != EDGEKD_DENSE) return EDGEKD_BAD_NAME;
  const bool sparse = kind == EDGEKD_SPARSE;
  int device = 0, blocks = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (!error) error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
  void* sink = nullptr;
  if (!error) error = cudaMalloc(&sink, sizeof(int) * blocks * kMostWarps * kLanes);
  double best = 0;
  for (int warps = 4; warps <= kMostWarps && !error; warps *= 2) {
    float milliseconds = 0;
    error = measure(sparse ? rate_of_sparse : rate_of_dense, blocks, kLanes * warps,
                    static_cast<int*>(sink), &milliseconds);
    const double each = kTileRows * kTileTokens * (sparse ? 64.0 : 32.0);
    const double rate = each * kChains * kIterations * blocks * warps / (milliseconds * 1e-3);
    if (rate > best) best = rate;
  }
  if (sink) cudaFree(sink);
  if (!error) *multiply_adds_per_second = best;
  if (error) cudaGetLastError();  // told by the status; left behind, it would fail the next launch
  return error ? EDGEKD_LAUNCH_FAILED : EDGEKD_OK;
}
