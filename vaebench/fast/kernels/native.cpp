// Training steps of a fully connected VAE; see native.py for the reasons.
//
// A step takes its images in blocks. Activations of a block lie feature-major, (features, images):
// a layer's product then reads its weights (out, in) as they are, number by number, against vectors
// of images, and so do the products on the way back. What the gradients of weights multiply lies
// image-major as well, (images, features). One team of threads takes a whole call, phase by phase;
// what a phase gives does not depend on which thread did which part of it.

// As native.py has them.
struct Layer {
  long in, out;
  float *weight, *bias;  // (out, in), but of a sparse first layer (in, out); (out)
  float *weight_m, *weight_v, *bias_m, *bias_v;  // Adam's moments, laid out alike
};

struct Net {
  long pixels, latent, encoders, decoders;  // sizes, and how many hidden layers
  Layer* layers;                            // encoders, mu, logvar, decoders, output
  long activation, likelihood, sparse;
  long bf16;  // bfloat16 factors in the output layer's products
  double negative_slope, sigma, beta, adam_eps;
  float* step;  // Adam's count
  const float* lr;
};

namespace {

enum { RELU, TANH, LEAKY_RELU };
enum { BERNOULLI, GAUSSIAN };

constexpr long BLOCK = ROWS, MOST_HIDDEN = 64;

// Adam in the form and with the defaults of torch.optim.Adam; see vaebench/fast/adam.py.
struct Adam {
  static constexpr double BETA1 = 0.9, BETA2 = 0.999;
  float m_old = BETA1, m_new = 1 - BETA1, v_old = BETA2, v_new = 1 - BETA2, rate, spread, eps;

  Adam(const Net& net, double step)
      : rate(*net.lr / (1 - std::pow(BETA1, step))),
        spread(1 / std::sqrt(1 - std::pow(BETA2, step))),
        eps(net.adam_eps) {}

  // Update up to LANES parameters by their gradients.
  void update(float* weight, float* weight_m, float* weight_v, vec g, long count) const {
    vec p, m, v;
    load<1>(&p, weight, count), load<1>(&m, weight_m, count), load<1>(&v, weight_v, count);
    m = m_old * m + m_new * g;
    v = v_old * v + v_new * (g * g);
    p -= rate * m / (sqrt(v) * spread + eps);
    store<1>(weight, &p, count), store<1>(weight_m, &m, count), store<1>(weight_v, &v, count);
  }
};

// Steps

// A layer's activations; on the way back the loss's gradient by them takes the feature-major
// place.
struct Values {
  float* features;  // (out, stride)
  float* images;    // (BLOCK, width)
  long width;       // out, rounded up to whole vectors
};

// Images that are taken together, in the step that they belong to.
struct Block {
  long images, vectors;  // how many; vectors that hold one feature of all
  float share;           // 1 / images of the step
  bool first, last;      // block of the step

  long live(long vector) const { return images - vector * LANES; }  // lanes of a vector in use
};

template <class Pixel>
struct Steps {
  const Net& net;
  float* workspace;
  long taken = 0;  // floats of it
  long stride;     // of features

  Lists lists;
  Pixel* transposed;  // (pixels, stride): the images feature-major, as they are
  Values input, z;    // input: of a dense first layer, and the loss's gradient by the output
  Values hidden[MOST_HIDDEN];
  float *mu, *logvar, *std, *eps;  // (latent, stride)
  Bf16 bf16;                       // of the output layer
  float* first_grad;               // (BLOCK, width): by the sparse first layer's values
  float* grads;                    // of steps of several blocks, layer by layer: weights, biases
  Bernoulli* recon;                // of a row of tiles of the output
  double *recon_sums, *kl_sums;    // of a row of tiles; of a latent

  // Divide the workspace; without any, only find its size.
  Steps(const Net& net, long batch, float* workspace) : net(net), workspace(workspace) {
    stride = round_up(min(batch, BLOCK), LANES);
    lists = lists_in(take(list_floats(ceil_div(net.pixels, G))), 1, net.pixels);
    transposed = (Pixel*)take(net.pixels * stride);
    input = take_values(net.pixels, !net.sparse);
    z = take_values(net.latent, true);
    for (long i = 0; i < hiddens(); i++) hidden[i] = take_values(layer(i).out, true);
    mu = take(net.latent * stride), logvar = take(net.latent * stride);
    std = take(net.latent * stride), eps = take(net.latent * stride);
    if (net.bf16) bf16 = take_bf16();
    first_grad = take(net.sparse ? BLOCK * hidden[0].width : 0);
    grads = take(batch > BLOCK ? grads_before(net.layers + hiddens() + 3) : 0);
    recon = (Bernoulli*)take(output_rows() * (sizeof(Bernoulli) / sizeof(float)));
    recon_sums = (double*)take(2 * output_rows());
    kl_sums = (double*)take(2 * net.latent);
  }

