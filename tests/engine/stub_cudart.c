/* A stand-in for libcudart over host memory, for the tests of the binding and of the runner. */
#include <stdlib.h>
#include <string.h>
static int devices = 1, live = 0;
static long calls = 0;
void stub_devices(int n) { devices = n; }
int stub_live(void) { return live; }
int cudaGetDeviceCount(int *n) { *n = devices; return devices < 0 ? 35 : devices ? 0 : 100; }
int cudaMalloc(void **p, size_t n) {
  if (n > ((size_t)1 << 40)) return 2;
  live++; *p = malloc(n); return 0;
}
int cudaFree(void *p) { live--; free(p); return 0; }
int cudaMemcpyAsync(void *d, const void *s, size_t n, int kind, void *stream) {
  if (kind != 1 && kind != 2) return 21;
  if (!stream) return 400;
  memcpy(d, s, n); return 0;
}
int cudaStreamCreate(void **s) { live++; *s = malloc(8); return 0; }
int cudaStreamSynchronize(void *s) { return s ? 0 : 400; }
int cudaStreamDestroy(void *s) { live--; free(s); return 0; }
int cudaEventCreate(void **e) { live++; *e = calloc(1, sizeof(long)); return 0; }
int cudaEventRecord(void *e, void *s) { if (!s) return 400; *(long *)e = ++calls; return 0; }
int cudaEventSynchronize(void *e) { return *(long *)e ? 0 : 400; }
int cudaEventElapsedTime(float *ms, void *a, void *b) {
  *ms = 0.25f * (float)(*(long *)b - *(long *)a); return 0;
}
int cudaEventDestroy(void *e) { live--; free(e); return 0; }
const char *cudaGetErrorName(int c) {
  return c == 2 ? "cudaErrorMemoryAllocation" : c == 35 ? "cudaErrorInsufficientDriver"
       : c == 400 ? "cudaErrorInvalidResourceHandle" : "cudaErrorUnknown";
}
const char *cudaGetErrorString(int c) { return c == 2 ? "out of memory" : "some other failure"; }
