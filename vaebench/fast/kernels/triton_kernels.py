"""The kernel of :mod:`vaebench.fast.triton_step`: one phase of a step, or all phases of many steps.

See :mod:`vaebench.fast.kernels.triton_tiles` for what each phase does, its words, and its shapes.
"""

import triton
import triton.language as tl

from vaebench.fast.kernels.triton_tiles import (
    add_up,
    count_step,
    decode_back_tile,
    encode_tile,
    learn_tile,
    sample_back_tile,
    score_tile,
)

# Numbers that change from call to call: no compilation for each.
UNSPECIAL = ["batch", "count", "recons", "kls", "steps"]
# Parts of longer tensors: where they begin differs from batch to batch.
UNALIGNED = ["index", "noise", "totals"]
# Looks at a counter, each about a microsecond, after which a program waits no longer; and what it
# then sets the counter to, so that no other waits either.
PATIENCE = tl.constexpr(1 << 22)
BROKEN = tl.constexpr(1 << 30)


@triton.jit
def _meet(arrived, met):
    """Wait until all programs have come here; ``met`` is what the last call gave, 0 at first.

    What any of them wrote before is then seen by all. A program that waits for seconds breaks the
    meeting, and all later ones: a launch that not all programs take part in ends all the same.
    """
    met += tl.num_programs(0)
    tl.debug_barrier()  # all of this program's threads are done, before one of them says so
    tl.atomic_add(arrived, 1, sem="release")
    looks = 0
    while (tl.atomic_add(arrived, 0, sem="acquire") < met) & (looks < PATIENCE):
        looks += 1
    if looks == PATIENCE:
        tl.atomic_max(arrived, BROKEN)
    tl.debug_barrier()
    return met


