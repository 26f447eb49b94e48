// The C interface: checks, the table of instances, packing. The two back ends, launch.cu and
// emulate.cpp, add how an instance is started.
#pragma once

#include <cstdio>
#include <cstring>

#include "choose.h"
#include "edgekd_kernels.h"
#include "pack.h"

namespace edgekd {

using Kernel = void (*)(EDGEKD_GEMM_PARAMETERS);

struct Instance {
  const char *tile, *name;
  Kernel kernel;
  int kind, output, threads, shared_bytes, features, tokens, k;
};

#define EDGEKD_INSTANCE(output, suffix, kind, Weights, name, ...)                                  \
  {#name,                                                                                          \
   #kind "_" #name "_" #suffix,                                                                    \
   kind##_##name##_##suffix,                                                                       \
   static_cast<int>(Weights::kSlabBytes == kDenseSlabBytes),                                       \
   static_cast<int>(Output::output),                                                               \
   __VA_ARGS__::kThreads,                                                                          \
   __VA_ARGS__::kSharedBytes<Weights>,                                                             \
   __VA_ARGS__::kFeatures,                                                                         \
   __VA_ARGS__::kTokens,                                                                           \
   __VA_ARGS__::kK},
#define EDGEKD_INSTANCES_OF(name, ...)                               \
  EDGEKD_OUTPUTS(EDGEKD_INSTANCE, sparse, Sparse, name, __VA_ARGS__) \
  EDGEKD_OUTPUTS(EDGEKD_INSTANCE, dense, Dense, name, __VA_ARGS__)

constexpr Instance kInstances[] = {
    EDGEKD_SMALL_M_TILES(EDGEKD_INSTANCES_OF) EDGEKD_LARGE_M_TILES(EDGEKD_INSTANCES_OF)};

#define EDGEKD_TILE_NAME(name, ...) #name,
constexpr const char* kTileNames[] = {
    EDGEKD_SMALL_M_TILES(EDGEKD_TILE_NAME) EDGEKD_LARGE_M_TILES(EDGEKD_TILE_NAME) nullptr};

constexpr int kMostBlocks = 65535;  // of a grid's second dimension, on every CUDA device

// Where the sentence goes; each check returns its status.
struct Message {
  char* text;
  size_t bytes;

  template <class... Values>
  int operator()(int status, const char* format, Values... values) const {
    if (text != nullptr && bytes > 0) std::snprintf(text, bytes, format, values...);
    return status;
  }
};

inline int check_sizes(int64_t m, int64_t n, int64_t k, const Message& say) {
  struct {
    const char* name;
    int64_t value, multiple;
  } const sizes[] = {{"m", m, 1}, {"n", n, kSlab}, {"k", k, kSlab}};
  for (const auto& size : sizes)
    if (size.value <= 0 || size.value % size.multiple)
      return say(EDGEKD_BAD_SIZE, "%s is %lld, expected a positive multiple of %lld: %s", size.name,
                 static_cast<long long>(size.value), static_cast<long long>(size.multiple),
                 size.multiple == 1 ? "give at least one token" : "pad the layer, or run it elsewhere");
  struct {
    const char* name;
    int64_t a, b;
    const char* split;
  } const products[] = {{"n k", n, k, "the layer"}, {"m n", m, n, "m"}, {"m k", m, k, "m"}};
  for (const auto& product : products)
    if (product.a > INT32_MAX / product.b)
      return say(EDGEKD_TOO_LARGE, "%s is %lld x %lld, expected at most 2147483647 elements: split %s",
                 product.name, static_cast<long long>(product.a), static_cast<long long>(product.b),
                 product.split);
  return EDGEKD_OK;
}

inline int check_pointer(const char* name, const void* pointer, size_t alignment, const Message& say) {
  if (pointer == nullptr) return say(EDGEKD_NULL_POINTER, "%s is null, expected a pointer", name);
  const size_t off = reinterpret_cast<uintptr_t>(pointer) % alignment;
  if (off == 0) return EDGEKD_OK;
  return say(EDGEKD_MISALIGNED, "%s is %zu bytes past a multiple of %zu, expected 0: align it", name, off,
             alignment);
}

inline int check_pointers(const edgekd_gemm& g, const Message& say) {
  const bool integers = g.output == EDGEKD_INT32, halves = g.output == EDGEKD_FLOAT16;
  struct {
    const char* name;
    const void* pointer;
    size_t alignment;
    bool needed;
  } const pointers[] = {{"x", g.x, 16, true},
                        {"weights", g.weights, 16, true},
                        {"y", g.y, 16, true},
                        {"scale", g.scale, 16, !integers},
                        {"bias", g.bias, 16, !integers},
                        {"extra", g.extra, halves ? 16u : 4u, !integers && (!halves || g.extra)}};
  for (const auto& p : pointers)
    if (p.needed)
      if (const int status = check_pointer(p.name, p.pointer, p.alignment, say)) return status;
  return EDGEKD_OK;
}

// The instance to start; null with a sentence where something is wrong.
inline const Instance* find(const edgekd_gemm& g, int multiprocessors, int* status, const Message& say) {
  if (g.kind != EDGEKD_SPARSE && g.kind != EDGEKD_DENSE)
    return *status = say(EDGEKD_BAD_NAME, "kind is %d, expected 0 (sparse) or 1 (dense)", g.kind), nullptr;
  if (g.output < EDGEKD_INT32 || g.output > EDGEKD_GELU_INT8)
    return *status = say(EDGEKD_BAD_NAME, "output is %d, expected 0 to 3", g.output), nullptr;
  if ((*status = check_sizes(g.m, g.n, g.k, say)) || (*status = check_pointers(g, say))) return nullptr;
  const char* tile = g.tile ? g.tile : choose({g.m, g.n, g.k, multiprocessors})->tile;
  for (const Instance& i : kInstances) {
    if (std::strcmp(i.tile, tile) || i.kind != g.kind || i.output != g.output) continue;
    if (g.m > static_cast<int64_t>(kMostBlocks) * i.tokens)
      return *status = say(EDGEKD_TOO_LARGE, "m is %lld, expected at most %lld with tile %s: split m",
                           static_cast<long long>(g.m),
                           static_cast<long long>(kMostBlocks) * i.tokens, tile), nullptr;
    if (g.n % i.features == 0 && g.k % i.k == 0) return *status = EDGEKD_OK, &i;
    *status = say(EDGEKD_BAD_NAME, "tile %s takes n in multiples of %d and k of %d, found n = %lld, k = %lld: "
                  "let the table choose", tile, i.features, i.k, static_cast<long long>(g.n),
                  static_cast<long long>(g.k));
    return nullptr;
  }
  *status = say(EDGEKD_BAD_NAME, "there is no tile %s; edgekd_tiles lists them", tile);
  return nullptr;
}

}  // namespace edgekd

