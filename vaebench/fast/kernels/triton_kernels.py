"""A training step in six kernels of independent tiles, in Triton's dialect of Python.

What a tile of one kernel needs, tiles of the kernel before have written. Importing this needs
Triton, so that only the step itself does it, when it is first run.

Shapes: B images of PIXELS numbers, HIDDEN units, LATENT numbers per z, padded to Z, a power of two
of at least 16, as products of tiles want it. Weights are (outputs, inputs), as in ``nn.Linear``;
all matrices are row by row, without gaps. Gradients are derivatives of the loss, the mean over the
batch, so they are divided by B where they begin. What lies outside a matrix is read as 0.

A tile is ROWS x COLUMNS numbers of its kernel's matrix. A product that sums up many numbers, such
as pixels, is cut in SPLITS: each group of warps sums up its own CHUNK of each round, and their sums
are added at the end. Otherwise each warp would wait for its last product before the next one.

Nothing here is added up by atomics: each number has one writer, and is the same in every run.
Where several tiles add to one number, each writes its part, and whoever reads it adds them up.
"""

import triton
import triton.language as tl

from vaebench.fast.kernels.triton_tiles import (
    LOG_BETA1,
    LOG_BETA2,
    add_all,
    add_dot,
    add_parts,
    add_sums,
    is_known,
    join_splits,
    no_sums,
    places,
    read,
    read_vector,
    update,
    write,
)

# Numbers that change from call to call: no compilation for each.
UNSPECIAL = ["batch", "count", "recons", "kls"]
# Parts of longer tensors: where they begin differs from batch to batch.
UNALIGNED = ["index", "noise", "totals"]
kernel = triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)


@kernel
def encode(
    images, index, encoder_weight, encoder_bias, mu_weight, logvar_weight, hidden, heads,
    batch, count,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    BYTES: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """``hidden`` (B, HIDDEN) = relu(x weight^T + bias), x gathered.

    ``heads`` (2, PARTS, B, LATENT): what these units add to mu and logvar, before their biases. An
    image that is not there gives NaN, which shows.
    """
    PARTS: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0)
    row = tile // PARTS * ROWS + tl.arange(0, ROWS)
    unit = tile % PARTS * COLUMNS + tl.arange(0, COLUMNS)
    latent = tl.arange(0, Z)
    there = row < batch
    place = tl.load(index + row, mask=there, other=0)
    known = is_known(place, count)
    bias = read_vector(encoder_bias, unit[None, :], HIDDEN)
    mus = read(mu_weight, latent[None, :], unit[:, None], LATENT, HIDDEN)
    logvars = read(logvar_weight, latent[None, :], unit[:, None], LATENT, HIDDEN)
    split = places(SPLITS, CHUNK)
    sums = no_sums(SPLITS, ROWS, COLUMNS)
    for start in range(0, PIXELS, SPLITS * CHUNK):
        across, down = (start + split)[:, None, :], (start + split)[:, :, None]
        inside = (there & known)[None, :, None] & (across < PIXELS)
        x = tl.load(images + place[None, :, None] * PIXELS + across, mask=inside, other=0)
        w = read(encoder_weight, unit[None, None, :], down, HIDDEN, PIXELS)
        sums = add_dot(x.to(tl.float32), w, sums, PRECISION, BYTES, False)
    h = join_splits(add_sums(sums), SPLITS, ROWS, COLUMNS)
    if BYTES:
        h *= 1.0 / 255.0
    h = tl.where(known[:, None], h, float("nan")) + bias
    h = tl.where(h < 0, 0.0, h)  # NaN stays NaN
    write(hidden, row[:, None], unit[None, :], batch, HIDDEN, h)
    mine = heads + tile % PARTS * (batch * LATENT)
    part = add_sums(add_dot(h, mus, no_sums(0, ROWS, Z), PRECISION, False, False))
    write(mine, row[:, None], latent[None, :], batch, LATENT, part)
    part = add_sums(add_dot(h, logvars, no_sums(0, ROWS, Z), PRECISION, False, False))
    write(mine + PARTS * (batch * LATENT), row[:, None], latent[None, :], batch, LATENT, part)


