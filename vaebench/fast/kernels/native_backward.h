// The way back through a step, and Adam's updates; see native.h.

namespace {

// Backward

template <class Pixel>
inline Factors Steps<Pixel>::backward_factors(const Layer& layer, const float* grads) const {
  if (is_bf16(layer))
    return {bf16.weight_pairs,      1,   bf16.width, bf16.grad_pairs, stride,
            ceil_div(layer.out, 2), true};
  return {layer.weight, 1, layer.in, grads, stride, layer.out};
}

// From the gradients by what a hidden layer's values are multiplied to, those by its sums.
template <class Pixel>
inline void Steps<Pixel>::backward(const Block& block, const Layer& layer,
                                   std::initializer_list<Factors> terms, const Values& to) {
  const Activation activation(layer);
  product(layer.out, block.vectors, terms, no_prefetch, [&](Tile& tile) {
    each(tile, [&](vec grad, long, long vector, long place) {
      vec& h = at(to.features + place);
      h = mask(grad * activation.grad(h), block.live(vector));
    });
  });
}

template <class Pixel>
inline void Steps<Pixel>::backward_draw(const Block& block, const Layer& layer,
                                        const Values& above) {
  const float weight = net.beta * block.share;
  product(net.latent, block.vectors, {backward_factors(layer, above.features)}, no_prefetch,
          [&](Tile& tile) {
            each(tile, [&](vec by_z, long, long vector, long place) {
              const long live = block.live(vector);
              vec &m = at(mu + place), &h = at(logvar + place);
              const vec spread = by_z * at(std + place) * at(eps + place);
              const vec by_logvar = 0.5f * (spread + weight * expm1(logvar_of(h)));
              m = mask(by_z + weight * m, live);
              h = mask(by_logvar * logvar_grad(h), live);
            });
          });
}

// Updates

// Take up to LANES gradients; `place` counts a layer's weights, and its biases after them.
template <class Pixel>
inline void Steps<Pixel>::add_grad(const Block& block, const Adam& adam, const Layer& layer,
                                   long place, vec g, long count) {
  if (!(block.first && block.last)) {
    float* sum = grads + grads_before(&layer) + place;
    vec before = {};
    if (!block.first) load<1>(&before, sum, count);
    g += before;
    if (!block.last) return store<1>(sum, &g, count);
  }
  const long bias = place - layer.in * layer.out;
  if (bias < 0)
    adam.update(layer.weight + place, layer.weight_m + place, layer.weight_v + place, g, count);
  else
    adam.update(layer.bias + bias, layer.bias_m + bias, layer.bias_v + bias, g, count);
}

template <class Pixel>
inline void Steps<Pixel>::update(const Block& block, const Adam& adam, const Layer& layer,
                                 const float* grads, const Values& from) {
  Factors gradient{grads, stride, 1, from.images, from.width, block.images};
  if (is_bf16(layer))
    gradient = {
        bf16.grad_rows, stride / 2, 1, bf16.images, bf16.width, ceil_div(block.images, 2), true};
  const auto next = [&](long row) -> Prefetch {
    const long place = row * layer.in;
    return {{layer.weight + place, layer.weight_m + place, layer.weight_v + place},
            0,
            min(M, layer.out - row) * layer.in};
  };
  product(layer.out, from.width / LANES, {gradient}, next, [&](Tile& tile) {
    for (long m = 0; m < tile.rows; m++)
      for (long n = 0; n < tile.vectors; n++) {
        const long column = (tile.vector + n) * LANES;
        add_grad(block, adam, layer, (tile.row + m) * layer.in + column, at(tile(m, n)),
                 layer.in - column);
      }
    if (is_bf16(layer) && block.last)
      keep_weights(tile.row, tile.rows, tile.vector, tile.vectors);
  });
  update_bias(block, adam, layer, grads);
}

// Keep some of the output layer's weights in pairs.
template <class Pixel>
inline void Steps<Pixel>::keep_weights(long row, long rows, long vector, long vectors) const {
  const Layer& layer = output();
  for (long m = row; m < row + rows; m += 2)
    for (long n = vector; n < vector + vectors; n++) {
      const long column = n * LANES;
      vec even, odd = {};
      load<1>(&even, layer.weight + m * layer.in + column, layer.in - column);
      store_bf16(bf16.weight_rows + (m * bf16.width + column) / 2, even);
      if (m + 1 < layer.out) {
        load<1>(&odd, layer.weight + (m + 1) * layer.in + column, layer.in - column);
        store_bf16(bf16.weight_rows + ((m + 1) * bf16.width + column) / 2, odd);
      }
      pairs_at(bf16.weight_pairs + m / 2 * bf16.width + column) = pack_pairs(even, odd);
    }
}

template <class Pixel>
inline void Steps<Pixel>::keep_all_weights() const {
#pragma omp for schedule(static)
  for (long row = 0; row < output().out; row += M)
    keep_weights(row, min(M, output().out - row), 0, bf16.width / LANES);
}

template <class Pixel>
inline void Steps<Pixel>::update_sparse(const Block& block, const Adam& adam, const Layer& layer) {
  const long width = hidden[0].width;
#pragma omp for schedule(static) nowait
  for (long group = 0; group < lists.groups; group++) {
    const long first = group * G;
    for (long column = 0; column < width; column += BACKWARD * LANES) {
      const long columns = min(BACKWARD * LANES, width - column);
      with_width(columns / LANES, [&](auto w) {
        constexpr int W = decltype(w)::vectors;
        vec sum[G][W] = {};
        add_group(lists, 0, group, first_grad + column, width, columns, sum);
        for (long j = 0; j < min(G, inputs() - first); j++)
          for (long k = 0; k < W; k++) {
            const long feature = column + k * LANES, place = (first + j) * layer.out + feature;
            for (const float* p : {layer.weight, layer.weight_m, layer.weight_v})
              prefetch(p + place + 2 * G * layer.out, 1, 0, LANES);  // two groups ahead
            add_grad(block, adam, layer, place, sum[j][k], layer.out - feature);
          }
      });
    }
  }
  update_bias(block, adam, layer, hidden[0].features);
}

template <class Pixel>
inline void Steps<Pixel>::update_bias(const Block& block, const Adam& adam, const Layer& layer,
                                      const float* grads) {
#pragma omp for schedule(dynamic, 1) nowait
  for (long first = 0; first < layer.out; first += LANES) {
    const long count = min(LANES, layer.out - first);
    vec g = {};
    for (long m = 0; m < count; m++) {
      vec sum = {};
      for (long n = 0; n < block.vectors; n++)
        sum += at(grads + (first + m) * stride + n * LANES);
      g[m] = horizontal_sum(sum);
    }
    add_grad(block, adam, layer, layer.in * layer.out + first, g, count);
  }
}

}  // namespace
