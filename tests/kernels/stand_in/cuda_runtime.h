// As much of CUDA's runtime as launch.cu asks for: it starts nothing, notes what it was asked, and fails
// where a test wants it. Like the real one it keeps the last error until cudaGetLastError takes it.
#pragma once

#include <cstddef>
#include <cstdint>

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaDevAttrMultiProcessorCount = 16, cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

// What a test reads and writes, in this order, as int64s.
struct Runtime {
  int64_t last, device_fails, attribute_fails, launch_fails;
  int64_t launches, grid_x, grid_y, threads, shared_bytes, attribute_bytes, stream, m, n, k;
};
inline Runtime runtime;
extern "C" Runtime* stand_in() { return &runtime; }

inline cudaError_t ends_with(int64_t error) {
  if (error) runtime.last = error;
  return static_cast<cudaError_t>(error);
}
inline cudaError_t cudaGetLastError() {
  const int64_t last = runtime.last;
  runtime.last = 0;
  return static_cast<cudaError_t>(last);
}
inline const char* cudaGetErrorString(cudaError_t error) { return error == 100 ? "no device" : "refused"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, ends_with(runtime.device_fails); }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = 108, ends_with(0); }
inline cudaError_t cudaFuncSetAttribute(const void*, int, int bytes) {
  return runtime.attribute_bytes = bytes, ends_with(runtime.attribute_fails);
}
template <class... Expected>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*)(Expected...), const int8_t*,
                               const uint8_t*, const float*, const float*, const void*, int m, int n, int k,
                               void*) {
  static_assert(sizeof...(Expected) == 9, "x, weights, scale, bias, extra, m, n, k, y");
  if (runtime.launch_fails) return ends_with(runtime.launch_fails);
  ++runtime.launches;
  runtime.grid_x = how->gridDim.x, runtime.grid_y = how->gridDim.y, runtime.threads = how->blockDim.x;
  runtime.shared_bytes = how->dynamicSmemBytes;
  runtime.stream = reinterpret_cast<intptr_t>(how->stream);
  runtime.m = m, runtime.n = n, runtime.k = k;
  return ends_with(0);
}
