// Products of sparse images with dense weights; see sparse.py for the reasons.
//
// Images are cut into blocks of ROWS rows and groups of G neighbouring pixels. For each group of a
// block the rows in which it is not all zero are listed, with its G values in each. Forward, a
// thread takes one tile of the weights' columns through all lists: a group's weights stay in
// registers, the tile of ROWS rows of hidden values in the first-level cache. Backward, it takes
// one list through the columns: a group's gradients stay in registers, and memory is passed over in
// order.

namespace {

constexpr long G = 2, ROWS = 128;
// Vectors of a tile, forward and backward: G * V + V + 1 registers, of AVX2's 16 or AVX-512's 32.
constexpr int FORWARD = 3, BACKWARD = LANES == 16 ? 10 : 4;

struct Lists {
  uint8_t* rows;    // (blocks, groups, ROWS): numbers within the block
  float* values;    // (blocks, groups, ROWS, G)
  int32_t* counts;  // (blocks, groups)
  long groups;

  long at(long block, long group) const { return block * groups + group; }
};

inline long list_floats(long groups) { return groups * (ROWS * G + ROWS / 4 + 1); }

Lists lists_in(float* workspace, long blocks, long pixels) {
  const long groups = ceil_div(pixels, G), lists = blocks * groups;
  int32_t* counts = (int32_t*)(workspace + lists * ROWS * G);
  return {(uint8_t*)(counts + lists), workspace, counts, groups};
}

// hidden (rows, W vectors) = x weight + bias, of `columns` of the weights.
template <int W>
void forward_tile(const Lists& x, long block, long rows, long pixels, long width,
                  const float* weight, const float* bias, float* hidden, long columns) {
  constexpr long wide = W * LANES;
  vec start[W];
  load<W>(start, bias, columns);
  for (long row = 0; row < rows; row++) store<W>(hidden + row * wide, start, wide);
  for (long group = 0; group < x.groups; group++) {
    const int32_t n = x.counts[x.at(block, group)];
    if (n == 0) continue;
    const uint8_t* r = x.rows + x.at(block, group) * ROWS;
    const float* v = x.values + x.at(block, group) * ROWS * G;
    prefetch(weight + (group + 1) * G * width, min(G, pixels - (group + 1) * G), width, columns);
    vec w[G][W] = {};
    for (long j = 0; j < min(G, pixels - group * G); j++)
      load<W>(w[j], weight + (group * G + j) * width, columns);
    for (int32_t i = 0; i < n; i++) {
      vec sum[W];
      load<W>(sum, hidden + r[i] * wide, wide);
      for (int j = 0; j < G; j++)
        for (int k = 0; k < W; k++) sum[k] += v[i * G + j] * w[j][k];
      store<W>(hidden + r[i] * wide, sum, wide);
    }
  }
}

// Add a group's part of x^T grad in one block, of `columns` of grad, whose rows are of the block.
template <int W>
void add_group(const Lists& x, long block, long group, const float* grad, long width, long columns,
               vec (&sum)[G][W]) {
  const uint8_t* r = x.rows + x.at(block, group) * ROWS;
  const float* v = x.values + x.at(block, group) * ROWS * G;
  const int32_t n = x.counts[x.at(block, group)];
  vec own[G][W];  // no store can be to these: they stay in registers
  std::memcpy((void*)own, (void*)sum, sizeof own);
  for (int32_t i = 0; i < n; i++) {
    vec part[W];
    load<W>(part, grad + r[i] * width, columns);
    for (int j = 0; j < G; j++)
      for (int k = 0; k < W; k++) own[j][k] += v[i * G + j] * part[k];
  }
  std::memcpy((void*)sum, (void*)own, sizeof own);
}

}  // namespace
