"""p(x|z): what each likelihood makes of a decoder's output, in nats per image.

A likelihood is a name (:data:`vaebench.config.LIKELIHOODS`). What depends on it is here: its
logarithm, the mean image, and what its pixels and a decoder must be. To add one: its name there,
its logarithm here, its textbook form in :mod:`vaebench.reference`, a case in
``tests/test_likelihoods.py``.
Everything is computed in float32 (float64 if the inputs are), whatever autocast made of the
network's outputs: exp and a sum of 784 terms lose nats in bfloat16.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.errors import InputError
from vaebench.models.protocol import Gaussian, Logistic, Output

# Those of pixels in [0, 1]; the others are densities of any real numbers.
UNIT_INTERVAL = ("bernoulli", "continuous-bernoulli", "logistic")
# Those whose decoder gives logits; the others', means.
OF_LOGITS = ("bernoulli", "continuous-bernoulli")
# What a decoder must give where one number per pixel is not enough.
OF_PAIRS: dict[str, type[Gaussian] | type[Logistic]] = {
    "learned-gaussian": Gaussian,
    "logistic": Logistic,
}
LEVEL = 1 / 255  # from one grey level to the next
# Nearer to 0 than this, the continuous Bernoulli's formulas are differences of large numbers.
NEAR_ZERO = 0.5


def log_likelihood(likelihood: str, output: Output, x: Tensor, sigma: float = 1.0) -> Tensor:
    """Log p(x|z), (B,), from the decoder's output and the images, B times D numbers each.

    ``sigma`` is the standard deviation of ``"gaussian"``, where the decoder gives none itself.

    Raises:
        InputError: the decoder gives something else than the likelihood needs.
    """
    needed = OF_PAIRS.get(likelihood)
    if needed and not isinstance(output, needed):
        fields = " and ".join(needed._fields)
        raise InputError(
            f"the {likelihood} likelihood needs a decoder that gives {fields} for each pixel, a "
            f"vaebench.{needed.__name__}, and this one gives a {type(output).__name__}: let it, or "
            "choose another likelihood"
        )
    if isinstance(output, Logistic):
        if likelihood != "logistic":
            raise InputError(
                f"the decoder gives a vaebench.Logistic, and the likelihood is {likelihood}: make "
                "it logistic"
            )
        return logistic_log_likelihood(output, x)
    if isinstance(output, Gaussian):
        return diagonal_gaussian_log_likelihood(output, x)
    if likelihood == "gaussian":
        return gaussian_log_likelihood(output, x, sigma)
    value = bernoulli_log_likelihood(output, x)
    if likelihood == "bernoulli":
        return value
    return value + continuous_bernoulli_log_norm(output).flatten(1).sum(1)


def mean_pixels(likelihood: str, output: Output) -> Tensor:
    """E[x|z], in the shape of the output: what pictures show."""
    if not isinstance(output, Tensor):
        return output.mean
    if likelihood == "bernoulli":
        return output.sigmoid()
    return continuous_bernoulli_mean(output) if likelihood in OF_LOGITS else output


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Sum over pixels of x log p + (1 - x) log(1 - p) with p = sigmoid(logits); (B,).

    x lies in [0, 1]. For grey pixels, between 0 and 1, this is a score, not the log-probability
    of anything: never compare it with likelihoods of binary images.
    """
    logits, x = wide(logits).flatten(1), wide(x).flatten(1)
    # The textbook form with log p = logits + log(1 - p) put in: finite for every logit.
    # Not softplus, which torch cuts off at 20; its gradient is right at 0, unlike that of |logits|.
    return (x * logits + F.logsigmoid(-logits)).sum(1)


