// Elementary functions of vectors, and pixels as numbers.

namespace {

inline vec sqrt(vec x) {
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_sqrt_ps(-1, (__m512)x);
#elif defined(__AVX__)
  return (vec)_mm256_sqrt_ps((__m256)x);
#else
  for (int k = 0; k < LANES; k++) x[k] = std::sqrt(x[k]);
  return x;
#endif
}

inline vec abs(vec x) { return x < 0 ? -x : x; }

// exp(t) - 1, to the last digits near 0.
inline vec expm1(vec t) {
  const vec below = exp_nonpositive(t > 0 ? -t : t);
  const vec far = (t > 0 ? 1.0f / below : below) - 1.0f;
  vec near = broadcast(1.0f / 40320);
  near = near * t + 1.0f / 5040;
  near = near * t + 1.0f / 720;
  near = near * t + 1.0f / 120;
  near = near * t + 1.0f / 24;
  near = near * t + 1.0f / 6;
  near = near * t + 0.5f;
  near = near * t + 1.0f;
  const vec found = abs(t) < 0.5f ? near * t : far;
  return t > 88.7f ? broadcast(INFINITY) : found;
}

inline vec tanh(vec x) {
  const vec e = expm1(-2 * abs(x));
  const vec size = -e / (e + 2.0f);
  return x < 0 ? -size : size;
}

// The first `live` lanes of x, and `rest` after them.
inline vec mask(vec x, long live, vec rest = vec{}) {
  if (live >= LANES) return x;
  ivec lane;
  for (int k = 0; k < LANES; k++) lane[k] = k;
  return lane < (int32_t)live ? x : rest;
}

// Pixels as numbers in [0, 1]; bytes as vaebench.data.loader.to_unit scales them.
struct Scale {
  float of[256];
  Scale() {
    for (int p = 0; p < 256; p++) of[p] = p / 255.0f;
  }
};
const Scale SCALE;

inline float to_unit(uint8_t p) { return SCALE.of[p]; }
inline float to_unit(float p) { return p; }

inline vec load_unit(const float* p) { return at(p); }
inline vec load_unit(const uint8_t* p) {
  typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
  return __builtin_convertvector(__builtin_convertvector(*(const bytes*)p, ivec), vec) / 255.0f;
}

}  // namespace