  float* take(long floats) {
    float* given = workspace ? workspace + taken : nullptr;
    taken += round_up(floats, 16);
    return given;
  }

  Values take_values(long out, bool images) {
    const long width = round_up(out, LANES);
    float* features = take(out * stride);
    return {features, take(images ? BLOCK * width : 0), width};
  }

  Bf16 take_bf16() {
    const Layer& layer = output();
    const long width = round_up(layer.in, LANES), pairs = ceil_div(layer.out, 2);
    float *rows = take(layer.out * width / 2), *across = take(pairs * width);
    float *features = take(ceil_div(layer.in, 2) * stride), *images = take(BLOCK / 2 * width);
    float *grad_rows = take(layer.out * stride / 2), *grad_pairs = take(pairs * stride);
    return {rows, across, features, images, grad_rows, grad_pairs, width};
  }

  long hiddens() const { return net.encoders + net.decoders; }
  Layer& layer(long i) const { return net.layers[i < net.encoders ? i : i + 2]; }  // hidden
  Layer& head(int i) const { return net.layers[net.encoders + i]; }
  Layer& output() const { return net.layers[hiddens() + 2]; }
  long output_rows() const { return ceil_div(net.pixels, M); }

  long grads_before(const Layer* layer) const {
    long sum = 0;
    for (const Layer* l = net.layers; l < layer; l++) sum += (l->in + 1) * l->out;
    return sum;
  }

  // Images

  // List and transpose the images at `index`; threads take parts of the pixels.
  void prepare(const Block& block, const Pixel* images, const long* index) {
    constexpr long PART = 32, FEW = 8;  // pixels; FEW are often all zero
#pragma omp for schedule(static)
    for (long part = 0; part < net.pixels; part += PART) {
      const long end = min(part + PART, net.pixels);
      std::memset((void*)(transposed + part * stride), 0, (end - part) * stride * sizeof(Pixel));
      std::memset(lists.counts + part / G, 0, ceil_div(end - part, G) * sizeof(int32_t));
      for (long row = 0; row < block.images; row++) {
        const Pixel* image = images + index[row] * net.pixels;
        for (long few = part; few < end; few += FEW) {
          if (few + FEW <= end && all_zero(image + few)) continue;
          for (long first = few; first < min(few + FEW, end); first += G)
            take_group(image + first, row, first, min(G, end - first));
        }
        if (!net.sparse)
          for (long p = part; p < end; p++)
            input.images[row * input.width + p] = input.features[p * stride + row] =
                to_unit(image[p]);
      }
    }
  }

  // Whether eight pixels are.
  static bool all_zero(const Pixel* image) {
    Pixel p[8];
    std::memcpy(p, image, sizeof p);
    uint64_t bits[sizeof p / 8], any = 0;
    std::memcpy(bits, p, sizeof p);
    for (uint64_t b : bits) any |= b;
    return any == 0;
  }

  void take_group(const Pixel* p, long row, long first, long count) {
    if (!p[0] && (count < G || !p[1])) return;
    const long group = first / G, entry = group * ROWS + lists.counts[group]++;
    lists.rows[entry] = (uint8_t)row;
    for (long j = 0; j < G; j++) lists.values[entry * G + j] = j < count ? to_unit(p[j]) : 0.0f;
    for (long j = 0; j < count; j++) transposed[(first + j) * stride + row] = p[j];
  }

  // Prefetch images that are prepared next: they lie anywhere in memory.
  void prefetch_images(const Pixel* images, const long* index, long count) {
    const long floats = net.pixels * sizeof(Pixel) / sizeof(float);
#pragma omp for schedule(static) nowait
    for (long row = 0; row < count; row++)
      prefetch((const float*)(images + index[row] * net.pixels), 1, 0, floats);
  }

  // Forward

  vec activate(vec x) const {
    if (net.activation == TANH) return tanh(x);
    return x > 0 ? x : x * (net.activation == RELU ? 0.0f : (float)net.negative_slope);
  }

