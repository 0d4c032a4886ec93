"""Adam's step of many tensors at once, in Triton's dialect of Python; importing it needs Triton."""

import triton
import triton.language as tl

from vaebench.fast.kernels.triton_tiles import BETA1, BETA2, LOG_BETA1, LOG_BETA2


@triton.jit
def update(
    values, grads, firsts, seconds, sizes, step, lr, epsilon, BLOCK: tl.constexpr
):  # fmt: skip
    """Update BLOCK numbers of one of the ``values``, and their moments.

    All but the last four are tuples, with an entry a tensor; ``step`` has been counted already.
    """
    program = tl.program_id(0)
    # In float64: 1 - 0.999^t is a small difference of large numbers at first.
    t = tl.load(step).to(tl.float64)
    rate = (tl.load(lr).to(tl.float64) / (1 - tl.exp(t * LOG_BETA1))).to(tl.float32)
    root = tl.sqrt(1 - tl.exp(t * LOG_BETA2)).to(tl.float32)
    # Which tensor this program's numbers are of, and which of them.
    value, grad, first, second = values[0], grads[0], firsts[0], seconds[0]
    size, block, begin = sizes[0], program, 0
    for i in tl.static_range(1, len(values)):
        begin += tl.cdiv(sizes[i - 1], BLOCK)
        here = program >= begin
        value = tl.where(here, values[i], value)
        grad = tl.where(here, grads[i], grad)
        first = tl.where(here, firsts[i], first)
        second = tl.where(here, seconds[i], second)
        size = tl.where(here, sizes[i], size)
        block = tl.where(here, program - begin, block)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(grad + at, mask=inside, other=0.0)
    m = BETA1 * tl.load(first + at, mask=inside, other=0.0) + (1 - BETA1) * g
    v = BETA2 * tl.load(second + at, mask=inside, other=0.0) + (1 - BETA2) * g * g
    p = tl.load(value + at, mask=inside, other=0.0) - rate * m / (tl.sqrt(v) / root + epsilon)
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)
    tl.store(value + at, p, mask=inside)
