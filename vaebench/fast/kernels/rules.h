// Optimisers in the form of torch.optim's; see vaebench/fast/optimizer.py.

// As chain/kernel.py has them.
struct Optimizer {
  long rule;
  double eps, beta1, beta2, weight_decay, momentum;
  double clip_norm, clip_value;  // 0: gradients are as they are
  float* step;                   // how many there were
  const float* lr;
};

namespace {

enum { ADAM, ADAMW, ADAMAX, ADAGRAD, RMSPROP, SGD };

// Parameters and their moments; null where a rule has no such moment.
struct Memory {
  float *weight, *first, *second;
};

struct Rule {
  long kind;
  bool plain;  // Adam or AdamW of gradients as they are
  float m_old, m_new, v_old, v_new, rate, spread, eps;
  float grown, kept;  // of the weight: what is added to its gradient; what is left of it
  float most;         // a gradient's number is cut off there; 0: it is not
  float norm;         // all gradients' together is at most so much; 0: whatever it is
  float shortened = 1;

  Rule(const Optimizer& o, double step)
      : kind(o.rule),
        plain(kind <= ADAMW && !o.clip_norm && !o.clip_value),
        m_old(kind < ADAGRAD ? o.beta1 : o.momentum),
        m_new(1 - o.beta1),
        v_old(o.beta2),
        v_new(1 - o.beta2),
        rate(kind < ADAGRAD ? *o.lr / (1 - std::pow(o.beta1, step)) : *o.lr),
        spread(1 / std::sqrt(1 - std::pow(o.beta2, step))),
        eps(o.eps),
        grown(kind == ADAMW ? 0 : o.weight_decay),
        kept(kind == ADAMW ? 1 - *o.lr * o.weight_decay : 1),
        most(o.clip_value),
        norm(o.clip_norm) {}

  // Update up to LANES parameters from a place on by their gradients.
  void update(const Memory& memory, long place, vec g, long count) const {
    if (plain)
      adam(memory.weight + place, memory.first + place, memory.second + place, g, count);
    else
      update_otherwise(memory, place, g, count);
  }

  void adam(float* weight, float* first, float* second, vec g, long count) const {
    vec p, m, v;
    load<1>(&p, weight, count), load<1>(&m, first, count), load<1>(&v, second, count);
    if (grown) g += grown * p;
    m = m_old * m + m_new * g;
    v = v_old * v + v_new * (g * g);
    if (kept != 1) p *= kept;
    p -= rate * m / (sqrt(v) * spread + eps);
    store<1>(weight, &p, count), store<1>(first, &m, count), store<1>(second, &v, count);
  }

  __attribute__((noinline)) void update_otherwise(const Memory& memory, long place, vec g,
                                                  long count) const {
    float* const weight = memory.weight + place;
    float* const first = memory.first ? memory.first + place : nullptr;
    float* const second = memory.second ? memory.second + place : nullptr;
    g *= shortened;
    if (most) g = g > most ? broadcast(most) : g < -most ? broadcast(-most) : g;
    if (kind <= ADAMW) return adam(weight, first, second, g, count);
    vec p, m = {}, v = {};
    load<1>(&p, weight, count);
    g += grown * p;
    if (first) load<1>(&m, first, count);
    if (second) load<1>(&v, second, count);
    vec change = g;
    switch (kind) {
      case ADAMAX:
        v = max(v_old * v, abs(g) + eps);
        m += m_new * (g - m);
        change = m / v;
        break;
      case ADAGRAD:
        v += g * g;
        change = g / (sqrt(v) + eps);
        break;
      case RMSPROP:
        v = v_old * v + v_new * (g * g);
        change = g / (sqrt(v) + eps);
        break;
    }
    if (kind >= RMSPROP && first) change = m = m_old * m + change;
    p -= rate * change;
    store<1>(weight, &p, count);
    if (first) store<1>(first, &m, count);
    if (second) store<1>(second, &v, count);
  }

  static vec max(vec a, vec b) { return a > b ? a : b; }
};

}  // namespace