extern "C" {

size_t edgekd_packed_bytes(int kind, int64_t n, int64_t k) {
  using namespace edgekd;
  if (check_sizes(1, n, k, {nullptr, 0}) || (kind != EDGEKD_SPARSE && kind != EDGEKD_DENSE)) return 0;
  return static_cast<size_t>(n / kSlab) * (k / kSlab) *
         (kind == EDGEKD_SPARSE ? kSparseSlabBytes : kDenseSlabBytes);
}

int edgekd_pack_sparse(const int8_t* values, const int32_t* metadata, int64_t n, int64_t k,
                       uint8_t* packed, char* message, size_t message_bytes) {
  using namespace edgekd;
  const Message say = {message, message_bytes};
  if (const int status = check_sizes(1, n, k, say)) return status;
  if (const int status = check_pointer("values", values, 1, say)) return status;
  if (const int status = check_pointer("metadata", metadata, 4, say)) return status;
  if (const int status = check_pointer("packed", packed, 1, say)) return status;
  const int64_t words = n * (k / 32), bad = first_bad_word(metadata, words);
  if (bad < words)
    return say(EDGEKD_BAD_METADATA,
               "metadata[%lld, %lld] is 0x%08x, in which a group of four names no two increasing positions: "
               "pass what sparse24.compress returned",
               static_cast<long long>(bad / (k / 32)), static_cast<long long>(bad % (k / 32)),
               static_cast<unsigned>(metadata[bad]));
  pack_sparse(values, metadata, n, k, packed);
  return EDGEKD_OK;
}

int edgekd_pack_dense(const int8_t* weights, int64_t n, int64_t k, uint8_t* packed, char* message,
                      size_t message_bytes) {
  using namespace edgekd;
  const Message say = {message, message_bytes};
  if (const int status = check_sizes(1, n, k, say)) return status;
  if (const int status = check_pointer("weights", weights, 1, say)) return status;
  if (const int status = check_pointer("packed", packed, 1, say)) return status;
  pack_dense(weights, n, k, packed);
  return EDGEKD_OK;
}

const char* edgekd_choose(int64_t m, int64_t n, int64_t k, int multiprocessors, const char** reason) {
  using namespace edgekd;
  if (check_sizes(m, n, k, {nullptr, 0}) || multiprocessors <= 0) return nullptr;
  const Choice* row = choose({m, n, k, multiprocessors});
  if (reason != nullptr) *reason = row->reason;
  return row->tile;
}

const char* const* edgekd_tiles(void) { return edgekd::kTileNames; }

}  // extern "C"
