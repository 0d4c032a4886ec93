// A convolution, down or up, tile by tile: rows are positions of images, columns channels.

namespace {

// A live tap of a class: where its source lies, in elements, and its packed weights.
template <class T>
struct Tap {
  long offset;
  const float* weights;
};

// Sums of H rows and W vectors, over taps and channels. rows: elements of each row's first tap.
template <class T, int H, int W>
void multiply_taps(const typename T::element* const* rows, const vector<Tap<T>>& taps, long depth,
                   const vec* start, vec (&sum)[H][W]) {
  for (int m = 0; m < H; m++)
    for (int n = 0; n < W; n++) sum[m][n] = start[n];
  for (const Tap<T>& tap : taps) {
    const float* b = tap.weights;
#pragma GCC unroll unrolled(4)
    for (long k = tap.offset; k < tap.offset + depth; k++, b += W * LANES) {
      vec right[W];
      for (int n = 0; n < W; n++) right[n] = at(b + n * LANES);
      for (int m = 0; m < H; m++)
        for (int n = 0; n < W; n++)
          sum[m][n] = T::fma(sum[m][n], T::broadcast(rows[m][k]), right[n]);
    }
  }
}

// Sums of H rows for each of D channels, over taps and channels: products of vectors of channels.
// Few channels would leave most of a vector of them empty. What is left of the channels past whole
// vectors comes last: within the first loop it would keep the sums from staying in registers.
template <class T, int H, int D>
void dot_taps(const typename T::element* const* rows, const vector<Tap<T>>& taps, long depth,
              vec (&sum)[H][D]) {
  const long whole = depth / LANES * LANES, step = round_up(depth, LANES), rest = depth - whole;
  for (int m = 0; m < H; m++)
    for (int n = 0; n < D; n++) sum[m][n] = vec{};
  for (const Tap<T>& tap : taps)
    for (long k = 0; k < whole; k += LANES)
      for (int n = 0; n < D; n++) {
        const vec right = at(tap.weights + n * step + k);
        for (int m = 0; m < H; m++)
          sum[m][n] = T::fma(sum[m][n], at((const float*)(rows[m] + tap.offset) + k), right);
      }
  if (!rest) return;
  for (const Tap<T>& tap : taps)
    for (int n = 0; n < D; n++) {
      const vec right = at(tap.weights + n * step + whole);
      for (int m = 0; m < H; m++)
        sum[m][n] = T::fma(
            sum[m][n], load_part((const float*)(rows[m] + tap.offset) + whole, rest), right);
    }
}

inline void store_number(float* to, float x) { *to = x; }
inline void store_number(uint16_t* to, float x) { *to = to_bf16(x); }

inline void store_columns(float* to, const vec* from, int vectors, long columns) {
  for (int n = 0; n < vectors; n++, columns -= LANES)
    if (columns > 0) store<1>(to + n * LANES, from + n, columns);
}

inline void store_columns(uint16_t* to, const vec* from, int vectors, long columns) {
  for (int n = 0; n < vectors; n++, columns -= LANES) {
    if (columns >= LANES) {
      store_bf16((float*)(to + n * LANES), from[n]);
    } else if (columns > 0) {
      alignas(64) float bf16[LANES / 2];
      store_bf16(bf16, from[n]);
      std::memcpy(to + n * LANES, bf16, columns * sizeof(uint16_t));
    }
  }
}

// What a convolution reads and writes; bias may be null.
template <class Number>
struct Operands {
  const Number* source;
  const float *packed, *bias;
  Number* destination;
};

// destination = source convolved, in one direction: all of it that does not change from call to
// call.
template <class T, class Number>
struct Convolution {
  typedef Operands<Number> On;

  Geometry g;
  bool up;
  long source_channels, channels, depth, source_size, size;  // of images: numbers
  bool dots;
  LiveTaps live;
  Weights weights;
  Panels panels;
  vector<Class> classes;
  bool squares;
  vector<Spot> spots;  // all places, if squares are multiplied

