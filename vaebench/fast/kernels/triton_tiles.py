"""What the kernels of a training step are made of, in Triton's dialect of Python: tiles.

Importing this needs Triton. Names and shapes are those of ``triton_kernels.py``.
"""

import math

import triton
import triton.language as tl

# Adam's, as in torch.optim.Adam.
BETA1 = tl.constexpr(0.9)
BETA2 = tl.constexpr(0.999)
LOG_BETA1 = tl.constexpr(math.log(0.9))
LOG_BETA2 = tl.constexpr(math.log(0.999))
AT_ONCE = tl.constexpr(256)  # partial sums of the ELBO read at once


@triton.jit
def read(matrix, rows, columns, height, width):
    """Read ``matrix[rows, columns]`` of (height, width), in the shape the two have together."""
    inside = (rows < height) & (columns < width)
    return tl.load(matrix + rows * width + columns, mask=inside, other=0.0)


@triton.jit
def write(matrix, rows, columns, height, width, values):
    """Write ``matrix[rows, columns]`` of (height, width)."""
    inside = (rows < height) & (columns < width)
    tl.store(matrix + rows * width + columns, values, mask=inside)


@triton.jit
def read_vector(bias, columns, width):
    """Read ``bias[columns]`` of (width,)."""
    return tl.load(bias + columns, mask=columns < width, other=0.0)


@triton.jit
def add_parts(parts, rows, columns, height, width, PARTS: tl.constexpr):
    """Add up tiles of PARTS matrices (height, width), one behind the other."""
    total = read(parts, rows, columns, height, width)
    # Unrolled, several are under way at once: one by one each would cost a wait for the memory.
    for part in tl.range(1, PARTS, loop_unroll_factor=8):
        total += read(parts + part * height * width, rows, columns, height, width)
    return total


@triton.jit
def high_part(x):
    """The part of float32 that a tensor core reads: 10 of the 23 bits behind the point."""
    return (x.to(tl.int32, bitcast=True) & -(1 << 13)).to(tl.float32, bitcast=True)


@triton.jit
def add_dot(a, b, sums, PRECISION: tl.constexpr, A_EXACT: tl.constexpr, B_EXACT: tl.constexpr):
    """Add ``a`` ``b`` to ``sums``, whose total is wanted; see no_sums and add_sums.

    There are three, one for each product of parts in tf32x3, as a warp would wait for its last
    product before adding the next one to the same sum. A factor of bytes is EXACT: 10 bits hold it.
    Triton's own tf32x3 takes six instructions for each number of a tile, to round what here is cut
    off, and to care for infinities, which end a training in any case.
    """
    high, left, right = sums
    if PRECISION == "tf32x3":
        a_high = a if A_EXACT else high_part(a)
        b_high = b if B_EXACT else high_part(b)
        if not A_EXACT:
            left = tl.dot(a - a_high, b_high, left, input_precision="tf32")
        if not B_EXACT:
            right = tl.dot(a_high, b - b_high, right, input_precision="tf32")
        high = tl.dot(a_high, b_high, high, input_precision="tf32")
    else:
        high = tl.dot(a, b, high, input_precision=PRECISION)
    return high, left, right


@triton.jit
def no_sums(SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of a product that has not begun, (SPLITS, ROWS, COLUMNS) or, of no splits, a matrix."""
    if SPLITS:
        zeros = tl.zeros((SPLITS, ROWS, COLUMNS), dtype=tl.float32)
    else:
        zeros = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    return zeros, zeros, zeros


@triton.jit
def add_sums(sums):
    """Add up the sums of a product, the small ones first."""
    high, left, right = sums
    return left + right + high


@triton.jit
def join_splits(total, SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add up the SPLITS of a product, ``total`` (SPLITS, ROWS, COLUMNS).

    By pairs, after one exchange between warps: ``tl.sum`` takes a microsecond for each of them.
    """
    total = tl.permute(total, (1, 2, 0))
    if SPLITS == 8:
        a, b = tl.split(tl.reshape(total, (ROWS, COLUMNS, 4, 2)))
        total = a + b
    if SPLITS >= 4:
        a, b = tl.split(tl.reshape(total, (ROWS, COLUMNS, 2, 2)))
        total = a + b
    if SPLITS >= 2:
        a, b = tl.split(total)
        total = a + b
    else:
        total = tl.reshape(total, (ROWS, COLUMNS))
    return total


@triton.jit
def places(SPLITS: tl.constexpr, CHUNK: tl.constexpr):
    """Places, of (SPLITS, CHUNK), that a round of a product goes over."""
    return tl.arange(0, SPLITS)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]


@triton.jit
def is_known(place, count):
    """Whether an image (int64) is one of the ``count``: from others nothing is read."""
    return (place >= 0) & (place < count)


@triton.jit
def add_all(parts, count):
    """Sum of ``parts`` (count,) in float64, in an order that is always the same."""
    total = tl.zeros((AT_ONCE,), dtype=tl.float64)
    for start in range(0, count, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        total += tl.load(parts + at, mask=at < count, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def update(param, m, v, at, inside, value, first, second, grad, rate, root, epsilon):
    """Update the parameters ``at`` these places, and their moments, all of which have been read."""
    first = BETA1 * first + (1 - BETA1) * grad
    second = BETA2 * second + (1 - BETA2) * grad * grad
    value -= rate * first / (tl.sqrt(second) * root + epsilon)
    tl.store(m + at, first, mask=inside)
    tl.store(v + at, second, mask=inside)
    tl.store(param + at, value, mask=inside)