def bernoulli_value(logits: Tensor, x: Tensor) -> Tensor:
    """The same number as :func:`bernoulli_log_likelihood`, where no gradient is wanted; (B,).

    As sum(x * logits) - sum(log(1 + exp(logits))) it passes over the pixels three times instead
    of five, and takes a third of the time.
    """
    logits, x = wide(logits).flatten(1), wide(x).flatten(1)
    # Above 40, log(1 + exp(l)) is l, to the last bit of a float64.
    lit: Tensor = torch.linalg.vecdot(logits, x)
    return lit - F.softplus(logits, threshold=40).sum(1)


def continuous_bernoulli_log_norm(logits: Tensor) -> Tensor:
    """What makes a density on [0, 1] of the Bernoulli score: log(l / tanh(l / 2)) of each logit l.

    Source: Loaiza-Ganem & Cunningham, The continuous Bernoulli (arXiv 1907.06845), equation 6, with
    the probability written as a logit.
    """
    logits = wide(logits)
    small = logits.abs() < NEAR_ZERO
    # Its series there: log 2 + y^2/3 - 7 y^4/90 + ..., y = l/2. Each formula is given only what it
    # is for: from the other, of a large logit say, no finite gradient would come.
    square = (torch.where(small, logits, 0.0) / 2).square()
    terms = (1 / 3, -7 / 90, 62 / 2835, -127 / 18900, 1022 / 467775, -1414477 / 1915538625)
    series = torch.zeros_like(square)
    for term in reversed(terms):
        series = (series + term) * square
    size = torch.where(small, 1.0, logits.abs())
    # log tanh(s / 2), without taking 1 from what is nearly 1.
    log_tanh = torch.log(-torch.expm1(-size)) - torch.log1p(torch.exp(-size))
    return torch.where(small, math.log(2) + series, size.log() - log_tanh)


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """Its mean of each pixel, 1 / (1 - exp(-l)) - 1 / l: nearer to one half than sigmoid(l)."""
    logits = wide(logits)
    small = logits.abs() < NEAR_ZERO
    near = torch.where(small, logits, 0.0)
    square = near.square()
    series = torch.zeros_like(square)
    for term in (1 / 47900160, -1 / 1209600, 1 / 30240, -1 / 720, 1 / 12):
        series = series * square + term
    series = 0.5 + near * series
    other = torch.where(small, 1.0, logits)
    return torch.where(small, series, 1 / -torch.expm1(-other) - 1 / other)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Log N(x; mean, sigma^2 I), (B,), with the normalising constant."""
    mean, x = wide(mean).flatten(1), wide(x).flatten(1)
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi * sigma**2)
    return -0.5 / sigma**2 * (x - mean).square().sum(1) - constant


def diagonal_gaussian_log_likelihood(output: Gaussian, x: Tensor) -> Tensor:
    """Log N(x; mean, diag(exp(logvar))), (B,), with the normalising constant."""
    mean, logvar, x = (wide(t).flatten(1) for t in (*output, x))
    square = (x - mean).square() * torch.exp(-logvar)
    return -0.5 * (square + logvar + math.log(2 * math.pi)).sum(1)


def logistic_log_likelihood(output: Logistic, x: Tensor) -> Tensor:
    """Log-probability of 256 grey levels, x = 0, 1/255, ... 1, under logistic distributions; (B,).

    A level has what lies within half a step of it; the lowest and the highest have all beyond them
    too. Source: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow
    (arXiv 1606.04934), section 5.2.
    """
    mean, logscale, x = (wide(t).flatten(1) for t in (*output, x))
    rate = torch.exp(-logscale)
    upper = (x + LEVEL / 2 - mean) * rate
    lower = (x - LEVEL / 2 - mean) * rate
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): finite however far off.
    between = torch.log(-torch.expm1(-LEVEL * rate))
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    middle = below + above + between
    lowest, highest = x < LEVEL / 2, x > 1 - LEVEL / 2
    return torch.where(lowest, below, torch.where(highest, above, middle)).sum(1)


def wide(t: Tensor) -> Tensor:
    """Float64 as it is, anything else as float32."""
    return t if t.dtype == torch.float64 else t.float()
