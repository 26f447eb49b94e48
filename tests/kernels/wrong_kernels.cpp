// Kernels of a few lines that break one promise each, and what the emulator says of them.
#include "emulator.h"

using namespace edgekd;

namespace {

constexpr int kThreads = 64;

// 16 bytes of a thread's own; a warp's are the four matrices that `load_matrices` reads.
uint32_t own() { return 16 * static_cast<uint32_t>(thread_index()); }
const int kZeros[4] = {};

void read_by_the_warp() {
  store_shared(own(), kZeros);
  warp_barrier();
  uint32_t d[4];
  load_matrices(d, own());
}

void right() {
  read_by_the_warp();
  warp_barrier();
  store_shared(own(), kZeros);
  barrier();
  uint32_t d[4];
  load_shared(d, kThreads * 16 - 16 - own());
}
void one_warp_at_a_block_barrier() {
  if (thread_index() < kLanes) barrier();
}
void one_lane_not_at_a_warp_barrier() {
  if (thread_index() % kLanes) warp_barrier();
}
void read_before_a_barrier() {
  store_shared(own(), kZeros);
  uint32_t d[4];
  load_matrices(d, own());
}
void written_after_the_warp_read() {
  read_by_the_warp();
  store_shared(own(), kZeros);
}
void written_after_another_warp_read() {
  barrier();
  if (thread_index() < kLanes) read_by_the_warp();
  for (int i = 0; i < 4; ++i) warp_barrier();  // of its own warp only
  if (thread_index() >= kLanes) store_shared(own() - 16 * kLanes, kZeros);
}
void lanes_at_different_instructions() {
  uint32_t d[4];
  store_shared(own(), kZeros);
  if (thread_index() % kLanes)
    warp_barrier();
  else
    load_matrices(d, own());
}
void never_written() {
  uint32_t d[4];
  load_shared(d, own());
}

void (*const kKernels[])() = {right,
                              one_warp_at_a_block_barrier,
                              one_lane_not_at_a_warp_barrier,
                              read_before_a_barrier,
                              written_after_the_warp_read,
                              written_after_another_warp_read,
                              lanes_at_different_instructions,
                              never_written};

}  // namespace

extern "C" void run(int which, uint64_t seed, char* fault, size_t bytes) {
  const std::string found = Emulator::here().launch(1, 1, kThreads, 16 * kThreads, seed, true, {},
                                                    kKernels[which]);
  std::snprintf(fault, bytes, "%s", found.c_str());
}
