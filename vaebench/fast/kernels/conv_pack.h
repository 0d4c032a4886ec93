// Weights as the tiles of a convolution read them.
//
// In memory: (taps, rows, columns) or (taps, columns, rows), as suits their gradient. Packed: panels
// of columns, each (live taps, rows, columns of the panel). The columns are the channels that a
// product gives, the rows those that it sums over, pairs of them in bfloat16.

namespace {

// Which side's channels are the faster ones in memory: that which fills vectors better, as the
// gradient has vectors of them.
inline bool small_fastest(long small, long large) {
  const long a = round_up(small, LANES) * large, b = round_up(large, LANES) * small;
  return a != b ? a < b : small >= large;
}

// How weights lie to one who goes by columns and rows.
struct Weights {
  long columns, rows, column_step, row_step, tap_step;

  Weights(const Geometry& g, bool small_columns) {
    const long small = g.small_channels, large = g.large_channels;
    columns = small_columns ? small : large, rows = small_columns ? large : small;
    const bool columns_fastest = small_columns == small_fastest(small, large);
    column_step = columns_fastest ? 1 : rows, row_step = columns_fastest ? columns : 1;
    tap_step = small * large;
  }

  // square[j] = the numbers of LANES columns in row j; zeros past the edges.
  void load_square(const float* from, long row_count, long column_count,
                   vec (&square)[LANES]) const {
    const bool by_rows = column_step == 1;
    const long lines = by_rows ? row_count : column_count, step = by_rows ? row_step : column_step;
    for (long k = 0; k < LANES; k++)
      if (k < lines)
        load<1>(&square[k], from + k * step, by_rows ? column_count : row_count);
      else
        square[k] = vec{};
    if (!by_rows) transpose(square);
  }
};

// Whether a product's few columns are sums of vectors of rows, not vectors themselves.
template <class T>
bool takes_dots(long depth, long columns) {
  return columns <= WIDEST && 2 * ceil_div(depth, LANES) * columns <= depth;
}

// Floats that packed weights take.
template <class T>
long packed_floats(const Weights& w, const LiveTaps& live) {
  const long depth = ceil_div(w.rows, T::depth);
  if (takes_dots<T>(depth, w.columns)) return live.count() * w.columns * round_up(depth, LANES);
  return live.count() * depth * round_up(w.columns, LANES);
}

// packed (live taps, columns, rows rounded up), for one thread.
template <class T>
void pack_dots(const Weights& w, const LiveTaps& live, const float* weight, float* packed) {
  const long step = round_up(ceil_div(w.rows, T::depth), LANES) * T::depth;
  for (long tap = 0; tap < live.count(); tap++)
    for (long column = 0; column < w.columns; column++)
      for (long row = 0; row < step; row++) {
        const float* from =
            weight + live.taps[tap] * w.tap_step + column * w.column_step + row * w.row_step;
        const float value = row < w.rows ? *from : 0;
        const long place = (tap * w.columns + column) * step + row;
        if constexpr (T::depth == 1)
          packed[place] = value;
        else
          ((uint16_t*)packed)[place] = to_bf16(value);
      }
}

// For all threads of a team.
template <class T>
void pack_weights(const Weights& w, const LiveTaps& live, const float* weight, float* packed) {
  if (takes_dots<T>(ceil_div(w.rows, T::depth), w.columns)) {
#pragma omp single
    pack_dots<T>(w, live, weight, packed);
    return;
  }
  const Panels panels(w.columns);
  const long chunks = ceil_div(w.rows, LANES), depth = ceil_div(w.rows, T::depth);
#pragma omp for schedule(static)
  for (long job = 0; job < live.count() * chunks * panels.vectors; job++) {
    const long v = job % panels.vectors, tap = job / panels.vectors / chunks;
    const long row = job / panels.vectors % chunks * LANES, rows = min(LANES, w.rows - row);
    vec square[LANES];
    w.load_square(weight + live.taps[tap] * w.tap_step + v * LANES * w.column_step +
                      row * w.row_step,
                  rows, min(LANES, w.columns - v * LANES), square);
    const long panel = panels.of(v), width = panels.width(panel) * LANES;
    float* to = packed + live.count() * depth * panels.first(panel) * LANES +
                (tap * depth + row / T::depth) * width + (v - panels.first(panel)) * LANES;
    for (long r = 0; r < rows; r += T::depth, to += width)
      if constexpr (T::depth == 1)
        at(to) = square[r];
      else
        pairs_at(to) = pack_pairs(square[r], square[r + 1]);
  }
}

}  // namespace
