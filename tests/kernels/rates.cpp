// rates.cu for a CPU, and its kernels run by the emulator.
#include "rates.cu"

// MMAs, sparse and dense, that a warp of either kernel multiplies.
extern "C" int multiplied(int kind, uint64_t* mmas) {
  using namespace edgekd;
  static int sink[kLanes];
  const std::string fault = Emulator::here().launch(
      1, 1, kLanes, 0, 0, true, {{sink, sizeof sink, true}},
      [&] { kind == EDGEKD_SPARSE ? rate_of_sparse(sink) : rate_of_dense(sink); });
  mmas[0] = Emulator::here().counters.mma_sparse, mmas[1] = Emulator::here().counters.mma_dense;
  return !fault.empty();
}
