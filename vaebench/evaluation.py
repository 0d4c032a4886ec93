"""Test ELBO and log-likelihood: full precision, every image, the same code for every engine."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vaebench.data.arrays import checked
from vaebench.data.images import Images, to_unit
from vaebench.data.labels import check_labels
from vaebench.errors import check_count, check_seed
from vaebench.fast.chain.score import Scores, scores_of
from vaebench.likelihoods import UNIT_INTERVAL
from vaebench.models.adapt import adapted, as_module, classes_of
from vaebench.models.code import deeds
from vaebench.models.protocol import Mixture, as_vae, latent_size, likelihood_of, prior_of
from vaebench.models.snapshot import generators_of, leaves_state, modes_kept, others_random
from vaebench.objective import Objective, kl_per_latent, log_prior_ratio, reparameterise
from vaebench.problem import device_of
from vaebench.system.device import full_float32
from vaebench.system.random import EVALUATION, random_stream

# Images that are evaluated at a time, of convolutions on the CPU and of all else.
FEW, MANY = 100, 1000
# Seconds that scoring would take from which on a kernel pays, though it may have to be built first.
PAYS = 20.0
# How far, of itself, a score by the kernel may be from the model's own.
CLOSE = 1e-5
# Burda et al. 2015, section 5.1: a latent is active if Var_x(E[z|x]) is above this.
ACTIVE = 1e-2


@dataclass(frozen=True)
class Evaluation:
    """Means over images, in nats per image.

    ``samples`` is the number of z drawn per image, K; ``images`` the number of images.
    ``log_likelihood`` is the mean of log((1/K) sum_k p(x, z_k) / q(z_k|x)) over the same samples
    that ``recon`` is averaged over: an importance-weighted estimate of log p(x). Its expectation
    is the ELBO at K = 1, never falls with K, and tends to log p(x) from below.
    ``standard_error`` is that of ``log_likelihood`` as a mean over images: how far it would move
    with other test images from the same source. It covers neither the estimate's bias at this K
    nor the spread of trainings.
    ``kl_per_latent`` adds up to ``kl``; it is empty for a model with a prior of its own, which ties
    latents together, and ``kl`` is an estimate by the same samples then. ``active_units`` counts
    the latents whose mean varies over the images: Var_x(E[z|x]) > 0.01.
    """

    recon: float
    kl: float
    samples: int
    images: int
    log_likelihood: float
    standard_error: float
    kl_per_latent: tuple[float, ...]
    active_units: int

    @property
    def elbo(self) -> float:
        """``recon - kl``: negative for a Bernoulli likelihood, higher is better."""
        return self.recon - self.kl


@torch.no_grad()
@full_float32()
def evaluate(
    model: nn.Module,
    images: Tensor | Images,
    *,
    labels: Tensor | None = None,
    samples: int = 1,
    likelihood: str | None = None,
    sigma: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Estimate ELBO and log-likelihood of ``images`` under ``model``, in float32.

    The model is put in eval mode and put back after. The noise depends on ``seed`` alone, so two
    models, or one model twice, are compared under the same draws. Memory does not grow with
    ``samples``.

    Args:
        model: as :func:`vaebench.fit` takes it; evaluated on its parameters' device.
        images: (N, ...) uint8, scaled to [0, 1], or floating; tensor or NumPy array, on any device.
        labels: (N, ...) handed to the model beside the images and z, for one that takes them.
        samples: z drawn per image, K; 5,000 is usual for a log-likelihood.
        likelihood: one of :data:`vaebench.config.LIKELIHOODS`; default: the model's own, else
            Bernoulli.
        sigma: standard deviation of the Gaussian likelihood.
        seed: of the noise.
        batch_size: images at a time; the last batch may be short. Does not change the result but
            for rounding. Default: as many as are fast, 1,000; of convolutions on the CPU 100.
        progress: show a bar on stderr.

    Returns:
        Evaluation with ``elbo``, ``recon``, ``kl``, ``log_likelihood``, in nats per image.

    Raises:
        InputError: an argument that cannot be; says which, and what is accepted.
    """
    samples = check_count("samples", samples)
    model = as_module(model)
    batch_size = _fast_size(model) if batch_size is None else check_count("batch_size", batch_size)
    seed = check_seed("seed", seed)
    objective = Objective(likelihood_of(model) if likelihood is None else likelihood, sigma)
    unit_interval = objective.likelihood in UNIT_INTERVAL
    pixels = checked(images, "images", unit_interval=unit_interval).pixels
    device = device_of(model)
    given = [pixels.to(device), *_checked_labels(labels, len(pixels), model, device)]
    first, (x, *y) = [part[:1] for part in given], [part[:2] for part in given]
    model, _ = adapted(model, to_unit(x).clone(), objective.likelihood, *y, training=False)
    with modes_kept(model), torch.autocast(device.type, enabled=False):
        latent_dim = latent_size(model, to_unit(first[0]).clone(), *first[1:])
        model.eval()
        once = _only_computes(model, lambda: _encode(model, first))
        chunks = _Chunks(model, given, batch_size, latent_dim, samples, encode_once=once)
        generator = random_stream(seed, EVALUATION, device)
        weights, prior = _Weights(len(images), device), prior_of(model)
        for _ in tqdm(range(samples), unit=" samples", disable=None if progress else True):
            # All images' noise at once: it then does not depend on the batch size.
            eps = torch.randn((len(images), latent_dim), generator=generator, device=device)
            weights.add(*chunks.score(objective, eps, prior))
    return _means(chunks, weights, samples, exact=prior is None)


