// Weights as the tiles of a convolution read them, and gradients back from there.
//
// Packed: panels of columns, each (live taps, rows, columns of the panel). The columns are the
// channels that a product gives, the rows those that it sums over, pairs of them in bfloat16.

namespace {

// How weights (small channels, large channels, taps) lie to one who goes by columns and rows.
struct Weights {
  long columns, rows, taps, column_step, row_step;

  Weights(const Geometry& g, bool small_columns) : taps(g.kernel[0] * g.kernel[1]) {
    const long small = g.small_channels, large = g.large_channels;
    columns = small_columns ? small : large, rows = small_columns ? large : small;
    column_step = small_columns ? large * taps : taps;
    row_step = small_columns ? taps : large * taps;
  }

  // Runs of neighbours in memory within `count` rows of a column: how many, and of what length.
  long runs(long count) const { return row_step == taps ? 1 : count; }
  long run(long count) const { return row_step == taps ? count * taps : taps; }
};

constexpr long CHUNK = 16;  // rows that are packed at a time

// to (run, LANES) = LANES columns' runs, transposed.
inline void transpose_run(const float* from, long step, long columns, long run, float* to) {
  for (long first = 0; first < run; first += LANES) {
    const long count = min(LANES, run - first);
    vec square[LANES] = {};
    for (long k = 0; k < columns; k++) load<1>(&square[k], from + k * step + first, count);
    transpose(square);
    for (long j = 0; j < count; j++) at(to + (first + j) * LANES) = square[j];
  }
}

inline void transpose_back(const float* from, long run, float* to, long step, long columns) {
  for (long first = 0; first < run; first += LANES) {
    const long count = min(LANES, run - first);
    vec square[LANES] = {};
    for (long j = 0; j < count; j++) square[j] = at(from + (first + j) * LANES);
    transpose(square);
    for (long k = 0; k < columns; k++) store<1>(to + k * step + first, &square[k], count);
  }
}

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
        const float* from = weight + column * w.column_step + row * w.row_step + live.taps[tap];
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
  const long chunks = ceil_div(w.rows, CHUNK), depth = ceil_div(w.rows, T::depth);
  vector<float> chunk(CHUNK * w.taps * LANES);
#pragma omp for schedule(static)
  for (long job = 0; job < panels.vectors * chunks; job++) {
    const long v = job / chunks, row = job % chunks * CHUNK, rows = min(CHUNK, w.rows - row);
    const long columns = min(LANES, w.columns - v * LANES), run = w.run(rows);
    for (long r = 0; r < w.runs(rows); r++)
      transpose_run(weight + v * LANES * w.column_step + (row + r) * w.row_step, w.column_step,
                    columns, run, chunk.data() + r * run * LANES);
    const long panel = panels.of(v), width = panels.width(panel) * LANES;
    float* to = packed + live.count() * depth * panels.first(panel) * LANES +
                (v - panels.first(panel)) * LANES;
    for (long tap = 0; tap < live.count(); tap++)
      for (long r = 0; r < rows; r += T::depth) {
        const float* from = chunk.data() + (r * w.taps + live.taps[tap]) * LANES;
        float* place = to + (tap * depth + (row + r) / T::depth) * width;
        if constexpr (T::depth == 1)
          at(place) = at(from);
        else
          pairs_at(place) = pack_pairs(at(from), r + 1 < rows ? at(from + w.taps * LANES) : vec{});
      }
  }
}

// weight_grad = sums (live taps, rows, columns rounded up), as weights lie; 0 at the other taps.
// For all threads of a team.
inline void unpack_grad(const Weights& w, const LiveTaps& live, const float* sums,
                        float* weight_grad) {
  const long vectors = ceil_div(w.columns, LANES), chunks = ceil_div(w.rows, CHUNK);
  vector<float> chunk(CHUNK * w.taps * LANES);
#pragma omp for schedule(static)
  for (long job = 0; job < vectors * chunks; job++) {
    const long v = job / chunks, row = job % chunks * CHUNK, rows = min(CHUNK, w.rows - row);
    const long columns = min(LANES, w.columns - v * LANES), run = w.run(rows);
    for (long tap = 0; tap < live.count(); tap++)
      for (long r = 0; r < rows; r++)
        at(chunk.data() + (r * w.taps + live.taps[tap]) * LANES) =
            at(sums + ((tap * w.rows + row + r) * vectors + v) * LANES);
    for (long r = 0; r < w.runs(rows); r++)
      transpose_back(chunk.data() + r * run * LANES, run,
                     weight_grad + v * LANES * w.column_step + (row + r) * w.row_step,
                     w.column_step, columns);
  }
}

}  // namespace
