"""The kernels of :mod:`vaebench.fast.triton_step`, in Triton's dialect of Python.

Importing this file needs Triton, so that only the step itself does it, when it is first run.

Shapes: B images of PIXELS numbers, HIDDEN units, LATENT numbers per z, padded to Z, a power of two
of at least 16, as products of tiles want it. Weights are (outputs, inputs), as in ``nn.Linear``;
all matrices are row by row, without gaps. Slopes are derivatives of the loss, the mean over the
batch, so they are divided by B where they begin. A tile is BM rows by BN columns, and a product
goes over what it sums up in pieces of BK. What lies outside a matrix is read as 0.

Nothing here is added up by atomics: each number has one writer, and is the same in every run.
"""

import math

import triton
import triton.language as tl

# Adam's, as in torch.optim.Adam.
BETA1 = tl.constexpr(0.9)
BETA2 = tl.constexpr(0.999)
LOG_BETA1 = tl.constexpr(math.log(0.9))
LOG_BETA2 = tl.constexpr(math.log(0.999))
CHUNK = tl.constexpr(256)  # partial sums read at once
# Numbers that change from call to call: no compilation for each.
UNSPECIAL = ["batch", "count", "recons", "kls"]
# Parts of longer tensors: where they begin differs from batch to batch.
UNALIGNED = ["index", "noise", "totals"]


@triton.jit
def _tile(matrix, rows, columns, height, width):
    """Read ``matrix[rows, columns]`` of (height, width); transposed if rows run along axis 1."""
    inside = (rows < height) & (columns < width)
    return tl.load(matrix + rows * width + columns, mask=inside, other=0.0)


@triton.jit
def _put(matrix, rows, columns, height, width, values):
    """Write ``matrix[rows, columns]`` of (height, width)."""
    inside = (rows < height) & (columns < width)
    tl.store(matrix + rows * width + columns, values, mask=inside)


@triton.jit
def _pixels(images, place, there, columns, count, PIXELS: tl.constexpr, BYTES: tl.constexpr):
    """Read images ``place`` (int64) at ``columns`` as float32 in [0, 1], 0 where not ``there``.

    Nothing is read outside of the ``count`` images: such a place gives NaN, which shows.
    """
    known = (place >= 0) & (place < count)
    inside = there & known & (columns < PIXELS)
    pixels = tl.load(images + place * PIXELS + columns, mask=inside, other=0)
    if BYTES:
        pixels = pixels.to(tl.float32) * (1.0 / 255.0)
    return tl.where(known, pixels, float("nan"))


