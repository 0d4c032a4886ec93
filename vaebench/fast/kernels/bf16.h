// Products of bfloat16 factors, whose sums stay float32, on processors that have instructions for
// them: each takes a pair of neighbours along the sum at once. So factors lie in pairs, a pair in
// the place of a float.

namespace {

typedef int32_t pair __attribute__((may_alias));

#if defined(__AVX512BF16__)
constexpr bool BF16 = true;

inline __m512i widen_bf16(vec x) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
}

// Pairs of two rows' values.
inline ivec pack_pairs(vec even, vec odd) {
  return (ivec)_mm512_or_si512(widen_bf16(even), _mm512_slli_epi32(widen_bf16(odd), 16));
}

// A row's values, whose neighbours are its pairs: to half a vector.
inline void store_bf16(float* to, vec x) {
  const __m256bh bf16 = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy((void*)to, (const void*)&bf16, sizeof bf16);
}

inline vec fma_pairs(vec sum, ivec left, ivec right) {
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}
#else
constexpr bool BF16 = false;

inline ivec pack_pairs(vec, vec) { return ivec{}; }
inline void store_bf16(float*, vec) {}
inline vec fma_pairs(vec sum, ivec, ivec) { return sum; }
#endif

inline uint16_t to_bf16(float x) {
  float pair[LANES / 2];
  store_bf16(pair, broadcast(x));
  return ((const uint16_t*)pair)[0];
}

inline ivec& pairs_at(float* p) { return *(ivec*)p; }
inline ivec broadcast_pair(pair value) { return ivec{} + value; }

}  // namespace
