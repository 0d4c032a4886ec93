"""What encode gives, in the ways that people write it."""

import collections
import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from tests.models.others.plain import LATENTS, Plain


class AList(Plain):
    def encode(self, x: Tensor) -> Any:
        return list(super().encode(x))


class More(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return mu, logvar, mu.square()


class Drawn(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        z = self.drawn(mu, logvar)
        return z, mu, logvar


class DrawnUnnamed(Plain):
    def encode(self, x: Tensor) -> Any:
        both = super().encode(x)
        return tuple([self.drawn(*both), *both])


class HiddenToo(Plain):
    def encode(self, x: Tensor) -> Any:
        return tuple([self.hidden(x), *super().encode(x)])


class SwappedByName(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, log_var = super().encode(x)
        return log_var, mu


class ADict(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return {"z_log_var": logvar, "z_mean": mu, "hidden": self.hidden(x)}


Both = collections.namedtuple("Both", "logvar mu")


class ANamedTuple(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return Both(logvar, mu)


@dataclasses.dataclass
class Posterior:
    loc: Tensor
    log_variance: Tensor


class ADataclass(Plain):
    def encode(self, x: Tensor) -> Any:
        return Posterior(*super().encode(x))


class Output(collections.OrderedDict[str, Any]):
    """Named values by key and by attribute, as model hubs give them."""

    __getattr__ = collections.OrderedDict.__getitem__


class AnOutput(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return Output(embedding=mu, log_covariance=logvar)


class Moments:
    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean, self.logvar, self.std = mean, logvar, torch.exp(0.5 * logvar)


class Wrapped(Plain):
    def encode(self, x: Tensor) -> Any:
        return {"latent_dist": Moments(*super().encode(x)), "loss": None}


class ANormal(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return Normal(mu, torch.exp(0.5 * logvar))


class AnIndependentNormal(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return Independent(Normal(mu, logvar.mul(0.5).exp()), 1), self.hidden(x)


class SigmaByName(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        sigma = torch.exp(0.5 * logvar)
        return mu, sigma


class StdevByName(Plain):
    """The spread's name as statisticians write it; above 0 by no function that is known."""

    def encode(self, x: Tensor) -> Any:
        mean, logvar = super().encode(x)
        stdev = torch.exp(0.5 * logvar)
        return mean, stdev


class VarianceByName(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return {"mu": mu, "var": logvar.exp()}


class LogSigma(Plain):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return {"mu": mu, "log_sigma": 0.5 * logvar}


class SigmaSaid(Plain):
    said: ClassVar = {"encode": "mu, sigma"}

    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return mu, torch.exp(0.5 * logvar)


class HalvesSaid(Plain):
    said: ClassVar = {"encode": "mu, logvar"}

    def encode(self, x: Tensor) -> Any:
        return torch.cat(super().encode(x), 1)


class HalvesByForward(HalvesSaid):
    said: ClassVar = {}

    def forward(self, x: Tensor) -> Any:
        both = self.encode(x)
        mu, logvar = both[:, :LATENTS], both[:, LATENTS:]
        return self.decode(self.drawn(mu, logvar)), mu, logvar


class Spatial(Plain):
    def encode(self, x: Tensor) -> Any:
        return tuple(t[:, :, None, None] for t in super().encode(x))

    def decode(self, z: Tensor) -> Any:
        assert z.shape[1:] == (LATENTS, 1, 1)
        return super().decode(z.flatten(1))


class WithItsLoss(Plain):
    """Keeps what it computed last, counts, and changes a list."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.log = 0, []  # type: ignore[var-annotated]

    def encode(self, x: Tensor) -> Any:
        self.calls += 1
        self.mu, self.logvar = super().encode(x)
        self.log.append(self.calls)
        return {"mu": self.mu, "logvar": self.logvar}
