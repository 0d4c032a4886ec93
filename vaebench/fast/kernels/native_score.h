// Log p(x|z) of many z, without gradients; see chain/score.py.
//
// Blocks of ROWS images are taken by a thread each: nobody waits for anybody.

extern "C" int omp_get_thread_num();

namespace {

template <class Pixel>
struct Scores {
  const Net& net;
  long widest = 0;  // of the decoder's layers, and z

  explicit Scores(const Net& net) : net(net) {
    for (long i = net.encoders; i < net.encoders + net.decoders; i++)
      widest = max(widest, max(layer(i).in, layer(i).out));
  }

  const Layer& layer(long i) const { return net.layers[i + 2]; }  // hidden, of the decoder
  const Layer& output() const { return net.layers[net.encoders + net.decoders + 2]; }
  long inputs() const { return layer(net.encoders).in; }

  // Floats that a thread needs: what a layer takes, and what it gives, (features, ROWS).
  long workspace() const { return 2 * round_up(widest * ROWS, 16); }

  // recon (rows) of z (rows, inputs), for pixels (blocks, pixels, ROWS).
  void run(long rows, const Pixel* pixels, const float* z, float* recon, float* workspace,
           int threads) const {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long block = 0; block < ceil_div(rows, ROWS); block++) {
      const long first = block * ROWS, count = min(ROWS, rows - first);
      take(count, pixels + block * net.pixels * ROWS, z + first * inputs(), recon + first,
           workspace + omp_get_thread_num() * this->workspace());
    }
  }

  void take(long count, const Pixel* pixels, const float* z, float* recon, float* from) const {
    const long vectors = ceil_div(count, LANES);
    float* to = from + workspace() / 2;
    for (long j = 0; j < inputs(); j++)
      for (long i = 0; i < vectors * LANES; i++)
        from[j * ROWS + i] = i < count ? z[i * inputs() + j] : 0;
    for (long i = net.encoders; i < net.encoders + net.decoders; i++) {
      forward(layer(i), vectors, from, to);
      std::swap(from, to);
    }
    likelihood(count, vectors, pixels, from, recon);
  }

  void forward(const Layer& layer, long vectors, const float* from, float* to) const {
    const Activation activation{layer.activation, (float)layer.slope};
    multiply_rows(layer, vectors, from, [&](vec x, long place) { at(to + place) = activation(x); });
    if (layer.gate)
      multiply_rows(net.layers[layer.gate], vectors, from,
                    [&](vec x, long place) { at(to + place) *= sigmoid(x); });
  }

  // Call with each vector of a layer's sums, and its place.
  template <class Use>
  void multiply_rows(const Layer& layer, long vectors, const float* from, Use use) const {
    product_alone(layer.out, vectors, {{layer.weight, layer.in, 1, from, ROWS, layer.in}},
                  [&](Tile& tile) {
                    for (long m = 0; m < tile.rows; m++)
                      for (long n = 0; n < tile.vectors; n++)
                        use(at(tile(m, n)) + layer.bias[tile.row + m],
                            (tile.row + m) * ROWS + (tile.vector + n) * LANES);
                  });
  }

  void likelihood(long count, long vectors, const Pixel* pixels, const float* from,
                  float* recon) const {
    Bernoulli sums[ROWS / LANES];
    const float precision = 1 / (net.sigma * net.sigma);
    const Layer& layer = output();
    product_alone(layer.out, vectors, {{layer.weight, layer.in, 1, from, ROWS, layer.in}},
                  [&](Tile& tile) {
                    for (long n = 0; n < tile.vectors; n++) {
                      Bernoulli& sum = sums[tile.vector + n];
                      for (long m = 0; m < tile.rows; m++) {
                        const long pixel = tile.row + m;
                        const vec out = at(tile(m, n)) + layer.bias[pixel];
                        const vec x =
                            load_unit(pixels + pixel * ROWS + (tile.vector + n) * LANES);
                        if (net.likelihood == BERNOULLI)
                          sum.add(out, x);
                        else
                          sum.linear -= 0.5f * precision * (out - x) * (out - x);
                      }
                      sum.count_exponent();
                    }
                  });
    const double constant =
        net.likelihood == GAUSSIAN ? net.pixels * std::log(net.sigma * std::sqrt(2 * M_PI)) : 0;
    for (long i = 0; i < count; i++)
      recon[i] = sums[i / LANES].value_of(i % LANES) - constant;
  }
};

}  // namespace