@kernel
def draw(
    heads, mu_bias, logvar_bias, noise, decoder_weight, decoder_bias, mu, logvar, z, decoded, kl,
    step, lr, rates, batch,
    HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``decoded`` (B, HIDDEN) = relu(z weight^T + bias), of z = mu + exp(logvar / 2) noise.

    Every tile of a row draws z for itself. The first of them stores mu, logvar, z (B, LATENT) and
    the row's KL, in nats. A last program counts the step: ``rates`` (2,) of its updates are
    lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t).
    """
    ACROSS: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0)
    if tile == tl.num_programs(0) - 1:
        now = tl.load(step) + 1
        tl.store(step, now)
        # In float64: 1 - 0.999^t is a small difference of large numbers at first.
        t = now.to(tl.float64)
        rate = tl.load(lr).to(tl.float64) / (1 - tl.exp(t * LOG_BETA1))
        tl.store(rates, rate.to(tl.float32))
        tl.store(rates + 1, (1 / tl.sqrt(1 - tl.exp(t * LOG_BETA2))).to(tl.float32))
    else:
        rows = tile // ACROSS * ROWS + tl.arange(0, ROWS)[:, None]
        unit = tile % ACROSS * COLUMNS + tl.arange(0, COLUMNS)
        latent = tl.arange(0, Z)
        across = latent[None, :]
        w = read(decoder_weight, unit[None, :], latent[:, None], HIDDEN, LATENT)
        bias = read_vector(decoder_bias, unit[None, :], HIDDEN)
        eps = read(noise, rows, across, batch, LATENT)
        more = heads + PARTS * (batch * LATENT)
        means = add_parts(heads, rows, across, batch, LATENT, PARTS)
        logs = add_parts(more, rows, across, batch, LATENT, PARTS)
        means += read_vector(mu_bias, across, LATENT)
        logs += read_vector(logvar_bias, across, LATENT)
        drawn = means + tl.exp(0.5 * logs) * eps
        h = add_sums(add_dot(drawn, w, no_sums(0, ROWS, COLUMNS), PRECISION, False, False)) + bias
        write(decoded, rows, unit[None, :], batch, HIDDEN, tl.where(h < 0, 0.0, h))
        if tile % ACROSS == 0:
            write(mu, rows, across, batch, LATENT, means)
            write(logvar, rows, across, batch, LATENT, logs)
            write(z, rows, across, batch, LATENT, drawn)
            kls = 0.5 * (means * means + (tl.exp(logs) - 1) - logs)
            kls = tl.where((rows < batch) & (across < LATENT), kls, 0.0)
            tl.store(kl + tile // ACROSS, tl.sum(tl.sum(kls, 1), 0))


@kernel
def score(
    images, index, decoded, output_weight, output_bias, logits_grad, recon, batch, count,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, BYTES: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradient along the logits, ``logits_grad`` (B, PIXELS); ``recon``: a sum for each tile.

    That is of log p(x|z), in nats.
    """
    ACROSS: tl.constexpr = (PIXELS + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0)
    row = tile // ACROSS * ROWS + tl.arange(0, ROWS)
    column = tile % ACROSS * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.load(index + row, mask=row < batch, other=0)
    there = ((row < batch) & is_known(place, count))[:, None] & (column < PIXELS)[None, :]
    x = tl.load(images + place[:, None] * PIXELS + column[None, :], mask=there, other=0)
    bias = read_vector(output_bias, column[None, :], PIXELS)
    split = places(SPLITS, CHUNK)
    sums = no_sums(SPLITS, ROWS, COLUMNS)
    for start in range(0, HIDDEN, SPLITS * CHUNK):
        across, down = (start + split)[:, None, :], (start + split)[:, :, None]
        h = read(decoded, row[None, :, None], across, batch, HIDDEN)
        w = read(output_weight, column[None, None, :], down, PIXELS, HIDDEN)
        sums = add_dot(h, w, sums, PRECISION, False, False)
    logits = join_splits(add_sums(sums), SPLITS, ROWS, COLUMNS) + bias
    x = x.to(tl.float32)
    if BYTES:
        x *= 1.0 / 255.0
    along = (tl.sigmoid(logits) - x) / batch
    write(logits_grad, row[:, None], column[None, :], batch, PIXELS, along)
    # log(1 + exp(l)) with the larger part taken out of the logarithm: finite for every logit.
    softplus = tl.maximum(logits, 0.0) + tl.log(1 + tl.exp(-tl.abs(logits)))
    inside = (row < batch)[:, None] & (column < PIXELS)[None, :]
    terms = tl.where(inside, x * logits - softplus, 0.0)
    tl.store(recon + tile, tl.sum(tl.sum(terms, 1), 0))


