// What follows a layer of a fully connected network, and its derivative; see native.h.

namespace {

// As chain/kernel.py numbers them.
enum { RELU, LEAKY_RELU, TANH, SIGMOID, SOFTPLUS, ELU, SILU, GELU };

// The standard normal's share below x, to 1e-7: Abramowitz & Stegun 7.1.26.
inline vec normal_share(vec x) {
  const vec t = 1.0f / (1.0f + 0.23164190f * abs(x));
  vec sum = broadcast(1.061405429f);
  sum = sum * t - 1.453152027f;
  sum = sum * t + 1.421413741f;
  sum = sum * t - 0.284496736f;
  sum = sum * t + 0.254829592f;
  const vec beyond = 0.5f * sum * t * exp_nonpositive(-0.5f * x * x);
  return x < 0 ? beyond : 1.0f - beyond;
}

// The usual two are a select; the others are calls, which keeps them out of the loops over tiles: in
// there they took 3 % of a step from the usual ones.
struct Activation {
  long kind;
  float slope;

  // Whether the derivative is taken where the sum is, which is then kept; else where the value is.
  bool by_sum() const { return kind >= SILU; }

  vec operator()(vec x) const {
    return kind <= LEAKY_RELU ? (x > 0 ? x : x * slope) : curved(x);
  }

  // The derivative where the value is h; or the sum, by_sum.
  vec grad(vec h) const {
    return kind <= LEAKY_RELU ? (h > 0 ? broadcast(1) : broadcast(slope)) : curved_grad(h);
  }

  __attribute__((noinline)) vec curved(vec x) const {
    switch (kind) {
      case TANH: return tanh(x);
      case SIGMOID: return sigmoid(x);
      case SOFTPLUS: return softplus(x);
      case SILU: return x * sigmoid(x);
      case GELU: return x * normal_share(x);
      default: return x > 0 ? x : slope * expm1(x > 0 ? vec{} : x);  // ELU
    }
  }

  __attribute__((noinline)) vec curved_grad(vec h) const {
    switch (kind) {
      case TANH: return 1.0f - h * h;
      case SIGMOID: return h * (1.0f - h);
      case SOFTPLUS: return -expm1(-h);
      case SILU: {
        const vec share = sigmoid(h);
        return share + h * share * (1.0f - share);
      }
      case GELU:
        return normal_share(h) + 0.39894228f * h * exp_nonpositive(-0.5f * h * h);
      default: return h > 0 ? broadcast(1) : h + slope;  // ELU
    }
  }
};

}  // namespace
