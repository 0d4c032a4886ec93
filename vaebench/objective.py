"""The objective, written once. All in nats per image: summed over pixels and latents.

Sources: Kingma & Welling, Auto-Encoding Variational Bayes (arXiv 1312.6114), equation 10 and
appendix B; Burda et al., Importance Weighted Autoencoders (arXiv 1509.00519), equation 8; of free
bits, Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (arXiv
1606.04934), appendix C.8; of mixtures, Tomczak & Welling, VAE with a VampPrior (arXiv 1705.07120).
As in :mod:`vaebench.likelihoods`, everything is computed in float32 (float64 if the inputs are).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vaebench.config import LIKELIHOODS
from vaebench.errors import InputError, check_choice, check_count, check_real
from vaebench.likelihoods import bernoulli_value, log_likelihood, wide
from vaebench.models.protocol import EncoderDecoder, Mixture, Output, prior_of


@dataclass(frozen=True)
class Objective:
    """What is maximised: the mean over images of a bound.

    ``bound`` is ``"vae"``: ``recon - beta * kl``, with recon averaged over ``samples`` draws of z;
    or ``"iwae"``: the logarithm of the average over them of p(x, z) / q(z|x).
    ``sigma`` is the fixed standard deviation of the Gaussian likelihood, for a decoder that gives
    no variance of its own. ``free_bits`` is what the KL of each latent, averaged over a batch, may
    be without costing anything, in nats. The ELBO itself is ``recon - kl``; with a beta other than
    1, free bits, or ``"iwae"``, it is reported, but not what is maximised.
    """

    likelihood: str = "bernoulli"
    sigma: float = 1.0
    beta: float = 1.0
    bound: str = "vae"
    samples: int = 1
    free_bits: float = 0.0
    # A scalar on the device, in place of beta where that changes while training: compiled and
    # captured code reads it at every step.
    weight: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        check_real("sigma", self.sigma)
        check_real("beta", self.beta, zero=True)
        check_choice("objective", self.bound, ("vae", "iwae"))
        check_count("samples", self.samples)
        check_real("free_bits", self.free_bits, zero=True)
        if self.bound == "iwae" and self.beta != 1:
            raise InputError(
                f"beta is {self.beta}: the importance-weighted bound has no separate KL to weigh; "
                "leave it at 1, or use the vae objective"
            )
        if self.bound == "iwae" and self.free_bits:
            raise InputError(
                f"free_bits is {self.free_bits}: the importance-weighted bound has no separate KL "
                "to leave free; leave it at 0, or use the vae objective"
            )

    @property
    def is_simple(self) -> bool:
        """Whether it is the ELBO of one z per image, its KL at any weight: what kernels know."""
        return (self.bound, self.samples, self.free_bits) == ("vae", 1, 0)

    def noise_shape(self, images: int, latent_dim: int) -> tuple[int, ...]:
        """Shape of the noise for so many images: (n, Z), or (n, k, Z) with k > 1 samples."""
        return (images, latent_dim) if self.samples == 1 else (images, self.samples, latent_dim)

    def log_likelihood(self, output: Output, x: Tensor) -> Tensor:
        """Log p(x|z), (B,); see :func:`vaebench.likelihoods.log_likelihood`."""
        return log_likelihood(self.likelihood, output, x, self.sigma)

    def value(self, output: Output, x: Tensor) -> Tensor:
        """Give :meth:`log_likelihood` where no gradient is wanted, faster."""
        if self.likelihood == "bernoulli" and isinstance(output, Tensor):
            return bernoulli_value(output, x)
        return self.log_likelihood(output, x)

    def loss(self, recon: Tensor, kl: Tensor, per_latent: Tensor | None = None) -> Tensor:
        """The scalar to minimise.

        Args:
            recon: (B,).
            kl: (B,).
            per_latent: (B, Z), of which kl is the sum; needed where there are free bits.
        """
        beta = self.beta if self.weight is None else self.weight
        if not self.free_bits:
            return (beta * kl - recon).mean()
        assert per_latent is not None
        return beta * per_latent.mean(0).clamp(min=self.free_bits).sum() - recon.mean()


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)), (B,)."""
    return kl_per_latent(mu, logvar).sum(1)


