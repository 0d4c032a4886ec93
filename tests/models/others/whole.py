"""Models with no such methods, and those of images of another shape."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.others.plain import LATENTS, PIXELS, SHAPE, Plain


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
