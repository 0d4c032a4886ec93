// Batch norm and the activation after it, forward and backward: y = act((x - mean) scale + bias).
//
// x (rows, channels), channels fastest: images that lie channels last, or vectors. Rows are added
// up in parts, and the parts in one order: no result depends on the number of threads.

#include <vector>

namespace {

using std::vector;

// Vectors of channels that are taken together: as many as there are registers for.
constexpr long ACROSS = 4;

// What is done to one vector of channels: numbers past the last channel are zeros.
struct Channels {
  vec mean, scale, bias, inverse;  // inverse: of the standard deviation; scale: that times weight

  vec centred(vec x) const { return x - mean; }
  vec before_activation(vec x) const { return centred(x) * scale + bias; }
};

inline vec activated(vec x, float slope) { return x > 0.0f ? x : x * slope; }

// A part of the rows, and a block of vectors of channels.
struct Parts {
  long rows, channels, count, blocks;

  Parts(long rows, long channels)
      : rows(rows),
        channels(channels),
        count(max(1, min(64, rows / 32))),
        blocks(ceil_div(channels, ACROSS * LANES)) {}

  // Call use(first row, row past the last, first channel, width in vectors as a constant, part).
  template <class Use>
  void each(int threads, Use use) const {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long job = 0; job < count * blocks; job++) {
      const long part = job % count, channel = job / count * ACROSS * LANES;
      with_width(min(ACROSS, ceil_div(channels - channel, LANES)), [&](auto w) {
        if constexpr (decltype(w)::vectors <= ACROSS)
          use(part * rows / count, (part + 1) * rows / count, channel, w, part);
      });
    }
  }

  // first[c], second[c] = sums over rows of what add(row, channel, n, count, a, b) adds to a and b,
  // n being the vector within its block.
  template <class Prepare>
  void two_sums(int threads, vector<double>& first, vector<double>& second, Prepare prepare) const {
    const long width = round_up(channels, LANES);
    vector<float> found(count * 2 * width);
    each(threads, [&](long row, long past, long channel, auto w, long part) {
      constexpr int W = decltype(w)::vectors;
      vec a[W] = {}, b[W] = {};
      auto add = prepare(channel, w);
      for (; row < past; row++)
        for (int n = 0; n < W; n++) add(row, n, a[n], b[n]);
      float* to = found.data() + part * 2 * width + channel;
      for (int n = 0; n < W; n++) at(to + n * LANES) = a[n], at(to + width + n * LANES) = b[n];
    });
    first.assign(channels, 0), second.assign(channels, 0);
    for (long part = 0; part < count; part++)
      for (long c = 0; c < channels; c++) {
        first[c] += found[part * 2 * width + c];
        second[c] += found[(part * 2 + 1) * width + c];
      }
  }
};

// The constants of a block of channels, in registers.
template <int W>
void load_channels(Channels (&to)[W], long channel, long channels, const float* mean,
                   const float* var, const float* weight, const float* bias, float eps) {
  for (int n = 0; n < W; n++) {
    const long c = channel + n * LANES, count = channels - c;
    const vec spread = load_numbers(var + c, count) + eps;
    const vec inverse = 1.0f / sqrt(spread);
    to[n] = {load_numbers(mean + c, count), inverse * load_numbers(weight + c, count),
             load_numbers(bias + c, count), inverse};
  }
}

// mean and var (channels): of the rows as they are, var without Bessel's correction. Numbers are
// taken off by those of the first row before they are squared: a mean far from zero costs nothing.
template <class Number>
void moments(const Parts& parts, const Number* x, float* mean, float* var, int threads) {
  const long channels = parts.channels;
  vector<double> sums, squares;
  parts.two_sums(threads, sums, squares, [&](long channel, auto w) {
    constexpr int W = decltype(w)::vectors;
    struct {
      const Number* x;
      long channel, channels;
      vec first[W];
      void operator()(long row, int n, vec& a, vec& b) const {
        const long c = channel + n * LANES;
        const vec off = load_numbers(x + row * channels + c, channels - c) - first[n];
        a += off, b += off * off;
      }
    } add{x, channel, channels, {}};
    for (int n = 0; n < W; n++)
      add.first[n] = load_numbers(x + channel + n * LANES, channels - channel - n * LANES);
    return add;
  });
  for (long c = 0; c < channels; c++) {
    const double off = sums[c] / parts.rows, square = squares[c] / parts.rows - off * off;
    mean[c] = load_numbers(x + c, 1)[0] + off, var[c] = square < 0 ? 0 : square;
  }
}

