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

// log of normal numbers above 0: of 2^e m, with m around 1, by s = (m - 1) / (m + 1).
inline vec log(vec x) {
  const ivec e = ((ivec)x - 0x3f3504f3) >> 23;  // of the root of 1/2
  const vec f = (vec)((ivec)x - (e << 23)) - 1.0f;
  const vec s = f / (f + 2.0f), z = s * s;
  vec sum = broadcast(1.0f / 11);
  sum = sum * z + 1.0f / 9;
  sum = sum * z + 1.0f / 7;
  sum = sum * z + 1.0f / 5;
  sum = sum * z + 1.0f / 3;
  return __builtin_convertvector(e, vec) * 0.69314718f + 2.0f * (s + s * z * sum);
}

inline vec sigmoid(vec x) {
  const vec e = exp_nonpositive(-abs(x));
  return (x < 0 ? e : broadcast(1)) / (e + 1.0f);
}

// log(1 + exp(x)), to the last digits where it is near 0.
inline vec softplus(vec x) {
  const vec e = exp_nonpositive(-abs(x)), sum = e + 1.0f, rounded = sum - 1.0f;
  const vec log1p = rounded > 0 ? log(sum) * (e / (rounded > 0 ? rounded : e)) : e;
  return (x > 0 ? x : vec{}) + log1p;
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

// Exactly p / 255, which takes a divider three times as long.
inline vec to_unit(vec p) {
#if defined(__FMA__)
  const vec near = p * (1 / 255.0f);
  return near + (p - near * 255.0f) * (1 / 255.0f);
#else
  return p / 255.0f;
#endif
}

inline vec load_unit(const float* p) { return at(p); }
inline void store_unit(float* p, vec x) { at(p) = x; }
inline vec load_unit(const uint8_t* p) {
  typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
  return to_unit(__builtin_convertvector(__builtin_convertvector(*(const bytes*)p, ivec), vec));
}
inline void store_unit(uint8_t* p, vec x) {
  typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
  *(bytes*)p = __builtin_convertvector(__builtin_convertvector(x * 255.0f + 0.5f, ivec), bytes);
}

// The first `count` of a vector's pixels, zeros after them.
template <class Pixel>
inline vec load_units(const Pixel* p, long count) {
  if (count >= LANES) return load_unit(p);
  Pixel part[LANES] = {};
  std::memcpy(part, p, count * sizeof(Pixel));
  return load_unit(part);
}

}  // namespace
