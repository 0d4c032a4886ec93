// Convolutions between a large and a small image, as the kernels see them; see products for the
// reasons.
//
// Tap u of the small image's row i meets row `stride * i + u - padding` of the large one. Going
// down, from large to small, is a convolution; going up is a transposed convolution, or the
// gradient of the first by its input. Images lie channels last, weights tap by tap. All sums run
// over taps and channels in one order, so that no result depends on how the work is divided.

#include <vector>

// As products has it.
struct Geometry {
  long batch, large_channels, small_channels;
  long large[2], small[2], kernel[2], stride[2], padding[2];  // of rows, of columns
};

namespace {

using std::vector;

// Destinations along one axis that meet the same taps, at the same distances in the source.
struct AxisClass {
  vector<long> taps, offsets;          // of each tap: its number, its source after the first's
  vector<long> destinations, sources;  // of each position: itself, the source of its first tap
};

vector<AxisClass> axis_classes(const Geometry& g, int axis, bool up) {
  const long from = up ? g.small[axis] : g.large[axis], to = up ? g.large[axis] : g.small[axis];
  const long stride = g.stride[axis], padding = g.padding[axis];
  vector<AxisClass> classes;
  for (long position = 0; position < to; position++) {
    AxisClass found;
    for (long tap = 0; tap < g.kernel[axis]; tap++) {
      const long there = up ? position + padding - tap : position * stride + tap - padding;
      if (there < 0 || (up && there % stride)) continue;
      const long source = up ? there / stride : there;
      if (source >= from) continue;
      if (found.taps.empty()) found.sources.push_back(source);
      found.taps.push_back(tap), found.offsets.push_back(source - found.sources[0]);
    }
    if (found.taps.empty()) found.sources.push_back(0);
    AxisClass* same = nullptr;
    for (AxisClass& other : classes)
      if (other.taps == found.taps && other.offsets == found.offsets) same = &other;
    if (!same) classes.push_back({found.taps, found.offsets, {}, {}}), same = &classes.back();
    same->destinations.push_back(position), same->sources.push_back(found.sources[0]);
  }
  return classes;
}

// The taps that meet a pixel anywhere, and their numbers among these.
struct LiveTaps {
  vector<long> taps;   // numbers in the kernel
  vector<long> index;  // of each tap of the kernel: its place in `taps`, or -1

  LiveTaps(const Geometry& g) : index(g.kernel[0] * g.kernel[1], -1) {
    vector<bool> live[2];
    for (int axis = 0; axis < 2; axis++) {
      live[axis].resize(g.kernel[axis]);
      for (const AxisClass& c : axis_classes(g, axis, false))
        for (long tap : c.taps) live[axis][tap] = true;
    }
    for (long u = 0; u < g.kernel[0]; u++)
      for (long v = 0; v < g.kernel[1]; v++)
        if (live[0][u] && live[1][v]) {
          index[u * g.kernel[1] + v] = taps.size();
          taps.push_back(u * g.kernel[1] + v);
        }
  }

  long count() const { return taps.size(); }
};

// The small image's positions, along an axis, that a tap gives to.
struct Range {
  long first, past;

  Range(const Geometry& g, int axis, long tap) {
    const long stride = g.stride[axis], start = tap - g.padding[axis];  // in the large image
    first = start < 0 ? ceil_div(-start, stride) : 0;
    const long end = g.large[axis] - start;
    past = max(first, min(g.small[axis], end > 0 ? ceil_div(end, stride) : 0));
  }
};

// Where a live tap's source lies, in numbers, after the position's first.
struct TapOffset {
  long live, offset;
};

// Where a position lies, in numbers from the image's start.
struct Place {
  long source, destination;
};

// Positions of an image that meet the same taps.
struct Class {
  vector<TapOffset> taps;
  vector<Place> places;
};

vector<Class> classes_of(const Geometry& g, const LiveTaps& live, bool up, long source_channels,
                         long channels) {
  const long source_width = up ? g.small[1] : g.large[1], width = up ? g.large[1] : g.small[1];
  vector<Class> classes;
  const vector<AxisClass> columns = axis_classes(g, 1, up);
  for (const AxisClass& r : axis_classes(g, 0, up))
    for (const AxisClass& c : columns) {
      Class both;
      for (size_t u = 0; u < r.taps.size(); u++)
        for (size_t v = 0; v < c.taps.size(); v++)
          both.taps.push_back({live.index[r.taps[u] * g.kernel[1] + c.taps[v]],
                               (r.offsets[u] * source_width + c.offsets[v]) * source_channels});
      for (size_t i = 0; i < r.sources.size(); i++)
        for (size_t j = 0; j < c.sources.size(); j++)
          both.places.push_back({(r.sources[i] * source_width + c.sources[j]) * source_channels,
                                 (r.destinations[i] * width + c.destinations[j]) * channels});
      classes.push_back(both);
    }
  return classes;
}

// A place of an image, and the class that it belongs to.
struct Spot {
  const Class* of;
  Place place;
};

inline vector<Spot> spots_of(const vector<Class>& classes) {
  vector<Spot> spots;
  for (const Class& c : classes)
    for (const Place& place : c.places) spots.push_back({&c, place});
  return spots;
}

// Vectors that a tile is wide at most.
constexpr long WIDEST = LANES == 16 ? 4 : 2;

// A matrix's columns, cut into panels of whole vectors, as even as may be.
struct Panels {
  long columns, vectors, count;

  Panels(long columns)
      : columns(columns), vectors(ceil_div(columns, LANES)), count(ceil_div(vectors, WIDEST)) {}

  long first(long panel) const { return panel * vectors / count; }  // vector
  long width(long panel) const { return first(panel + 1) - first(panel); }
  long of(long vector) const { return ((vector + 1) * count - 1) / vectors; }  // its panel
};

// Rows of a tile so many vectors wide: as many as there are registers for.
constexpr int tile_rows(long vectors) { return vectors == WIDEST ? 6 : 8; }

// Call `use` with a tile's height and width as constants.
template <class Use>
void with_tile(long rows, long vectors, Use use) {
  with_width(vectors, [&](auto w) {
    constexpr int W = min(decltype(w)::vectors, WIDEST);
    with_width(rows, [&](auto h) {
      constexpr int H = min(decltype(h)::vectors, tile_rows(W));
      use(Width<H>(), Width<W>());
    });
  });
}

// What is multiplied: float32, or pairs of bfloat16.
struct Single {
  typedef float element;
  static constexpr long depth = 1;

  static vec broadcast(float x) { return ::broadcast(x); }
  static vec fma(vec sum, vec left, vec right) { return sum + left * right; }
};

struct Pair {
  typedef pair element;
  static constexpr long depth = 2;

  static ivec broadcast(pair x) { return broadcast_pair(x); }
  static vec fma(vec sum, ivec left, vec right) { return fma_pairs(sum, left, (ivec)right); }
  static vec fma(vec sum, vec left, vec right) { return fma(sum, (ivec)left, right); }
};

}  // namespace
