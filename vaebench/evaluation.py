"""The test ELBO: full precision, every image, the same code for every engine."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaebench.arrays import as_images
from vaebench.checks import check_count, check_seed
from vaebench.elbo import Objective, elbo_terms
from vaebench.engine import EVALUATION, random_stream
from vaebench.errors import InputError
from vaebench.fast.loader import to_unit
from vaebench.model import as_vae, latent_size, likelihood_of
from vaebench.trial import device_of


@dataclass(frozen=True)
class Evaluation:
    """Means over images, in nats per image.

    ``samples`` is the number of z drawn per image; ``images`` the number of images.
    """

    recon: float
    kl: float
    samples: int
    images: int

    @property
    def elbo(self) -> float:
        """``recon - kl``: negative for a Bernoulli likelihood, higher is better."""
        return self.recon - self.kl


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    *,
    samples: int = 1,
    likelihood: str | None = None,
    sigma: float = 1.0,
    seed: int = 0,
    batch_size: int = 1000,
) -> Evaluation:
    """Estimate the ELBO of ``images`` under ``model``, in float32, with sampled z.

    The model is put in eval mode and put back after. The noise depends on ``seed`` alone, so two
    models, or one model twice, are compared under the same draws.

    Args:
        model: module with ``encode`` and ``decode``; evaluated on its parameters' device.
        images: (N, ...) uint8, scaled to [0, 1], or floating; tensor or NumPy array, on any device.
        samples: z drawn per image.
        likelihood: ``"bernoulli"`` or ``"gaussian"``; default: the model's own, else Bernoulli.
        sigma: standard deviation of the Gaussian likelihood.
        seed: of the noise.
        batch_size: images at a time; the last batch may be short. Does not change the result but
            for rounding.

    Returns:
        Evaluation with ``elbo``, ``recon``, ``kl``, in nats per image.

    Raises:
        InputError: an argument that cannot be; says which, and what is accepted.
    """
    samples = check_count("samples", samples)
    batch_size = check_count("batch_size", batch_size)
    seed = check_seed("seed", seed)
    as_vae(model)
    objective = Objective(likelihood_of(model) if likelihood is None else likelihood, sigma)
    images = check_images(images, objective, "images")
    device = device_of(model)
    latent_dim = latent_size(model, to_unit(images[:1].to(device)))
    generator = random_stream(seed, EVALUATION, device)
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    try:
        for _ in range(samples):
            # All images' noise at once: it then does not depend on the batch size.
            noise = torch.randn(len(images), latent_dim, generator=generator, device=device)
            for batch, eps in zip(images.split(batch_size), noise.split(batch_size), strict=True):
                with torch.autocast(device.type, enabled=False):
                    terms = elbo_terms(as_vae(model), objective, to_unit(batch.to(device)), eps)
                totals += torch.stack(terms).sum(1, dtype=torch.float64)
    finally:
        model.train(was_training)
    recon_sum, kl_sum = totals.tolist()
    count = len(images) * samples
    return Evaluation(recon_sum / count, kl_sum / count, samples, len(images))


def check_images(images: Tensor, objective: Objective, name: str) -> Tensor:
    """Check an array of images and that the likelihood can take its values; give it as a tensor.

    Raises:
        InputError: see :func:`vaebench.data.as_images`; or floats outside [0, 1] for a Bernoulli
            likelihood.
    """
    images = as_images(images)
    if objective.likelihood == "bernoulli" and images.is_floating_point():
        low, high = images.min().item(), images.max().item()
        if low < 0 or high > 1:
            raise InputError(
                f"{name} holds values from {low:.4g} to {high:.4g}: a Bernoulli likelihood takes "
                "[0, 1] or uint8; rescale them, or use the gaussian likelihood"
            )
    return images
