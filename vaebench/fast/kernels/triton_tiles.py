"""A training step in five phases of independent tiles, in Triton's dialect of Python.

What a tile of one phase needs, tiles of the phase before have written, so that all of them must be
done first: ``triton_kernels`` sees to that. Importing either file needs Triton, so that only the
step itself does it, when it is first run.

Shapes: B images of PIXELS numbers, HIDDEN units, LATENT numbers per z, padded to Z, a power of two
of at least 16, as products of tiles want it. Weights are (outputs, inputs), as in ``nn.Linear``;
all matrices are row by row, without gaps. Gradients are derivatives of the loss, the mean over the
batch, so they are divided by B where they begin. Tiles are SHORT or TALL rows by NARROW or WIDE
columns, and a product goes over what it sums up in chunks of CHUNK, in phases 1 and 3, where that
are the pixels, of LONG. What lies outside a matrix is read as 0.

Nothing here is added up by atomics: each number has one writer, and is the same in every run.
Where several tiles add to one number, each writes its part, and whoever reads it adds them up.
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


@triton.jit
def _tile(matrix, rows, columns, height, width):
    """Read ``matrix[rows, columns]`` of (height, width); transposed if rows run along axis 1."""
    inside = (rows < height) & (columns < width)
    return tl.load(matrix + rows * width + columns, mask=inside, other=0.0)


@triton.jit
def _put(matrix, rows, columns, height, width, values):
    """Write ``matrix[rows, columns]`` of (height, width); transposed as in _tile."""
    inside = (rows < height) & (columns < width)
    tl.store(matrix + rows * width + columns, values, mask=inside)


@triton.jit
def _biases(bias, columns, width):
    """Read ``bias[columns]`` of (width,)."""
    return tl.load(bias + columns, mask=columns < width, other=0.0)


@triton.jit
def _summed(parts, rows, columns, height, width, PARTS: tl.constexpr):
    """Add up tiles of PARTS matrices (height, width), one behind the other."""
    total = _tile(parts, rows, columns, height, width)
    # Unrolled, several are under way at once: one by one each would cost a wait for the memory.
    for part in tl.range(1, PARTS, loop_unroll_factor=4):
        total += _tile(parts + part * height * width, rows, columns, height, width)
    return total


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
def _sum(parts, count):
    """Sum of ``parts`` (count,) in float64, in an order that is always the same."""
    total = tl.zeros((CHUNK,), dtype=tl.float64)
    for start in range(0, count, CHUNK):
        at = start + tl.arange(0, CHUNK)
        total += tl.load(parts + at, mask=at < count, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def count_step(step, lr, rates):
    """Count a step; set ``rates`` (2,) of its updates: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t).

    In float64: 1 - 0.999^t is a small difference of large numbers at first.
    """
    now = tl.load(step) + 1
    tl.store(step, now)
    t = now.to(tl.float64)
    rate = tl.load(lr).to(tl.float64) / (1 - tl.exp(t * LOG_BETA1))
    tl.store(rates, rate.to(tl.float32))
    root = 1 / tl.sqrt(1 - tl.exp(t * LOG_BETA2))
    tl.store(rates + 1, root.to(tl.float32))


@triton.jit
def encode_tile(
    tile, images, index, encoder_weight, encoder_bias, mu_weight, logvar_weight,
    hidden, heads, batch, count,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    BYTES: tl.constexpr, PRECISION: tl.constexpr,
    SHORT: tl.constexpr, NARROW: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Phase 1, SHORT x NARROW of ``hidden`` (B, HIDDEN) = relu(x weight^T + bias), x gathered.

    ``heads`` (2, PARTS, B, LATENT): what these units add to mu and logvar, before their biases.
    """
    PARTS: tl.constexpr = (HIDDEN + NARROW - 1) // NARROW
    rows = tile // PARTS * SHORT + tl.arange(0, SHORT)[:, None]
    units = tile % PARTS * NARROW + tl.arange(0, NARROW)
    latents = tl.arange(0, Z)[None, :]
    there = rows < batch
    place = tl.load(index + rows, mask=there, other=0)
    total = tl.zeros((SHORT, NARROW), dtype=tl.float32)
    for start in range(0, PIXELS, LONG):
        inner = start + tl.arange(0, LONG)
        x = _pixels(images, place, there, inner[None, :], count, PIXELS, BYTES)
        w = _tile(encoder_weight, units[None, :], inner[:, None], HIDDEN, PIXELS)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    h = _relu(total + _biases(encoder_bias, units[None, :], HIDDEN))
    _put(hidden, rows, units[None, :], batch, HIDDEN, h)
    size = batch * LATENT
    mine = heads + tile % PARTS * size
    w = _tile(mu_weight, latents, units[:, None], LATENT, HIDDEN)
    part = tl.dot(h, w, input_precision=PRECISION)
    _put(mine, rows, latents, batch, LATENT, part)
    w = _tile(logvar_weight, latents, units[:, None], LATENT, HIDDEN)
    part = tl.dot(h, w, input_precision=PRECISION)
    _put(mine + PARTS * size, rows, latents, batch, LATENT, part)


