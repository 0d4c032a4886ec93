"""The objective, written once. All in nats per image: summed over pixels and latents.

Sources: Kingma & Welling, Auto-Encoding Variational Bayes (arXiv 1312.6114), equation 10 and
appendix B; Burda et al., Importance Weighted Autoencoders (arXiv 1509.00519), equation 8.
Everything is computed in float32 (float64 if the inputs are), whatever autocast made of the
network's outputs: exp and a sum of 784 terms lose nats in bfloat16.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.errors import InputError, check_choice, check_count, check_real
from vaebench.models.protocol import EncoderDecoder, Gaussian, Output


@dataclass(frozen=True)
class Objective:
    """What is maximised: the mean over images of a bound.

    ``bound`` is ``"vae"``: ``recon - beta * kl``, with recon averaged over ``samples`` draws of z;
    or ``"iwae"``: the logarithm of the average over them of p(x, z) / q(z|x).
    ``sigma`` is the fixed standard deviation of the Gaussian likelihood, for a decoder that gives
    no variance of its own. The ELBO itself is
    ``recon - kl``; with a beta other than 1, or ``"iwae"``, it is reported, but not what is
    maximised.
    """

    likelihood: str = "bernoulli"
    sigma: float = 1.0
    beta: float = 1.0
    bound: str = "vae"
    samples: int = 1
    # A scalar on the device, in place of beta where that changes while training: compiled and
    # captured code reads it at every step.
    weight: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_choice("likelihood", self.likelihood, ("bernoulli", "gaussian"))
        check_real("sigma", self.sigma)
        check_real("beta", self.beta, zero=True)
        check_choice("objective", self.bound, ("vae", "iwae"))
        check_count("samples", self.samples)
        if self.bound == "iwae" and self.beta != 1:
            raise InputError(
                f"beta is {self.beta}: the importance-weighted bound has no separate KL to weigh; "
                "leave it at 1, or use the vae objective"
            )

    def noise_shape(self, images: int, latent_dim: int) -> tuple[int, ...]:
        """Shape of the noise for so many images: (n, Z), or (n, k, Z) with k > 1 samples."""
        return (images, latent_dim) if self.samples == 1 else (images, self.samples, latent_dim)

    def log_likelihood(self, output: Output, x: Tensor) -> Tensor:
        """Log p(x|z), (B,), from the decoder's output and the images, B times D numbers each."""
        if isinstance(output, Gaussian):
            return diagonal_gaussian_log_likelihood(output, x)
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(output, x)
        return gaussian_log_likelihood(output, x, self.sigma)

    def value(self, output: Output, x: Tensor) -> Tensor:
        """Give :meth:`log_likelihood` where no gradient is wanted, faster."""
        if self.likelihood == "bernoulli" and not isinstance(output, Gaussian):
            return bernoulli_value(output, x)
        return self.log_likelihood(output, x)

    def loss(self, recon: Tensor, kl: Tensor) -> Tensor:
        """The scalar to minimise."""
        beta = self.beta if self.weight is None else self.weight
        return (beta * kl - recon).mean()


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Sum over pixels of x log p + (1 - x) log(1 - p) with p = sigmoid(logits); (B,).

    x lies in [0, 1]. For grey pixels, between 0 and 1, this is a score, not the log-probability
    of anything: never compare it with likelihoods of binary images.
    """
    logits, x = _wide(logits).flatten(1), _wide(x).flatten(1)
    # The textbook form with log p = logits + log(1 - p) put in: finite for every logit.
    # Not softplus, which torch cuts off at 20; its gradient is right at 0, unlike that of |logits|.
    return (x * logits + F.logsigmoid(-logits)).sum(1)


def bernoulli_value(logits: Tensor, x: Tensor) -> Tensor:
    """The same number as :func:`bernoulli_log_likelihood`, where no gradient is wanted; (B,).

    As sum(x * logits) - sum(log(1 + exp(logits))) it passes over the pixels three times instead
    of five, and takes a third of the time.
    """
    logits, x = _wide(logits).flatten(1), _wide(x).flatten(1)
    # Above 40, log(1 + exp(l)) is l, to the last bit of a float64.
    lit: Tensor = torch.linalg.vecdot(logits, x)
    return lit - F.softplus(logits, threshold=40).sum(1)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Log N(x; mean, sigma^2 I), (B,), with the normalising constant."""
    mean, x = _wide(mean).flatten(1), _wide(x).flatten(1)
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi * sigma**2)
    return -0.5 / sigma**2 * (x - mean).square().sum(1) - constant