@triton.jit(do_not_specialize=UNSPECIAL, do_not_specialize_on_alignment=UNALIGNED)
def train(
    images, index, noise, totals, arrived, step, lr, rates, hidden, heads, mu, logvar, z,
    decoded, logits_grad, recon, kl, decoded_grad, along, mu_grad, logvar_grad, hidden_grad,
    encoder_weight, encoder_weight_m, encoder_weight_v, encoder_bias, encoder_bias_m,
    encoder_bias_v, mu_weight, mu_weight_m, mu_weight_v, mu_bias, mu_bias_m, mu_bias_v,
    logvar_weight, logvar_weight_m, logvar_weight_v, logvar_bias, logvar_bias_m, logvar_bias_v,
    decoder_weight, decoder_weight_m, decoder_weight_v, decoder_bias, decoder_bias_m,
    decoder_bias_v, output_weight, output_weight_m, output_weight_v, output_bias, output_bias_m,
    output_bias_v, epsilon, beta, batch, count, recons, kls, steps, PHASE: tl.constexpr,
    PIXELS: tl.constexpr, HIDDEN: tl.constexpr, LATENT: tl.constexpr, Z: tl.constexpr,
    BYTES: tl.constexpr, PRECISION: tl.constexpr, SHORT: tl.constexpr, NARROW: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Train ``steps`` steps on as many batches from ``index`` and ``noise`` on; or a PHASE of one.

    PHASE 0 is all of them. All programs must then run at the same time, since they wait for each
    other after each phase; ``arrived`` must be 0 before, and totals of NaN tell that one waited in
    vain. PHASE 1 to 5 wait for nothing: it takes a launch for each, in order.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    units: tl.constexpr = (HIDDEN + NARROW - 1) // NARROW
    encoders: tl.constexpr = ((HIDDEN + TALL - 1) // TALL) * ((PIXELS + WIDE - 1) // WIDE)
    outputs: tl.constexpr = ((PIXELS + TALL - 1) // TALL) * ((HIDDEN + WIDE - 1) // WIDE)
    short = tl.cdiv(batch, SHORT) * units
    met = 0
    for _ in range(steps):
        if PHASE <= 1:
            if program == 0:
                count_step(step, lr, rates)
            for tile in range(program, short, programs):
                encode_tile(
                    tile, images, index, encoder_weight, encoder_bias, mu_weight, logvar_weight,
                    hidden, heads, batch, count,
                    PIXELS, HIDDEN, LATENT, Z, BYTES, PRECISION, SHORT, NARROW, LONG,
                )  # fmt: skip
        if PHASE == 0:
            met = _meet(arrived, met)
        if PHASE == 0 or PHASE == 2:
            for tile in range(program, recons, programs):
                score_tile(
                    tile, images, index, noise, heads, mu_bias, logvar_bias, decoder_weight,
                    decoder_bias, output_weight, output_bias, mu, logvar, z, decoded, logits_grad,
                    recon, kl, batch, count,
                    PIXELS, HIDDEN, LATENT, Z, BYTES, PRECISION, TALL, NARROW, CHUNK,
                )  # fmt: skip
        if PHASE == 0:
            met = _meet(arrived, met)
        if PHASE == 0 or PHASE == 3:
            for tile in range(program, short, programs):
                decode_back_tile(
                    tile, logits_grad, output_weight, decoder_weight, decoded, decoded_grad, along,
                    batch, PIXELS, HIDDEN, LATENT, Z, PRECISION, SHORT, NARROW, LONG,
                )  # fmt: skip
        if PHASE == 0:
            met = _meet(arrived, met)
        if PHASE == 0 or PHASE == 4:
            for tile in range(program, short + outputs, programs):
                if tile < short:
                    sample_back_tile(
                        tile, along, noise, mu, logvar, mu_weight, logvar_weight, hidden,
                        mu_grad, logvar_grad, hidden_grad, beta, batch,
                        HIDDEN, LATENT, Z, PRECISION, SHORT, NARROW,
                    )  # fmt: skip
                else:
                    learn_tile(
                        tile - short, logits_grad, decoded, index, output_weight, output_weight_m,
                        output_weight_v, output_bias, output_bias_m, output_bias_v, rates,
                        epsilon, batch, 0,
                        PIXELS, HIDDEN, False, False, PRECISION, TALL, WIDE, CHUNK,
                    )  # fmt: skip
        if PHASE == 0:
            met = _meet(arrived, met)
        if PHASE == 0 or PHASE == 5:
            for tile in range(program, encoders + 3 * units + 1, programs):
                if tile < encoders:
                    learn_tile(
                        tile, hidden_grad, images, index, encoder_weight, encoder_weight_m,
                        encoder_weight_v, encoder_bias, encoder_bias_m, encoder_bias_v, rates,
                        epsilon, batch, count,
                        HIDDEN, PIXELS, True, BYTES, PRECISION, TALL, WIDE, CHUNK,
                    )  # fmt: skip
                elif tile < encoders + units:
                    learn_tile(
                        tile - encoders, mu_grad, hidden, index, mu_weight, mu_weight_m,
                        mu_weight_v, mu_bias, mu_bias_m, mu_bias_v, rates, epsilon, batch, 0,
                        LATENT, HIDDEN, False, False, PRECISION, Z, NARROW, CHUNK,
                    )  # fmt: skip
                elif tile < encoders + 2 * units:
                    learn_tile(
                        tile - encoders - units, logvar_grad, hidden, index, logvar_weight,
                        logvar_weight_m, logvar_weight_v, logvar_bias, logvar_bias_m,
                        logvar_bias_v, rates, epsilon, batch, 0,
                        LATENT, HIDDEN, False, False, PRECISION, Z, NARROW, CHUNK,
                    )  # fmt: skip
                elif tile < encoders + 3 * units:
                    learn_tile(
                        tile - encoders - 2 * units, decoded_grad, z, index, decoder_weight,
                        decoder_weight_m, decoder_weight_v, decoder_bias, decoder_bias_m,
                        decoder_bias_v, rates, epsilon, batch, 0,
                        HIDDEN, LATENT, False, False, PRECISION, NARROW, Z, CHUNK,
                    )  # fmt: skip
                else:
                    add_up(totals, recon, kl, recons, kls)
        if PHASE == 0:
            met = _meet(arrived, met)
        index += batch
        noise += batch * LATENT
    if PHASE == 0 and program == 0:  # noqa: SIM102 - Triton's own "and" would run both
        if tl.atomic_add(arrived, 0, sem="acquire") >= BROKEN:
            tl.store(totals, float("nan"))
            tl.store(totals + 1, float("nan"))