@triton.jit
def score_tile(
    tile, images, index, noise, heads, mu_bias, logvar_bias, decoder_weight, decoder_bias,
    output_weight, output_bias, mu, logvar, z, decoded, logits_grad, recon, kl, batch, count,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    BYTES: tl.constexpr, PRECISION: tl.constexpr,
    TALL: tl.constexpr, NARROW: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Phase 2, TALL x NARROW of ``logits_grad`` (B, PIXELS), and its log p(x|z) in nats.

    Every tile of a row draws z and decodes it for itself, which is cheaper than to wait for it. The
    first of them stores mu, logvar, z (B, LATENT) and the row's KL; ``decoded``
    (B, HIDDEN) = relu(z weight^T + bias) they share out. ``recon``: a sum for each tile.
    """
    COLUMNS: tl.constexpr = (PIXELS + NARROW - 1) // NARROW
    PARTS: tl.constexpr = (HIDDEN + NARROW - 1) // NARROW
    rows = tile // COLUMNS * TALL + tl.arange(0, TALL)[:, None]
    columns = tile % COLUMNS * NARROW + tl.arange(0, NARROW)[None, :]
    latents = tl.arange(0, Z)
    across = latents[None, :]
    there = rows < batch
    logs = heads + PARTS * batch * LATENT
    means = _summed(heads, rows, across, batch, LATENT, PARTS) + _biases(mu_bias, across, LATENT)
    logs = _summed(logs, rows, across, batch, LATENT, PARTS) + _biases(logvar_bias, across, LATENT)
    drawn = means + tl.exp(0.5 * logs) * _tile(noise, rows, across, batch, LATENT)
    total = tl.zeros((TALL, NARROW), dtype=tl.float32)
    for start in range(0, HIDDEN, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        w = _tile(decoder_weight, inner[None, :], latents[:, None], HIDDEN, LATENT)
        h = tl.dot(drawn, w, input_precision=PRECISION)
        h = _relu(h + _biases(decoder_bias, inner[None, :], HIDDEN))
        if start // CHUNK % COLUMNS == tile % COLUMNS:
            _put(decoded, rows, inner[None, :], batch, HIDDEN, h)
        w = _tile(output_weight, columns, inner[:, None], PIXELS, HIDDEN)
        total = tl.dot(h, w, total, input_precision=PRECISION)
    logits = total + _biases(output_bias, columns, PIXELS)
    place = tl.load(index + rows, mask=there, other=0)
    x = _pixels(images, place, there, columns, count, PIXELS, BYTES)
    _put(logits_grad, rows, columns, batch, PIXELS, (tl.sigmoid(logits) - x) / batch)
    # log(1 + exp(l)) with the larger part taken out of the logarithm: finite for every logit.
    softplus = tl.maximum(logits, 0.0) + tl.log(1 + tl.exp(-tl.abs(logits)))
    terms = tl.where(there & (columns < PIXELS), x * logits - softplus, 0.0)
    tl.store(recon + tile, tl.sum(tl.sum(terms, 1), 0))
    if tile % COLUMNS == 0:
        _put(mu, rows, across, batch, LATENT, means)
        _put(logvar, rows, across, batch, LATENT, logs)
        _put(z, rows, across, batch, LATENT, drawn)
        kls = 0.5 * (means * means + (tl.exp(logs) - 1) - logs)
        kls = tl.where(there & (across < LATENT), kls, 0.0)
        tl.store(kl + tile // COLUMNS, tl.sum(tl.sum(kls, 1), 0))


@triton.jit
def decode_back_tile(
    tile, logits_grad, output_weight, decoder_weight, decoded, decoded_grad, along, batch,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    PRECISION: tl.constexpr, SHORT: tl.constexpr, NARROW: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Phase 3, SHORT x NARROW of ``decoded_grad`` (B, HIDDEN), before the relu.

    It is (logits_grad weight) where ``decoded`` is not 0. ``along`` (PARTS, B, LATENT): what these
    units add to the gradient along z.
    """
    PARTS: tl.constexpr = (HIDDEN + NARROW - 1) // NARROW
    rows = tile // PARTS * SHORT + tl.arange(0, SHORT)[:, None]
    units = tile % PARTS * NARROW + tl.arange(0, NARROW)
    latents = tl.arange(0, Z)[None, :]
    total = tl.zeros((SHORT, NARROW), dtype=tl.float32)
    for start in range(0, PIXELS, LONG):
        inner = start + tl.arange(0, LONG)
        d = _tile(logits_grad, rows, inner[None, :], batch, PIXELS)
        w = _tile(output_weight, inner[:, None], units[None, :], PIXELS, HIDDEN)
        total = tl.dot(d, w, total, input_precision=PRECISION)
    h = _tile(decoded, rows, units[None, :], batch, HIDDEN)
    d = tl.where(h <= 0, 0.0, total)
    _put(decoded_grad, rows, units[None, :], batch, HIDDEN, d)
    w = _tile(decoder_weight, units[:, None], latents, HIDDEN, LATENT)
    part = tl.dot(d, w, input_precision=PRECISION)
    _put(along + tile % PARTS * batch * LATENT, rows, latents, batch, LATENT, part)


@triton.jit
def sample_back_tile(
    tile, along, noise, mu, logvar, mu_weight, logvar_weight, hidden,
    mu_grad, logvar_grad, hidden_grad, beta, batch,
    HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr, PRECISION: tl.constexpr,
    SHORT: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Phase 4, SHORT x NARROW of ``hidden_grad`` (B, HIDDEN), before the relu.

    As in score_tile every tile of a row computes the gradients of mu and logvar (B, LATENT), and
    the first stores them.
    """
    PARTS: tl.constexpr = (HIDDEN + NARROW - 1) // NARROW
    rows = tile // PARTS * SHORT + tl.arange(0, SHORT)[:, None]
    units = tile % PARTS * NARROW + tl.arange(0, NARROW)[None, :]
    latents = tl.arange(0, Z)
    across, down = latents[None, :], latents[:, None]
    along_z = _summed(along, rows, across, batch, LATENT, PARTS)
    means = _tile(mu, rows, across, batch, LATENT)
    logs = _tile(logvar, rows, across, batch, LATENT)
    spread = tl.exp(0.5 * logs) * _tile(noise, rows, across, batch, LATENT)
    share = beta / batch
    along_mu = along_z + share * means
    along_logvar = 0.5 * (along_z * spread + share * (tl.exp(logs) - 1))
    if tile % PARTS == 0:
        _put(mu_grad, rows, across, batch, LATENT, along_mu)
        _put(logvar_grad, rows, across, batch, LATENT, along_logvar)
    w = _tile(mu_weight, down, units, LATENT, HIDDEN)
    total = tl.dot(along_mu, w, input_precision=PRECISION)
    w = _tile(logvar_weight, down, units, LATENT, HIDDEN)
    total = tl.dot(along_logvar, w, total, input_precision=PRECISION)
    h = _tile(hidden, rows, units, batch, HIDDEN)
    _put(hidden_grad, rows, units, batch, HIDDEN, tl.where(h <= 0, 0.0, total))


@triton.jit
def _adam(param, m, v, offsets, inside, grad, rates, epsilon):
    """Update the parameters at ``offsets``; ``rates`` are those of this step, see count_step."""
    rate, root = tl.load(rates), tl.load(rates + 1)
    first = tl.load(m + offsets, mask=inside, other=0.0)
    second = tl.load(v + offsets, mask=inside, other=0.0)
    value = tl.load(param + offsets, mask=inside, other=0.0)
    first = BETA1 * first + (1 - BETA1) * grad
    second = BETA2 * second + (1 - BETA2) * grad * grad
    value -= rate * first / (tl.sqrt(second) * root + epsilon)
    tl.store(m + offsets, first, mask=inside)
    tl.store(v + offsets, second, mask=inside)
    tl.store(param + offsets, value, mask=inside)


@triton.jit
def learn_tile(
    tile, grad, inputs, index, weight, weight_m, weight_v, bias, bias_m, bias_v,
    rates, epsilon, batch, count, OUT: tl.constexpr, IN: tl.constexpr,
    GATHERED: tl.constexpr, BYTES: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Update ROWS x COLUMNS of ``weight`` (OUT, IN) by grad^T inputs; the first column the bias.

    ``grad`` is (B, OUT), ``inputs`` (B, IN), or all images if GATHERED. In phase 4 the output
    layer, whose weights phase 3 still had to read as they were; in phase 5 the others.
    """
    ACROSS: tl.constexpr = (IN + COLUMNS - 1) // COLUMNS
    rows = tile // ACROSS * ROWS + tl.arange(0, ROWS)
    columns = tile % ACROSS * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    grads = tl.zeros((ROWS, CHUNK), dtype=tl.float32)
    for start in range(0, batch, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        d = _tile(grad, inner[None, :], rows[:, None], batch, OUT)
        if GATHERED:
            there = inner < batch
            place = tl.load(index + inner, mask=there, other=0)
            x = _pixels(inputs, place[:, None], there[:, None], columns[None, :], count, IN, BYTES)
        else:
            x = _tile(inputs, inner[:, None], columns[None, :], batch, IN)
        total = tl.dot(d, x, total, input_precision=PRECISION)
        grads += d
    inside = (rows[:, None] < OUT) & (columns[None, :] < IN)
    offsets = rows[:, None] * IN + columns[None, :]
    _adam(weight, weight_m, weight_v, offsets, inside, total, rates, epsilon)
    if tile % ACROSS == 0:
        _adam(bias, bias_m, bias_v, rows, rows < OUT, tl.sum(grads, 1), rates, epsilon)


@triton.jit
def add_up(totals, recon, kl, recons, kls):
    """Phase 5: ``totals`` (2,) float64 grow by the sums of ``recon`` (recons,), ``kl`` (kls,)."""
    tl.store(totals, tl.load(totals) + _sum(recon, recons))
    tl.store(totals + 1, tl.load(totals + 1) + _sum(kl, kls))
