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
  int64_t device, multiprocessors;  // the current device, and what it has
  int64_t last, device_fails, attribute_fails, launch_fails;
  int64_t launches, launched_on, kernel, grid_x, grid_y, grid_z, threads, threads_y, threads_z, shared_bytes,
      stream;
  int64_t attribute_bytes, attribute_kernel;
  int64_t x, weights, scale, bias, extra, m, n, k, y;
};
inline Runtime runtime;
extern "C" Runtime* stand_in() { return &runtime; }

inline int64_t address(const void* pointer) { return reinterpret_cast<intptr_t>(pointer); }
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
inline cudaError_t cudaGetDevice(int* device) {
  return *device = runtime.device, ends_with(runtime.device_fails);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int device) {
  const bool right = attribute == cudaDevAttrMultiProcessorCount && device == runtime.device;
  return *value = right ? runtime.multiprocessors : 0, ends_with(right ? 0 : 1);
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, int attribute, int bytes) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return ends_with(1);
  runtime.attribute_bytes = bytes, runtime.attribute_kernel = address(kernel);
  return ends_with(runtime.attribute_fails);
}
template <class... Expected>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*kernel)(Expected...), const int8_t* x,
                               const uint8_t* weights, const float* scale, const float* bias,
                               const void* extra, int m, int n, int k, void* y) {
  static_assert(sizeof...(Expected) == 9, "x, weights, scale, bias, extra, m, n, k, y");
  if (runtime.launch_fails) return ends_with(runtime.launch_fails);
  ++runtime.launches, runtime.launched_on = runtime.device;
  runtime.kernel = address(reinterpret_cast<const void*>(kernel));
  runtime.grid_x = how->gridDim.x, runtime.grid_y = how->gridDim.y, runtime.grid_z = how->gridDim.z;
  runtime.threads = how->blockDim.x, runtime.threads_y = how->blockDim.y, runtime.threads_z = how->blockDim.z;
  runtime.shared_bytes = how->dynamicSmemBytes, runtime.stream = address(how->stream);
  runtime.x = address(x), runtime.weights = address(weights), runtime.scale = address(scale);
  runtime.bias = address(bias), runtime.extra = address(extra), runtime.y = address(y);
  runtime.m = m, runtime.n = n, runtime.k = k;
  return ends_with(0);
}
