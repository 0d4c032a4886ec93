// Products of sparse images with dense weights; see sparse.py for the reasons.
//
// Images are cut into blocks of ROWS rows and groups of G neighbouring pixels. For each group of a
// block the rows in which it is not all zero are listed, with its G values in each. A thread takes
// one tile of T weight columns through all lists: a group's G x T weights (forward) or gradients
// (backward) stay in registers, the tile of ROWS x T hidden values in the first-level cache.
//
// Plain C++ with vector extensions (GCC, Clang) and OpenMP; no headers of torch's: it compiles in
// a second.

#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr long G = 4, ROWS = 128;
constexpr int V = 3, T = V * LANES;  // G * V + V + 1 registers: the 16 of AVX2

struct Lists {
  uint8_t* rows;    // (blocks, groups, ROWS): numbers within the block
  float* values;    // (blocks, groups, ROWS, G)
  int32_t* counts;  // (blocks, groups)
  long groups;

  long at(long block, long group) const { return block * groups + group; }
};

Lists lists_in(float* space, long blocks, long pixels) {
  const long groups = (pixels + G - 1) / G, lists = blocks * groups;
  int32_t* counts = (int32_t*)(space + lists * ROWS * G);
  return {(uint8_t*)(counts + lists), space, counts, groups};
}

// `columns` of T numbers; fewer at the right edge of the weights.
inline void load(vec* to, const float* from, long columns) {
  if (columns == T) {
    for (int k = 0; k < V; k++) to[k] = *(const vec*)(from + k * LANES);
  } else {
    std::memset(to, 0, T * sizeof(float));
    std::memcpy(to, from, columns * sizeof(float));
  }
}

inline void store(float* to, const vec* from, long columns) {
  if (columns == T) {
    for (int k = 0; k < V; k++) *(vec*)(to + k * LANES) = from[k];
  } else {
    std::memcpy(to, from, columns * sizeof(float));
  }
}

inline long least(long a, long b) { return a < b ? a : b; }

// Fetch `lines` rows of a tile that the caller will read, or write, a group later. The rows lie a
// row of weights apart, too far for the processor to foresee them.
template <int WRITE>
inline void fetch(const float* at, long lines, long width, long columns) {
  for (long j = 0; j < lines; j++)
    for (long k = 0; k < columns; k += 16) __builtin_prefetch(at + j * width + k, WRITE);
}

// List one group of one block. x: the block's first row.
void list_group(const float* x, long rows, long pixels, const Lists& to, long block, long group) {
  uint8_t* r = to.rows + to.at(block, group) * ROWS;
  float* v = to.values + to.at(block, group) * ROWS * G;
  const long width = least(G, pixels - group * G);
  int32_t n = 0;
  for (long row = 0; row < rows; row++) {
    // Written always, kept by counting on: which groups are dark cannot be predicted.
    int32_t bits[G] = {};
    const float* from = x + row * pixels + group * G;
    if (width == G)
      std::memcpy(bits, from, sizeof bits);
    else
      std::memcpy(bits, from, width * sizeof(float));
    std::memcpy(v + n * G, bits, sizeof bits);
    r[n] = (uint8_t)row;
    n += (bits[0] | bits[1] | bits[2] | bits[3]) != 0;
  }
  to.counts[to.at(block, group)] = n;
}

void forward_tile(const Lists& x, long block, long rows, long pixels, long width, const float* weight,
                  const float* bias, float* out, long columns) {
  alignas(64) float hidden[ROWS * T];
  vec start[V];
  load(start, bias, columns);
  for (long row = 0; row < rows; row++) store(hidden + row * T, start, T);
  for (long group = 0; group < x.groups; group++) {
    const int32_t n = x.counts[x.at(block, group)];
    if (n == 0) continue;
    const uint8_t* r = x.rows + x.at(block, group) * ROWS;
    const float* v = x.values + x.at(block, group) * ROWS * G;
    fetch<0>(weight + (group + 1) * G * width, least(G, pixels - (group + 1) * G), width, columns);
    vec w[G][V] = {};
    for (long j = 0; j < least(G, pixels - group * G); j++)
      load(w[j], weight + (group * G + j) * width, columns);
    for (int32_t i = 0; i < n; i++) {
      vec sum[V];
      load(sum, hidden + r[i] * T, T);
      for (int j = 0; j < G; j++)
        for (int k = 0; k < V; k++) sum[k] += v[i * G + j] * w[j][k];
      store(hidden + r[i] * T, sum, T);
    }
  }
  for (long row = 0; row < rows; row++) {
    vec sum[V];
    load(sum, hidden + row * T, T);
    store(out + row * width, sum, columns);
  }
}

void backward_tile(const Lists& x, long block, long rows, long pixels, long width, const float* grad,
                   float* weight_grad, long columns) {
  alignas(64) float hidden[ROWS * T];
  for (long row = 0; row < rows; row++) {
    vec part[V];
    load(part, grad + row * width, columns);
    store(hidden + row * T, part, T);
  }
  for (long group = 0; group < x.groups; group++) {
    const int32_t n = x.counts[x.at(block, group)];
    const uint8_t* r = x.rows + x.at(block, group) * ROWS;
    const float* v = x.values + x.at(block, group) * ROWS * G;
    float* to = weight_grad + group * G * width;
    const long lines = least(G, pixels - group * G);
    fetch<1>(to, lines, width, columns);
    vec sum[G][V] = {};
    if (block > 0)
      for (long j = 0; j < lines; j++) load(sum[j], to + j * width, columns);
    for (int32_t i = 0; i < n; i++) {
      vec part[V];
      load(part, hidden + r[i] * T, T);
      for (int j = 0; j < G; j++)
        for (int k = 0; k < V; k++) sum[j][k] += v[i * G + j] * part[k];
    }
    for (long j = 0; j < lines; j++) store(to + j * width, sum[j], columns);
  }
}

}  // namespace

// out (images, width) = x (images, pixels) weight (pixels, width) + bias; fills the lists.
extern "C" void vaebench_sparse_forward(long images, long pixels, long width, const float* x,
                                        const float* weight, const float* bias, float* out,
                                        float* space) {
  const long blocks = (images + ROWS - 1) / ROWS, tiles = (width + T - 1) / T;
  const Lists lists = lists_in(space, blocks, pixels);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long job = 0; job < blocks * lists.groups; job++) {
      const long first = job / lists.groups * ROWS;
      list_group(x + first * pixels, least(ROWS, images - first), pixels, lists,
                 job / lists.groups, job % lists.groups);
    }
#pragma omp for schedule(dynamic, 1)
    for (long job = 0; job < blocks * tiles; job++) {
      const long block = job / tiles, column = job % tiles * T;
      forward_tile(lists, block, least(ROWS, images - block * ROWS), pixels, width, weight + column,
                   bias + column, out + block * ROWS * width + column, least(T, width - column));
    }
  }
}

// weight_grad (pixels, width) = x^T grad (images, width), with the lists that forward filled.
extern "C" void vaebench_sparse_backward(long images, long pixels, long width, const float* grad,
                                         float* space, float* weight_grad) {
  const long blocks = (images + ROWS - 1) / ROWS;
  const Lists lists = lists_in(space, blocks, pixels);
#pragma omp parallel for schedule(dynamic, 1)
  for (long column = 0; column < width; column += T)
    for (long block = 0; block < blocks; block++)
      backward_tile(lists, block, least(ROWS, images - block * ROWS), pixels, width,
                    grad + block * ROWS * width + column, weight_grad + column,
                    least(T, width - column));
}
