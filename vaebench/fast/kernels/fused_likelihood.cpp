// log p(x|z) of a Bernoulli likelihood and its gradient, in one pass; see likelihood.py for the
// reasons.

// recon (rows) = sum over pixels of log p(x|z); grad (rows, pixels) = its gradient by the logits.
extern "C" void vaebench_bernoulli(long rows, long pixels, const float* logits, const float* x,
                                   float* recon, float* grad) {
  const long whole = pixels / LANES, rest = pixels % LANES;
#pragma omp parallel for schedule(static)
  for (long row = 0; row < rows; row++) {
    const float* l = logits + row * pixels;
    const float* p = x + row * pixels;
    float* to = grad + row * pixels;
    Bernoulli sums;
    for (long i = 0; i < whole; i++) {
      at(to + i * LANES) = -sums.add(at(l + i * LANES), at(p + i * LANES));
      if (i % Bernoulli::FACTORS == Bernoulli::FACTORS - 1) sums.count_exponent();
    }
    if (rest) {  // filled up with dark pixels that are surely so: they add nothing
      vec last = broadcast(LOWEST), pixel = {};
      std::memcpy((void*)&last, l + whole * LANES, rest * sizeof(float));
      std::memcpy((void*)&pixel, p + whole * LANES, rest * sizeof(float));
      const vec grads = -sums.add(last, pixel);
      store<1>(to + whole * LANES, &grads, rest);
    }
    recon[row] = (float)sums.value();
  }
}
