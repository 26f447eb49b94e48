// The C interface on a CPU: the same checks, the same kernels, run by the emulator. For tests.
#include "interface.h"

namespace {

struct {
  uint64_t seed = 0;
  bool late = true;
  int multiprocessors = 108;
} options;

edgekd::Counters counters;

}  // namespace

extern "C" {

int edgekd_gemm_s8(const edgekd_gemm* gemm, void*, char* message, size_t message_bytes) {
  using namespace edgekd;
  const Message say = {message, message_bytes};
  if (gemm == nullptr) return say(EDGEKD_NULL_POINTER, "gemm is null, expected a pointer");
  const edgekd_gemm& g = *gemm;
  int status = EDGEKD_OK;
  const Instance* instance = find(g, options.multiprocessors, &status, say);
  if (instance == nullptr) return status;
  const int m = static_cast<int>(g.m), n = static_cast<int>(g.n), k = static_cast<int>(g.k);
  const size_t outputs = static_cast<size_t>(m) * n;
  std::vector<Buffer> buffers = {
      {g.x, static_cast<size_t>(m) * k, false},
      {g.weights, edgekd_packed_bytes(g.kind, n, k), false},
      {g.scale, g.scale ? n * sizeof(float) : 0, false},
      {g.bias, g.bias ? n * sizeof(float) : 0, false},
      {g.extra, g.extra ? (g.output == EDGEKD_FLOAT16 ? outputs * 2 : sizeof(float)) : 0, false},
      {g.y, outputs * output_bytes(static_cast<Output>(g.output)), true}};
  Emulator& emulator = Emulator::here();
  const std::string fault = emulator.launch(
      n / instance->features, (m + instance->tokens - 1) / instance->tokens, instance->threads,
      instance->shared_bytes, options.seed, options.late, std::move(buffers), [&] {
        instance->kernel(g.x, g.weights, g.scale, g.bias, g.extra, m, n, k, g.y);
      });
  counters = emulator.counters;
  if (fault.empty()) return EDGEKD_OK;
  return say(EDGEKD_LAUNCH_FAILED, "%s: %s", instance->name, fault.c_str());
}

// How the next launches run: seed 0 is round robin, others draw the schedule; late copies land as late
// as they may; the table sees that many multiprocessors.
void edgekd_emulator_options(uint64_t seed, int late, int multiprocessors) {
  options = {seed, late != 0, multiprocessors};
}

// What the last launch counted, in the order of `Counters`.
void edgekd_emulator_counters(uint64_t* to) { std::memcpy(to, &counters, sizeof counters); }

// One MMA of a warp: registers of 32 lanes. a, b: uint32[32, 4]; e: uint32[32]; d: int32[32, 4].
int edgekd_emulator_mma(int kind, const uint32_t* a, const uint32_t* b, const uint32_t* e, int* d) {
  using namespace edgekd;
  const std::string fault = Emulator::here().launch(1, 1, kLanes, 0, 0, true, {}, [&] {
    const int lane = thread_index();
    uint32_t fa[4], fb[4];
    int fd[4];
    std::memcpy(fa, a + 4 * lane, 16), std::memcpy(fb, b + 4 * lane, 16);
    std::memcpy(fd, d + 4 * lane, 16);
    if (kind == EDGEKD_SPARSE)
      mma_sparse(fd, fa, fb, e[lane]);
    else
      mma_dense(fd, fa, fb[0], fb[1]);
    std::memcpy(d + 4 * lane, fd, 16);
  });
  return fault.empty() ? EDGEKD_OK : EDGEKD_BAD_METADATA;
}

// The epilogue's arithmetic, element by element, for tests against NumPy: what(y) or quantize(y / scale).
void edgekd_emulator_quantize(const float* y, float scale, int64_t count, int8_t* q) {
  const edgekd::Quantizer by = edgekd::quantizer(scale);
  for (int64_t i = 0; i < count; ++i)
    q[i] = static_cast<int8_t>(edgekd::pack_saturated(edgekd::quantize(y[i], by), 0, 0, 0));
}
void edgekd_emulator_gelu(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = edgekd::gelu(x[i]);
}

}  // extern "C"
