// Training steps of a fully connected VAE; see native.py for the reasons.
//
// A step takes its images in blocks. Activations of a block lie feature-major, (features, images):
// a layer's product then reads its weights (out, in) as they are, number by number, against vectors
// of images, and so do the products on the way back. What the gradients of weights multiply lies
// image-major as well, (images, features). One team of threads takes a whole call, phase by phase;
// what a phase gives does not depend on which thread did which part of it.

// As chain/kernel.py has them.
struct Layer {
  long in, out;
  float *weight, *bias;  // (out, in), but of a sparse first layer (in, out); (out)
  float *weight_m, *weight_v, *bias_m, *bias_v;  // the optimiser's moments, laid out alike
  long pitch;       // from one line of the weight to the next: others may lie in between
  long activation;  // of a hidden layer
  double slope;     // below 0: of leaky ReLU; ELU's alpha
  long gate;        // of a gated hidden layer: where the layer is whose sigmoid lets it through; or 0
};

struct Net {
  long pixels, latent, encoders, decoders;  // sizes, and how many hidden layers
  long labels;    // numbers behind each image's pixels, which encoder and decoder take too
  Layer* layers;  // encoders, mu, logvar, decoders, output, gates
  long gates;     // how many
  long logvar;    // what makes logvar of its head's output
  long likelihood, sparse;
  long wide;  // inputs and outputs from which on hidden layers have bfloat16 factors, by squares;
              // the output layer has them anyway; 0: none has
  double least_std, lowest, highest;  // logvar is cut off at the last two
  double sigma, beta;
  Optimizer optimizer;
};

namespace {

enum { BERNOULLI, GAUSSIAN };
// logvar of its head's output h: h; 2 h; 2 log(softplus(h) + least_std); softplus(h).
enum { PLAIN, DOUBLE, STD_SOFTPLUS, LOGVAR_SOFTPLUS };

constexpr long BLOCK = ROWS, MOST_LAYERS = 64;

// Steps

// A layer's values. On the way back the loss's gradient by the layer's sums takes the place of
// `features`, that by its gate's sums the place of `gates`.
struct Values {
  float* features;  // (out, stride)
  float* images;    // (BLOCK, width)
  long width;       // out, rounded up to whole vectors
  // (out, stride), where the way back needs them: what the gate lets through, or the sums of an
  // activation whose derivative is of these; and what the gate is.
  float *before = nullptr, *gates = nullptr;
  // For layers that multiply pairs: (out / 2, stride) along features, (BLOCK / 2, width) along
  // images.
  float *pairs = nullptr, *image_pairs = nullptr;
};

// What a layer's products are of that multiplies pairs, beside what it takes.
struct Pairs {
  float* weight_rows;      // (out, depth) along in; left_place says where
  float* weight_columns;   // along out: (out / 2, width), or by squares (width, grad_depth)
  float* grad_rows;        // (out, stride / 2) along images; left_place says where
  float* grad_pairs;       // (out / 2, stride) along out
  long width;              // in, rounded up to whole vectors
  long depth, grad_depth;  // pairs of in, and of out, rounded up to whole squares
};

// Images that are taken together, in the step that they belong to.
struct Block {
  long images, vectors;  // how many; vectors that hold one feature of all
  float share;           // 1 / images of the step
  bool first, last;      // block of the step

  long live(long vector) const { return images - vector * LANES; }  // lanes of a vector in use
  // Whether its gradients are used as they are made: by no other block's, nor by their norm.
  bool alone(const Rule& rule) const { return first && last && !rule.norm; }
};

template <class Pixel>
struct Steps {
  const Net& net;
  float* workspace;
  long taken = 0;  // floats of it
  long stride;     // of features

  Lists lists;
  Pixel* transposed;  // (inputs, stride): the images feature-major, as they are
  Values input, z;    // input: of a dense first layer, and the loss's gradient by the output
  Values hidden[MOST_LAYERS];
  float *mu, *logvar, *std, *eps;  // (latent, stride)
  Pairs pairs[MOST_LAYERS];        // of those of the net's layers that multiply them
  float *first_grad, *gate_grad;   // (BLOCK, width): by the sparse first layer's sums, and its gate's
  float* grads;                    // where a step adds them up, layer by layer: weights, biases
  double* squares;                 // of chunks of these, summed
  Bernoulli* recon;                // of a row of tiles of the output
  double *recon_sums, *kl_sums;    // of a row of tiles; of a latent