  // The activation's derivative where its value is h.
  vec activation_grad(vec h) const {
    if (net.activation == TANH) return 1.0f - h * h;
    return h > 0 ? broadcast(1)
                 : broadcast(net.activation == RELU ? 0.0f : (float)net.negative_slope);
  }

  bool is_bf16(const Layer& layer) const { return net.bf16 && &layer == &output(); }

  Factors forward_factors(const Layer& layer, const Values& from) const {
    if (is_bf16(layer))
      return {bf16.weight_rows, bf16.width / 2,        1,   bf16.features,
              stride,           ceil_div(layer.in, 2), true};
    return {layer.weight, layer.in, 1, from.features, stride, layer.in};
  }

  // Copy features to where they lie image-major.
  void transpose_all(const Block& block, const Values& values, long out, float* images) const {
#pragma omp for schedule(static) nowait
    for (long first = 0; first < out; first += LANES)
      for (long n = 0; n < block.vectors; n++) {
        vec square[LANES] = {};
        for (long k = 0; k < min(LANES, out - first); k++)
          square[k] = at(values.features + (first + k) * stride + n * LANES);
        transpose(square);
        const long live = min(LANES, block.live(n));
        if (net.bf16 && &values == &hidden[hiddens() - 1])
          for (long i = 0; i < live; i += 2)
            pairs_at(bf16.images + (n * LANES + i) / 2 * bf16.width + first) =
                pack_pairs(square[i], i + 1 < live ? square[i + 1] : vec{});
        else
          for (long i = 0; i < live; i++)
            at(images + (n * LANES + i) * values.width + first) = square[i];
      }
  }

  // Keep a tile of features (their places are in `from`) in pairs along them.
  void keep_pairs(const Tile& tile, const float* from, long features, float* to) const {
    for (long m = 0; m < tile.rows; m += 2)
      for (long n = 0; n < tile.vectors; n++) {
        const long feature = tile.row + m, vector = (tile.vector + n) * LANES;
        const float* even = from + feature * stride + vector;
        const vec odd = feature + 1 < features ? at(even + stride) : vec{};
        pairs_at(to + feature / 2 * stride + vector) = pack_pairs(at(even), odd);
      }
  }

  // Call with each vector of a tile: (its values, its feature, its place among the features).
  template <class Use>
  void each(Tile& tile, Use use) const {
    for (long m = 0; m < tile.rows; m++)
      for (long n = 0; n < tile.vectors; n++) {
        const long feature = tile.row + m, vector = tile.vector + n;
        use(at(tile(m, n)), feature, vector, feature * stride + vector * LANES);
      }
  }

  void forward(const Block& block, const Layer& layer, const Values& from, const Values& to) {
    product(layer.out, block.vectors, {forward_factors(layer, from)}, no_prefetch, [&](Tile& tile) {
      each(tile, [&](vec& x, long feature, long, long place) {
        at(to.features + place) = activate(x + layer.bias[feature]);
      });
      if (net.bf16 && &to == &hidden[hiddens() - 1])
        keep_pairs(tile, to.features, layer.out, bf16.features);
    });
  }

  void forward_sparse(const Block& block, const Layer& layer, const Values& to) {
    constexpr long T = FORWARD * LANES;
#pragma omp for schedule(dynamic, 1) nowait
    for (long column = 0; column < layer.out; column += T) {
      const long columns = min(T, layer.out - column);
      alignas(64) float tile[ROWS * T];
      with_width(ceil_div(columns, LANES), [&](auto w) {
        constexpr int W = min(decltype(w)::vectors, FORWARD);
        forward_tile<W>(lists, 0, block.images, net.pixels, layer.out, layer.weight + column,
                        layer.bias + column, tile, columns);
        finish_sparse<W>(block, tile, to, column, columns);
      });
    }
  }

  // Apply the activation to a tile (images, W vectors), and put it where it belongs.
  template <int W>
  void finish_sparse(const Block& block, float* tile, const Values& to, long column, long columns) {
    for (long first = 0; first < block.images; first += LANES)
      for (long k = 0; k < W; k++) {
        vec square[LANES] = {};
        const long features = column + k * LANES;
        for (long i = 0; i < min(LANES, block.images - first); i++) {
          square[i] = activate(at(tile + ((first + i) * W + k) * LANES));
          at(to.images + (first + i) * to.width + features) = square[i];
        }
        transpose(square);
        for (long j = 0; j < min(LANES, columns - k * LANES); j++)
          at(to.features + (features + j) * stride + first) = square[j];
      }
  }