def _fast_size(model: nn.Module) -> int:
    """How many images at a time are fast: what a convolution gives is to stay in the cache."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    convolves = any(isinstance(m, kinds) for m in model.modules())
    return FEW if convolves and device_of(model).type == "cpu" else MANY


class _Weights:
    """Importance weights of N images, added up sample by sample as logarithms; float64."""

    def __init__(self, images: int, device: torch.device) -> None:
        self.recon = torch.zeros(images, dtype=torch.float64, device=device)
        self.ratio = torch.zeros_like(self.recon)
        self.log_sum = torch.full_like(self.recon, -math.inf)

    def add(self, recon: Tensor, prior_ratio: Tensor) -> None:
        """Add one sample of each image: log p(x|z) and log p(z) - log q(z|x), (N,)."""
        self.recon += recon
        self.ratio += prior_ratio
        torch.logaddexp(self.log_sum, recon.double() + prior_ratio.double(), out=self.log_sum)

    def log_mean(self, samples: int) -> Tensor:
        """Log of each image's mean weight, (N,)."""
        return self.log_sum - math.log(samples)


def _means(chunks: "_Chunks", weights: _Weights, samples: int, *, exact: bool) -> Evaluation:
    """What was added up of every image, as means over them; ``exact``: the KL has a formula."""
    mu, logvar = chunks.mu, chunks.logvar
    kls = kl_per_latent(mu, logvar).mean(0, dtype=torch.float64).tolist() if exact else []
    estimate = weights.log_mean(samples)
    return Evaluation(
        recon=weights.recon.mean().item() / samples,
        kl=math.fsum(kls) if exact else -weights.ratio.mean().item() / samples,
        samples=samples,
        images=len(mu),
        log_likelihood=estimate.mean().item(),
        standard_error=_standard_error(estimate),
        kl_per_latent=tuple(kls),
        active_units=int((mu.var(0, correction=0) > ACTIVE).sum()),
    )