  Convolution(const Geometry& g, bool up)
      : g(g),
        up(up),
        source_channels(round_up(up ? g.small_channels : g.large_channels, T::depth)),
        channels(up ? g.large_channels : g.small_channels),
        depth(source_channels / T::depth),
        dots(takes_dots<T>(depth, channels)),
        live(g),
        weights(g, !up),
        panels(channels),
        classes(classes_of(g, live, up, source_channels, channels)),
        squares(T::depth == 2 && !dots && fills_squares(depth)),
        spots(squares ? spots_of(classes) : vector<Spot>()) {
    const long large = g.large[0] * g.large[1], small = g.small[0] * g.small[1];
    source_size = (up ? small : large) * source_channels, size = (up ? large : small) * channels;
  }

  long workspace() const { return packed_floats<T>(weights, live); }

  // Images that are taken together: enough for whole tiles, few enough for the cache.
  long block_images() const {
    constexpr long ROWS = 48, FLOATS = 1 << 14;
    const long rows = max(1, size / channels / (long)classes.size());
    const long images = max(ceil_div(ROWS, rows), FLOATS / source_size);
    return ceil_div(g.batch, ceil_div(g.batch, images));
  }

  // For all threads of a team.
  void run(const On& on) const {
    if constexpr (AMX && T::depth == 2)
      if (squares) return run_squares(on);
    const long images = block_images(), blocks = ceil_div(g.batch, images);
#pragma omp for schedule(dynamic, 1)
    for (long job = 0; job < panels.count * blocks; job++) {
      const long first = job % blocks * images;
      for (const Class& c : classes)
        take_class(on, c, first, min(images, g.batch - first), job / blocks);
    }
  }

  void run_squares(const On& on) const;
  template <int W>
  void take_spot(const On& on, const Spot& spot, long first, long images, long column) const;

  void take_class(const On& on, const Class& c, long first, long images, long panel) const {
    const long width = panels.width(panel), column = panels.first(panel) * LANES;
    const long step = dots ? channels * round_up(depth, LANES) : depth * width * LANES;
    vector<Tap<T>> taps;
    for (const TapOffset& tap : c.taps)
      taps.push_back(
          {tap.offset / T::depth, on.packed + live.count() * depth * column + tap.live * step});
    vec start[WIDEST] = {};
    for (long n = 0; on.bias && n < width; n++)
      load<1>(&start[n], on.bias + column + n * LANES, channels - column - n * LANES);
    const long across = dots ? channels : width;
    const long rows = images * c.places.size(), tiles = ceil_div(rows, tile_rows(across));
    for (long tile = 0; tile < tiles; tile++) {
      const long row = tile * rows / tiles, height = (tile + 1) * rows / tiles - row;
      with_tile(height, across, [&](auto h, auto w) {
        constexpr int H = decltype(h)::vectors, W = decltype(w)::vectors;
        take_tile<H, W>(on, c, taps, first, row, start, column);
      });
    }
  }

  template <int H, int W>
  void take_tile(const On& on, const Class& c, const vector<Tap<T>>& taps, long first, long row,
                 const vec* start, long column) const {
    const typename T::element* rows[H];
    Number* to[H];
    const long places = c.places.size();
    long image = first + row / places, place = row % places;
    for (int m = 0; m < H; m++) {
      const Place& here = c.places[place];
      rows[m] = (const typename T::element*)(on.source + image * source_size + here.source);
      to[m] = on.destination + image * size + here.destination + column;
      // What is to be written arrives meanwhile: each store would wait for it.
      if (!dots)
        for (long n = 0; n < W * LANES; n += 64 / sizeof(Number)) __builtin_prefetch(to[m] + n, 1);
      if (++place == places) place = 0, image++;
    }
    vec sum[H][W];
    if (dots) {
      dot_taps<T, H, W>(rows, taps, depth, sum);
      for (int m = 0; m < H; m++)
        for (int n = 0; n < W; n++) store_number(to[m] + n, start[0][n] + tree_sum(sum[m][n]));
      return;
    }
    multiply_taps<T, H, W>(rows, taps, depth, start, sum);
    for (int m = 0; m < H; m++) store_columns(to[m], sum[m], W, channels - column);
  }
};

}  // namespace