  void heads(const Block& block, const Values& from) {
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
  void draw(const Block& block, const float* noise) {
#pragma omp for schedule(static)
    for (long j = 0; j < net.latent; j++) {
      for (long i = 0; i < block.images; i++) eps[j * stride + i] = noise[i * net.latent + j];
      vec kl = {};
      for (long n = 0; n < block.vectors; n++) {
        const long place = j * stride + n * LANES;
        const vec m = at(mu + place), l = at(logvar + place);
        const vec s = expm1(0.5f * l) + 1.0f;
        at(std + place) = s;
        at(z.features + place) = m + s * at(eps + place);
        kl += mask(m * m + expm1(l) - l, block.live(n));
      }
      for (long i = 0; i < block.images; i++)
        z.images[i * z.width + j] = z.features[j * stride + i];
      kl_sums[j] = 0.5 * horizontal_sum(kl);
    }
  }

  // log p(x|z), and the loss's gradient by the decoder's output.
  void likelihood(const Block& block, const Values& from) {
    const Layer& layer = output();
    const float precision = 1 / (net.sigma * net.sigma);
    product(layer.out, block.vectors, {forward_factors(layer, from)}, no_prefetch, [&](Tile& tile) {
      Bernoulli& sums = recon[tile.row / M];
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
      if (net.bf16) keep_grads(tile);
      sums.count_exponent();
      if (tile.vector + tile.vectors == block.vectors) recon_sums[tile.row / M] = sums.value();
    });
  }

  void keep_grads(const Tile& tile) const {
    keep_pairs(tile, input.features, output().out, bf16.grad_pairs);
    for (long m = 0; m < tile.rows; m++)
      for (long n = 0; n < tile.vectors; n++) {
        const long place = (tile.row + m) * stride + (tile.vector + n) * LANES;
        store_bf16(bf16.grad_rows + place / 2, at(input.features + place));
      }
  }

  // Backward

  Factors backward_factors(const Layer& layer, const float* grads) const {
    if (is_bf16(layer))
      return {bf16.weight_pairs,      1,   bf16.width, bf16.grad_pairs, stride,
              ceil_div(layer.out, 2), true};
    return {layer.weight, 1, layer.in, grads, stride, layer.out};
  }

  // From the gradients by what a hidden layer's values are multiplied to, those by its sums.
  void backward(const Block& block, long out, std::initializer_list<Factors> terms,
                const Values& to) {
    product(out, block.vectors, terms, no_prefetch, [&](Tile& tile) {
      each(tile, [&](vec grad, long, long vector, long place) {
        vec& h = at(to.features + place);
        h = mask(grad * activation_grad(h), block.live(vector));
      });
    });
  }

  void backward_draw(const Block& block, const Layer& layer, const Values& above) {
    const float weight = net.beta * block.share;
    product(net.latent, block.vectors, {backward_factors(layer, above.features)}, no_prefetch,
            [&](Tile& tile) {
              each(tile, [&](vec by_z, long, long vector, long place) {
                const long live = block.live(vector);
                vec &m = at(mu + place), &l = at(logvar + place);
                const vec spread = by_z * at(std + place) * at(eps + place);
                m = mask(by_z + weight * m, live);
                l = mask(0.5f * (spread + weight * expm1(l)), live);
              });
            });
  }

  // Updates

  // Take up to LANES gradients; `place` counts a layer's weights, and its biases after them.
  void add_grad(const Block& block, const Adam& adam, const Layer& layer, long place, vec g,
                long count) {
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

  void update(const Block& block, const Adam& adam, const Layer& layer, const float* grads,
              const Values& from) {
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
  void keep_weights(long row, long rows, long vector, long vectors) const {
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

  void keep_all_weights() const {
#pragma omp for schedule(static)
    for (long row = 0; row < output().out; row += M)
      keep_weights(row, min(M, output().out - row), 0, bf16.width / LANES);
  }

  void update_sparse(const Block& block, const Adam& adam, const Layer& layer) {
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
          for (long j = 0; j < min(G, net.pixels - first); j++)
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

  void update_bias(const Block& block, const Adam& adam, const Layer& layer, const float* grads) {
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

  // All together

  // Forward and backward through a block, and the updates after the step's last.
  void train(const Block& block, const Adam& adam, const Pixel* images, const long* index,
             long next, const float* noise, double* totals) {
    const long E = net.encoders, H = hiddens();
    prepare(block, images, index);
    if (net.sparse)
      forward_sparse(block, layer(0), hidden[0]);
    else
      forward(block, layer(0), input, hidden[0]);
#pragma omp barrier
    if (!net.sparse) transpose_all(block, hidden[0], layer(0).out, hidden[0].images);
    for (long i = 1; i < E; i++) {
      forward(block, layer(i), hidden[i - 1], hidden[i]);
#pragma omp barrier
      transpose_all(block, hidden[i], layer(i).out, hidden[i].images);
    }
    heads(block, hidden[E - 1]);
#pragma omp barrier
    draw(block, noise);
    for (long i = E; i < H; i++) {
      forward(block, layer(i), i == E ? z : hidden[i - 1], hidden[i]);
#pragma omp barrier
      transpose_all(block, hidden[i], layer(i).out, hidden[i].images);
    }
    likelihood(block, hidden[H - 1]);
#pragma omp barrier
    for (long i = H - 1; i >= E; i--) {
      const Values& above = i == H - 1 ? input : hidden[i + 1];
      const Layer& over = i == H - 1 ? output() : layer(i + 1);
      backward(block, layer(i).out, {backward_factors(over, above.features)}, hidden[i]);
#pragma omp barrier
    }
    prefetch_images(images, index + block.images, next);
    backward_draw(block, layer(E), hidden[E]);
#pragma omp barrier
    for (long i = E - 1; i >= 0; i--) {
      if (i == E - 1)
        backward(block, layer(i).out,
                 {backward_factors(head(0), mu), backward_factors(head(1), logvar)}, hidden[i]);
      else
        backward(block, layer(i).out, {backward_factors(layer(i + 1), hidden[i + 1].features)},
                 hidden[i]);
#pragma omp barrier
    }
    if (net.sparse) {
      transpose_all(block, hidden[0], layer(0).out, first_grad);
#pragma omp barrier
    }
    update_all(block, adam);
#pragma omp single
    add_up(block, totals);
  }

  void update_all(const Block& block, const Adam& adam) {
    const long E = net.encoders, H = hiddens();
    if (net.sparse)
      update_sparse(block, adam, layer(0));
    else
      update(block, adam, layer(0), hidden[0].features, input);
    update(block, adam, output(), input.features, hidden[H - 1]);
    for (long i = 1; i < H; i++)
      update(block, adam, layer(i), hidden[i].features, i == E ? z : hidden[i - 1]);
    update(block, adam, head(0), mu, hidden[E - 1]);
    update(block, adam, head(1), logvar, hidden[E - 1]);
  }

  void add_up(const Block& block, double* totals) {
    for (long i = 0; i < output_rows(); i++) totals[0] += recon_sums[i];
    if (net.likelihood == GAUSSIAN)
      totals[0] -= block.images * net.pixels * std::log(net.sigma * std::sqrt(2 * M_PI));
    for (long j = 0; j < net.latent; j++) totals[1] += kl_sums[j];
  }

  void run(long images, long batch, const Pixel* data, const long* index, const float* noise,
           double* totals, int threads) {
    const double before = *net.step;
#pragma omp parallel num_threads(threads)
    {
      if (net.bf16) keep_all_weights();
      for (long start = 0; start < images; start += batch) {
        const long end = min(start + batch, images);
        const Adam adam(net, before + start / batch + 1);
        for (long first = start; first < end; first += BLOCK) {
          const long count = min(BLOCK, end - first), past = first + count;
          const Block block{count, ceil_div(count, LANES), 1.0f / (end - start), first == start,
                            past == end};
          train(block, adam, data, index + first, min(BLOCK, images - past),
                noise + first * net.latent, totals);
        }
      }
    }
    *net.step = before + ceil_div(images, batch);
  }
};

}  // namespace

// Floats of workspace, on a multiple of 64 bytes and zero at first, for steps of `batch` images.
extern "C" long vaebench_native_workspace(const Net* net, long batch) {
  return Steps<float>(*net, batch, nullptr).taken;
}

// Whether this processor multiplies bfloat16 pairs.
extern "C" long vaebench_native_bf16() { return BF16; }

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