  // Divide the workspace; without any, only find its size.
  Steps(const Net& net, long batch, float* workspace) : net(net), workspace(workspace) {
    stride = round_up(min(batch, BLOCK), net.wide ? 2 * SQUARE : LANES);
    lists = lists_in(take(list_floats(ceil_div(inputs(), G))), 1, inputs());
    transposed = (Pixel*)take(inputs() * stride);
    input = take_values(inputs(), !net.sparse);
    z = take_values(net.latent + net.labels, true);
    for (long i = 0; i < hiddens(); i++) hidden[i] = take_hidden(layer(i));
    if (takes_pairs(layer(0))) take_pairs(input, inputs());
    for (long i = 0; i < hiddens(); i++)
      if (takes_pairs(after(i))) take_pairs(hidden[i], layer(i).out);
    for (long i = 0; i < layers(); i++)
      if (takes_pairs(net.layers[i])) pairs[i] = take_pairs(net.layers[i]);
    mu = take(net.latent * stride), logvar = take(net.latent * stride);
    std = take(net.latent * stride), eps = take(net.latent * stride);
    first_grad = take(net.sparse ? BLOCK * hidden[0].width : 0);
    gate_grad = take(net.sparse && layer(0).gate ? BLOCK * hidden[0].width : 0);
    const bool summed = batch > BLOCK || net.optimizer.clip_norm;
    grads = take(summed ? grads_before(net.layers + layers()) : 0);
    squares = (double*)take(net.optimizer.clip_norm ? 2 * chunks() : 0);
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

  Values take_hidden(const Layer& layer) {
    Values values = take_values(layer.out, true);
    if (layer.gate || activation_of(layer).by_sum()) values.before = take(layer.out * stride);
    if (layer.gate) values.gates = take(layer.out * stride);
    return values;
  }

  // Whole squares of them, whose edges stay 0.
  void take_pairs(Values& values, long out) {
    values.pairs = take(round_up(ceil_div(out, 2), SQUARE) * stride);
    values.image_pairs = take(BLOCK / 2 * values.width);
  }

  Pairs take_pairs(const Layer& layer) {
    const long rows = round_up(layer.out, SQUARE), width = round_up(layer.in, 2 * LANES);
    const long depth = round_up(ceil_div(layer.in, 2), SQUARE);
    const long grad_depth = round_up(ceil_div(layer.out, 2), SQUARE);
    float *weight_rows = take(rows * depth), *weight_columns = take(width * grad_depth);
    float *grad_rows = take(rows * stride / 2), *grad_pairs = take(grad_depth * stride);
    return {weight_rows, weight_columns, grad_rows, grad_pairs, width, depth, grad_depth};
  }

  long inputs() const { return net.pixels + net.labels; }  // of an image
  long hiddens() const { return net.encoders + net.decoders; }
  Layer& layer(long i) const { return net.layers[i < net.encoders ? i : i + 2]; }  // hidden
  Layer& head(int i) const { return net.layers[net.encoders + i]; }
  Layer& output() const { return net.layers[hiddens() + 2]; }
  const Layer& gate_of(const Layer& layer) const { return net.layers[layer.gate]; }
  long layers() const { return hiddens() + 3 + net.gates; }
  // What follows a hidden layer: the heads stand for one another.
  const Layer& after(long i) const {
    return i + 1 == net.encoders ? head(0) : i + 1 < hiddens() ? layer(i + 1) : output();
  }
  long output_height() const { return tile_height(takes_pairs(output())); }
  long output_rows() const { return ceil_div(net.pixels, output_height()); }

  static Activation activation_of(const Layer& layer) {
    return {layer.activation, (float)layer.slope};
  }

  // Whether a layer's weight is (in, out), and takes lists of pixels.
  bool is_sparse(const Layer& l) const {
    return net.sparse && is_like(l, layer(0));
  }

  long lines(const Layer& layer) const { return is_sparse(layer) ? layer.in : layer.out; }
  long weights(const Layer& layer) const { return lines(layer) * layer.pitch; }

  long grads_before(const Layer* layer) const {
    long sum = 0;
    for (const Layer* l = net.layers; l < layer; l++) sum += weights(*l) + l->out;
    return sum;
  }

  static constexpr long CHUNK = 4096;  // gradients
  long chunks() const { return ceil_div(grads_before(net.layers + layers()), CHUNK); }

  // Images: native_forward.h

  void take_images(const Block& block, const Pixel* images, const long* index);
  void list_images(const Block& block, const Pixel* images, const long* index);
  void take_group(const Pixel* p, long row, long first, long count);
  void prefetch_images(const Pixel* images, const long* index, long count);

  // Whether eight pixels are.
  static bool all_zero(const Pixel* image) {
    Pixel p[8];
    std::memcpy(p, image, sizeof p);
    uint64_t bits[sizeof p / 8], any = 0;
    std::memcpy(bits, p, sizeof p);
    for (uint64_t b : bits) any |= b;
    return any == 0;
  }

  // Forward: native_forward.h

  Factors forward_factors(const Layer& layer, const Values& from) const;
  void transpose_all(const Block& block, const float* features, long out, long width, float* images,
                     bool pairs) const;
  void keep_pairs(const Tile& tile, const float* from, long features, float* to) const;
  void forward(const Block& block, const Layer& layer, const Values& from, const Values& to);
  void forward_gated(const Block& block, const Layer& layer, const Values& from, const Values& to);
  void forward_sparse(const Block& block, const Layer& layer, const Values& to);
  template <int W>
  void multiply_sparse(const Block& block, const Layer& layer, float* sums, long column,
                       long columns) const;
  template <int W>
  void finish_sparse(const Block& block, const float* tile, const Values& to, long column,
                     long columns);
  template <int W>
  void finish_gated(const Block& block, const float* tile, const float* gates, const Values& to,
                    long column, long columns);
  void store_hidden(const Block& block, vec (&square)[LANES], const Values& to, long image,
                    long feature, long count) const;
  void store_features(vec (&square)[LANES], float* features, long count) const;
  void store_pairs(const vec* lines, long count, float* to, long step) const;
  void heads(const Block& block, const Values& from);
  void draw(const Block& block, const float* noise);
  void draw_label(const Block& block, long j);
  void likelihood(const Block& block, const Values& from);
  void keep_grads(const Block& block, const Tile& tile, const Layer& layer,
                  const float* grads) const;

  vec logvar_of(vec h) const {
    const float low = net.lowest, high = net.highest;
    const vec free = free_logvar_of(h);
    return free < low ? broadcast(low) : free > high ? broadcast(high) : free;
  }

  vec free_logvar_of(vec h) const {
    switch (net.logvar) {
      case DOUBLE: return 2.0f * h;
      case STD_SOFTPLUS: return 2.0f * log(softplus(h) + (float)net.least_std);
      case LOGVAR_SOFTPLUS: return softplus(h);
      default: return h;
    }
  }

  // Its derivative by h.
  vec logvar_grad(vec h) const {
    const vec free = free_logvar_of(h), grad = free_logvar_grad(h);
    return free < (float)net.lowest || free > (float)net.highest ? vec{} : grad;
  }

  vec free_logvar_grad(vec h) const {
    switch (net.logvar) {
      case DOUBLE: return broadcast(2);
      case STD_SOFTPLUS: return 2.0f * sigmoid(h) / (softplus(h) + (float)net.least_std);
      case LOGVAR_SOFTPLUS: return sigmoid(h);
      default: return broadcast(1);
    }
  }

  bool takes_pairs(const Layer& l) const {
    const bool latent = &l == &head(0) || &l == &head(1) || is_like(l, layer(net.encoders));
    const bool wide = !latent && !is_sparse(l) && min(l.in, l.out) >= net.wide;
    return net.wide && ((wide && has_squares()) || &l == &output());
  }

  // Whether a layer is another one, or its gate.
  bool is_like(const Layer& l, const Layer& other) const {
    return &l == &other || (other.gate && &l == &gate_of(other));
  }

  const Pairs& pairs_of(const Layer& layer) const { return pairs[&layer - net.layers]; }

  // Call with each vector of a tile: (its values, its feature, its place among the features).
  template <class Use>
  void each(Tile& tile, Use use) const {
    for (long m = 0; m < tile.rows; m++)
      for (long n = 0; n < tile.vectors; n++) {
        const long feature = tile.row + m, vector = tile.vector + n;
        use(at(tile(m, n)), feature, vector, feature * stride + vector * LANES);
      }
  }

  // Backward: native_backward.h

  Factors backward_factors(const Layer& layer, const float* grads) const;
  Terms terms_of(const Layer& layer, const Values& grads) const;
  void backward(const Block& block, const Layer& layer, const Terms& terms, const Values& to);
  void backward_draw(const Block& block, const Terms& terms);

  // Updates: native_backward.h

  void add_grad(const Block& block, const Rule& rule, const Layer& layer, long place, vec g,
                long count);
  void add_bias_grad(const Block& block, const Rule& rule, const Layer& layer, long place, vec g,
                     long count);
  __attribute__((noinline)) bool keep_grad(const Block& block, const Rule& rule, const Layer& layer, long place, vec& g,
                 long count);
  void update(const Block& block, const Rule& rule, const Layer& layer, const float* grads,
              const Values& from);
  void update_squares(const Block& block, const Rule& rule, const Layer& layer,
                      const Factors& gradient, long vectors);
  void keep_weights(const Layer& layer, long row, long rows, long vector, long vectors) const;
  void keep_all_weights() const;
  void update_hidden(const Block& block, const Rule& rule, long i);
  void update_sparse(const Block& block, const Rule& rule, const Layer& layer, const float* grad,
                     const float* features);
  void update_by_norm(Rule rule);
  void update_bias(const Block& block, const Rule& rule, const Layer& layer, const float* grads);

  // All together: native.cpp

  void train(const Block& block, const Rule& rule, const Pixel* images, const long* index,
             long next, const float* noise, double* totals);
  void keep_images(const Block& block, long i) const;
  void update_all(const Block& block, const Rule& rule);
  void add_up(const Block& block, double* totals);
  void run(long images, long batch, const Pixel* data, const long* index, const float* noise,
           double* totals, int threads);
};

}  // namespace
