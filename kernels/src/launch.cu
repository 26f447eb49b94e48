// The C interface on a GPU.
#include <cuda_runtime.h>

#include "interface.h"

extern "C" int edgekd_gemm_s8(const edgekd_gemm* gemm, void* stream, char* message,
                              size_t message_bytes) {
  using namespace edgekd;
  const Message say = {message, message_bytes};
  if (gemm == nullptr) return say(EDGEKD_NULL_POINTER, "gemm is null, expected a pointer");
  const edgekd_gemm& g = *gemm;
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (!error)
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error) {
    cudaGetLastError();
    return say(EDGEKD_LAUNCH_FAILED, "no CUDA device: %s", cudaGetErrorString(error));
  }
  int status = EDGEKD_OK;
  const Instance* instance = find(g, multiprocessors, &status, say);
  if (instance == nullptr) return status;
  const int m = static_cast<int>(g.m), n = static_cast<int>(g.n), k = static_cast<int>(g.k);
  // More than 48 KiB have to be asked for, once for each kernel and device; asking again is cheap.
  if (instance->shared_bytes > 48 * 1024)
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(instance->kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, instance->shared_bytes);
  if (!error) {
    const dim3 grid(n / instance->features, (m + instance->tokens - 1) / instance->tokens);
    cudaLaunchConfig_t how = {};
    how.gridDim = grid, how.blockDim = dim3(instance->threads);
    how.dynamicSmemBytes = instance->shared_bytes, how.stream = static_cast<cudaStream_t>(stream);
    // Its own status, not cudaGetLastError's: that may be of an earlier call, and not one of ours.
    error = cudaLaunchKernelEx(&how, instance->kernel, g.x, g.weights, g.scale, g.bias, g.extra, m, n, k,
                               g.y);
  }
  if (!error) return EDGEKD_OK;
  cudaGetLastError();  // said below; left behind, it would be held against the caller's next launch
  return say(EDGEKD_LAUNCH_FAILED, "%s: %s", instance->name, cudaGetErrorString(error));
}
