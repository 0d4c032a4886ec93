// Convolutions of small images, forward and backward; see products for the reasons.

namespace {

template <class T, class Number>
void convolve(const Convolution<T, Number>& c, const Number* source, const float* weight,
              const float* bias, Number* destination, float* workspace, int threads) {
#pragma omp parallel num_threads(threads)
  {
    pack_weights<T>(c.weights, c.live, weight, workspace);
    c.run({source, workspace, bias, destination});
  }
}

template <class T, class Number>
void weight_grad(const WeightGrad<T, Number>& w, const Number* large, const Number* small,
                 float* grad, float* workspace, int threads) {
  float *first = workspace + w.sums_floats(), *second = first + w.floats(w.large);
#pragma omp parallel num_threads(threads)
  if (w.squares) {
    w.squares->run((const uint16_t*)large, (const uint16_t*)small, workspace, grad);
  } else {
    const float *of_large = w.prepare(w.large, large, first),
                *of_small = w.prepare(w.small, small, second);
    w.run({of_large, of_small, workspace, grad});
  }
}

// sums (channels): parts of the rows each by itself, then added up in order. Few channels are taken
// several rows at a time, so that vectors are full.
template <class Number>
void channel_sums(long rows, long channels, const Number* x, float* sums, int threads) {
  long width = channels, lines = rows;
  while (width < WIDEST * LANES && lines % 2 == 0) width *= 2, lines /= 2;
  const long count = max(1, min(64, lines / 8));
  vector<float> parts(count * width);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long part = 0; part < count; part++)
    for (long k = 0; k < width; k += WIDEST * LANES)
      with_width(min(WIDEST, ceil_div(width - k, LANES)), [&](auto w) {
        constexpr int W = min(decltype(w)::vectors, WIDEST);
        vec sum[W] = {};
        for (long line = part * lines / count; line < (part + 1) * lines / count; line++)
          for (int n = 0; n < W; n++)
            sum[n] += load_numbers(x + line * width + k + n * LANES, width - k - n * LANES);
        store<W>(parts.data() + part * width + k, sum, width - k);
      });
  for (long k = 0; k < channels; k++) sums[k] = 0;
  for (long first = 0; first < count * width; first += channels)
    for (long k = 0; k < channels; k++) sums[k] += parts[first + k];
}

}  // namespace

// Whether bfloat16 images can be taken.
extern "C" long vaebench_conv_bf16() { return BF16; }

// Whether the small image's channels are to lie fastest in weights: (height, width, large, small),
// else (height, width, small, large).
extern "C" long vaebench_conv_small_fastest(long small, long large) {
  return small_fastest(small, large);
}

// What does not change from call to call, for as long as the process lives: from the large image
// down to the small one, or up.
extern "C" const void* vaebench_conv_plan(const Geometry* g, long up, long bf16) {
  if (bf16) return new Convolution<Pair, uint16_t>(*g, up);
  return new Convolution<Single, float>(*g, up);
}

extern "C" const void* vaebench_conv_grad_plan(const Geometry* g, long bf16) {
  if (bf16) return new WeightGrad<Pair, uint16_t>(*g);
  return new WeightGrad<Single, float>(*g);
}

// Floats of workspace that a plan takes, on a multiple of 64 bytes.
extern "C" long vaebench_conv_workspace(const void* plan, long bf16) {
  return bf16 ? ((const Convolution<Pair, uint16_t>*)plan)->workspace()
              : ((const Convolution<Single, float>*)plan)->workspace();
}

extern "C" long vaebench_conv_grad_workspace(const void* plan, long bf16) {
  return bf16 ? ((const WeightGrad<Pair, uint16_t>*)plan)->workspace()
              : ((const WeightGrad<Single, float>*)plan)->workspace();
}

// destination = source convolved + bias (or null). bfloat16 images have an even number of channels
// at the source.
extern "C" void vaebench_conv(const void* plan, long bf16, const void* source, const float* weight,
                              const float* bias, void* destination, float* workspace,
                              long threads) {
  if (bf16)
    convolve(*(const Convolution<Pair, uint16_t>*)plan, (const uint16_t*)source, weight, bias,
             (uint16_t*)destination, workspace, threads);
  else
    convolve(*(const Convolution<Single, float>*)plan, (const float*)source, weight, bias,
             (float*)destination, workspace, threads);
}

extern "C" void vaebench_conv_weight_grad(const void* plan, long bf16, const void* large,
                                          const void* small, float* grad, float* workspace,
                                          long threads) {
  if (bf16)
    weight_grad(*(const WeightGrad<Pair, uint16_t>*)plan, (const uint16_t*)large,
                (const uint16_t*)small, grad, workspace, threads);
  else
    weight_grad(*(const WeightGrad<Single, float>*)plan, (const float*)large, (const float*)small,
                grad, workspace, threads);
}

// sums (channels) of rows (rows, channels): the sums of some rows each, added up in order.
extern "C" void vaebench_channel_sums(long rows, long channels, long bf16, const void* x,
                                      float* sums, long threads) {
  if (bf16)
    channel_sums(rows, channels, (const uint16_t*)x, sums, threads);
  else
    channel_sums(rows, channels, (const float*)x, sums, threads);
}

// Whether all bits of some numbers are zero.
extern "C" long vaebench_all_zero(const uint32_t* numbers, long count, long threads) {
  uint32_t found = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : found)
  for (long k = 0; k < count; k++) found |= numbers[k];
  return !found;
}
