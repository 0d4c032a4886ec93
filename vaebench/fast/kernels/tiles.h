// Products of matrices, tile by tile: a tile stays at hand until whoever wants it has finished it.

namespace {

// A tile of a product: rows, and vectors of columns. Its sums take 24 of 32, or 12 of 16 registers.
constexpr int M = 6, N = LANES == 16 ? 4 : 2, HIGHEST = AMX ? HIGH * SQUARE : M;

// A tile of rows and vectors of a product, and where it lies.
struct Tile {
  alignas(64) float values[HIGHEST * N * LANES];
  long row, rows, vector, vectors;

  float* operator()(long m, long n) { return values + (m * N + n) * LANES; }
};

// a (rows, depth), any strides, times b (depth, vectors), rows bk apart; numbers, or pairs of
// bfloat16. Where these are multiplied by squares, a's rows are am pairs long and lie as left_place
// says, and rows and depth are read up to whole squares: what is past the depth is 0.
struct Factors {
  const float* a;
  long am, ak;
  const float* b;
  long bk, depth;
  bool pairs = false;
};

// What is multiplied and added up to one product: one pair of factors, or two of a kind.
struct Terms {
  Factors factors[2];
  int count = 0;

  Terms(std::initializer_list<Factors> given) {
    for (const Factors& each : given) add(each);
  }

  void add(const Factors& each) { factors[count++] = each; }
  const Factors* begin() const { return factors; }
  const Factors* end() const { return factors + count; }
};

// Rows of a tile.
inline long tile_height(bool pairs) { return pairs && has_squares() ? HIGH * SQUARE : M; }
inline long tile_height(const Terms& terms) { return tile_height(terms.begin()->pairs); }

// Memory that is wanted soon, in several streams alike: prefetched line by line in between
// products. All at once it would take every place that the processor has for lines under way.
struct Prefetch {
  const float* streams[3] = {};
  long at = 0, floats = 0;

  void prefetch_line() {
    if (at >= floats) return;
    for (const float* stream : streams) __builtin_prefetch(stream + at, 0, 2);
    at += 16;
  }
};

template <bool PAIRS, int HEIGHT, int WIDTH>
void multiply(const Factors& f, Tile& tile, bool add, Prefetch& prefetch) {
  vec sum[HEIGHT][WIDTH];
  for (int m = 0; m < HEIGHT; m++)
    for (int n = 0; n < WIDTH; n++) sum[m][n] = add ? at(tile(m, n)) : vec{};
  const float *a = f.a + tile.row * f.am, *b = f.b + tile.vector * LANES;
  const auto next = [&] {
    vec right[WIDTH];
    for (int n = 0; n < WIDTH; n++) right[n] = at(b + n * LANES);
    for (int m = 0; m < HEIGHT; m++)
      if constexpr (PAIRS) {
        const ivec left = broadcast_pair(*(const pair*)(a + m * f.am));
        for (int n = 0; n < WIDTH; n++) sum[m][n] = fma_pairs(sum[m][n], left, (ivec)right[n]);
      } else {
        const vec left = broadcast(a[m * f.am]);
        for (int n = 0; n < WIDTH; n++) sum[m][n] += left * right[n];
      }
    a += f.ak, b += f.bk;
  };
  long k = 0;
  for (; k + 4 <= f.depth; k += 4) {
    prefetch.prefetch_line();
    if constexpr (unrolled(4) == 4)
      next(), next(), next(), next();
    else
#pragma GCC unroll 1
      for (int j = 0; j < 4; j++) next();
  }
  for (; k < f.depth; k++) next();
  for (int m = 0; m < HEIGHT; m++)
    for (int n = 0; n < WIDTH; n++) at(tile(m, n)) = sum[m][n];
}

template <bool PAIRS>
void multiply(const Factors& f, Tile& tile, bool add, Prefetch& prefetch) {
  with_width(tile.vectors, [&](auto w) {
    constexpr int V = min(decltype(w)::vectors, N);
    switch (tile.rows) {
      case 1: return multiply<PAIRS, 1, V>(f, tile, add, prefetch);
      case 2: return multiply<PAIRS, 2, V>(f, tile, add, prefetch);
      case 3: return multiply<PAIRS, 3, V>(f, tile, add, prefetch);
      case 4: return multiply<PAIRS, 4, V>(f, tile, add, prefetch);
      case 5: return multiply<PAIRS, 5, V>(f, tile, add, prefetch);
      default: return multiply<PAIRS, M, V>(f, tile, add, prefetch);
    }
  });
}

template <bool ADD, int R, int W>
inline void multiply_some_squares(const Factors& f, long row, long vector, float* sums, long step) {
  start_squares<R, W, ADD>(sums, step);
  const Left left{f.a + row * f.am, SQUARE, SQUARE * f.am, SQUARE * SQUARE};
  add_squares<R, W>(left, f.b + vector * LANES, f.bk, f.depth);
  store_squares<R, W>(sums, step);
}

// sums (rows `step` apart), from a row and a vector on, = a b by squares, or has it added.
template <bool ADD>
void multiply_squares(const Factors& f, long row, long rows, long vector, long vectors, float* sums,
                      long step) {
  for (long n = 0; n < vectors; n += 2) {
    const bool high = rows > SQUARE, wide = n + 1 < vectors;
    const auto some = high && wide ? multiply_some_squares<ADD, 2, 2>
                      : high       ? multiply_some_squares<ADD, 2, 1>
                      : wide       ? multiply_some_squares<ADD, 1, 2>
                                   : multiply_some_squares<ADD, 1, 1>;
    some(f, row, vector + n, sums + n * LANES, step);
  }
}

// tile = a b, or has it added.
void multiply(const Factors& f, Tile& tile, bool add, Prefetch& prefetch) {
  if constexpr (AMX)
    if (f.pairs && has_squares())
      return (add ? multiply_squares<true> : multiply_squares<false>)(
          f, tile.row, tile.rows, tile.vector, tile.vectors, tile.values, N * LANES);
  if constexpr (BF16)
    if (f.pairs) return multiply<true>(f, tile, add, prefetch);
  multiply<false>(f, tile, add, prefetch);
}

// The tiles of some rows of a product of (rows, vectors), or of the sum of several: `finish` takes
// each.
template <class Finish>
void product_of_rows(long row, long rows, long vectors, const Terms& terms, Prefetch prefetch,
                     Finish finish) {
  Tile tile;
  tile.row = row, tile.rows = min(tile_height(terms), rows - row);
  for (long n = 0; n < vectors; n += N) {
    tile.vector = n, tile.vectors = min(N, vectors - n);
    for (const Factors& term : terms) multiply(term, tile, &term != terms.begin(), prefetch);
    finish(tile);
  }
}

// A whole product; `next` names memory that the tiles from a row on will want. For all threads of a
// team; they do not wait for each other at the end. A thread has the same rows every time: they are
// in its own cache.
template <class Next, class Finish>
void product(long rows, long vectors, const Terms& terms, Next next, Finish finish) {
  const long height = tile_height(terms);
#pragma omp for schedule(static) nowait
  for (long row = 0; row < rows; row += height)
    product_of_rows(row, rows, vectors, terms, next(row + height), finish);
}

// The same, for one thread.
template <class Finish>
void product_alone(long rows, long vectors, const Terms& terms, Finish finish) {
  for (long row = 0; row < rows; row += M)
    product_of_rows(row, rows, vectors, terms, Prefetch(), finish);
}

inline Prefetch no_prefetch(long) { return {}; }

}  // namespace
