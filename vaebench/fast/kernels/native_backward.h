// The way back through a step, and the updates; see native.h.

namespace {

// Backward

template <class Pixel>
inline Factors Steps<Pixel>::backward_factors(const Layer& layer, const float* grads) const {
  if (takes_pairs(layer)) {
    const Pairs& own = pairs_of(layer);
    const long step = has_squares() ? own.grad_depth : 1, apart = has_squares() ? 1 : own.width;
    const long depth = ceil_div(layer.out, 2);
    return {own.weight_columns, step, apart, own.grad_pairs, stride, depth, true};
  }
  return {layer.weight, 1, layer.in, grads, stride, layer.out};
}

// What the loss's gradients by a layer's sums, and its gate's, give to what they take.
template <class Pixel>
inline Terms Steps<Pixel>::terms_of(const Layer& layer, const Values& grads) const {
  Terms terms{backward_factors(layer, grads.features)};
  if (layer.gate) terms.add(backward_factors(gate_of(layer), grads.gates));
  return terms;
}

// From the gradients by what a hidden layer's values are multiplied to, those by its sums.
template <class Pixel>
inline void Steps<Pixel>::backward(const Block& block, const Layer& layer, const Terms& terms,
                                   const Values& to) {
  const Activation activation = activation_of(layer);
  product(layer.out, block.vectors, terms, no_prefetch, [&](Tile& tile) {
    if (!to.before) {
      each(tile, [&](vec grad, long, long vector, long place) {
        vec& h = at(to.features + place);
        h = mask(grad * activation.grad(h), block.live(vector));
      });
    } else {
      each(tile, [&](vec grad, long, long vector, long place) {
        const vec before = at(to.before + place);
        if (to.gates) {
          vec& gate = at(to.gates + place);
          const vec through = grad * gate;
          gate = mask(through * before * (1.0f - gate), block.live(vector));
          grad = through;
        }
        at(to.features + place) = mask(grad * activation.grad(before), block.live(vector));
      });
    }
    keep_grads(block, tile, layer, to.features);
    if (layer.gate) keep_grads(block, tile, gate_of(layer), to.gates);
  });
}

template <class Pixel>
inline void Steps<Pixel>::backward_draw(const Block& block, const Terms& terms) {
  const float weight = net.beta * block.share;
  product(net.latent, block.vectors, terms, no_prefetch, [&](Tile& tile) {
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

// Take up to LANES gradients of a layer's weights; or, from a place behind them, of its biases.
template <class Pixel>
inline void Steps<Pixel>::add_grad(const Block& block, const Rule& rule, const Layer& layer,
                                   long place, vec g, long count) {
  if (block.alone(rule) || keep_grad(block, rule, layer, place, g, count))
    rule.update({layer.weight, layer.weight_m, layer.weight_v}, place, g, count);
}

template <class Pixel>
inline void Steps<Pixel>::add_bias_grad(const Block& block, const Rule& rule, const Layer& layer,
                                        long place, vec g, long count) {
  if (block.alone(rule) || keep_grad(block, rule, layer, weights(layer) + place, g, count))
    rule.update({layer.bias, layer.bias_m, layer.bias_v}, place, g, count);
}

// Add up the gradients of a step, biases' behind weights'; whether g is now all that there is, and
// nothing else is waited for.
template <class Pixel>
bool Steps<Pixel>::keep_grad(const Block& block, const Rule& rule, const Layer& layer, long place,
                             vec& g, long count) {
  float* sum = grads + grads_before(&layer) + place;
  vec before = {};
  if (!block.first) load<1>(&before, sum, count);
  g += before;
  if (block.last && !rule.norm) return true;
  store<1>(sum, &g, count);
  return false;
}

template <class Pixel>
inline void Steps<Pixel>::update(const Block& block, const Rule& rule, const Layer& layer,
                                 const float* grads, const Values& from) {
  Factors gradient{grads, stride, 1, from.images, from.width, block.images};
  if (takes_pairs(layer))
    gradient = {pairs_of(layer).grad_rows,    stride / 2, 1, from.image_pairs, from.width,
                ceil_div(block.images, 2), true};
  update_bias(block, rule, layer, grads);
  if (gradient.pairs && has_squares())
    return update_squares(block, rule, layer, gradient, from.width / LANES);
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
        add_grad(block, rule, layer, (tile.row + m) * layer.in + column, at(tile(m, n)),
                 layer.in - column);
      }
    if (takes_pairs(layer) && block.last && !rule.norm)
      keep_weights(layer, tile.row, tile.rows, tile.vector, tile.vectors);
  });
}

// The same by squares, so quick that memory is what is waited for: rows of weights in one go.
template <class Pixel>
inline void Steps<Pixel>::update_squares(const Block& block, const Rule& rule, const Layer& layer,
                                         const Factors& gradient, long vectors) {
  constexpr long PART = 16;  // vectors
#pragma omp for schedule(static) nowait
  for (long row = 0; row < layer.out; row += HIGHEST)
    for (long first = 0; first < vectors; first += PART) {
      const long count = min(PART, vectors - first), rows = min(HIGHEST, layer.out - row);
      alignas(64) float grads[HIGHEST * PART * LANES];
      multiply_squares<false>(gradient, row, rows, first, count, grads, count * LANES);
      for (long m = 0; m < rows; m++)
        for (long n = 0; n < count; n++) {
          const long column = (first + n) * LANES;
          add_grad(block, rule, layer, (row + m) * layer.in + column,
                   at(grads + (m * count + n) * LANES), layer.in - column);
        }
      if (block.last && !rule.norm) keep_weights(layer, row, rows, first, count);
    }
}

// Keep a tile of a layer's weights in pairs.
template <class Pixel>
inline void Steps<Pixel>::keep_weights(const Layer& layer, long row, long rows, long vector,
                                       long vectors) const {
  const Pairs& own = pairs_of(layer);
  if (has_squares()) {
    for (long m = row; m < row + rows; m += SQUARE)
      for (long n = vector; n < vector + vectors; n += 2) {
        const long column = n * LANES;
        const auto columns = [&](long k) {
          return own.weight_columns + left_place(k, m / 2, own.grad_depth);
        };
        pair_weights(layer.weight + m * layer.in + column, layer.in, row + rows - m,
                     layer.in - column, own.weight_rows + left_place(m, column / 2, own.depth),
                     columns(column), columns(column + LANES));
      }
    return;
  }
  for (long n = vector; n < vector + vectors; n++) {
    const long column = n * LANES;
    vec weights[M];
    for (long m = 0; m < rows; m++) {
      load<1>(&weights[m], layer.weight + (row + m) * layer.in + column, layer.in - column);
      store_bf16(own.weight_rows + left_place(row + m, column / 2, own.depth), weights[m]);
    }
    store_pairs(weights, rows, own.weight_columns + row / 2 * own.width + column, own.width);
  }
}

template <class Pixel>
inline void Steps<Pixel>::keep_all_weights() const {
  const long height = tile_height(true);
  for (const Layer* l = net.layers; l < net.layers + layers(); l++)
    if (takes_pairs(*l))
#pragma omp for schedule(static)
      for (long row = 0; row < l->out; row += height)
        keep_weights(*l, row, min(height, l->out - row), 0, ceil_div(l->in, LANES));
}

// A hidden layer and its gate.
template <class Pixel>
inline void Steps<Pixel>::update_hidden(const Block& block, const Rule& rule, long i) {
  const Layer& own = layer(i);
  const Values& from = i == 0 ? input : i == net.encoders ? z : hidden[i - 1];
  const auto one = [&](const Layer& layer, const float* grads, const float* by_image) {
    if (is_sparse(layer))
      update_sparse(block, rule, layer, by_image, grads);
    else
      update(block, rule, layer, grads, from);
  };
  one(own, hidden[i].features, first_grad);
  if (own.gate) one(gate_of(own), hidden[i].gates, gate_grad);
}

template <class Pixel>
inline void Steps<Pixel>::update_sparse(const Block& block, const Rule& rule, const Layer& layer,
                                        const float* grad, const float* features) {
  const long width = hidden[0].width;
#pragma omp for schedule(static) nowait
  for (long group = 0; group < lists.groups; group++) {
    const long first = group * G;
    for (long column = 0; column < width; column += BACKWARD * LANES) {
      const long columns = min(BACKWARD * LANES, width - column);
      with_width(columns / LANES, [&](auto w) {
        constexpr int W = decltype(w)::vectors;
        vec sum[G][W] = {};
        add_group(lists, 0, group, grad + column, width, columns, sum);
        for (long j = 0; j < min(G, inputs() - first); j++)
          for (long k = 0; k < W; k++) {
            const long feature = column + k * LANES, place = (first + j) * layer.pitch + feature;
            for (const float* p : {layer.weight, layer.weight_m, layer.weight_v})
              prefetch(p + place + 2 * G * layer.pitch, 1, 0, LANES);  // two groups ahead
            add_grad(block, rule, layer, place, sum[j][k], layer.out - feature);
          }
      });
    }
  }
  update_bias(block, rule, layer, features);
}

template <class Pixel>
inline void Steps<Pixel>::update_bias(const Block& block, const Rule& rule, const Layer& layer,
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
    add_bias_grad(block, rule, layer, first, g, count);
  }
}