@kernel
def decode_back(
    logits_grad, output_weight, decoder_weight, decoded, decoded_grad, along, batch,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """``decoded_grad`` (B, HIDDEN), before the relu: logits_grad weight where ``decoded`` is not 0.

    ``along`` (PARTS, B, LATENT): what these units add to the gradient along z.
    """
    PARTS: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0)
    row = tile // PARTS * ROWS + tl.arange(0, ROWS)
    unit = tile % PARTS * COLUMNS + tl.arange(0, COLUMNS)
    latent = tl.arange(0, Z)
    h = read(decoded, row[:, None], unit[None, :], batch, HIDDEN)
    small = read(decoder_weight, unit[:, None], latent[None, :], HIDDEN, LATENT)
    split = places(SPLITS, CHUNK)
    sums = no_sums(SPLITS, ROWS, COLUMNS)
    for start in range(0, PIXELS, SPLITS * CHUNK):
        across, down = (start + split)[:, None, :], (start + split)[:, :, None]
        d = read(logits_grad, row[None, :, None], across, batch, PIXELS)
        w = read(output_weight, down, unit[None, None, :], PIXELS, HIDDEN)
        sums = add_dot(d, w, sums, PRECISION, False, False)
    d = tl.where(h <= 0, 0.0, join_splits(add_sums(sums), SPLITS, ROWS, COLUMNS))
    write(decoded_grad, row[:, None], unit[None, :], batch, HIDDEN, d)
    part = add_sums(add_dot(d, small, no_sums(0, ROWS, Z), PRECISION, False, False))
    mine = along + tile % PARTS * (batch * LATENT)
    write(mine, row[:, None], latent[None, :], batch, LATENT, part)


