// log p(x|z) of a Bernoulli likelihood and its slope, in one pass; see likelihood.py for the reasons.
//
// With e = exp(-|l|) of a logit l: sigmoid(l) = 1 / (1 + e), or e / (1 + e) below zero, and
// log(1 - sigmoid(l)) = -(max(l, 0) + log(1 + e)). The logarithms of a row are one: that of the
// product of all 1 + e, whose exponent is counted apart before it can overflow.
//
// Plain C++ with vector extensions (GCC, Clang) and OpenMP; no headers of torch's.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr long CHUNK = 64;           // factors of 1 to 2 that surely fit into a float
constexpr float LOWEST = -87.0f;     // exp of it is the least normal float, nearly
constexpr double LN2 = 0.6931471805599453;

inline vec all(float value) { return vec{} + value; }

// exp of numbers from LOWEST to 0, to 1e-7 of it: 2^n exp(r), |r| <= ln(2) / 2, by Taylor's series.
inline vec exp_below_zero(vec t) {
  const ivec n = __builtin_convertvector(t * 1.44269504f - 0.5f, ivec);  // towards zero: nearest
  const vec r = t - __builtin_convertvector(n, vec) * 0.69314718f;
  vec sum = all(1.0f / 5040);
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  return sum * (vec)((n + 127) << 23);
}

struct Row {
  vec linear = {};       // sums of x l - max(l, 0)
  vec product = all(1);  // of 1 + e, without its exponent
  ivec exponent = {};

  // Take up one vector of logits and pixels; give x - sigmoid(l).
  vec add(vec l, vec x) {
    const vec zero = {};
    const vec size = l < 0 ? l : -l;  // -|l|; what is not a number stays so
    const vec e = exp_below_zero(size < LOWEST ? all(LOWEST) : size);
    const vec share = 1.0f / (1.0f + e);
    linear += x * l - (l > 0 ? l : zero);
    product *= 1.0f + e;
    return x - (l < 0 ? e * share : share);
  }

  void count_exponent() {
    const ivec bits = (ivec)product;
    exponent += (bits >> 23) - 127;
    product = (vec)((bits & 0x007fffff) | 0x3f800000);
  }

  float value() {
    count_exponent();
    double sum = 0, left = 1;
    for (int k = 0; k < LANES; k++) {
      sum += linear[k] - LN2 * exponent[k];
      left *= product[k];
    }
    return (float)(sum - std::log(left));
  }
};

}  // namespace

// recon (rows) = sum over pixels of log p(x|z); slope (rows, pixels) = its gradient by the logits.
extern "C" void vaebench_bernoulli(long rows, long pixels, const float* logits, const float* x,
                                   float* recon, float* slope) {
  const long whole = pixels / LANES, rest = pixels % LANES;
#pragma omp parallel for schedule(static)
  for (long row = 0; row < rows; row++) {
    const float* l = logits + row * pixels;
    const float* p = x + row * pixels;
    float* to = slope + row * pixels;
    Row sums;
    for (long i = 0; i < whole; i++) {
      *(vec*)(to + i * LANES) = sums.add(*(const vec*)(l + i * LANES), *(const vec*)(p + i * LANES));
      if (i % CHUNK == CHUNK - 1) sums.count_exponent();
    }
    if (rest) {  // filled up with dark pixels that are surely so: they add nothing
      vec last = all(LOWEST), pixel = {};
      std::memcpy(&last, l + whole * LANES, rest * sizeof(float));
      std::memcpy(&pixel, p + whole * LANES, rest * sizeof(float));
      const vec slopes = sums.add(last, pixel);
      std::memcpy(to + whole * LANES, &slopes, rest * sizeof(float));
    }
    recon[row] = sums.value();
  }
}
