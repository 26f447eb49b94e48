// From an int32 sum to what the next layer reads; one source for GPU and CPU.
//
//   y = float(acc) * scale[n] + bias[n]            a multiplication and an addition, each rounded once
//   int32     acc                                  before any of this, for tests
//   float16   half(y)  or  half(y + float(residual[m, n]))
//   int8      q(y)     q(y) = saturate(round_half_even(y / out_scale)), as ONNX's QuantizeLinear
//   gelu int8 q(gelu(y))
//
// No multiply-add: ONNX has none, and the same numbers must come out of Mul, Add, QuantizeLinear in any
// runtime, to the bit. GELU is the one exception: every library computes it its own way.
#pragma once

#include "layout.h"
#include "primitives.h"

namespace edgekd {

enum class Output { kInt32, kFloat16, kInt8, kGeluInt8 };

constexpr int output_bytes(Output output) {
  return output == Output::kInt32 ? 4 : output == Output::kFloat16 ? 2 : 1;
}

// A scale with what a division by it needs.
struct Quantizer {
  float scale, reciprocal;
};

EDGEKD_DEVICE Quantizer quantizer(float scale) { return {scale, divide(1.0f, scale)}; }

// round_half_even(y / scale), the division correctly rounded; `pack_saturated` takes it to int8.
//
// Three instructions instead of a division: with a correctly rounded reciprocal, one Newton step on the
// quotient gives the correctly rounded one (Markstein 1990, "Computation of elementary functions on the
// IBM RISC System/6000 processor", theorem 4.1). Outside of +-256 only the sign counts; clamping there
// keeps the remainder finite. Neither a tiny nor a subnormal quotient matters, as both round to 0.
EDGEKD_DEVICE int quantize(float y, Quantizer by) {
  const float first = minimum(maximum(multiply(y, by.reciprocal), -256.0f), 256.0f);
  const float remainder = multiply_add(-first, by.scale, y);
  return round_to_int(multiply_add(remainder, by.reciprocal, first));
}

// x Phi(x) = max(x, 0) - t Phi(-t), t = |x|, Phi the normal distribution; within 5e-7 of it for every x.
//
// Phi(-t) is a polynomial of degree 15 about the middle of 0 .. 5.25, where it fades below 1e-7, fitted
// to the least largest error of its product with t (of 1 where t is smaller). The rational erf of most
// libraries ends in a division and two selections, which cost as much again. Correctly rounded operations
// only, so that GPU and CPU agree to the bit.
EDGEKD_DEVICE float gelu(float x) {
  constexpr float kEnd = 5.25f;
  constexpr float of_u[] = {
      4.3324586e-03f,  -1.2724296e-02f, 1.6700303e-02f,  -1.2491333e-02f, 5.4151253e-03f,  -9.7084901e-04f,
      -2.9855204e-04f, 2.2911678e-04f,  -4.2447085e-05f, -1.0705628e-05f, 6.3504172e-06f,  -4.0698296e-07f,
      -3.5187819e-07f, 6.2127206e-08f,  7.9520106e-09f,  -2.0304878e-09f};
  const float t = minimum(absolute(x), kEnd);
  const float u = add(t, -0.5f * kEnd);
  float tail = of_u[15];
  EDGEKD_UNROLL for (int i = 14; i >= 0; --i) tail = multiply_add(tail, u, of_u[i]);
  return multiply_add(-t, tail, maximum(x, 0.0f));
}

// Scale and bias of the 8 features a lane ends with, and the quantizer of the output.
struct Channels {
  float scale[8], bias[8];
  Quantizer out;
};

EDGEKD_DEVICE void load_eight(float (&d)[8], const float* global) {
  EDGEKD_UNROLL for (int i = 0; i < 2; ++i) {
    float four[4];
    load_floats(four, global + 4 * i);
    EDGEKD_UNROLL for (int j = 0; j < 4; ++j) d[4 * i + j] = four[j];
  }
}

// extra: of int8 outputs the output's scale, float32[1]; of float16 the residual, float16[m, n], or null.
template <Output output>
EDGEKD_DEVICE Channels channels(const float* scale, const float* bias, const void* extra, int feature) {
  Channels c = {};
  if constexpr (output != Output::kInt32) {
    load_eight(c.scale, scale + feature);
    load_eight(c.bias, bias + feature);
  }
  if constexpr (output == Output::kInt8 || output == Output::kGeluInt8)
    c.out = quantizer(load_float(static_cast<const float*>(extra)));
  return c;
}

EDGEKD_DEVICE void store_int32(int* y, const int (&acc)[8]) {
  EDGEKD_UNROLL for (int i = 0; i < 2; ++i) {
    uint32_t words[4];
    EDGEKD_UNROLL for (int j = 0; j < 4; ++j) words[j] = static_cast<uint32_t>(acc[4 * i + j]);
    store_global(y + 4 * i, words);
  }
}

EDGEKD_DEVICE void store_float16(uint16_t* y, const uint16_t* residual, float (&value)[8]) {
  uint32_t words[4];
  if (residual != nullptr) {
    load_global(words, residual);
    EDGEKD_UNROLL for (int i = 0; i < 8; ++i)
      value[i] = add(value[i], from_half_bits(words[i / 2] >> (16 * (i % 2)) & 0xffff));
  }
  EDGEKD_UNROLL for (int i = 0; i < 4; ++i)
    words[i] = half_bits(value[2 * i]) | half_bits(value[2 * i + 1]) << 16;
  store_global(y, words);
}

template <bool with_gelu>
EDGEKD_DEVICE void store_int8(int8_t* y, const float (&value)[8], Quantizer out) {
  int q[8];
  EDGEKD_UNROLL for (int i = 0; i < 8; ++i) q[i] = quantize(with_gelu ? gelu(value[i]) : value[i], out);
  const uint32_t words[] = {pack_saturated(q[0], q[1], q[2], q[3]), pack_saturated(q[4], q[5], q[6], q[7])};
  store_global(y, words);
}

// One token's 8 features, as one vector (two for int32). `at` counts elements of y[m, n].
template <Output output>
EDGEKD_DEVICE void store(void* y, const void* extra, size_t at, const int (&acc)[8], const Channels& c) {
  if constexpr (output == Output::kInt32) {
    store_int32(static_cast<int*>(y) + at, acc);
  } else {
    float value[8];
    EDGEKD_UNROLL for (int i = 0; i < 8; ++i)
      value[i] = add(multiply(to_float(acc[i]), c.scale[i]), c.bias[i]);
    if constexpr (output == Output::kFloat16) {
      const uint16_t* residual = static_cast<const uint16_t*>(extra);
      store_float16(static_cast<uint16_t*>(y) + at, residual ? residual + at : nullptr, value);
    } else {
      store_int8<output == Output::kGeluInt8>(static_cast<int8_t*>(y) + at, value, c.out);
    }
  }
}

// What a lane holds of 8 tokens: 8 features of token and token + 1, see `eight_in_a_row` in layout.h.
// Tokens past the end are left out; this is the only place that knows m is ragged.
template <Output output>
EDGEKD_DEVICE void store_two_tokens(void* y, const void* extra, const int (&acc)[kTiles][4],
                                    const Channels& c, int token, int feature, int m, int n) {
  EDGEKD_UNROLL for (int odd = 0; odd < 2; ++odd) {
    if (token + odd >= m) break;
    int eight[8];
    EDGEKD_UNROLL for (int q = 0; q < 8; ++q) eight[q] = acc[q / 2][2 * (q % 2) + odd];
    store<output>(y, extra, static_cast<size_t>(token + odd) * n + feature, eight, c);
  }
}

}  // namespace edgekd