@triton.jit
def _draw_back(
    tile, along, noise, mu, logvar, mu_weight, logvar_weight, hidden, mu_grad, logvar_grad,
    hidden_grad, beta, batch,
    HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS x COLUMNS of ``hidden_grad`` (B, HIDDEN), before the relu.

    As in draw every tile of a row computes the gradients of mu and logvar (B, LATENT), and the
    first stores them.
    """
    ACROSS: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    rows = tile // ACROSS * ROWS + tl.arange(0, ROWS)[:, None]
    units = tile % ACROSS * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    latent = tl.arange(0, Z)
    across, down = latent[None, :], latent[:, None]
    mus = read(mu_weight, down, units, LATENT, HIDDEN)
    logvars = read(logvar_weight, down, units, LATENT, HIDDEN)
    h = read(hidden, rows, units, batch, HIDDEN)
    means = read(mu, rows, across, batch, LATENT)
    logs = read(logvar, rows, across, batch, LATENT)
    eps = read(noise, rows, across, batch, LATENT)
    along_z = add_parts(along, rows, across, batch, LATENT, PARTS)
    share = beta / batch
    along_mu = along_z + share * means
    along_logvar = 0.5 * (along_z * tl.exp(0.5 * logs) * eps + share * (tl.exp(logs) - 1))
    if tile % ACROSS == 0:
        write(mu_grad, rows, across, batch, LATENT, along_mu)
        write(logvar_grad, rows, across, batch, LATENT, along_logvar)
    sums = add_dot(along_mu, mus, no_sums(0, ROWS, COLUMNS), PRECISION, False, False)
    sums = add_dot(along_logvar, logvars, sums, PRECISION, False, False)
    total = add_sums(sums)
    write(hidden_grad, rows, units, batch, HIDDEN, tl.where(h <= 0, 0.0, total))


@triton.jit
def _learn(
    tile, grad, inputs, index, weight, weight_m, weight_v, rates, epsilon, batch, count,
    OUT: tl.constexpr, IN: tl.constexpr, GATHERED: tl.constexpr, BYTES: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Update ROWS x COLUMNS of ``weight`` (OUT, IN) by grad^T inputs.

    ``grad`` is (B, OUT), ``inputs`` (B, IN), or all images if GATHERED.
    """
    ACROSS: tl.constexpr = (IN + COLUMNS - 1) // COLUMNS
    rows = tile // ACROSS * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tile % ACROSS * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (rows < OUT) & (columns < IN)
    at = rows * IN + columns
    # Read before the product: its end is then not waited for twice.
    value = tl.load(weight + at, mask=inside, other=0.0)
    first = tl.load(weight_m + at, mask=inside, other=0.0)
    second = tl.load(weight_v + at, mask=inside, other=0.0)
    rate, root = tl.load(rates), tl.load(rates + 1)
    sums = no_sums(0, ROWS, COLUMNS)
    for start in range(0, batch, CHUNK):
        image = start + tl.arange(0, CHUNK)
        d = read(grad, image[None, :], rows, batch, OUT)
        if GATHERED:
            there = image < batch
            place = tl.load(index + image, mask=there, other=0)
            inside_x = (there & is_known(place, count))[:, None] & (columns < IN)
            x = tl.load(inputs + place[:, None] * IN + columns, mask=inside_x, other=0)
        else:
            x = read(inputs, image[:, None], columns, batch, IN)
        sums = add_dot(d, x.to(tl.float32), sums, PRECISION, False, BYTES)
    total = add_sums(sums)
    if BYTES:
        total *= 1.0 / 255.0
    update(weight, weight_m, weight_v, at, inside, value, first, second, total, rate, root, epsilon)


@triton.jit
def _learn_bias(
    tile, grad, bias, bias_m, bias_v, rates, epsilon, batch,
    OUT: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Update COLUMNS of ``bias`` (OUT,) by the sum of ``grad`` (B, OUT)."""
    at = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < OUT
    value = tl.load(bias + at, mask=inside, other=0.0)
    first = tl.load(bias_m + at, mask=inside, other=0.0)
    second = tl.load(bias_v + at, mask=inside, other=0.0)
    rate, root = tl.load(rates), tl.load(rates + 1)
    total = tl.zeros((CHUNK, COLUMNS), dtype=tl.float32)
    for start in range(0, batch, CHUNK):
        rows = start + tl.arange(0, CHUNK)[:, None]
        total += read(grad, rows, at[None, :], batch, OUT)
    total = tl.sum(total, 0)
    update(bias, bias_m, bias_v, at, inside, value, first, second, total, rate, root, epsilon)


@kernel
def learn_output(
    along, noise, mu, logvar, mu_weight, logvar_weight, hidden, mu_grad, logvar_grad, hidden_grad,
    logits_grad, decoded, index, output_weight, output_weight_m, output_weight_v,
    output_bias, output_bias_m, output_bias_v, rates, beta, epsilon, batch,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, BACK_ROWS: tl.constexpr,
    BACK_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """``hidden_grad``, by _draw_back; the output layer, whose weights decode_back still read."""
    # The longest first: the short ones then fill what is free.
    outputs: tl.constexpr = ((PIXELS + ROWS - 1) // ROWS) * ((HIDDEN + COLUMNS - 1) // COLUMNS)
    biases: tl.constexpr = (PIXELS + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0)
    if tile < outputs:
        _learn(
            tile, logits_grad, decoded, index, output_weight, output_weight_m, output_weight_v,
            rates, epsilon, batch, 0,
            PIXELS, HIDDEN, False, False, PRECISION, ROWS, COLUMNS, CHUNK,
        )  # fmt: skip
    elif tile < outputs + biases:
        _learn_bias(
            tile - outputs, logits_grad, output_bias, output_bias_m, output_bias_v,
            rates, epsilon, batch, PIXELS, COLUMNS, CHUNK,
        )  # fmt: skip
    else:
        _draw_back(
            tile - outputs - biases, along, noise, mu, logvar, mu_weight, logvar_weight, hidden,
            mu_grad, logvar_grad, hidden_grad, beta, batch,
            HIDDEN, LATENT, Z, PARTS, PRECISION, BACK_ROWS, BACK_COLUMNS,
        )  # fmt: skip


@kernel
def learn_rest(
    images, index, hidden, z, hidden_grad, mu_grad, logvar_grad, decoded_grad, recon, kl, totals,
    encoder_weight, encoder_weight_m, encoder_weight_v, encoder_bias, encoder_bias_m,
    encoder_bias_v, mu_weight, mu_weight_m, mu_weight_v, mu_bias, mu_bias_m, mu_bias_v,
    logvar_weight, logvar_weight_m, logvar_weight_v, logvar_bias, logvar_bias_m, logvar_bias_v,
    decoder_weight, decoder_weight_m, decoder_weight_v, decoder_bias, decoder_bias_m,
    decoder_bias_v, rates, epsilon, batch, count, recons, kls,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    BYTES: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The other layers; ``totals`` (2,) float64 grow by the sums of ``recon`` and ``kl``."""
    units: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    encoders: tl.constexpr = ((HIDDEN + ROWS - 1) // ROWS) * ((PIXELS + COLUMNS - 1) // COLUMNS)
    tile = tl.program_id(0)
    if tile < encoders:
        _learn(
            tile, hidden_grad, images, index, encoder_weight, encoder_weight_m, encoder_weight_v,
            rates, epsilon, batch, count,
            HIDDEN, PIXELS, True, BYTES, PRECISION, ROWS, COLUMNS, CHUNK,
        )  # fmt: skip
    elif tile < encoders + units:
        _learn(
            tile - encoders, mu_grad, hidden, index, mu_weight, mu_weight_m, mu_weight_v, rates,
            epsilon, batch, 0, LATENT, HIDDEN, False, False, PRECISION, Z, COLUMNS, CHUNK,
        )  # fmt: skip
    elif tile < encoders + 2 * units:
        _learn(
            tile - encoders - units, logvar_grad, hidden, index, logvar_weight, logvar_weight_m,
            logvar_weight_v, rates, epsilon, batch, 0,
            LATENT, HIDDEN, False, False, PRECISION, Z, COLUMNS, CHUNK,
        )  # fmt: skip
    elif tile < encoders + 3 * units:
        _learn(
            tile - encoders - 2 * units, decoded_grad, z, index, decoder_weight, decoder_weight_m,
            decoder_weight_v, rates, epsilon, batch, 0,
            HIDDEN, LATENT, False, False, PRECISION, COLUMNS, Z, CHUNK,
        )  # fmt: skip
    elif tile < encoders + 4 * units:
        _learn_bias(
            tile - encoders - 3 * units, hidden_grad, encoder_bias, encoder_bias_m,
            encoder_bias_v, rates, epsilon, batch, HIDDEN, COLUMNS, CHUNK,
        )  # fmt: skip
    elif tile < encoders + 5 * units:
        _learn_bias(
            tile - encoders - 4 * units, decoded_grad, decoder_bias, decoder_bias_m,
            decoder_bias_v, rates, epsilon, batch, HIDDEN, COLUMNS, CHUNK,
        )  # fmt: skip
    elif tile == encoders + 5 * units:
        _learn_bias(
            0, mu_grad, mu_bias, mu_bias_m, mu_bias_v, rates, epsilon, batch, LATENT, Z, CHUNK
        )
        _learn_bias(
            0, logvar_grad, logvar_bias, logvar_bias_m, logvar_bias_v, rates, epsilon, batch,
            LATENT, Z, CHUNK,
        )  # fmt: skip
    else:
        tl.store(totals, tl.load(totals) + add_all(recon, recons))
        tl.store(totals + 1, tl.load(totals + 1) + add_all(kl, kls))
