// The gradient of a convolution's weights: for each tap, the sum over positions and images of what
// it met in the large image times what it gave in the small one.

namespace {

// One of the loops over positions and images: how often, and how far each operand moves on.
struct Loop {
  long count, row_step, vector_step;
};

// Sums of H rows and W vectors over three loops; added to those of the images before, if any: a
// sum of sums is off by less than one long sum.
template <class T, int H, int W>
void multiply_positions(const typename T::element* rows, const float* vectors, const Loop* loops,
                        float* to, long step, bool add) {
  vec sum[H][W];
  for (int m = 0; m < H; m++)
    for (int n = 0; n < W; n++) sum[m][n] = vec{};
  for (long i = 0; i < loops[0].count; i++)
    for (long j = 0; j < loops[1].count; j++) {
      const typename T::element* a = rows + i * loops[0].row_step + j * loops[1].row_step;
      const float* b = vectors + i * loops[0].vector_step + j * loops[1].vector_step;
      const long count = loops[2].count, a_step = loops[2].row_step, b_step = loops[2].vector_step;
#pragma GCC unroll unrolled(2)
      for (long k = 0; k < count; k++, a += a_step, b += b_step) {
        vec right[W];
        for (int n = 0; n < W; n++) right[n] = at(b + n * LANES);
        for (int m = 0; m < H; m++)
          for (int n = 0; n < W; n++) sum[m][n] = T::fma(sum[m][n], T::broadcast(a[m]), right[n]);
      }
    }
  for (int m = 0; m < H; m++)
    for (int n = 0; n < W; n++) {
      vec& total = at(to + m * step + n * LANES);
      total = add ? total + sum[m][n] : sum[m][n];
    }
}

// Sums of H taps and W vectors of one row: each tap has its own place in one of the operands.
template <class T, int H, int W>
void multiply_taps_apart(const typename T::element* row, const float* vectors, long row_apart,
                         long vectors_apart, const Loop* loops, float* to, long step, bool add) {
  vec sum[H][W];
  for (int m = 0; m < H; m++)
    for (int n = 0; n < W; n++) sum[m][n] = vec{};
  for (long i = 0; i < loops[0].count; i++)
    for (long j = 0; j < loops[1].count; j++) {
      const typename T::element* a = row + i * loops[0].row_step + j * loops[1].row_step;
      const float* b = vectors + i * loops[0].vector_step + j * loops[1].vector_step;
      for (long k = 0; k < loops[2].count; k++) {
        for (int m = 0; m < H; m++)
          for (int n = 0; n < W; n++)
            sum[m][n] = T::fma(sum[m][n], T::broadcast(a[m * row_apart]),
                               at(b + m * vectors_apart + n * LANES));
        a += loops[2].row_step, b += loops[2].vector_step;
      }
    }
  for (int m = 0; m < H; m++)
    for (int n = 0; n < W; n++) {
      vec& total = at(to + m * step + n * LANES);
      total = add ? total + sum[m][n] : sum[m][n];
    }
}

// One side's images as the products read them: channels rounded up where they are vectors; in
// bfloat16 pairs of neighbouring images.
struct Operand {
  long channels, width, image, row, column;  // in elements: of a pixel, an image, and so on

  Operand(const long* size, long channels, long width)
      : channels(channels),
        width(width),
        image(size[0] * size[1] * width),
        row(size[1] * width),
        column(width) {}
};

// What a gradient reads and writes; sums is a workspace.
struct GradOperands {
  const float *large, *small;
  float *sums, *grad;
};

// All of a gradient that does not change from call to call.
template <class T, class Number>
struct WeightGrad {
  // Taps, and rows of a panel of columns, that are added up together.
  struct Job {
    long tap, taps, panel, row, rows;
  };

  Geometry g;
  bool small_columns;  // whether vectors are of the small image's channels: the faster ones
  LiveTaps live;
  Weights weights;
  Panels panels;
  Operand large, small;
  long images;  // or pairs of them
  vector<Job> jobs;
  const SquareGrad* squares;  // does all of it, if it can

