"""One small network, written in the ways that people write VAEs; see test_adapt.

Every class computes what :class:`Plain` computes, from parameters of the same values.
"""

import collections
import dataclasses
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal

SHAPE, PIXELS, LATENTS = (6, 6), 36, 3


class Plain(nn.Module):
    """36-16-(3,3)-16-36, as the trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mean, self.spread = nn.Linear(36, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.fc3, self.fc4 = nn.Linear(3, 16), nn.Linear(16, 36)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.fc1(x.flatten(1)))

    def encode(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.mean(h), self.spread(h)

    def decode(self, z: Tensor) -> Any:
        return self.fc4(F.relu(self.fc3(z)))

    def drawn(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


# --- what encode gives


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


# --- what decode gives


class Probabilities(Plain):
    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid()


class TorchSigmoid(Plain):
    def decode(self, z: Tensor) -> Any:
        return torch.sigmoid(super().decode(z)).view(-1, 1, *SHAPE)


class OldSigmoid(Plain):
    def decode(self, z: Tensor) -> Any:
        return F.sigmoid(super().decode(z))


class SigmoidInPlace(Plain):
    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid_().unsqueeze(1)[:, 0]


class SigmoidLayer(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.end = nn.Sequential(nn.Identity(), nn.Sigmoid())

    def decode(self, z: Tensor) -> Any:
        return self.end(super().decode(z)).view(-1, *SHAPE).transpose(1, 2).transpose(1, 2)


class SigmoidInTraining(Plain):
    """Logits in training, probabilities out of it, or the other way round."""

    def decode(self, z: Tensor) -> Any:
        logits = super().decode(z)
        return logits if self.training else logits.sigmoid()


class WithItsLogits(Plain):
    def decode(self, z: Tensor) -> Any:
        logits = super().decode(z)
        return logits.sigmoid(), logits


class ReconstructionAndMore(Plain):
    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid(), z.square()


class DecodedDict(Plain):
    def decode(self, z: Tensor) -> Any:
        return {"h": z, "reconstruction": super().decode(z).sigmoid()}


class DecodedHub(Plain):
    def decode(self, z: Tensor) -> Any:
        return Output(sample=super().decode(z))


class ABernoulli(Plain):
    def decode(self, z: Tensor) -> Any:
        return Bernoulli(logits=super().decode(z))


class ABernoulliOfProbabilities(Plain):
    def decode(self, z: Tensor) -> Any:
        return Independent(Bernoulli(probs=super().decode(z).sigmoid()), 1)


class Clamped(Plain):
    """No sigmoid that could be left out: probabilities all the same."""

    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid().clamp(1e-6, 1 - 1e-6)


class TwoClasses(Plain):
    def decode(self, z: Tensor) -> Any:
        logits = super().decode(z)
        return torch.stack([logits, torch.zeros_like(logits)], -1).softmax(-1)[..., 0]


# --- models with no such methods


class OnlyForward(Plain):
    """Parts named encoder, fc_mu, fc_var and decoder; probabilities from forward."""

    encode = decode = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(self.fc1, nn.ReLU())
        self.decoder = nn.Sequential(self.fc3, nn.ReLU(), self.fc4, nn.Sigmoid())
        self.fc_mu, self.fc_var = self.mean, self.spread
        del self.fc1, self.mean, self.spread, self.fc3, self.fc4

    def forward(self, x: Tensor) -> Any:
        h = self.encoder(x.view(-1, PIXELS))
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        return self.decoder(self.drawn(mu, log_var)), mu, log_var


class SigmoidInForward(OnlyForward):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = self.decoder[:3]

    def forward(self, x: Tensor) -> Any:
        recon, mu, log_var = super().forward(x)
        return recon.sigmoid(), mu, log_var


class Encoder(Plain):
    decode = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        return super().encode(x)


class Decoder(Plain):
    encode = None  # type: ignore[assignment]

    def forward(self, z: Tensor) -> Any:
        return torch.sigmoid(super().decode(z))


class Parts(nn.Module):
    """Two modules, with capitals."""

    def __init__(self) -> None:
        super().__init__()
        self.Encoder, self.Decoder = Encoder(), Decoder()

    def forward(self, x: Tensor) -> Any:
        mean, log_var = self.Encoder(x)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.Decoder(z), mean, log_var


class Underscored(Plain):
    encode = decode = None  # type: ignore[assignment]

    def _encode(self, x: Tensor) -> Any:
        return torch.cat(Plain.encode(self, x), 1)

    def _decode(self, z: Tensor) -> Any:
        return Plain.decode(self, z)

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self._encode(x).view(-1, 2, LATENTS).unbind(1)
        return self._decode(self.drawn(mu, logvar)), mu, logvar


class EncodeOnly(Plain):
    """A method for one half, a part for the other."""

    decode = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(self.fc3, nn.ReLU(), self.fc4, nn.Sigmoid())

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decoder(self.drawn(mu, logvar)).view(-1, 1, *SHAPE), mu, logvar


class SourcesSaid(Plain):
    said: ClassVar = {"encode": "posterior", "decode": "render"}
    encode = decode = None  # type: ignore[assignment]

    def posterior(self, x: Tensor) -> Any:
        return Plain.encode(self, x)

    def render(self, z: Tensor) -> Any:
        return Plain.decode(self, z).sigmoid()


class LogvarCalledSigma(Plain):
    """A layer's name says sigma; forward says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_sigma = self.spread

    def encode(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.mean(h), self.fc_sigma(h)

    def forward(self, x: Tensor) -> Any:
        mu, log_var = self.encode(x)
        return self.decode(self.drawn(mu, log_var)), (mu, log_var)


class SigmaByForward(Plain):
    """Nothing but forward says that the second value is a standard deviation."""

    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return mu, torch.exp(0.5 * logvar)

    def forward(self, x: Tensor) -> Any:
        mu, std = self.encode(x)
        return self.decode(mu + std * torch.randn_like(mu)), mu, std


class EncodeDraws(Parts):
    """Encode gives z alone; the part named so gives both."""

    def encode(self, x: Tensor) -> Any:
        mean, log_var = self.Encoder(x)
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)


class ManyInForward(OnlyForward):
    """Noise as old code draws it, and values within values."""

    def forward(self, x: Tensor) -> Any:
        h = self.encoder(x.view(-1, PIXELS))
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        std = log_var.mul(0.5).exp_()
        z = std.new_empty(std.size()).normal_().mul(std).add_(mu)
        return {"x": x, "recon": self.decoder(z), "q": (mu, log_var)}


# --- images of another shape


class Flat(Plain):
    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.fc1(x))


class WithChannel(Plain):
    def hidden(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        assert (channels, height, width) == (1, *SHAPE)
        return super().hidden(x)


OTHERS = [
    value
    for value in list(globals().values())
    if isinstance(value, type)
    and issubclass(value, nn.Module)
    and value not in (Plain, Encoder, Decoder)
    and value.__module__ == __name__
]
