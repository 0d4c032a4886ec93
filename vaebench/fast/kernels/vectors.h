// Vectors as the compiler's own extension has them (GCC, Clang), for any processor; and exp.
// The kernels' sources are put together from this and what follows it: see
// vaebench/system/toolchain.py.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// How often to unroll a loop over products whose sums stay in registers: with half of AVX-512's, GCC
// keeps the sums of an unrolled loop in memory.
constexpr int unrolled(int times) { return LANES == 16 ? times : 1; }

constexpr float LOWEST = -87.0f;  // exp of it is the least normal float, nearly

constexpr long min(long a, long b) { return a < b ? a : b; }
constexpr long max(long a, long b) { return a > b ? a : b; }
constexpr long ceil_div(long n, long size) { return (n + size - 1) / size; }
constexpr long round_up(long n, long to) { return ceil_div(n, to) * to; }

// Not `vec{} + value`, which changes the sign of -0: it would be an addition, not only a load.
inline vec broadcast(float value) { return value - vec{}; }
inline vec& at(float* p) { return *(vec*)p; }
inline const vec& at(const float* p) { return *(const vec*)p; }

inline float horizontal_sum(vec x) {
  float sum = 0;
  for (int k = 0; k < LANES; k++) sum += x[k];
  return sum;
}

// The same, by halves: quicker, the terms in another order.
inline float tree_sum(const vec& x) {
  typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
  typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
  eight parts = *(const eight*)&x;
  if constexpr (LANES == 16) parts += *((const eight*)&x + 1);
  const four sum = *(const four*)&parts + *((const four*)&parts + 1);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

#if !defined(__clang__)
// Squares of SIZE by SIZE: of each four, the two off the diagonal change places.
template <int SIZE>
inline void swap_blocks(vec (&rows)[LANES]) {
  ivec upper, lower;
#pragma GCC unroll 16
  for (int k = 0; k < LANES; k++) {
    upper[k] = k & SIZE ? LANES + k - SIZE : k;
    lower[k] = k & SIZE ? LANES + k : k + SIZE;
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) {
    if (i & SIZE) continue;
    const vec a = rows[i], b = rows[i + SIZE];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + SIZE] = __builtin_shuffle(a, b, lower);
  }
}
#endif

// Transpose a square of numbers.
inline void transpose(vec (&rows)[LANES]) {
#if defined(__clang__)
  for (int i = 0; i < LANES; i++)
    for (int k = 0; k < i; k++) {
      const float number = rows[i][k];
      rows[i][k] = rows[k][i], rows[k][i] = number;
    }
#else
  swap_blocks<1>(rows), swap_blocks<2>(rows), swap_blocks<4>(rows);
  if constexpr (LANES == 16) swap_blocks<LANES / 2>(rows);
#endif
}

// The first `count` numbers of a vector, zeros after them; fewer than LANES.
inline vec load_part(const float* from, long count) {
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_loadu_ps((1 << count) - 1, from);
#else
  vec x = {};
  std::memcpy((void*)&x, from, count * sizeof(float));
  return x;
#endif
}

inline void store_part(float* to, vec x, long count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (1 << count) - 1, (__m512)x);
#else
  std::memcpy(to, (const void*)&x, count * sizeof(float));
#endif
}

// `columns` of W vectors' numbers; fewer at the right edge of a matrix.
template <int W>
inline void load(vec* to, const float* from, long columns) {
  if (columns >= W * LANES) {
    for (int k = 0; k < W; k++) to[k] = at(from + k * LANES);
  } else if constexpr (W == 1) {
    *to = load_part(from, columns);
  } else {
    std::memset((void*)to, 0, W * sizeof(vec));
    std::memcpy((void*)to, from, columns * sizeof(float));
  }
}

template <int W>
inline void store(float* to, const vec* from, long columns) {
  if (columns >= W * LANES) {
    for (int k = 0; k < W; k++) at(to + k * LANES) = from[k];
  } else if constexpr (W == 1) {
    store_part(to, *from, columns);
  } else {
    std::memcpy(to, (const void*)from, columns * sizeof(float));
  }
}

// Prefetch parts of some rows of a matrix that will be wanted soon. They lie too far apart for the
// processor to foresee them.
inline void prefetch(const float* at, long rows, long width, long columns) {
  for (long j = 0; j < rows; j++)
    for (long k = 0; k < columns; k += 16) __builtin_prefetch(at + j * width + k, 0, 2);
}

// exp of numbers up to 0, to 1e-7 of it, of those below LOWEST that of LOWEST: 2^n exp(r), with
// |r| <= ln(2) / 2, by Taylor's series. What is not a number stays so.
inline vec exp_nonpositive(vec t) {
  t = t < LOWEST ? broadcast(LOWEST) : t;
  const ivec n = __builtin_convertvector(t * 1.44269504f - 0.5f, ivec);  // towards zero: nearest
  const vec r = t - __builtin_convertvector(n, vec) * 0.69314718f;
  vec sum = broadcast(1.0f / 5040);
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  return sum * (vec)((n + 127) << 23);
}

template <int N>
struct Width {
  static constexpr int vectors = N;
};

// Call `use` with the number of vectors, one to ten, as a constant.
template <class Use>
void with_width(long vectors, Use use) {
  switch (vectors) {
    case 1: return use(Width<1>());
    case 2: return use(Width<2>());
    case 3: return use(Width<3>());
    case 4: return use(Width<4>());
    case 5: return use(Width<5>());
    case 6: return use(Width<6>());
    case 7: return use(Width<7>());
    case 8: return use(Width<8>());
    case 9: return use(Width<9>());
    default: return use(Width<10>());
  }
}

}  // namespace