  WeightGrad(const Geometry& g)
      : g(g),
        small_columns(small_fastest(g.small_channels, g.large_channels)),
        live(g),
        weights(g, small_columns),
        panels(weights.columns),
        large(g.large, g.large_channels, width_of(g.large_channels, !small_columns)),
        small(g.small, g.small_channels, width_of(g.small_channels, small_columns)),
        images(ceil_div(g.batch, T::depth)),
        jobs(all_jobs()),
        squares(T::depth == 2 ? SquareGrad::plan(g) : nullptr) {}

  static long width_of(long channels, bool vectors) {
    return vectors ? round_up(channels, LANES) : channels;
  }

  bool copies(const Operand& side) const { return T::depth == 2 || side.width != side.channels; }
  long floats(const Operand& side) const { return copies(side) ? images * side.image : 0; }
  // Columns that are no whole vectors are added up elsewhere.
  bool apart_sums() const { return weights.columns % LANES; }
  long step() const { return panels.vectors * LANES; }  // from one row of the sums to the next
  long sums_floats() const { return apart_sums() ? live.count() * weights.rows * step() : 0; }
  long workspace() const {
    return squares ? squares->workspace() : sums_floats() + floats(large) + floats(small);
  }

  // Where an operand is read: copied to `to`, if it must be. For all threads of a team.
  const float* prepare(const Operand& side, const Number* from, float* to) const {
    if (!copies(side)) return (const float*)from;
    const long pixels = side.image / side.width, size = pixels * side.channels;
#pragma omp for schedule(static)
    for (long job = 0; job < images * pixels; job++) {
      const long image = job / pixels * T::depth;
      const Number* pixel = from + image * size + job % pixels * side.channels;
      float* place = to + job * side.width;
      if constexpr (T::depth == 1)
        std::memcpy(place, pixel, side.channels * sizeof(float));
      else
        interleave(pixel, image + 1 < g.batch ? pixel + size : nullptr, side.channels,
                   (uint32_t*)place);
      for (long k = side.channels; k < side.width; k++) place[k] = 0;
    }
    return to;
  }

  long block_images() const {
    constexpr long FLOATS = 1 << 16;
    const long count = max(1, FLOATS / (large.image + small.image));
    return ceil_div(images, ceil_div(images, count));
  }

  // Rows too few to fill a tile: neighbouring taps are taken together instead, row by row.
  bool apart() const { return weights.rows <= 2; }

  // Taps of a job: those of one row of the kernel that are neighbours.
  long taps_at(long tap, long width) const {
    if (!apart()) return 1;
    long count = 1;
    while (count < tile_rows(width) && tap + count < live.count() &&
           live.taps[tap + count] == live.taps[tap] + count && live.taps[tap + count] % g.kernel[1])
      count++;
    return count;
  }

  vector<Job> all_jobs() const {
    vector<Job> found;
    for (long panel = 0; panel < panels.count; panel++) {
      const long width = panels.width(panel), rows = weights.rows;
      const long tiles = apart() ? rows : ceil_div(rows, tile_rows(width));
      for (long tap = 0, taps; tap < live.count(); tap += taps) {
        taps = taps_at(tap, width);
        for (long tile = 0; tile < tiles; tile++) {
          const long row = tile * rows / tiles;
          found.push_back({tap, taps, panel, row, (tile + 1) * rows / tiles - row});
        }
      }
    }
    return found;
  }

  // Where the sums of a live tap are: of some rows, each a step long.
  float* sums_of(const GradOperands& on, long tap) const {
    return apart_sums() ? on.sums + tap * weights.rows * step()
                        : on.grad + live.taps[tap] * weights.tap_step;
  }

