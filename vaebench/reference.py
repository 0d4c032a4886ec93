"""The measuring stick: plain eager float32, an ordinary DataLoader, textbook formulas.

It may be slow, it must be obvious, and it shares no objective code and no optimiser code with the
fast path: what is wrong in one of them shows as a difference. It changes only to mend a fault.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vaebench.engine import Sums
from vaebench.system.device import full_float32

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


class ReferenceEngine:
    """Trains as a tutorial would.

    Args:
        model: module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output``.
        images: (N, ...) uint8, scaled to [0, 1] here, or float32 as they are; stays on the CPU.
        labels: (N, ...) handed to the model beside them, or None.
        batch_size: images per step.
        lr: learning rate.
        likelihood, sigma, beta, bound, free_bits: as in :class:`vaebench.objective.Objective`.
        device: where the model trains.
        optimizer: the name of one of torch.optim's, in small letters; or an optimiser, whose own
            learning rates are multiplied by what :meth:`set_lr` makes of lr.
        words: its keyword arguments, beside lr.
        clip_norm, clip_value: as for torch.nn.utils.clip_grad_norm_ and clip_grad_value_.
    """

    steps_at_once = 1
    holds_tensors = False
    remarks = ()

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        batch_size: int,
        lr: float,
        likelihood: str,
        sigma: float,
        beta: float,
        device: torch.device,
        bound: str = "vae",
        free_bits: float = 0.0,
        optimizer: str | torch.optim.Optimizer = "adam",
        words: Mapping[str, Any] = MappingProxyType({}),
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.model: Any = model.to(device)
        labelled = [] if labels is None else [labels.cpu()]
        self.dataset = TensorDataset(images.cpu(), *labelled)
        self.batch_size = batch_size
        self.likelihood, self.sigma, self.beta, self.bound = likelihood, sigma, beta, bound
        self.free_bits = free_bits
        self.device = device
        self.clip_norm, self.clip_value = clip_norm, clip_value
        if isinstance(optimizer, str):
            make: Any = OPTIMIZERS[optimizer]
            self.optimizer: torch.optim.Optimizer = make(model.parameters(), lr=lr, **words)
        else:
            self.optimizer = optimizer
        self.lr, self.base = lr, [group["lr"] / lr for group in self.optimizer.param_groups]

    @property
    def images(self) -> Tensor:
        """What is trained on; may be overwritten in place between epochs."""
        return self.dataset.tensors[0]

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        if lr == self.lr:
            return
        self.lr = lr
        for group, share in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = share * lr

    def set_beta(self, beta: float) -> None:
        """Weigh the KL by this from the next step on."""
        self.beta = beta

    def follow(self, params: list[Tensor]) -> None:
        """Train these parameters too: a layer may have been replaced since."""
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if new := [p for p in params if id(p) not in known]:
            self.optimizer.add_param_group({"params": new, "lr": self.lr})
            self.base.append(1.0)

    def training(self) -> AbstractContextManager[None]:
        """Nothing is laid out otherwise while it trains."""
        return nullcontext()

    def warm_up(self) -> None:
        """Nothing is slow only the first time."""

    @full_float32()
    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        self.model.train()
        recon_sum, kl_sum = 0.0, 0.0
        # A generator of its own, since it draws a number that it does not need.
        own = torch.Generator()
        loader = DataLoader(self.dataset, self.batch_size, sampler=order.tolist(), generator=own)
        for batch, eps in zip(loader, noise.split(self.batch_size), strict=True):
            x, *y = (t.to(self.device) for t in batch)
            x = x.float() / 255 if x.dtype == torch.uint8 else x
            loss, recon, kl = self.loss(x, eps, *y)
            self.optimizer.zero_grad()
            loss.backward()
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            if self.clip_value is not None:
                nn.utils.clip_grad_value_(self.model.parameters(), self.clip_value)
            self.optimizer.step()
            recon_sum += recon.item()
            kl_sum += kl.item()
        totals = torch.tensor([recon_sum, kl_sum], dtype=torch.float64)
        return Sums(totals[0], totals[1], len(order))

    def state(self) -> dict[str, Tensor]:
        """What the optimiser remembers; see :meth:`vaebench.engine.Engine.state`."""
        memory = self.optimizer.state_dict()["state"]
        return {
            f"{i}.{name}": t
            for i, values in memory.items()
            for name, t in values.items()
            if isinstance(t, Tensor)  # a caller's optimiser may keep other things
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back; see :meth:`vaebench.engine.Engine.load_state`."""
        memory: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            i, name = key.split(".")
            memory.setdefault(int(i), {})[name] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": memory, "param_groups": groups})

    def loss(self, x: Tensor, eps: Tensor, *y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, recon, kl): recon and kl of the ELBO, summed over the batch; three scalars."""
        mu, logvar = self.model.encode(x, *y)
        kl = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
        penalty = kl
        if self.free_bits:
            each = -0.5 * (1 + logvar - mu**2 - logvar.exp()).mean(0)
            penalty = len(x) * each.clamp(min=self.free_bits).sum()
        prior = getattr(self.model, "mixture_prior", None)
        if self.bound == "vae" and eps.dim() == 2 and prior is None:
            z = mu + torch.exp(logvar / 2) * eps
            recon = self.log_likelihood(self.model.decode(z, *y), x)
            return -(recon - self.beta * penalty) / len(x), recon, kl
        # k samples: every image stands k times in a row.
        batch, k = len(x), 1 if eps.dim() == 2 else eps.shape[1]
        x, y = x.repeat_interleave(k, 0), tuple(t.repeat_interleave(k, 0) for t in y)
        mu, std = (t.repeat_interleave(k, 0) for t in (mu, torch.exp(logvar / 2)))
        z = mu + std * eps.reshape(batch * k, -1)
        log_p_x = self.log_likelihood(self.model.decode(z, *y), x, reduction="none")
        recon = log_p_x.sum() / k
        log_q_z = torch.distributions.Normal(mu, std, validate_args=False).log_prob(z).sum(1)
        log_p_z = log_prior(z, prior() if prior else None)
        if prior:
            penalty = kl = (log_q_z - log_p_z).sum() / k
        if self.bound == "vae":
            return -(recon - self.beta * penalty) / batch, recon, kl
        log_w = (log_p_x + log_p_z - log_q_z).reshape(batch, k)
        bound = torch.logsumexp(log_w, 1) - math.log(k)
        return -bound.mean(), recon, kl

    def log_likelihood(
        self, output: Tensor | tuple[Tensor, Tensor], x: Tensor, reduction: str = "sum"
    ) -> Tensor:
        """Log p(x|z): summed over the batch, a scalar; or of each image, with "none"."""
        if isinstance(output, tuple):  # a mean with a spread of its own
            mean, spread = (t.reshape(x.shape) for t in output)
            if self.likelihood == "logistic":
                value = log_of_grey_levels(mean, torch.exp(spread), x)
            else:
                value = normal_log_prob(mean, torch.exp(spread / 2), x)
        elif self.likelihood == "bernoulli":
            output = output.reshape(x.shape)
            value = -F.binary_cross_entropy_with_logits(output, x, reduction=reduction)
        elif self.likelihood == "continuous-bernoulli":
            # In float64: in float32 a probability near 1 is 1 too soon.
            logits = output.reshape(x.shape).double()
            given = torch.distributions.ContinuousBernoulli(logits=logits, validate_args=False)
            value = given.log_prob(x.double()).to(x.dtype)
        else:
            value = normal_log_prob(output.reshape(x.shape), self.sigma, x)
        return value.sum() if reduction == "sum" else value.flatten(1).sum(1)


def normal_log_prob(mean: Tensor, sigma: Tensor | float, x: Tensor) -> Tensor:
    """Log N(x; mean, sigma^2), element by element."""
    # Unchecked: numbers that go wrong are found, and told, where the sums are read.
    found: Tensor = torch.distributions.Normal(mean, sigma, validate_args=False).log_prob(x)
    return found


def log_prior(z: Tensor, mixture: tuple[Tensor, Tensor] | None) -> Tensor:
    """Log p(z), z (N, Z): N(0, I), or an equal mixture of Gaussians, mu and logvar (K, Z)."""
    if mixture is None:
        return normal_log_prob(torch.zeros_like(z), 1.0, z).sum(1)
    mu, std = mixture[0], torch.exp(mixture[1] / 2)
    each = normal_log_prob(mu, std, z.unsqueeze(1)).sum(2)  # (N, K)
    return torch.logsumexp(each, 1) - math.log(len(mu))


def log_of_grey_levels(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """Log of what a logistic distribution has within half a grey level of x, or beyond the last.

    In float64, and by the tail that holds less: a difference of two numbers near 1 has no digits.
    """
    half = 0.5 / 255
    mean, scale, wide = mean.double(), scale.double(), x.double()
    side = torch.where(wide > mean, -torch.ones_like(wide), 1.0)
    inner, outer = (wide + side * half - mean) / scale, (wide - side * half - mean) / scale
    mass = torch.sigmoid(side * inner) - torch.sigmoid(side * outer)
    lowest, highest = wide < half, wide > 1 - half
    below = F.logsigmoid((wide + half - mean) / scale)
    above = F.logsigmoid((mean - wide + half) / scale)
    log_mass = torch.where(lowest, below, torch.where(highest, above, torch.log(mass)))
    return log_mass.to(x.dtype)
