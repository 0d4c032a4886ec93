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
  long activation;                               // of a hidden layer
  double slope;                                  // below 0: of leaky ReLU; ELU's alpha
};

struct Net {
  long pixels, latent, encoders, decoders;  // sizes, and how many hidden layers
  long labels;    // numbers behind each image's pixels, which encoder and decoder take too
  Layer* layers;  // encoders, mu, logvar, decoders, output
  long logvar;    // what makes logvar of its head's output
  long likelihood, sparse;
  long bf16;  // bfloat16 factors in the output layer's products
  double least_std, sigma, beta, adam_eps, beta1, beta2, weight_decay;
  long decoupled;  // the weights shrink by weight_decay; else their gradient grows by it
  float* step;  // Adam's count
  const float* lr;
};

namespace {

enum { RELU, LEAKY_RELU, TANH, SIGMOID, SOFTPLUS, ELU };
enum { BERNOULLI, GAUSSIAN };
// logvar of its head's output h: h; 2 h; 2 log(softplus(h) + least_std); softplus(h).
enum { PLAIN, DOUBLE, STD_SOFTPLUS, LOGVAR_SOFTPLUS };

constexpr long BLOCK = ROWS, MOST_HIDDEN = 64;

// Adam and AdamW in the form of torch.optim's; see vaebench/fast/optimizer.py.
struct Adam {
  float m_old, m_new, v_old, v_new, rate, spread, eps;
  float grown, kept;  // of the weight: what is added to its gradient; what is left of it

  Adam(const Net& net, double step)
      : m_old(net.beta1),
        m_new(1 - net.beta1),
        v_old(net.beta2),
        v_new(1 - net.beta2),
        rate(*net.lr / (1 - std::pow(net.beta1, step))),
        spread(1 / std::sqrt(1 - std::pow(net.beta2, step))),
        eps(net.adam_eps),
        grown(net.decoupled ? 0 : net.weight_decay),
        kept(net.decoupled ? 1 - *net.lr * net.weight_decay : 1) {}

  // Update up to LANES parameters by their gradients.
  void update(float* weight, float* weight_m, float* weight_v, vec g, long count) const {
    vec p, m, v;
    load<1>(&p, weight, count), load<1>(&m, weight_m, count), load<1>(&v, weight_v, count);
    if (grown) g += grown * p;
    m = m_old * m + m_new * g;
    v = v_old * v + v_new * (g * g);
    if (kept != 1) p *= kept;
    p -= rate * m / (sqrt(v) * spread + eps);
    store<1>(weight, &p, count), store<1>(weight_m, &m, count), store<1>(weight_v, &v, count);
  }
};

// What follows a hidden layer. The usual two are a select; the others are calls, which keeps them
// out of the loops over tiles: in there they took 3 % of a step from the usual ones.
struct Activation {
  long kind;
  float slope;

  explicit Activation(const Layer& layer) : kind(layer.activation), slope(layer.slope) {}

  vec operator()(vec x) const {
    return kind <= LEAKY_RELU ? (x > 0 ? x : x * slope) : curved(x);
  }

  // The derivative where the value is h.
  vec grad(vec h) const {
    return kind <= LEAKY_RELU ? (h > 0 ? broadcast(1) : broadcast(slope)) : curved_grad(h);
  }

  __attribute__((noinline)) vec curved(vec x) const {
    switch (kind) {
      case TANH: return tanh(x);
      case SIGMOID: return sigmoid(x);
      case SOFTPLUS: return softplus(x);
      default: return x > 0 ? x : slope * expm1(x > 0 ? vec{} : x);  // ELU
    }
  }

  __attribute__((noinline)) vec curved_grad(vec h) const {
    switch (kind) {
      case TANH: return 1.0f - h * h;
      case SIGMOID: return h * (1.0f - h);
      case SOFTPLUS: return -expm1(-h);
      default: return h > 0 ? broadcast(1) : h + slope;  // ELU
    }
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
  Pixel* transposed;  // (inputs, stride): the images feature-major, as they are
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
    lists = lists_in(take(list_floats(ceil_div(inputs(), G))), 1, inputs());
    transposed = (Pixel*)take(inputs() * stride);
    input = take_values(inputs(), !net.sparse);
    z = take_values(net.latent + net.labels, true);
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

  long inputs() const { return net.pixels + net.labels; }  // of an image
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

  // Images: native_forward.h

  void prepare(const Block& block, const Pixel* images, const long* index);
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
  void transpose_all(const Block& block, const Values& values, long out, float* images) const;
  void keep_pairs(const Tile& tile, const float* from, long features, float* to) const;
  void forward(const Block& block, const Layer& layer, const Values& from, const Values& to);
  void forward_sparse(const Block& block, const Layer& layer, const Values& to);
  template <int W>
  void finish_sparse(const Block& block, float* tile, const Values& to, long column, long columns);
  void heads(const Block& block, const Values& from);
  void draw(const Block& block, const float* noise);
  void draw_label(const Block& block, long j);
  void likelihood(const Block& block, const Values& from);
  void keep_grads(const Tile& tile) const;

  vec logvar_of(vec h) const {
    switch (net.logvar) {
      case DOUBLE: return 2.0f * h;
      case STD_SOFTPLUS: return 2.0f * log(softplus(h) + (float)net.least_std);
      case LOGVAR_SOFTPLUS: return softplus(h);
      default: return h;
    }
  }

  // Its derivative by h.
  vec logvar_grad(vec h) const {
    switch (net.logvar) {
      case DOUBLE: return broadcast(2);
      case STD_SOFTPLUS: return 2.0f * sigmoid(h) / (softplus(h) + (float)net.least_std);
      case LOGVAR_SOFTPLUS: return sigmoid(h);
      default: return broadcast(1);
    }
  }

  bool is_bf16(const Layer& layer) const { return net.bf16 && &layer == &output(); }

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
  void backward(const Block& block, const Layer& layer, std::initializer_list<Factors> terms,
                const Values& to);
  void backward_draw(const Block& block, const Layer& layer, const Values& above);

  // Updates: native_backward.h

  void add_grad(const Block& block, const Adam& adam, const Layer& layer, long place, vec g,
                long count);
  void update(const Block& block, const Adam& adam, const Layer& layer, const float* grads,
              const Values& from);
  void keep_weights(long row, long rows, long vector, long vectors) const;
  void keep_all_weights() const;
  void update_sparse(const Block& block, const Adam& adam, const Layer& layer);
  void update_bias(const Block& block, const Adam& adam, const Layer& layer, const float* grads);

  // All together: native.cpp

  void train(const Block& block, const Adam& adam, const Pixel* images, const long* index,
             long next, const float* noise, double* totals);
  void update_all(const Block& block, const Adam& adam);
  void add_up(const Block& block, double* totals);
  void run(long images, long batch, const Pixel* data, const long* index, const float* noise,
           double* totals, int threads);
};

}  // namespace