  // grad (taps, rows, columns), 0 at taps that are not live. For all threads of a team; each has the
  // same jobs for every block of images, in order.
  void run(const GradOperands& on) const {
    const long block = block_images();
    for (long first = 0; first < images; first += block)
#pragma omp for schedule(static) nowait
      for (long j = 0; j < (long)jobs.size(); j++)
        take(on, jobs[j], first, min(block, images - first));
#pragma omp barrier
#pragma omp for schedule(static)
    for (long tap = 0; tap < (long)live.index.size(); tap++) {
      float* to = on.grad + tap * weights.tap_step;
      const long place = live.index[tap];
      if (place < 0)
        std::memset(to, 0, weights.tap_step * sizeof(float));
      else if (apart_sums())
        for (long row = 0; row < weights.rows; row++)
          std::memcpy(to + row * weights.columns, sums_of(on, place) + row * step(),
                      weights.columns * sizeof(float));
    }
  }

  void take(const GradOperands& on, const Job& job, long first, long count) const {
    const long v = live.taps[job.tap] % g.kernel[1];
    long start, end;  // columns that all the job's taps meet
    shared_range(v, job.taps, start, end);
    take_columns(on, job, job.tap, job.taps, start, end, first, count, first > 0);
    for (long tap = 0; job.taps > 1 && tap < job.taps; tap++) {
      const Range own(g, 1, v + tap);
      if (own.first < start)
        take_columns(on, job, job.tap + tap, 1, own.first, min(start, own.past), first, count,
                     true);
      if (own.past > end)
        take_columns(on, job, job.tap + tap, 1, max(end, own.first), own.past, first, count, true);
    }
  }

  void shared_range(long v, long taps, long& start, long& end) const {
    start = 0, end = g.small[1];
    for (long tap = 0; tap < taps; tap++) {
      const Range own(g, 1, v + tap);
      start = max(start, own.first), end = min(end, own.past);
    }
    end = max(start, end);
  }

  // Add up what `taps` from `tap` on meet at the small image's columns from start to end.
  void take_columns(const GradOperands& on, const Job& job, long tap, long taps, long start,
                    long end, long first, long count, bool add) const {
    const long u = live.taps[tap] / g.kernel[1], v = live.taps[tap] % g.kernel[1];
    const Range y(g, 0, u);
    const float* l = on.large + first * large.image +
                     (y.first * g.stride[0] + u - g.padding[0]) * large.row +
                     (start * g.stride[1] + v - g.padding[1]) * large.column;
    const float* s = on.small + first * small.image + y.first * small.row + start * small.column;
    const Operand &a = small_columns ? large : small, &b = small_columns ? small : large;
    const long apart_a = small_columns ? large.column : 0, apart_b = large.column - apart_a;
    const long row_step[2] = {large.row * g.stride[0], small.row};
    const long column_step[2] = {large.column * g.stride[1], small.column};
    const Loop over_images{count, a.image, b.image};
    const Loop over_rows{y.past - y.first, row_step[!small_columns], row_step[small_columns]};
    const Loop over_columns{end - start, column_step[!small_columns], column_step[small_columns]};
    const Loop by_image[3] = {over_images, over_rows, over_columns};
    const Loop by_place[3] = {over_rows, over_columns, over_images};
    const Loop* loops = end - start >= count ? by_image : by_place;
    const auto* scalars = (const typename T::element*)(small_columns ? l : s) + job.row;
    const float* vectors = (small_columns ? s : l) + panels.first(job.panel) * LANES;
    float* to = sums_of(on, tap) + job.row * step() + panels.first(job.panel) * LANES;
    const long next_tap = taps > 1 ? sums_of(on, tap + 1) - sums_of(on, tap) : 0;
    with_tile(apart() ? taps : job.rows, panels.width(job.panel), [&](auto h, auto w) {
      constexpr int H = decltype(h)::vectors, W = decltype(w)::vectors;
      if (apart())
        multiply_taps_apart<T, H, W>(scalars, vectors, apart_a, apart_b, loops, to,
                                     next_tap, add);
      else
        multiply_positions<T, H, W>(scalars, vectors, loops, to, step(), add);
    });
  }
};

}  // namespace