def diagonal_gaussian_log_likelihood(output: Gaussian, x: Tensor) -> Tensor:
    """Log N(x; mean, diag(exp(logvar))), (B,), with the normalising constant."""
    mean, logvar, x = (_wide(t).flatten(1) for t in (*output, x))
    square = (x - mean).square() * torch.exp(-logvar)
    return -0.5 * (square + logvar + math.log(2 * math.pi)).sum(1)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)), (B,)."""
    return kl_per_latent(mu, logvar).sum(1)


def kl_per_latent(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each latent, (B, Z).

    ``expm1`` keeps the digits that ``exp(logvar) - 1`` loses as a latent comes to rest at the
    prior, where logvar is near 0.
    """
    mu, logvar = _wide(mu), _wide(logvar)
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Z = mu + exp(logvar / 2) * eps: a draw of q(z|x) from standard-normal eps, in its shape.

    mu and logvar are (B, Z), eps (B, Z) or, for k draws of each, (B, k, Z).
    """
    mu, logvar = _wide(mu), _wide(logvar)
    if eps.dim() == 3:
        mu, logvar = mu.unsqueeze(1), logvar.unsqueeze(1)
    return mu + torch.exp(0.5 * logvar) * eps


def log_prior_ratio(z: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Log p(z) - log q(z|x) of z = mu + exp(logvar / 2) * eps: (B,), or (B, k) of k draws.

    log p(x|z) plus this is the log importance weight. Its mean is minus the KL.
    """
    logvar = _wide(logvar) if eps.dim() == 2 else _wide(logvar).unsqueeze(1)
    return 0.5 * (eps.square() + logvar - z.square()).sum(-1)


def elbo_terms(
    model: EncoderDecoder, objective: Objective, x: Tensor, eps: Tensor, *y: Tensor
) -> tuple[Tensor, Tensor]:
    """(recon, kl), each (B,): the two terms of the ELBO.

    Args:
        model: gives mu and logvar (B, Z), and the decoder's output.
        objective: the likelihood.
        x: (B, ...) images; in [0, 1] for a Bernoulli likelihood.
        eps: (B, Z) standard-normal noise, or (B, k, Z): recon is then the average of k samples.
        y: (B, ...) labels, for a model that takes them.
    """
    mu, logvar = model.encode(x, *y)
    recon = _log_likelihoods(model, objective, x, reparameterise(mu, logvar, eps), *y)
    return recon if eps.dim() == 2 else recon.mean(1), kl_divergence(mu, logvar)


def loss_terms(
    model: EncoderDecoder, objective: Objective, x: Tensor, eps: Tensor, *y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, recon, kl): the scalar to minimise, and the ELBO's terms (B,); see elbo_terms."""
    if objective.bound == "vae":
        recon, kl = elbo_terms(model, objective, x, eps, *y)
        return objective.loss(recon, kl), recon, kl
    eps = eps if eps.dim() == 3 else eps.unsqueeze(1)
    mu, logvar = model.encode(x, *y)
    z = reparameterise(mu, logvar, eps)
    recon = _log_likelihoods(model, objective, x, z, *y)  # (B, k)
    log_weights = recon + log_prior_ratio(z, logvar, eps)
    bound = torch.logsumexp(log_weights, 1) - math.log(eps.shape[1])
    return -bound.mean(), recon.mean(1), kl_divergence(mu, logvar)


def _log_likelihoods(
    model: EncoderDecoder, objective: Objective, x: Tensor, z: Tensor, *y: Tensor
) -> Tensor:
    """Log p(x|z), (B,) for z (B, Z), (B, k) for z (B, k, Z)."""
    if z.dim() == 2:
        return objective.log_likelihood(model.decode(z, *y), x)
    batch, k = z.shape[:2]
    x, *y_each = (t.unsqueeze(1).expand(batch, k, *t.shape[1:]).flatten(0, 1) for t in (x, *y))
    return objective.log_likelihood(model.decode(z.flatten(0, 1), *y_each), x).view(batch, k)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()
