// Whole steps, and what Python calls; see native.h.

namespace {

// Forward and backward through a block, and the updates after the step's last.
template <class Pixel>
inline void Steps<Pixel>::train(const Block& block, const Rule& rule, const Pixel* images,
                                const long* index, long next, const float* noise, double* totals) {
  const long E = net.encoders, H = hiddens();
  take_images(block, images, index);
  if (net.sparse)
    forward_sparse(block, layer(0), hidden[0]);
  else
    forward(block, layer(0), input, hidden[0]);
#pragma omp barrier
  if (!net.sparse) keep_images(block, 0);
  for (long i = 1; i < E; i++) {
    forward(block, layer(i), hidden[i - 1], hidden[i]);
#pragma omp barrier
    keep_images(block, i);
  }
  heads(block, hidden[E - 1]);
#pragma omp barrier
  draw(block, noise);
  for (long i = E; i < H; i++) {
    forward(block, layer(i), i == E ? z : hidden[i - 1], hidden[i]);
#pragma omp barrier
    keep_images(block, i);
  }
  likelihood(block, hidden[H - 1]);
#pragma omp barrier
  backward(block, layer(H - 1), terms_of(output(), input), hidden[H - 1]);
#pragma omp barrier
  for (long i = H - 2; i >= E; i--) {
    backward(block, layer(i), terms_of(layer(i + 1), hidden[i + 1]), hidden[i]);
#pragma omp barrier
  }
  prefetch_images(images, index + block.images, next);
  backward_draw(block, terms_of(layer(E), hidden[E]));
#pragma omp barrier
  backward(block, layer(E - 1), {backward_factors(head(0), mu), backward_factors(head(1), logvar)},
           hidden[E - 1]);
#pragma omp barrier
  for (long i = E - 2; i >= 0; i--) {
    backward(block, layer(i), terms_of(layer(i + 1), hidden[i + 1]), hidden[i]);
#pragma omp barrier
  }
  if (net.sparse) {
    const long out = layer(0).out, width = hidden[0].width;
    transpose_all(block, hidden[0].features, out, width, first_grad, false);
    if (layer(0).gate) transpose_all(block, hidden[0].gates, out, width, gate_grad, false);
#pragma omp barrier
  }
  update_all(block, rule);
  if (rule.norm && block.last) {
#pragma omp barrier
    update_by_norm(rule);
  }
#pragma omp single
  add_up(block, totals);
}

template <class Pixel>
inline void Steps<Pixel>::keep_images(const Block& block, long i) const {
  const Values& v = hidden[i];
  transpose_all(block, v.features, layer(i).out, v.width, v.pairs ? v.image_pairs : v.images,
                v.pairs);
}

template <class Pixel>
inline void Steps<Pixel>::update_all(const Block& block, const Rule& rule) {
  const long E = net.encoders, H = hiddens();
  update_hidden(block, rule, 0);
  update(block, rule, output(), input.features, hidden[H - 1]);
  for (long i = 1; i < H; i++) update_hidden(block, rule, i);
  update(block, rule, head(0), mu, hidden[E - 1]);
  update(block, rule, head(1), logvar, hidden[E - 1]);
}

template <class Pixel>
inline void Steps<Pixel>::add_up(const Block& block, double* totals) {
  for (long i = 0; i < output_rows(); i++) totals[0] += recon_sums[i];
  if (net.likelihood == GAUSSIAN)
    totals[0] -= block.images * net.pixels * std::log(net.sigma * std::sqrt(2 * M_PI));
  for (long j = 0; j < net.latent; j++) totals[1] += kl_sums[j];
}

template <class Pixel>
inline void Steps<Pixel>::run(long images, long batch, const Pixel* data, const long* index,
                              const float* noise, double* totals, int threads) {
  const double before = *net.optimizer.step;
#pragma omp parallel num_threads(threads)
  {
    const Squares squares(net.wide);
    keep_all_weights();
    for (long start = 0; start < images; start += batch) {
      const long end = min(start + batch, images);
      const Rule rule(net.optimizer, before + start / batch + 1);
      for (long first = start; first < end; first += BLOCK) {
        const long count = min(BLOCK, end - first), past = first + count;
        const Block block{count, ceil_div(count, LANES), 1.0f / (end - start), first == start,
                          past == end};
        train(block, rule, data, index + first, min(BLOCK, images - past),
              noise + first * net.latent, totals);
      }
    }
  }
  *net.optimizer.step = before + ceil_div(images, batch);
}

}  // namespace

// Floats of workspace, on a multiple of 64 bytes and zero at first, for steps of `batch` images.
extern "C" long vaebench_native_workspace(const Net* net, long batch) {
  return Steps<float>(*net, batch, nullptr).taken;
}

// Whether this processor multiplies bfloat16 pairs.
extern "C" long vaebench_native_bf16() { return BF16; }

// Whether it multiplies squares of them, and may.
extern "C" long vaebench_native_squares() { return has_squares(); }

// Train a step on each `batch` of the images at `index`, on fewer at last; add recon and kl to
// totals.
extern "C" void vaebench_native_steps(const Net* net, float* workspace, long batch, long images,
                                      long bytes, const void* data, const long* index,
                                      const float* noise, double* totals, long threads) {
  if (bytes == 1)
    Steps<uint8_t>(*net, batch, workspace)
        .run(images, batch, (const uint8_t*)data, index, noise, totals, threads);
  else
    Steps<float>(*net, batch, workspace)
        .run(images, batch, (const float*)data, index, noise, totals, threads);
}

// Floats that a thread needs to score.
extern "C" long vaebench_native_score_workspace(const Net* net) {
  return Scores<float>(*net).workspace();
}

// recon (rows) = log p(x|z) of z (rows, inputs of the decoder), for pixels (blocks, pixels, ROWS).
extern "C" void vaebench_native_scores(const Net* net, float* workspace, long rows, long bytes,
                                       const void* pixels, const float* z, float* recon,
                                       long threads) {
  if (bytes == 1)
    Scores<uint8_t>(*net).run(rows, (const uint8_t*)pixels, z, recon, workspace, threads);
  else
    Scores<float>(*net).run(rows, (const float*)pixels, z, recon, workspace, threads);
}
