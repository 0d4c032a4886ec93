"""The objective, written once. All in nats per image: summed over pixels and latents.

Source: Kingma & Welling, Auto-Encoding Variational Bayes (arXiv 1312.6114), equation 10 and
appendix B. Everything is computed in float32 (float64 if the inputs are), whatever autocast made
of the network's outputs: exp and a sum of 784 terms lose nats in bfloat16.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.checks import check_choice, check_real
from vaebench.model import EncoderDecoder


@dataclass(frozen=True)
class Objective:
    """What is maximised: mean over images of ``recon - beta * kl``.

    ``sigma`` is the fixed standard deviation of the Gaussian likelihood. The ELBO itself is
    ``recon - kl``; with a beta other than 1 it is reported, but not what is maximised.
    """

    likelihood: str = "bernoulli"
    sigma: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_choice("likelihood", self.likelihood, ("bernoulli", "gaussian"))
        check_real("sigma", self.sigma)
        check_real("beta", self.beta, zero=True)

    def log_likelihood(self, output: Tensor, x: Tensor) -> Tensor:
        """Log p(x|z), (B,), from the decoder's output and the images, B times D numbers each."""
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(output, x)
        return gaussian_log_likelihood(output, x, self.sigma)

    def loss(self, recon: Tensor, kl: Tensor) -> Tensor:
        """The scalar to minimise."""
        return (self.beta * kl - recon).mean()


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Sum over pixels of x log p + (1 - x) log(1 - p) with p = sigmoid(logits); (B,).

    x lies in [0, 1]. For grey pixels, between 0 and 1, this is a score, not the log-probability
    of anything: never compare it with likelihoods of binary images.
    """
    logits, x = _wide(logits).flatten(1), _wide(x).flatten(1)
    # The textbook form with log p = logits + log(1 - p) put in: finite for every logit.
    # Not softplus, which torch cuts off at 20; its gradient is right at 0, unlike that of |logits|.
    return (x * logits + F.logsigmoid(-logits)).sum(1)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Log N(x; mean, sigma^2 I), (B,), with the normalising constant."""
    mean, x = _wide(mean).flatten(1), _wide(x).flatten(1)
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi * sigma**2)
    return -0.5 / sigma**2 * (x - mean).square().sum(1) - constant


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)), (B,).

    ``expm1`` keeps the digits that ``exp(logvar) - 1`` loses as a latent comes to rest at the
    prior, where logvar is near 0.
    """
    mu, logvar = _wide(mu), _wide(logvar)
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar).sum(1)


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Z = mu + exp(logvar / 2) * eps, (B, Z): a draw of q(z|x) from standard-normal eps."""
    return _wide(mu) + torch.exp(0.5 * _wide(logvar)) * eps


def elbo_terms(
    model: EncoderDecoder, objective: Objective, x: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """(recon, kl), each (B,): the two terms of the ELBO, with one z per image.

    Args:
        model: gives mu and logvar (B, Z), and the decoder's output.
        objective: the likelihood.
        x: (B, ...) images; in [0, 1] for a Bernoulli likelihood.
        eps: (B, Z) standard-normal noise.
    """
    mu, logvar = model.encode(x)
    output = model.decode(reparameterise(mu, logvar, eps))
    return objective.log_likelihood(output, x), kl_divergence(mu, logvar)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()
