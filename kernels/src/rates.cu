// How fast a GPU's two MMA instructions are by themselves: operands in registers, nothing else to do.
// Their ratio r is the most that sparsity can give on that GPU; bench/kernels/gpu.py judges by it.
#include <cuda_runtime.h>

#include "edgekd_kernels.h"
#include "primitives.h"

namespace edgekd {

constexpr int kIterations = 4096, kChains = 8;  // independent sums hide the instruction's latency

template <bool sparse>
__global__ void rate(int* sink) {
  int d[kChains][4] = {};
  const uint32_t t = threadIdx.x;
  const uint32_t a[4] = {t, t + 1, t + 2, t + 3}, b[4] = {t + 4, t + 5, t + 6, t + 7};
  for (int i = 0; i < kIterations; ++i)
    EDGEKD_UNROLL for (int j = 0; j < kChains; ++j) {
      if constexpr (sparse)
        mma_sparse(d[j], a, b, 0x44444444u);  // positions 0 and 1 of every group
      else
        mma_dense(d[j], a, b[0], b[1]);
    }
  int total = 0;  // stored, so that nothing is optimised away
  EDGEKD_UNROLL for (int j = 0; j < kChains; ++j) total += d[j][0] + d[j][1] + d[j][2] + d[j][3];
  sink[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

template <bool sparse>
cudaError_t measure(int blocks, int threads, int* sink, float* milliseconds) {
  cudaEvent_t start, end;
  cudaError_t error = cudaEventCreate(&start);
  if (!error) error = cudaEventCreate(&end);
  if (error) return error;
  *milliseconds = 1e30f;
  for (int repetition = 0; repetition < 6 && !error; ++repetition) {
    cudaEventRecord(start);
    rate<sparse><<<blocks, threads>>>(sink);
    error = cudaGetLastError();  // or what did not start would be fast
    cudaEventRecord(end);
    if (!error) error = cudaEventSynchronize(end);
    float took = 0;
    if (!error) error = cudaEventElapsedTime(&took, start, end);
    if (!error && repetition > 0 && took < *milliseconds) *milliseconds = took;  // the first warms up
  }
  cudaEventDestroy(start), cudaEventDestroy(end);
  return error;
}

}  // namespace edgekd

// Multiply-adds a second of one kind of MMA, the zeros of a sparse one counted; the best of 4, 8 and 16
// warps a multiprocessor. Returns a status; 0 operations where it fails.
extern "C" int edgekd_raw_rate(int kind, double* multiply_adds_per_second) {
  using namespace edgekd;
  *multiply_adds_per_second = 0;
  int device = 0, blocks = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (!error) error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
  int* sink = nullptr;
  if (!error) error = cudaMalloc(&sink, sizeof(int) * blocks * 512);
  for (int warps = 4; warps <= 16 && !error; warps *= 2) {
    float milliseconds = 0;
    error = kind == EDGEKD_SPARSE ? measure<true>(blocks, 32 * warps, sink, &milliseconds)
                                  : measure<false>(blocks, 32 * warps, sink, &milliseconds);
    const double each = 16.0 * 8 * (kind == EDGEKD_SPARSE ? 64 : 32);
    const double rate = each * kChains * kIterations * blocks * warps / (milliseconds * 1e-3);
    if (!error && rate > *multiply_adds_per_second) *multiply_adds_per_second = rate;
  }
  cudaFree(sink);
  if (error) cudaGetLastError();  // told by the status; left behind, it would fail the next launch
  return error ? EDGEKD_LAUNCH_FAILED : EDGEKD_OK;
}