// Update all by the gradients that were added up, shortened as their norm asks for.
template <class Pixel>
inline void Steps<Pixel>::update_by_norm(Rule rule) {
  const long all = grads_before(net.layers + layers());
#pragma omp for schedule(static)
  for (long chunk = 0; chunk < chunks(); chunk++) {
    squares[chunk] = 0;
    for (long i = chunk * CHUNK; i < min((chunk + 1) * CHUNK, all); i++)
      squares[chunk] += (double)grads[i] * grads[i];
  }
  double sum = 0;
  for (long chunk = 0; chunk < chunks(); chunk++) sum += squares[chunk];
  const double factor = rule.norm / (std::sqrt(sum) + 1e-6);
  rule.shortened = factor < 1 ? factor : factor >= 1 ? 1 : NAN;
  for (const Layer* l = net.layers; l < net.layers + layers(); l++) {
    const float* from = grads + grads_before(l);
    const long width = is_sparse(*l) ? l->out : l->in;
    const auto change_line = [&](const Memory& memory, long at, long start, long count) {
      for (long i = 0; i < count; i += LANES) {
        vec g;
        load<1>(&g, from + start + i, count - i);
        rule.update(memory, at + i, g, count - i);
      }
    };
#pragma omp for schedule(static)
    for (long line = 0; line < lines(*l); line++)
      change_line({l->weight, l->weight_m, l->weight_v}, line * l->pitch, line * l->pitch, width);
#pragma omp single
    change_line({l->bias, l->bias_m, l->bias_v}, 0, weights(*l), l->out);
  }
  keep_all_weights();
}

}  // namespace