template <class Number>
void forward(const Parts& parts, const Number* x, const float* weight, const float* bias, float eps,
             float slope, Number* y, float* mean, float* var, int threads) {
  const long channels = parts.channels;
  moments(parts, x, mean, var, threads);
  parts.each(threads, [&](long row, long past, long channel, auto w, long) {
    constexpr int W = decltype(w)::vectors;
    Channels c[W];
    load_channels(c, channel, channels, mean, var, weight, bias, eps);
    for (; row < past; row++)
      for (int n = 0; n < W; n++) {
        const long first = channel + n * LANES, place = row * channels + first;
        const vec normal = c[n].before_activation(load_numbers(x + place, channels - first));
        store_numbers(y + place, activated(normal, slope), channels - first);
      }
  });
}

// The gradient of what goes into the activation.
template <class Number>
struct GradBefore {
  const Number *grad, *x;
  long channels;
  float slope;

  // off: x, taken off by its mean.
  vec operator()(const Channels& c, long row, long first, vec& off) const {
    const long place = row * channels + first, count = channels - first;
    const vec x_here = load_numbers(x + place, count), g = load_numbers(grad + place, count);
    off = c.centred(x_here);
    return c.before_activation(x_here) > 0.0f ? g : g * slope;
  }
};

template <class Number>
void backward(const Parts& parts, const Number* grad, const Number* x, const float* mean,
              const float* var, const float* weight, const float* bias, float eps, float slope,
              Number* x_grad, float* weight_grad, float* bias_grad, int threads) {
  const long channels = parts.channels;
  const GradBefore<Number> grad_before{grad, x, channels, slope};
  vector<double> sums, products;
  parts.two_sums(threads, sums, products, [&](long channel, auto w) {
    constexpr int W = decltype(w)::vectors;
    struct {
      GradBefore<Number> grad;
      long channel;
      Channels c[W];
      void operator()(long row, int n, vec& a, vec& b) const {
        vec off;
        const vec g = grad(c[n], row, channel + n * LANES, off);
        a += g, b += g * (off * c[n].inverse);
      }
    } add{grad_before, channel, {}};
    load_channels(add.c, channel, channels, mean, var, weight, bias, eps);
    return add;
  });
  vector<float> shift(channels), tilt(channels);
  for (long c = 0; c < channels; c++) {
    bias_grad[c] = sums[c], weight_grad[c] = products[c];
    shift[c] = sums[c] / parts.rows, tilt[c] = products[c] / parts.rows;
  }
  if (!x_grad) return;
  parts.each(threads, [&](long row, long past, long channel, auto w, long) {
    constexpr int W = decltype(w)::vectors;
    Channels c[W];
    vec means[W], tilts[W];
    load_channels(c, channel, channels, mean, var, weight, bias, eps);
    for (int n = 0; n < W; n++) {
      const long first = channel + n * LANES, count = channels - first;
      means[n] = load_numbers(shift.data() + first, count);
      tilts[n] = load_numbers(tilt.data() + first, count) * c[n].inverse;
    }
    for (; row < past; row++)
      for (int n = 0; n < W; n++) {
        vec off;
        const long first = channel + n * LANES;
        const vec g = grad_before(c[n], row, first, off);
        store_numbers(x_grad + row * channels + first, c[n].scale * (g - means[n] - off * tilts[n]),
                      channels - first);
      }
  });
}

}  // namespace

// y, mean and var (channels) of x; the activation is leaky ReLU of this slope, 1 for none.
extern "C" void vaebench_batch_norm(long rows, long channels, long bf16, const void* x,
                                    const float* weight, const float* bias, double eps,
                                    double slope, void* y, float* mean, float* var, long threads) {
  const Parts parts(rows, channels);
  if (bf16)
    forward(parts, (const uint16_t*)x, weight, bias, eps, slope, (uint16_t*)y, mean, var, threads);
  else
    forward(parts, (const float*)x, weight, bias, eps, slope, (float*)y, mean, var, threads);
}

extern "C" void vaebench_batch_norm_backward(long rows, long channels, long bf16, const void* grad,
                                             const void* x, const float* mean, const float* var,
                                             const float* weight, const float* bias, double eps,
                                             double slope, void* x_grad, float* weight_grad,
                                             float* bias_grad, long threads) {
  const Parts parts(rows, channels);
  if (bf16)
    backward(parts, (const uint16_t*)grad, (const uint16_t*)x, mean, var, weight, bias, eps, slope,
             (uint16_t*)x_grad, weight_grad, bias_grad, threads);
  else
    backward(parts, (const float*)grad, (const float*)x, mean, var, weight, bias, eps, slope,
             (float*)x_grad, weight_grad, bias_grad, threads);
}

// Running statistics, moved towards a batch's; `bessel` makes its var one of a sample.
extern "C" void vaebench_running_stats(long channels, const float* mean, const float* var,
                                       double momentum, double bessel, float* running_mean,
                                       float* running_var, int64_t* batches) {
  const float share = momentum, factor = bessel;
  for (long c = 0; c < channels; c++) {
    running_mean[c] += share * (mean[c] - running_mean[c]);
    running_var[c] += share * (var[c] * factor - running_var[c]);
  }
  ++*batches;
}
