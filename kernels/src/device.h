// The GPU's primitives: one PTX instruction a wrapper, shapes in the types. emulator.h has the same
// names for a CPU; kernels are written against these names alone.
#pragma once

#include <cstdint>

#define EDGEKD_KERNEL extern "C" __global__
#define EDGEKD_DEVICE __device__ __forceinline__
#define EDGEKD_UNROLL _Pragma("unroll")

namespace edgekd {

EDGEKD_DEVICE int thread_index() { return threadIdx.x; }
EDGEKD_DEVICE int block_x() { return blockIdx.x; }
EDGEKD_DEVICE int block_y() { return blockIdx.y; }

// Shared memory is addressed by its 32-bit offset, as the instructions take it.
EDGEKD_DEVICE uint32_t shared_base() {
  extern __shared__ __align__(128) unsigned char shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

EDGEKD_DEVICE void barrier() { __syncthreads(); }
EDGEKD_DEVICE void warp_barrier() { __syncwarp(); }

// 16 bytes global -> shared, past L1; lands some time before wait_copies says so.
EDGEKD_DEVICE void copy_async(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
EDGEKD_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of this thread's groups are in flight. Other threads see what landed after a
// barrier only.
template <int pending>
EDGEKD_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8 x 16-byte matrices: lane 8 i + j gives the address of row j of matrix i; lane 4 g + t receives
// bytes 4t .. 4t + 3 of row g of matrix i in d[i]. That is operand B of 8 tokens and 64 of k.
EDGEKD_DEVICE void load_matrices(uint32_t (&d)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared)
               : "memory");
}

EDGEKD_DEVICE void load_shared(uint32_t (&d)[4], uint32_t shared) {
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared)
               : "memory");
}
EDGEKD_DEVICE void store_shared(uint32_t shared, const int (&s)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(shared), "r"(s[0]), "r"(s[1]), "r"(s[2]),
               "r"(s[3])
               : "memory");
}

// Weights are read once by a block: they leave L1 to the tokens.
EDGEKD_DEVICE void load_weights(uint32_t (&d)[4], const void* global) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "l"(global));
}
EDGEKD_DEVICE void load_floats(float (&d)[4], const float* global) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(global));
  d[0] = v.x, d[1] = v.y, d[2] = v.z, d[3] = v.w;
}
EDGEKD_DEVICE float load_float(const float* global) { return __ldg(global); }
EDGEKD_DEVICE void load_global(uint32_t (&d)[4], const void* global) {
  const uint4 v = *reinterpret_cast<const uint4*>(global);
  d[0] = v.x, d[1] = v.y, d[2] = v.z, d[3] = v.w;
}
EDGEKD_DEVICE void store_global(void* global, const uint32_t (&s)[2]) {
  *reinterpret_cast<uint2*>(global) = make_uint2(s[0], s[1]);
}
EDGEKD_DEVICE void store_global(void* global, const uint32_t (&s)[4]) {
  *reinterpret_cast<uint4*>(global) = make_uint4(s[0], s[1], s[2], s[3]);
}

// d[16 x 8] += a[16 x 64, 2:4] b[64 x 8]; `metadata` says which two of each four of k are kept (layout.h).
//
// k64 and not k32: the shorter form takes half the multiplications an instruction, and on A100 does not
// reach the peak. Its last operand, the sparsity selector, says which lanes of a quad supply metadata;
// here all four do, and 0 is all there is to say. Ordered metadata is native on every architecture from
// sm_80, the unordered form is emulated in software from sm_100; two positions that do not increase are
// undefined behaviour, which the packing refuses and the emulator reports. Sums wrap.
EDGEKD_DEVICE void mma_sparse(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                              uint32_t metadata) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata));
}

// d[16 x 8] += a[16 x 32] b[32 x 8]
EDGEKD_DEVICE void mma_dense(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Arithmetic by name, each rounded once to nearest even: no compiler flag may contract it.
EDGEKD_DEVICE float to_float(int a) { return __int2float_rn(a); }
EDGEKD_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
EDGEKD_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
EDGEKD_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
EDGEKD_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
EDGEKD_DEVICE float absolute(float a) { return fabsf(a); }
EDGEKD_DEVICE float minimum(float a, float b) { return fminf(a, b); }
EDGEKD_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
// To the nearest, ties to even; past the ends of int the end, and of NaN 0.
EDGEKD_DEVICE int round_to_int(float a) { return __float2int_rn(a); }
// Four ints saturated to int8, the first in the lowest byte.
EDGEKD_DEVICE uint32_t pack_saturated(int a, int b, int c, int d) {
  uint32_t packed;
  asm("{ .reg .b32 upper;\n"
      "  cvt.pack.sat.s8.s32.b32 upper, %4, %3, 0;\n"
      "  cvt.pack.sat.s8.s32.b32 %0, %2, %1, upper; }"
      : "=r"(packed)
      : "r"(a), "r"(b), "r"(c), "r"(d));
  return packed;
}
EDGEKD_DEVICE uint32_t half_bits(float a) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(a));
  return bits;
}
EDGEKD_DEVICE float from_half_bits(uint32_t a) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(a)));
  return value;
}

}  // namespace edgekd
