// Products of squares of bfloat16 pairs (AMX), on processors that have them: 16 rows of 16 pairs
// times 16 rows of 16 pairs, at ten times the rate of vectors.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define VAEBENCH_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr long SQUARE = 16, HIGH = 2;  // numbers on a side; squares that a tile is high

// A left factor: rows of a square lie `step` floats apart; `down`, and `across` along the sum, is
// the next square.
struct Left {
  const float* from;
  long step, down, across;
};

#if defined(VAEBENCH_AMX)
constexpr bool AMX = true;
constexpr int LEFT = 4, RIGHT = 6;  // registers of factors; sums' lie before them

// Linux gives a process the squares' registers when it asks for them.
inline bool ask_for_squares() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

const bool SQUARES = ask_for_squares();
inline bool has_squares() { return SQUARES; }

// While it lives, the thread that made it may multiply squares; left factors and sums have so many
// rows.
struct Squares {
  const bool ready;

  explicit Squares(bool wanted, long rows = SQUARE) : ready(wanted && has_squares()) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = i < RIGHT ? rows : SQUARE;
    if (ready) asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Squares() {
    if (ready) asm volatile("tilerelease");
  }
};

// Registers by number; rows of a square lie `step` floats apart.
template <int TO>
inline void zero_square() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TO));
}

template <int TO>
inline void load_square(const float* from, long step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(4 * step), "i"(TO) : "memory");
}

template <int FROM>
inline void store_square(float* to, long step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(4 * step), "i"(FROM) : "memory");
}

template <int SUM, int A, int B>
inline void multiply_square() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

// Call `use` with 0, 1 and so on, as constants.
template <int COUNT, class Use>
inline void repeat(Use use) {
  if constexpr (COUNT > 1) repeat<COUNT - 1>(use);
  use(Width<COUNT - 1>());
}

// Squares of sums, R by W of them, in the first registers; as many rows and vectors in memory.
template <int R, int W, bool ADD = false>
inline void start_squares(const float* from = nullptr, long step = 0) {
  repeat<R * W>([&](auto s) {
    constexpr int S = decltype(s)::vectors;
    if constexpr (ADD)
      load_square<S>(from + S / W * SQUARE * step + S % W * SQUARE, step);
    else
      zero_square<S>();
  });
}

template <int R, int W>
inline void store_squares(float* to, long step) {
  repeat<R * W>([&](auto s) {
    constexpr int S = decltype(s)::vectors;
    store_square<S>(to + S / W * SQUARE * step + S % W * SQUARE, step);
  });
}

// Add a left factor (rows, depth) times b (depth, vectors), rows bk apart. Whole squares are read:
// the depth is rounded up.
template <int R, int W>
inline void add_squares(const Left& a, const float* b, long bk, long depth) {
  static_assert(R * W <= LEFT && LEFT + R <= RIGHT);
  for (long k = 0; k < depth; k += SQUARE) {
    repeat<R>([&](auto r) {
      constexpr int M = decltype(r)::vectors;
      load_square<LEFT + M>(a.from + M * a.down + k / SQUARE * a.across, a.step);
    });
    repeat<W>([&](auto w) {
      constexpr int N = decltype(w)::vectors, B = RIGHT + N % 2;
      load_square<B>(b + k * bk + N * SQUARE, bk);
      repeat<R>([&](auto r) {
        constexpr int M = decltype(r)::vectors;
        multiply_square<M * W + N, LEFT + M, B>();
      });
    });
  }
}

// Pairs of 16 by 32 weights, fewer at the edges: to left factors, a square of pairs along their
// rows, and halves of two along their columns.
inline void pair_weights(const float* weight, long step, long rows, long columns, float* along_rows,
                         float* along_columns, float* next_columns) {
  const auto part = [&](long m, long first) {
    vec x = {};
    if (m < rows && first < columns) load<1>(&x, weight + m * step + first, columns - first);
    return (__m512)x;
  };
  vec pairs[LANES];
  for (long m = 0; m < SQUARE; m += 2) {
    const __m512i even = (__m512i)_mm512_cvtne2ps_pbh(part(m, LANES), part(m, 0));
    const __m512i odd = (__m512i)_mm512_cvtne2ps_pbh(part(m + 1, LANES), part(m + 1, 0));
    _mm512_storeu_si512(along_rows + m * SQUARE, even);
    _mm512_storeu_si512(along_rows + (m + 1) * SQUARE, odd);
    // Of each eight columns the first four, then the last.
    pairs[m / 2] = (vec)_mm512_unpacklo_epi16(even, odd);
    pairs[LANES / 2 + m / 2] = (vec)_mm512_unpackhi_epi16(even, odd);
  }
  transpose(pairs);
  for (long k = 0; k < LANES; k++) {
    const long column = k / 4 * 8 + k % 4;
    float* to = column < LANES ? along_columns + column * SQUARE
                               : next_columns + (column - LANES) * SQUARE;
    _mm256_storeu_ps(to, _mm512_castps512_ps256((__m512)pairs[k]));
    _mm256_storeu_ps(to + 4 * SQUARE, _mm512_extractf32x8_ps((__m512)pairs[k], 1));
  }
}
#else
constexpr bool AMX = false;

inline bool has_squares() { return false; }

struct Squares {
  explicit Squares(bool) {}
};

template <int R, int W, bool ADD = false>
void start_squares(const float* = nullptr, long = 0) {}
template <int R, int W>
void store_squares(float*, long) {}
template <int R, int W>
void add_squares(const Left&, const float*, long, long) {}
inline void pair_weights(const float*, long, long, long, float*, float*, float*) {}
#endif

// Where a pair lies in (rows, depth) to be a left factor: square by square, if there are any.
inline long left_place(long row, long pair, long depth) {
  if (!has_squares()) return row * depth + pair;
  const long square = row / SQUARE * depth + pair / SQUARE * SQUARE;
  return square * SQUARE + row % SQUARE * SQUARE + pair % SQUARE;
}

// Whether a sum over so many pairs is one of whole squares.
inline bool fills_squares(long pairs) { return has_squares() && pairs % SQUARE == 0; }

}  // namespace
