// The Bernoulli log-likelihood of some pixels; see likelihood.py for the reasons.
//
// With e = exp(-|l|) of a logit l: sigmoid(l) = 1 / (1 + e), or e / (1 + e) below zero, and
// log(1 - sigmoid(l)) = -(max(l, 0) + log(1 + e)). The logarithms of many pixels are one: that of
// the product of all 1 + e, whose exponent is counted apart before it can overflow.

namespace {

struct Bernoulli {
  static constexpr double LN2 = 0.6931471805599453;
  static constexpr long FACTORS = 64;  // of 1 to 2, that surely fit into a float

  vec linear = {};             // sums of x l - max(l, 0)
  vec product = broadcast(1);  // of 1 + e, without its exponent
  ivec exponent = {};

  // Take up one vector of logits and pixels; give sigmoid(l) - x.
  vec add(vec l, vec x) {
    const vec e = exp_nonpositive(l < 0 ? l : -l);
    const vec share = 1.0f / (1.0f + e);
    linear += x * l - (l > 0 ? l : vec{});
    product *= 1.0f + e;
    return (l < 0 ? e * share : share) - x;
  }

  // To be called at least once in FACTORS vectors.
  void count_exponent() {
    const ivec bits = (ivec)product;
    exponent += (bits >> 23) - 127;
    product = (vec)((bits & 0x007fffff) | 0x3f800000);
  }

  // Of one lane, after count_exponent.
  double value_of(long lane) const {
    return linear[lane] - LN2 * exponent[lane] - std::log((double)product[lane]);
  }

  double value() {
    count_exponent();
    double sum = 0, left = 1;
    for (int k = 0; k < LANES; k++) {
      sum += linear[k] - LN2 * exponent[k];
      left *= product[k];
    }
    return sum - std::log(left);
  }
};

}  // namespace
