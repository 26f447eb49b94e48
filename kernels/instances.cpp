// What a loader must know of each kernel and a cubin does not say, from the sources, as JSON.
//
// The shared memory of a launch, its grid and what the arguments are lie in templates and in launch.cu;
// a TensorRT plugin, or a program that calls cuModuleLoad, has neither.
#include "interface.h"

#define EDGEKD_TEXT(...) #__VA_ARGS__
#define EDGEKD_TEXT_OF(...) EDGEKD_TEXT(__VA_ARGS__)
#define EDGEKD_OUTPUT_NAME(output, suffix, ...) #suffix,

int main() {
  const char* const outputs[] = {EDGEKD_OUTPUTS(EDGEKD_OUTPUT_NAME)};
  std::printf("{\"arguments\": \"%s\",\n", EDGEKD_TEXT_OF(EDGEKD_GEMM_PARAMETERS));
  std::printf(" \"grid\": \"n / features, ceil(m / tokens)\",\n \"kernels\": {");
  const char* comma = "";
  for (const edgekd::Instance& i : edgekd::kInstances) {
    std::printf("%s\n  \"%s\": {\"kind\": \"%s\", \"tile\": \"%s\", \"output\": \"%s\", "
                "\"block_threads\": %d, \"dynamic_shared_bytes\": %d, \"needs_shared_attribute\": %s, "
                "\"features\": %d, \"tokens\": %d, \"k_multiple\": %d}",
                comma, i.name, i.kind == EDGEKD_SPARSE ? "sparse" : "dense", i.tile, outputs[i.output],
                i.threads, i.shared_bytes, i.shared_bytes > 48 * 1024 ? "true" : "false", i.features,
                i.tokens, i.k);
    comma = ",";
  }
  std::printf("}}\n");
}
