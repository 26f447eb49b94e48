// From an int32 sum to what the next layer reads; one source for GPU and CPU.
//
//   y = float(acc) * scale[n] + bias[n]            a multiplication and an addition, each rounded once
//   int32     acc                                  before any of this, for tests
//   float16   half(y)  or  half(y + float(residual[m, n]))
//   int8      q(y)     q(y) = saturate(round_half_even(y / out_scale)), as ONNX's QuantizeLinear
//   gelu int8 q(gelu(y))
//
// No multiply-add: ONNX has none, and the same numbers must come out of Mul, Add, QuantizeLinear in any
// runtime, to the bit. GELU is the one exception: every library has an erf of its own.
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

// saturate(round_half_even(y / scale)), the division correctly rounded.
//
// Three instructions instead of a division: with a correctly rounded reciprocal, one Newton step on the
// quotient gives the correctly rounded one (Markstein 1990, "Computation of elementary functions on the
// IBM RISC System/6000 processor", theorem 4.1). Outside of +-256 only the sign counts; clamping there
// keeps the remainder finite. Neither a tiny nor a subnormal quotient matters, as both round to 0.
EDGEKD_DEVICE int quantize(float y, Quantizer by) {
  const float first = minimum(maximum(multiply(y, by.reciprocal), -256.0f), 256.0f);
  const float remainder = multiply_add(-first, by.scale, y);
  const float quotient = multiply_add(remainder, by.reciprocal, first);
  return round_to_int(minimum(maximum(quotient, -128.0f), 127.0f));
}

// x / 2 * (1 + erf(x / sqrt(2))); erf as the rational function of degree 13 over 8 that Eigen and XLA
// use, within 3e-7 of erf. Correctly rounded operations only, so GPU and CPU agree to the bit.
EDGEKD_DEVICE float gelu(float x) {
  constexpr float kEnd = 3.832506856900711f;  // erf is 1 from here on, in float32
  const float z = minimum(maximum(multiply(x, 0.70710678118654752f), -kEnd), kEnd);
  const float z2 = multiply(z, z);
  const float above[] = {-2.72614225801306e-10f, 2.77068142495902e-08f, -2.10102402082508e-06f,
                         -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                         -1.60960333262415e-02f};
  const float below[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                         -7.37332916720468e-03f, -1.42647390514189e-02f};
  float p = above[0];
  EDGEKD_UNROLL for (int i = 1; i < 7; ++i) p = multiply_add(z2, p, above[i]);
  float q = below[0];
  EDGEKD_UNROLL for (int i = 1; i < 5; ++i) q = multiply_add(z2, q, below[i]);
  // Without the exact ends a large negative x would leave half a last bit of itself.
  const float inside = divide(multiply(z, p), q);
  const float erf = z >= kEnd ? 1.0f : z <= -kEnd ? -1.0f : inside;
  const float half_x = multiply(x, 0.5f);
  return multiply_add(half_x, erf, half_x);
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
  uint32_t words[2] = {};
  EDGEKD_UNROLL for (int i = 0; i < 8; ++i) {
    const int q = quantize(with_gelu ? gelu(value[i]) : value[i], out);
    words[i / 4] |= static_cast<uint32_t>(q & 255) << (8 * (i % 4));
  }
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
