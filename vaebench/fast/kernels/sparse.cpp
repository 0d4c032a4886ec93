// The products of a sparse first layer, as operators; see sparse.py for the reasons.

namespace {

// List one group of one block. x: the block's first row.
void list_group(const float* x, long rows, long pixels, const Lists& to, long block, long group) {
  uint8_t* r = to.rows + to.at(block, group) * ROWS;
  float* v = to.values + to.at(block, group) * ROWS * G;
  const long width = min(G, pixels - group * G);
  int32_t n = 0;
  for (long row = 0; row < rows; row++) {
    // Written always, kept by counting on: which groups are zero cannot be predicted.
    int32_t bits[G] = {};
    const float* from = x + row * pixels + group * G;
    if (width == G)
      std::memcpy(bits, from, sizeof bits);
    else
      std::memcpy(bits, from, width * sizeof(float));
    std::memcpy(v + n * G, bits, sizeof bits);
    r[n] = (uint8_t)row;
    n += (bits[0] | bits[1]) != 0;
  }
  to.counts[to.at(block, group)] = n;
}

}  // namespace

// out (images, width) = x (images, pixels) weight (pixels, width) + bias; fills the lists.
extern "C" void vaebench_sparse_forward(long images, long pixels, long width, const float* x,
                                        const float* weight, const float* bias, float* out,
                                        float* workspace) {
  constexpr long T = FORWARD * LANES;
  const long blocks = ceil_div(images, ROWS), tiles = ceil_div(width, T);
  const Lists lists = lists_in(workspace, blocks, pixels);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long job = 0; job < blocks * lists.groups; job++) {
      const long first = job / lists.groups * ROWS;
      list_group(x + first * pixels, min(ROWS, images - first), pixels, lists, job / lists.groups,
                 job % lists.groups);
    }
#pragma omp for schedule(dynamic, 1)
    for (long job = 0; job < blocks * tiles; job++) {
      const long block = job / tiles, column = job % tiles * T;
      const long rows = min(ROWS, images - block * ROWS), columns = min(T, width - column);
      alignas(64) float hidden[ROWS * T];
      with_width(ceil_div(columns, LANES), [&](auto w) {
        constexpr int W = min(decltype(w)::vectors, FORWARD);
        forward_tile<W>(lists, block, rows, pixels, width, weight + column, bias + column, hidden,
                        columns);
        float* to = out + block * ROWS * width + column;
        for (long row = 0; row < rows; row++)
          store<W>(to + row * width, (const vec*)(hidden + row * W * LANES), columns);
      });
    }
  }
}

// weight_grad (pixels, width) = x^T grad (images, width), with the lists that forward filled.
extern "C" void vaebench_sparse_backward(long images, long pixels, long width, const float* grad,
                                         float* workspace, float* weight_grad) {
  const long blocks = ceil_div(images, ROWS);
  const Lists lists = lists_in(workspace, blocks, pixels);
#pragma omp parallel for schedule(guided)
  for (long group = 0; group < lists.groups; group++)
    for (long column = 0; column < width; column += BACKWARD * LANES) {
      const long columns = min(BACKWARD * LANES, width - column);
      with_width(ceil_div(columns, LANES), [&](auto w) {
        constexpr int W = decltype(w)::vectors;
        vec sum[G][W] = {};
        for (long block = 0; block < blocks; block++)
          add_group(lists, block, group, grad + block * ROWS * width + column, width, columns, sum);
        for (long j = 0; j < min(G, pixels - group * G); j++)
          store<W>(weight_grad + (group * G + j) * width + column, sum[j], columns);
      });
    }
}
