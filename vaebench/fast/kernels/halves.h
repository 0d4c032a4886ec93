// Products of bfloat16 factors, whose sums stay float32, on processors that have instructions for
// them: each takes a pair of neighbours along the sum at once. So factors lie in pairs, a pair in
// the place of a float.

namespace {

typedef int32_t pair __attribute__((may_alias));

#if defined(__AVX512BF16__)
constexpr bool HALVES = true;

inline __m512i widened(vec x) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
}

// Pairs of two rows' numbers.
inline ivec paired(vec even, vec odd) {
  return (ivec)_mm512_or_si512(widened(even), _mm512_slli_epi32(widened(odd), 16));
}

// A row's numbers, whose neighbours are its pairs: to half a vector.
inline void store_row(float* to, vec x) {
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy((void*)to, (const void*)&halves, sizeof halves);
}

inline vec add_pairs(vec sum, pair left, ivec right) {
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(left), (__m512bh)right);
}
#else
constexpr bool HALVES = false;

inline ivec paired(vec, vec) { return ivec{}; }
inline void store_row(float*, vec) {}
inline vec add_pairs(vec sum, pair, ivec) { return sum; }
#endif

inline ivec& pairs_at(float* p) { return *(ivec*)p; }

// One layer's numbers in pairs, to be multiplied forward, backward, and for its weights' gradient.
struct Halves {
  float *weight_rows, *weight_pairs;  // (out, width / 2) along in; (out / 2, width) along out
  float *features, *images;           // (in / 2, stride) along in; (BLOCK / 2, width) along images
  float *slope_rows, *slope_pairs;    // (out, stride / 2) along images; (out / 2, stride) along out
  long width;                         // in, rounded up to whole vectors
};

}  // namespace