def _standard_error(values: Tensor) -> float:
    """Of their mean; not a number of a single value, which has no spread."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


class _Chunks:
    """Images, and labels if there are any, that a model encodes and decodes batch by batch.

    A batch is decoded right after it was encoded, since a model may keep from one what it needs in
    the other. Where it does not, it is encoded ``once`` for all ``samples``; and where these would
    take long, a kernel may decode and score.
    """

    def __init__(
        self,
        model: nn.Module,
        given: Sequence[Tensor],
        batch_size: int,
        latent_dim: int,
        samples: int,
        *,
        encode_once: bool,
    ) -> None:
        self.model, self.given, self.batch_size, self.once = model, given, batch_size, encode_once
        self.samples = samples
        shape, device = (len(given[0]), latent_dim), given[0].device
        self.mu, self.logvar = torch.empty(shape, device=device), torch.empty(shape, device=device)
        # How many z of each image there were; the last one's; its seconds of decoding and scoring.
        self.drawn, self.z, self.recon, self.seconds = 0, self.mu, self.mu, 0.0
        self.scores: Scores | None = None

    def score(
        self, objective: Objective, eps: Tensor, prior: Mixture | None
    ) -> tuple[Tensor, Tensor]:
        """Log p(x|z) and log p(z) - log q(z|x) of a z for every image, each (N,)."""
        recons, zs, ratios, seconds = [], [], [], 0.0
        for start in range(0, len(eps), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = [t[part] for t in self.given]
            if not (self.drawn and self.once):
                self.mu[part], self.logvar[part] = _encode(self.model, batch)
            logvar, noise = self.logvar[part], eps[part]
            z = reparameterise(self.mu[part], logvar, noise)
            if self.scores is None:
                begun = time.perf_counter()
                output = as_vae(self.model).decode(z, *batch[1:])
                recons.append(objective.value(output, to_unit(batch[0])))
                seconds += time.perf_counter() - begun
            zs.append(z)
            ratios.append(log_prior_ratio(z, logvar, noise, prior))
        self.drawn += 1
        self.z, self.seconds = torch.cat(zs), seconds
        self.recon = self.scores(self.z) if self.scores else torch.cat(recons)
        if self.once and self.drawn == 1 and self.seconds * self.samples > PAYS:
            self._find_faster(objective)
        return self.recon, torch.cat(ratios)

    def _find_faster(self, objective: Objective) -> None:
        """Score by a kernel from here on, if it gives what the model gave, and is faster."""
        images, *labels = self.given
        vae, few = as_vae(self.model), [t[:1] for t in labels]
        if not _only_computes(self.model, lambda: vae.decode(self.z[:1], *few)):
            return  # what it gives may change from z to z
        given = (objective, images, labels[0] if labels else None, self.mu.shape[1])
        scores = scores_of(self.model, vae, *given)
        if scores is None:
            return
        found = scores(self.z)
        close = torch.allclose(found, self.recon, CLOSE, CLOSE)
        if close and _faster(scores, self.z, self.seconds):
            self.scores = scores


def _only_computes(model: nn.Module, call: Callable[[], object]) -> bool:
    """Whether a call of the model's code gives the same again, and does nothing else."""
    drawn = _random_state(model)
    with deeds() as found:
        kept = leaves_state(model, call)
    return not kept and not found.told and _random_state(model) == drawn


def _random_state(model: nn.Module) -> str:
    """The state of all random numbers that a model may draw."""
    device = device_of(model)
    torchs = [torch.get_rng_state(), *(g.get_state() for g in generators_of(model))]
    torchs += [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return others_random() + repr([state.numpy().tobytes() for state in torchs])


def _faster(scores: Scores, z: Tensor, seconds: float) -> bool:
    """Whether the kernel takes less time than that."""
    begun = time.perf_counter()
    scores(z)
    return time.perf_counter() - begun < seconds


def _checked_labels(
    labels: object, n: int, model: nn.Module, device: torch.device
) -> tuple[Tensor, ...]:
    """Labels of n images on the device, as further arguments; none if there are none."""
    if labels is None:
        return ()
    return (check_labels(labels, n, classes=classes_of(model)).to(device),)


def _encode(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(mu, logvar) of a batch; what the model is given of the images is a copy."""
    x, y = to_unit(batch[0]), batch[1:]
    mu, logvar = as_vae(model).encode(x.clone() if x is batch[0] else x, *y)
    return mu.float(), logvar.float()
