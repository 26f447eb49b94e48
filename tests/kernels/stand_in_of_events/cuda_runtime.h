// As much of CUDA's runtime as rates.cu asks for: a launch starts nothing and takes the milliseconds that a
// test gave it, which the clock of the events then shows.
#pragma once

#include <cstddef>
#include <cstdint>

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaDevAttrMultiProcessorCount = 16 };

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

struct Event {
  double at;
};
using cudaEvent_t = Event*;

// What a test reads and writes, in this order, as doubles; of each launch what it took and its sizes.
struct Launches {
  double multiprocessors, now, launches, open, last, fails_at;
  double took[32], blocks[32], threads[32], kernel[32];
};
// Not "runtime": inline variables of one name are one, across libraries too.
inline Launches clock_and_launches;
extern "C" Launches* stand_in() { return &clock_and_launches; }

inline cudaError_t cudaGetLastError() {
  const double last = clock_and_launches.last;
  clock_and_launches.last = 0;
  return static_cast<cudaError_t>(last);
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  return *value = static_cast<int>(clock_and_launches.multiprocessors), 0;
}
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return *memory = new char[bytes], ++clock_and_launches.open, 0;
}
inline cudaError_t cudaFree(void* memory) {
  return delete[] static_cast<char*>(memory), --clock_and_launches.open, 0;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = new Event{-1e30}, ++clock_and_launches.open, 0; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, --clock_and_launches.open, 0; }
inline cudaError_t cudaEventRecord(cudaEvent_t event) { return event->at = clock_and_launches.now, 0; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return 0; }
inline cudaError_t cudaEventElapsedTime(float* took, cudaEvent_t start, cudaEvent_t end) {
  return *took = static_cast<float>(end->at - start->at), 0;
}
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*kernel)(int*), int*) {
  const int launch = static_cast<int>(clock_and_launches.launches++);
  if (clock_and_launches.launches == clock_and_launches.fails_at) return clock_and_launches.last = 719, 719;
  clock_and_launches.blocks[launch] = how->gridDim.x, clock_and_launches.threads[launch] = how->blockDim.x;
  clock_and_launches.kernel[launch] = static_cast<double>(reinterpret_cast<intptr_t>(kernel));
  clock_and_launches.now += clock_and_launches.took[launch];
  return 0;
}
