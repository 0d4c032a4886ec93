// Images as a step takes them, and its way forward; see native.h.

namespace {

// Images

// Take the images at `index`, in all ways in which they are wanted; threads take parts of the
// pixels.
template <class Pixel>
inline void Steps<Pixel>::take_images(const Block& block, const Pixel* images, const long* index) {
  if (net.sparse) return list_images(block, images, index);
#pragma omp for schedule(static)
  for (long first = 0; first < inputs(); first += LANES)
    for (long image = 0; image < block.images; image += LANES) {
      const long live = min(LANES, block.images - image), count = min(LANES, inputs() - first);
      vec square[LANES] = {};
      for (long i = 0; i < live; i++)
        square[i] = load_units(images + index[image + i] * inputs() + first, count);
      store_hidden(block, square, input, image, first, count);
      for (long j = 0; j < count; j++)
        store_unit(transposed + (first + j) * stride + image, square[j]);
    }
}

// List and transpose them.
template <class Pixel>
inline void Steps<Pixel>::list_images(const Block& block, const Pixel* images, const long* index) {
  constexpr long PART = 32, FEW = 8;  // pixels; FEW are often all zero
#pragma omp for schedule(static)
  for (long part = 0; part < inputs(); part += PART) {
    const long end = min(part + PART, inputs());
    std::memset((void*)(transposed + part * stride), 0, (end - part) * stride * sizeof(Pixel));
    std::memset(lists.counts + part / G, 0, ceil_div(end - part, G) * sizeof(int32_t));
    for (long row = 0; row < block.images; row++) {
      const Pixel* image = images + index[row] * inputs();
      for (long few = part; few < end; few += FEW) {
        if (few + FEW <= end && all_zero(image + few)) continue;
        for (long first = few; first < min(few + FEW, end); first += G)
          take_group(image + first, row, first, min(G, end - first));
      }
    }
  }
}

template <class Pixel>
inline void Steps<Pixel>::take_group(const Pixel* p, long row, long first, long count) {
  if (!p[0] && (count < G || !p[1])) return;
  const long group = first / G, entry = group * ROWS + lists.counts[group]++;
  lists.rows[entry] = (uint8_t)row;
  for (long j = 0; j < G; j++) lists.values[entry * G + j] = j < count ? to_unit(p[j]) : 0.0f;
  for (long j = 0; j < count; j++) transposed[(first + j) * stride + row] = p[j];
}

// Prefetch images that are prepared next: they lie anywhere in memory.
template <class Pixel>
inline void Steps<Pixel>::prefetch_images(const Pixel* images, const long* index, long count) {
  const long floats = inputs() * sizeof(Pixel) / sizeof(float);
#pragma omp for schedule(static) nowait
  for (long row = 0; row < count; row++)
    prefetch((const float*)(images + index[row] * inputs()), 1, 0, floats);
}

// Forward

template <class Pixel>
inline Factors Steps<Pixel>::forward_factors(const Layer& layer, const Values& from) const {
  if (takes_pairs(layer)) {
    const Pairs& own = pairs_of(layer);
    return {own.weight_rows, own.depth, 1, from.pairs, stride, ceil_div(layer.in, 2), true};
  }
  return {layer.weight, layer.in, 1, from.features, stride, layer.in};
}

// Copy features to where they lie image-major, as numbers or in pairs of images.
template <class Pixel>
inline void Steps<Pixel>::transpose_all(const Block& block, const float* features, long out,
                                        long width, float* images, bool pairs) const {
#pragma omp for schedule(static) nowait
  for (long first = 0; first < out; first += LANES)
    for (long n = 0; n < block.vectors; n++) {
      vec square[LANES] = {};
      for (long k = 0; k < min(LANES, out - first); k++)
        square[k] = at(features + (first + k) * stride + n * LANES);
      transpose(square);
      const long live = min(LANES, block.live(n));
      if (pairs)
        store_pairs(square, live, images + n * LANES / 2 * width + first, width);
      else
        for (long i = 0; i < live; i++) at(images + (n * LANES + i) * width + first) = square[i];
    }
}

// Store pairs of up to LANES lines, `step` apart.
template <class Pixel>
inline void Steps<Pixel>::store_pairs(const vec* lines, long count, float* to, long step) const {
  for (long i = 0; i < min(LANES, count); i += 2)
    pairs_at(to + i / 2 * step) = pack_pairs(lines[i], i + 1 < count ? lines[i + 1] : vec{});
}

// Keep a tile of features (their places are in `from`) in pairs along them.
template <class Pixel>
inline void Steps<Pixel>::keep_pairs(const Tile& tile, const float* from, long features,
                                     float* to) const {
  for (long m = 0; m < tile.rows; m += 2)
    for (long n = 0; n < tile.vectors; n++) {
      const long feature = tile.row + m, vector = (tile.vector + n) * LANES;
      const float* even = from + feature * stride + vector;
      const vec odd = feature + 1 < features ? at(even + stride) : vec{};
      pairs_at(to + feature / 2 * stride + vector) = pack_pairs(at(even), odd);
    }
}

template <class Pixel>
inline void Steps<Pixel>::forward(const Block& block, const Layer& layer, const Values& from,
                                  const Values& to) {
  if (layer.gate) return forward_gated(block, layer, from, to);
  const Activation activation = activation_of(layer);
  product(layer.out, block.vectors, {forward_factors(layer, from)}, no_prefetch, [&](Tile& tile) {
    if (to.before)
      each(tile, [&](vec x, long feature, long, long place) {
        at(to.before + place) = x + layer.bias[feature];
      });
    each(tile, [&](vec x, long feature, long, long place) {
      at(to.features + place) = activation(x + layer.bias[feature]);
    });
    if (to.pairs) keep_pairs(tile, to.features, layer.out, to.pairs);
  });
}

// Both products have the same tiles: who computed what a gate lets through has the gate too.
template <class Pixel>
inline void Steps<Pixel>::forward_gated(const Block& block, const Layer& layer, const Values& from,
                                        const Values& to) {
  const Activation activation = activation_of(layer);
  const Layer& gate = gate_of(layer);
  product(layer.out, block.vectors, {forward_factors(layer, from)}, no_prefetch, [&](Tile& tile) {
    each(tile, [&](vec& x, long feature, long, long place) {
      at(to.before + place) = activation(x + layer.bias[feature]);
    });
  });
  product(layer.out, block.vectors, {forward_factors(gate, from)}, no_prefetch, [&](Tile& tile) {
    each(tile, [&](vec& x, long feature, long, long place) {
      const vec share = sigmoid(x + gate.bias[feature]);
      at(to.gates + place) = share;
      at(to.features + place) = at(to.before + place) * share;
    });
    if (to.pairs) keep_pairs(tile, to.features, layer.out, to.pairs);
  });
}

template <class Pixel>
inline void Steps<Pixel>::forward_sparse(const Block& block, const Layer& layer, const Values& to) {
  constexpr long T = FORWARD * LANES;
#pragma omp for schedule(dynamic, 1) nowait
  for (long column = 0; column < layer.out; column += T) {
    const long columns = min(T, layer.out - column);
    alignas(64) float tile[ROWS * T], gates[ROWS * T];
    with_width(ceil_div(columns, LANES), [&](auto w) {
      constexpr int W = min(decltype(w)::vectors, FORWARD);
      multiply_sparse<W>(block, layer, tile, column, columns);
      if (!to.before) return finish_sparse<W>(block, tile, to, column, columns);
      if (layer.gate) multiply_sparse<W>(block, gate_of(layer), gates, column, columns);
      finish_gated<W>(block, tile, layer.gate ? gates : nullptr, to, column, columns);
    });
  }
}

// Sums of a tile's columns, (images, W vectors).
template <class Pixel>
template <int W>
inline void Steps<Pixel>::multiply_sparse(const Block& block, const Layer& layer, float* sums,
                                          long column, long columns) const {
  forward_tile<W>(lists, 0, block.images, inputs(), layer.pitch, layer.weight + column,
                  layer.bias + column, sums, columns);
}

// Apply the activation to a tile (images, W vectors), and put it where it belongs.
template <class Pixel>
template <int W>
inline void Steps<Pixel>::finish_sparse(const Block& block, const float* tile, const Values& to,
                                        long column, long columns) {
  const Activation activation = activation_of(layer(0));
  for (long first = 0; first < block.images; first += LANES)
    for (long k = 0; k < W; k++) {
      vec square[LANES] = {};
      const long features = column + k * LANES;
      for (long i = 0; i < min(LANES, block.images - first); i++)
        square[i] = activation(at(tile + ((first + i) * W + k) * LANES));
      store_hidden(block, square, to, first, features, columns - k * LANES);
    }
}

// The same where more is to be kept, and with a gate, if there is one.
template <class Pixel>
template <int W>
inline void Steps<Pixel>::finish_gated(const Block& block, const float* tile, const float* gates,
                                       const Values& to, long column, long columns) {
  const Activation activation = activation_of(layer(0));
  for (long first = 0; first < block.images; first += LANES)
    for (long k = 0; k < W; k++) {
      vec square[LANES] = {}, before[LANES] = {}, shares[LANES] = {};
      const long features = column + k * LANES, count = columns - k * LANES;
      for (long i = 0; i < min(LANES, block.images - first); i++) {
        const long place = ((first + i) * W + k) * LANES;
        square[i] = activation(at(tile + place));
        before[i] = gates ? square[i] : at(tile + place);
        if (gates) square[i] *= shares[i] = sigmoid(at(gates + place));
      }
      const long place = features * stride + first;
      store_hidden(block, square, to, first, features, count);
      store_features(before, to.before + place, count);
      if (gates) store_features(shares, to.gates + place, count);
    }
}

// Put a square (images, features) from an image and a feature on where values lie, in all ways.
template <class Pixel>
inline void Steps<Pixel>::store_hidden(const Block& block, vec (&square)[LANES], const Values& to,
                                       long image, long feature, long count) const {
  const long live = min(LANES, block.images - image), place = feature * stride + image;
  if (to.pairs)
    store_pairs(square, live, to.image_pairs + image / 2 * to.width + feature, to.width);
  else
    for (long i = 0; i < live; i++) at(to.images + (image + i) * to.width + feature) = square[i];
  store_features(square, to.features + place, count);
  if (to.pairs) store_pairs(square, count, to.pairs + feature / 2 * stride + image, stride);
}

// Put a square (images, features) where so many features lie.
template <class Pixel>
inline void Steps<Pixel>::store_features(vec (&square)[LANES], float* features, long count) const {
  transpose(square);
  for (long j = 0; j < min(LANES, count); j++) at(features + j * stride) = square[j];
}

template <class Pixel>
inline void Steps<Pixel>::heads(const Block& block, const Values& from) {
  for (int i = 0; i < 2; i++) {
    const Layer& layer = head(i);
    float* to = i ? logvar : mu;
    product(layer.out, block.vectors, {forward_factors(layer, from)}, no_prefetch,
            [&](Tile& tile) {
              each(tile, [&](vec& x, long feature, long, long place) {
                at(to + place) = x + layer.bias[feature];
              });
            });
  }
}

// z = mu + exp(logvar / 2) eps, and the KL.
template <class Pixel>
inline void Steps<Pixel>::draw(const Block& block, const float* noise) {
#pragma omp for schedule(static)
  for (long j = 0; j < net.latent; j++) {
    for (long i = 0; i < block.images; i++) eps[j * stride + i] = noise[i * net.latent + j];
    vec kl = {};
    for (long n = 0; n < block.vectors; n++) {
      const long place = j * stride + n * LANES;
      const vec m = at(mu + place), l = logvar_of(at(logvar + place));
      const vec s = expm1(0.5f * l) + 1.0f;
      at(std + place) = s;
      at(z.features + place) = m + s * at(eps + place);
      kl += mask(m * m + expm1(l) - l, block.live(n));
    }
    for (long i = 0; i < block.images; i++)
      z.images[i * z.width + j] = z.features[j * stride + i];
    kl_sums[j] = 0.5 * horizontal_sum(kl);
  }
  if (net.labels)
#pragma omp for schedule(static)
    for (long j = 0; j < net.labels; j++) draw_label(block, j);
}

// A label of each image, beside z.
template <class Pixel>
inline void Steps<Pixel>::draw_label(const Block& block, long j) {
  float* label = z.features + (net.latent + j) * stride;
  for (long i = 0; i < block.vectors * LANES; i += LANES)
    at(label + i) = load_unit(transposed + (net.pixels + j) * stride + i);
  for (long i = 0; i < block.images; i++) z.images[i * z.width + net.latent + j] = label[i];
}

// log p(x|z), and the loss's gradient by the decoder's output.
template <class Pixel>
inline void Steps<Pixel>::likelihood(const Block& block, const Values& from) {
  const Layer& layer = output();
  const float precision = 1 / (net.sigma * net.sigma);
  product(layer.out, block.vectors, {forward_factors(layer, from)}, no_prefetch, [&](Tile& tile) {
    const long row = tile.row / output_height();
    Bernoulli& sums = recon[row];
    if (tile.vector == 0) sums = Bernoulli();
    each(tile, [&](vec out, long pixel, long vector, long place) {
      const long live = block.live(vector);
      const vec x = load_unit(transposed + place);
      vec grad;
      out += layer.bias[pixel];
      if (net.likelihood == BERNOULLI) {
        grad =
            sums.add(mask(out, live, broadcast(LOWEST)), x);  // a surely dark pixel: adds nothing
      } else {
        grad = mask(out - x, live);
        sums.linear -= 0.5f * precision * grad * grad;
        grad *= precision;
      }
      at(input.features + place) = mask(grad * block.share, live);
    });
    keep_grads(block, tile, layer, input.features);
    sums.count_exponent();
    if (tile.vector + tile.vectors == block.vectors) recon_sums[row] = sums.value();
  });
}

// Keep a tile of the loss's gradients by a layer's sums in pairs, if it multiplies these.
template <class Pixel>
inline void Steps<Pixel>::keep_grads(const Block& block, const Tile& tile, const Layer& layer,
                                     const float* grads) const {
  if (!takes_pairs(layer)) return;
  const Pairs& own = pairs_of(layer);
  keep_pairs(tile, grads, layer.out, own.grad_pairs);
  const bool half = block.vectors % 2 && tile.vector + tile.vectors == block.vectors;
  for (long row = tile.row; row < tile.row + tile.rows; row++) {
    const auto store = [&](long n, vec x) {
      store_bf16(own.grad_rows + left_place(row, n * LANES / 2, stride / 2), x);
    };
    for (long n = tile.vector; n < tile.vector + tile.vectors; n++)
      store(n, at(grads + row * stride + n * LANES));
    if (half) store(block.vectors, vec{});  // of a square
  }
}

}  // namespace
