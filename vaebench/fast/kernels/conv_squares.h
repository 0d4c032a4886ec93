// Convolutions of bfloat16 images by squares of pairs, where channels and images fill them.
//
// A square's rows are 16 images at one place: their sources lie an image apart, whatever the place.

namespace {

#if defined(VAEBENCH_AMX)
// For all threads of a team.
template <class T, class Number>
void Convolution<T, Number>::run_squares(const On& on) const {
  constexpr long PART = 16;  // places
  const long tiles = ceil_div(g.batch, SQUARE), parts = ceil_div((long)spots.size(), PART);
#pragma omp for schedule(dynamic, 1)
  for (long job = 0; job < panels.count * tiles * parts; job++) {
    const long part = job % parts, tile = job / parts % tiles, panel = job / parts / tiles;
    const long first = tile * SQUARE, images = min(SQUARE, g.batch - first);
    const Squares squares(true, images);
    with_width(panels.width(panel), [&](auto w) {
      constexpr int W = min(decltype(w)::vectors, WIDEST);
      for (long i = part * PART; i < min((part + 1) * PART, spots.size()); i++)
        take_spot<W>(on, spots[i], first, images, panels.first(panel) * LANES);
    });
  }
}

template <class T, class Number>
template <int W>
void Convolution<T, Number>::take_spot(const On& on, const Spot& spot, long first, long images,
                                       long column) const {
  alignas(64) float sums[SQUARE * W * LANES];
  const Number* source = on.source + first * source_size + spot.place.source;
  const float* packed = on.packed + live.count() * depth * column;
  start_squares<1, W>();
  for (const TapOffset& tap : spot.of->taps)
    add_squares<1, W>({(const float*)(source + tap.offset), source_size / T::depth, 0, SQUARE},
                      packed + tap.live * depth * W * LANES, W * LANES, depth);
  store_squares<1, W>(sums, W * LANES);
  for (long i = 0; i < images; i++) {
    vec sum[W];
    for (int n = 0; n < W; n++) {
      vec bias = {};
      if (on.bias) load<1>(&bias, on.bias + column + n * LANES, channels - column - n * LANES);
      sum[n] = bias + at(sums + (i * W + n) * LANES);
    }
    Number* to = on.destination + (first + i) * size + spot.place.destination + column;
    store_columns(to, sum, W, channels - column);
  }
}

// The gradient of a convolution's weights: a sum over places, and at each over pairs of images.
struct SquareGrad {
  // One side's images by pixels, and chunks of 32 images: (channels, pairs) of what are rows of the
  // gradient, (pairs, channels) of what are its columns.
  struct Side {
    long pixels, width, channels;  // width: pixels of a row
    bool rows;

    long floats(long chunks) const { return pixels * chunks * channels * SQUARE; }
  };

  Geometry g;
  bool small_columns;
  Weights weights;
  Panels panels;
  Side large, small;
  long chunks;

  explicit SquareGrad(const Geometry& g)
      : g(g),
        small_columns(small_fastest(g.small_channels, g.large_channels)),
        weights(g, small_columns),
        panels(weights.columns),
        large{g.large[0] * g.large[1], g.large[1], g.large_channels, small_columns},
        small{g.small[0] * g.small[1], g.small[1], g.small_channels, !small_columns},
        chunks(ceil_div(g.batch, 2 * SQUARE)) {}

  // For what fills squares; else null.
  static const SquareGrad* plan(const Geometry& g) {
    const bool fills = g.large_channels % SQUARE == 0 && g.small_channels % SQUARE == 0;
    return fills && has_squares() ? new SquareGrad(g) : nullptr;
  }

  long workspace() const { return large.floats(chunks) + small.floats(chunks); }

  // For all threads of a team.
  void run(const uint16_t* of_large, const uint16_t* of_small, float* workspace,
           float* grad) const {
    float *l = workspace, *s = workspace + large.floats(chunks);
    pack(large, of_large, l);
    pack(small, of_small, s);
    const Squares squares(true);
    const long tiles = weights.rows / SQUARE, taps = g.kernel[0] * g.kernel[1];
#pragma omp barrier
#pragma omp for schedule(static)
    for (long job = 0; job < taps * tiles * panels.count; job++) {
      const long tap = job / tiles / panels.count, panel = job / tiles % panels.count;
      const long row = job % tiles * SQUARE, column = panels.first(panel) * LANES;
      float* to = grad + tap * weights.tap_step + row * weights.columns + column;
      with_width(panels.width(panel), [&](auto w) {
        constexpr int W = min(decltype(w)::vectors, WIDEST);
        start_squares<1, W>();
        add_places<W>(tap, l, s, row, column);
        store_squares<1, W>(to, weights.columns);
      });
    }
  }

  void pack(const Side& side, const uint16_t* from, float* to) const {
    const long size = side.pixels * side.channels;
#pragma omp for schedule(static) nowait
    for (long job = 0; job < side.pixels * chunks; job++) {
      const long image = job % chunks * 2 * SQUARE, count = g.batch - image;
      const uint16_t* first = from + image * size + job / chunks * side.channels;
      float* place = to + job * side.channels * SQUARE;
      for (long channel = 0; channel < side.channels; channel += SQUARE) {
        vec square[LANES] = {};
        for (long pair = 0; pair < min(SQUARE, ceil_div(count, 2)); pair++) {
          const uint16_t* even = first + 2 * pair * size + channel;
          const uint16_t* odd = 2 * pair + 1 < count ? even + size : nullptr;
          square[pair] = interleaved(even, odd);
        }
        if (side.rows) transpose(square);
        for (long i = 0; i < SQUARE; i++)
          at(place + (side.rows ? (channel + i) * SQUARE : i * side.channels + channel)) =
              square[i];
      }
    }
  }

  // Add up what a tap meets in 16 rows and W vectors of columns.
  template <int W>
  void add_places(long tap, const float* l, const float* s, long row, long column) const {
    const Side &a = small_columns ? large : small, &b = small_columns ? small : large;
    const long u = tap / g.kernel[1], v = tap % g.kernel[1];
    const Range rows(g, 0, u), columns(g, 1, v);
    for (long y = rows.first; y < rows.past; y++)
      for (long x = columns.first; x < columns.past; x++) {
        const long large_pixel = (y * g.stride[0] + u - g.padding[0]) * large.width +
                                 x * g.stride[1] + v - g.padding[1];
        const long small_pixel = y * small.width + x;
        const long of_a = small_columns ? large_pixel : small_pixel;
        const long of_b = small_columns ? small_pixel : large_pixel;
        for (long chunk = 0; chunk < chunks; chunk++)
          add_squares<1, W>(
              {(small_columns ? l : s) + ((of_a * chunks + chunk) * a.channels + row) * SQUARE,
               SQUARE, 0, 0},
              (small_columns ? s : l) + (of_b * chunks + chunk) * b.channels * SQUARE + column,
              b.channels, SQUARE);
      }
  }
};
#else
struct SquareGrad {
  static const SquareGrad* plan(const Geometry&) { return nullptr; }
  long workspace() const { return 0; }
  void run(const uint16_t*, const uint16_t*, float*, float*) const {}
};
#endif

}  // namespace