def kl_per_latent(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each latent, (B, Z).

    ``expm1`` keeps the digits that ``exp(logvar) - 1`` loses as a latent comes to rest at the
    prior, where logvar is near 0.
    """
    mu, logvar = wide(mu), wide(logvar)
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def reparameterise(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Z = mu + exp(logvar / 2) * eps: a draw of q(z|x) from standard-normal eps, in its shape.

    mu and logvar are (B, Z), eps (B, Z) or, for k draws of each, (B, k, Z).
    """
    mu, logvar = wide(mu), wide(logvar)
    if eps.dim() == 3:
        mu, logvar = mu.unsqueeze(1), logvar.unsqueeze(1)
    return mu + torch.exp(0.5 * logvar) * eps


def log_prior_ratio(z: Tensor, logvar: Tensor, eps: Tensor, prior: Mixture | None = None) -> Tensor:
    """Log p(z) - log q(z|x) of z = mu + exp(logvar / 2) * eps: (B,), or (B, k) of k draws.

    log p(x|z) plus this is the log importance weight. Its mean is minus the KL.

    Args:
        z: (B, Z), or (B, k, Z).
        logvar: (B, Z).
        eps: as z.
        prior: p(z); None: N(0, I).
    """
    logvar = wide(logvar) if eps.dim() == 2 else wide(logvar).unsqueeze(1)
    if prior is None:
        return 0.5 * (eps.square() + logvar - z.square()).sum(-1)
    log_q = -0.5 * (eps.square() + logvar).sum(-1)  # both without Z/2 log(2 pi)
    return mixture_log_density(z, prior) - log_q


def mixture_log_density(z: Tensor, prior: Mixture) -> Tensor:
    """Log p(z) + Z/2 log(2 pi) under an equal mixture of diagonal Gaussians; z's without its last.

    As matrix products, so that no tensor of all B K Z numbers is made of B codes and K components;
    in float64, since they are added up to a small difference, and since autocast leaves that alone.
    """
    codes, mu, logvar = z.double(), *(t.double() for t in prior)
    rate = torch.exp(-logvar)
    # sum (z - mu)^2 rate = z^2 . rate - 2 z . (mu rate) + sum mu^2 rate
    square = codes.square() @ rate.T - 2 * codes @ (mu * rate).T + (mu.square() * rate).sum(1)
    density = torch.logsumexp(-0.5 * (square + logvar.sum(1)), -1) - math.log(len(mu))
    return density.to(z.dtype)


def elbo_terms(
    model: EncoderDecoder, objective: Objective, x: Tensor, eps: Tensor, *y: Tensor
) -> tuple[Tensor, Tensor]:
    """(recon, kl), each (B,): the two terms of the ELBO.

    Args:
        model: gives mu and logvar (B, Z), the decoder's output, and maybe a prior of its own: kl is
            then estimated by the same z.
        objective: the likelihood.
        x: (B, ...) images; in [0, 1] for a Bernoulli likelihood.
        eps: (B, Z) standard-normal noise, or (B, k, Z): recon is then the average of k samples.
        y: (B, ...) labels, for a model that takes them.
    """
    recon, kl, _ = _terms(model, objective, x, eps, *y)
    return recon, kl


def _terms(
    model: EncoderDecoder, objective: Objective, x: Tensor, eps: Tensor, *y: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(recon, kl, kl of each latent): (B,), (B,), (B, Z); the last None under a prior of its own.

    A mixture ties latents together.
    """
    mu, logvar = model.encode(x, *y)
    z = reparameterise(mu, logvar, eps)
    recon = _log_likelihoods(model, objective, x, z, *y)
    recon = recon if eps.dim() == 2 else recon.mean(1)
    prior = prior_of(model)
    if prior is None:
        per_latent = kl_per_latent(mu, logvar)
        return recon, per_latent.sum(1), per_latent
    ratio = log_prior_ratio(z, logvar, eps, prior)
    return recon, -ratio if eps.dim() == 2 else -ratio.mean(1), None


def loss_terms(
    model: EncoderDecoder, objective: Objective, x: Tensor, eps: Tensor, *y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, recon, kl): the scalar to minimise, and the ELBO's terms (B,); see elbo_terms.

    Raises:
        InputError: free bits under a prior that ties latents together.
    """
    if objective.bound == "vae":
        recon, kl, per_latent = _terms(model, objective, x, eps, *y)
        if objective.free_bits and per_latent is None:
            raise InputError(
                f"free_bits is {objective.free_bits}: under a mixture prior no latent has a KL of "
                "its own; leave it at 0, or use the standard prior"
            )
        return objective.loss(recon, kl, per_latent), recon, kl
    eps = eps if eps.dim() == 3 else eps.unsqueeze(1)
    mu, logvar = model.encode(x, *y)
    z = reparameterise(mu, logvar, eps)
    recon = _log_likelihoods(model, objective, x, z, *y)  # (B, k)
    prior = prior_of(model)
    ratio = log_prior_ratio(z, logvar, eps, prior)
    bound = torch.logsumexp(recon + ratio, 1) - math.log(eps.shape[1])
    kl = kl_divergence(mu, logvar) if prior is None else -ratio.mean(1)
    return -bound.mean(), recon.mean(1), kl


def _log_likelihoods(
    model: EncoderDecoder, objective: Objective, x: Tensor, z: Tensor, *y: Tensor
) -> Tensor:
    """Log p(x|z), (B,) for z (B, Z), (B, k) for z (B, k, Z)."""
    if z.dim() == 2:
        return objective.log_likelihood(model.decode(z, *y), x)
    batch, k = z.shape[:2]
    x, *y_each = (t.unsqueeze(1).expand(batch, k, *t.shape[1:]).flatten(0, 1) for t in (x, *y))
    return objective.log_likelihood(model.decode(z.flatten(0, 1), *y_each), x).view(batch, k)
