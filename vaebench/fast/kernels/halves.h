// Numbers of float32 or bfloat16, which is its upper half, as vectors of float32.

namespace {

typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline vec load_numbers(const float* from, long count) {
  return count >= LANES ? at(from) : load_part(from, count);
}

inline vec widened(halves x) { return (vec)(__builtin_convertvector(x, uvec) << 16); }

inline vec load_numbers(const uint16_t* from, long count) {
  if (count >= LANES) return widened(*(const halves*)from);
  halves x = {};
  std::memcpy((void*)&x, from, count * sizeof *from);
  return widened(x);
}

inline void store_numbers(float* to, vec x, long count) { store<1>(to, &x, count); }

// Pairs of two images' numbers; `odd` may be null.
inline void interleave(const uint16_t* even, const uint16_t* odd, long count, uint32_t* to) {
  if (odd)
    for (long k = 0; k < count; k++) to[k] = even[k] | (uint32_t)odd[k] << 16;
  else
    for (long k = 0; k < count; k++) to[k] = even[k];
}

// The same, of a vector: written as the loop above, it takes 1.4 times as long.
inline vec interleaved(const uint16_t* even, const uint16_t* odd) {
  const uvec low = __builtin_convertvector(*(const halves*)even, uvec);
  const uvec high = odd ? __builtin_convertvector(*(const halves*)odd, uvec) : uvec{};
  return (vec)(low | high << 16);
}

// Rounded to the nearest, of two the even one.
inline halves narrowed(vec x) {
#if defined(__AVX512BF16__)
  return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
  const uvec bits = (uvec)x, nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(x == x ? nearest : bits >> 16 | 0x40, halves);
#endif
}

inline void store_numbers(uint16_t* to, vec x, long count) {
  const halves narrow = narrowed(x);
  if (count >= LANES)
    *(halves*)to = narrow;
  else
    std::memcpy(to, (const void*)&narrow, count * sizeof *to);
}

}  // namespace