@triton.jit
def _relu(x):
    """max(x, 0), NaN staying NaN."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def _adam(param, m, v, offsets, inside, slope, rates, epsilon):
    """Update the parameters at ``offsets``; ``rates`` are those of this step, see encode."""
    rate, root = tl.load(rates), tl.load(rates + 1)
    first = tl.load(m + offsets, mask=inside, other=0.0)
    second = tl.load(v + offsets, mask=inside, other=0.0)
    value = tl.load(param + offsets, mask=inside, other=0.0)
    first = BETA1 * first + (1 - BETA1) * slope
    second = BETA2 * second + (1 - BETA2) * slope * slope
    value -= rate * first / (tl.sqrt(second) * root + epsilon)
    tl.store(m + offsets, first, mask=inside)
    tl.store(v + offsets, second, mask=inside)
    tl.store(param + offsets, value, mask=inside)


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def encode(
    images, index, weight, bias, hidden, step, lr, rates, batch, count,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, BYTES: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``hidden`` (B, HIDDEN) = relu(x weight^T + bias), x gathered; counts the step.

    ``rates`` (2,) are set for all updates of this step: lr / (1 - beta1^t), and
    1 / sqrt(1 - beta2^t). No other kernel reads ``step``.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    there = rows < batch
    place = tl.load(index + rows, mask=there, other=0)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, PIXELS, BK):
        inner = start + tl.arange(0, BK)
        x = _pixels(images, place, there, inner[None, :], count, PIXELS, BYTES)
        w = _tile(weight, columns, inner[:, None], HIDDEN, PIXELS)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    total += tl.load(bias + columns, mask=columns < HIDDEN, other=0.0)
    _put(hidden, rows, columns, batch, HIDDEN, _relu(total))
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        now = tl.load(step) + 1
        tl.store(step, now)
        # float64: 1 - 0.999^t is a small difference of large numbers at first.
        t = now.to(tl.float64)
        rate = tl.load(lr).to(tl.float64) / (1 - tl.exp(t * LOG_BETA1))
        tl.store(rates, rate.to(tl.float32))
        root = 1 / tl.sqrt(1 - tl.exp(t * LOG_BETA2))
        tl.store(rates + 1, root.to(tl.float32))


@triton.jit
def _head(
    hidden, weight, bias, rows, batch, HIDDEN: tl.constexpr, LATENT: tl.constexpr,
    Z: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``rows`` of hidden weight^T + bias, (BM, Z)."""
    latents = tl.arange(0, Z)[None, :]
    total = tl.zeros((BM, Z), dtype=tl.float32)
    for start in range(0, HIDDEN, BK):
        inner = start + tl.arange(0, BK)
        h = _tile(hidden, rows, inner[None, :], batch, HIDDEN)
        w = _tile(weight, latents, inner[:, None], LATENT, HIDDEN)
        total = tl.dot(h, w, total, input_precision=PRECISION)
    return total + tl.load(bias + latents, mask=latents < LATENT, other=0.0)


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def sample(
    hidden, mu_weight, mu_bias, logvar_weight, logvar_bias, weight, bias, noise,
    mu, logvar, z, decoded, kl, batch,
    HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """mu, logvar, z (B, LATENT) of ``hidden``; ``decoded`` (B, HIDDEN) = relu(z weight^T + bias).

    Every program of a row block computes z for itself: that is cheaper than to wait for it. The
    first of them stores it, and the block's sum of the KL, in nats, in ``kl`` (row blocks,).
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    latents = tl.arange(0, Z)
    across = latents[None, :]
    means = _head(hidden, mu_weight, mu_bias, rows, batch, HIDDEN, LATENT, Z, PRECISION, BM, BK)
    logs = _head(
        hidden, logvar_weight, logvar_bias, rows, batch, HIDDEN, LATENT, Z, PRECISION, BM, BK
    )
    drawn = means + tl.exp(0.5 * logs) * _tile(noise, rows, across, batch, LATENT)
    w = _tile(weight, columns, latents[:, None], HIDDEN, LATENT)
    total = tl.dot(drawn, w, input_precision=PRECISION)
    total += tl.load(bias + columns, mask=columns < HIDDEN, other=0.0)
    _put(decoded, rows, columns, batch, HIDDEN, _relu(total))
    if tl.program_id(1) == 0:
        _put(mu, rows, across, batch, LATENT, means)
        _put(logvar, rows, across, batch, LATENT, logs)
        _put(z, rows, across, batch, LATENT, drawn)
        terms = 0.5 * (means * means + (tl.exp(logs) - 1) - logs)
        terms = tl.where((rows < batch) & (across < LATENT), terms, 0.0)
        tl.store(kl + tl.program_id(0), tl.sum(tl.sum(terms, 1), 0))


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def score(
    images, index, decoded, weight, bias, slope, recon, batch, count,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, BYTES: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``slope`` (B, PIXELS) of the loss along the logits, decoded weight^T + bias.

    Each program sums up log p(x|z) over its tile, in nats, in ``recon`` (programs,).
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, HIDDEN, BK):
        inner = start + tl.arange(0, BK)
        h = _tile(decoded, rows, inner[None, :], batch, HIDDEN)
        w = _tile(weight, columns, inner[:, None], PIXELS, HIDDEN)
        total = tl.dot(h, w, total, input_precision=PRECISION)
    logits = total + tl.load(bias + columns, mask=columns < PIXELS, other=0.0)
    there = rows < batch
    place = tl.load(index + rows, mask=there, other=0)
    x = _pixels(images, place, there, columns, count, PIXELS, BYTES)
    _put(slope, rows, columns, batch, PIXELS, (tl.sigmoid(logits) - x) / batch)
    # log(1 + exp(l)) with the larger part taken out of the logarithm: finite for every logit.
    softplus = tl.maximum(logits, 0.0) + tl.log(1 + tl.exp(-tl.abs(logits)))
    terms = tl.where(there & (columns < PIXELS), x * logits - softplus, 0.0)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(recon + program, tl.sum(tl.sum(terms, 1), 0))


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def decode_back(
    slope, weight, decoded, decoded_slope, batch,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``decoded_slope`` (B, HIDDEN) = (slope weight) where ``decoded`` is not 0; before relu."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, PIXELS, BK):
        inner = start + tl.arange(0, BK)
        d = _tile(slope, rows, inner[None, :], batch, PIXELS)
        w = _tile(weight, inner[:, None], columns, PIXELS, HIDDEN)
        total = tl.dot(d, w, total, input_precision=PRECISION)
    h = _tile(decoded, rows, columns, batch, HIDDEN)
    _put(decoded_slope, rows, columns, batch, HIDDEN, tl.where(h <= 0, 0.0, total))


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def sample_back(
    decoded_slope, weight, noise, mu, logvar, mu_weight, logvar_weight, hidden,
    mu_slope, logvar_slope, hidden_slope, beta, batch,
    HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Slopes of mu and logvar (B, LATENT), and of ``hidden`` (B, HIDDEN) before its relu.

    As in sample, every program of a row block computes the former, and the first stores them.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    latents = tl.arange(0, Z)
    across, down = latents[None, :], latents[:, None]
    along_z = tl.zeros((BM, Z), dtype=tl.float32)
    for start in range(0, HIDDEN, BK):
        inner = start + tl.arange(0, BK)
        d = _tile(decoded_slope, rows, inner[None, :], batch, HIDDEN)
        w = _tile(weight, inner[:, None], across, HIDDEN, LATENT)
        along_z = tl.dot(d, w, along_z, input_precision=PRECISION)
    means = _tile(mu, rows, across, batch, LATENT)
    logs = _tile(logvar, rows, across, batch, LATENT)
    spread = tl.exp(0.5 * logs) * _tile(noise, rows, across, batch, LATENT)
    share = beta / batch
    along_mu = along_z + share * means
    along_logvar = 0.5 * (along_z * spread + share * (tl.exp(logs) - 1))
    if tl.program_id(1) == 0:
        _put(mu_slope, rows, across, batch, LATENT, along_mu)
        _put(logvar_slope, rows, across, batch, LATENT, along_logvar)
    w = _tile(mu_weight, down, columns, LATENT, HIDDEN)
    total = tl.dot(along_mu, w, input_precision=PRECISION)
    w = _tile(logvar_weight, down, columns, LATENT, HIDDEN)
    total = tl.dot(along_logvar, w, total, input_precision=PRECISION)
    h = _tile(hidden, rows, columns, batch, HIDDEN)
    _put(hidden_slope, rows, columns, batch, HIDDEN, tl.where(h <= 0, 0.0, total))


@triton.jit
def _learn(
    slope, inputs, index, row, column,
    weight, weight_m, weight_v, bias, bias_m, bias_v, rates, epsilon, batch, count,
    OUT: tl.constexpr, IN: tl.constexpr, GATHERED: tl.constexpr, BYTES: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Update the tile of ``weight`` (OUT, IN) from ``row``, ``column`` on by slope^T inputs.

    ``slope`` is (B, OUT), ``inputs`` (B, IN), or all images if GATHERED. No other program touches
    this tile. The one that has the first column updates the bias too.
    """
    rows, columns = row + tl.arange(0, BM), column + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    slopes = tl.zeros((BM, BK), dtype=tl.float32)
    for start in range(0, batch, BK):
        inner = start + tl.arange(0, BK)
        d = _tile(slope, inner[None, :], rows[:, None], batch, OUT)
        if GATHERED:
            there = inner < batch
            place = tl.load(index + inner, mask=there, other=0)
            x = _pixels(inputs, place[:, None], there[:, None], columns[None, :], count, IN, BYTES)
        else:
            x = _tile(inputs, inner[:, None], columns[None, :], batch, IN)
        total = tl.dot(d, x, total, input_precision=PRECISION)
        slopes += d
    inside = (rows[:, None] < OUT) & (columns[None, :] < IN)
    offsets = rows[:, None] * IN + columns[None, :]
    _adam(weight, weight_m, weight_v, offsets, inside, total, rates, epsilon)
    if column == 0:
        _adam(bias, bias_m, bias_v, rows, rows < OUT, tl.sum(slopes, 1), rates, epsilon)


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def learn(
    slope, inputs, index,
    weight, weight_m, weight_v, bias, bias_m, bias_v, rates, epsilon, batch, count,
    OUT: tl.constexpr, IN: tl.constexpr, GATHERED: tl.constexpr, BYTES: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Update a layer of OUT by IN, a tile per program; see _learn."""
    _learn(
        slope, inputs, index, tl.program_id(0) * BM, tl.program_id(1) * BN,
        weight, weight_m, weight_v, bias, bias_m, bias_v, rates, epsilon, batch, count,
        OUT, IN, GATHERED, BYTES, PRECISION, BM, BN, BK,
    )  # fmt: skip


@triton.jit
def _sum(parts, count):
    """Sum of ``parts`` (count,) in float64, in an order that is always the same."""
    total = tl.zeros((CHUNK,), dtype=tl.float64)
    for start in range(0, count, CHUNK):
        at = start + tl.arange(0, CHUNK)
        total += tl.load(parts + at, mask=at < count, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def learn_small(
    hidden, mu_slope, logvar_slope, z, decoded_slope,
    mu_weight, mu_weight_m, mu_weight_v, mu_bias, mu_bias_m, mu_bias_v,
    logvar_weight, logvar_weight_m, logvar_weight_v, logvar_bias, logvar_bias_m, logvar_bias_v,
    decoder_weight, decoder_weight_m, decoder_weight_v, decoder_bias, decoder_bias_m,
    decoder_bias_v, rates, epsilon, recon, kl, totals, batch, recons, kls,
    HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Update the three layers beside z, BN hidden units per program; the last adds to ``totals``.

    ``totals`` (2,) float64 grow by the sums of ``recon`` (recons,) and ``kl`` (kls,), in nats.
    """
    blocks: tl.constexpr = (HIDDEN + BN - 1) // BN
    program = tl.program_id(0)
    unit = (program % blocks) * BN
    if program < blocks:
        _learn(
            mu_slope, hidden, hidden, 0, unit, mu_weight, mu_weight_m, mu_weight_v,
            mu_bias, mu_bias_m, mu_bias_v, rates, epsilon, batch, 0,
            LATENT, HIDDEN, False, False, PRECISION, Z, BN, BK,
        )  # fmt: skip
    elif program < 2 * blocks:
        _learn(
            logvar_slope, hidden, hidden, 0, unit, logvar_weight, logvar_weight_m, logvar_weight_v,
            logvar_bias, logvar_bias_m, logvar_bias_v, rates, epsilon, batch, 0,
            LATENT, HIDDEN, False, False, PRECISION, Z, BN, BK,
        )  # fmt: skip
    elif program < 3 * blocks:
        _learn(
            decoded_slope, z, z, unit, 0, decoder_weight, decoder_weight_m, decoder_weight_v,
            decoder_bias, decoder_bias_m, decoder_bias_v, rates, epsilon, batch, 0,
            HIDDEN, LATENT, False, False, PRECISION, BN, Z, BK,
        )  # fmt: skip
    else:
        tl.store(totals, tl.load(totals) + _sum(recon, recons))
        tl.store(totals + 1, tl.load(totals + 1) + _sum(kl, kls))
