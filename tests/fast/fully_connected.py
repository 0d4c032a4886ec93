"""Networks that native steps train, and others that they must leave to the compiler."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench import VAE


class Plain(nn.Module):
    """As most people write it: layers by hand, functions between them, a sigmoid at the end."""

    def __init__(self, pixels: int = 36, width: int = 24, latent: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pixels, 16)
        self.fc21, self.fc22 = nn.Linear(16, latent), nn.Linear(16, latent)
        self.fc3, self.fc4 = nn.Linear(latent, width), nn.Linear(width, pixels)
        self.classifier = nn.Linear(latent, 10)  # which neither encode nor decode uses

    def encode(self, x: Tensor) -> Any:
        """Heads as two layers."""
        hidden = F.relu(self.fc1(x.flatten(1)))
        return self.fc21(hidden), self.fc22(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Probabilities."""
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))


class Halves(nn.Module):
    """Heads as the halves of one layer, logvar first in one of them; images as they are."""

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self.swapped = swapped
        leaky = [nn.LeakyReLU(0.2, inplace=True) for _ in range(3)]
        self.down = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 20), leaky[0], nn.Linear(20, 9), leaky[1], nn.Linear(9, 6)
        )
        self.up = nn.Sequential(nn.Linear(3, 11), leaky[2], nn.Linear(11, 36))

    def encode(self, x: Tensor) -> Any:
        """Cut in two."""
        first, second = self.down(x).chunk(2, -1)
        return {"mu": second, "logvar": first} if self.swapped else (first, second[:, :3])

    def decode(self, z: Tensor) -> Tensor:
        """Logits, in the images' shape."""
        return self.up(z).view(-1, 1, 6, 6)  # type: ignore[no-any-return]


class Mixed(Plain):
    """Another activation in the decoder."""

    def decode(self, z: Tensor) -> Tensor:
        """Tanh, not ReLU."""
        return self.fc4(torch.tanh(self.fc3(z)))  # type: ignore[no-any-return]


class Reading(Plain):
    """A variance in logvar's place."""

    def encode(self, x: Tensor) -> Any:
        """A normal distribution."""
        mu, logvar = super().encode(x)
        return torch.distributions.Normal(mu, (0.5 * logvar).exp())


class Several(nn.Module):
    """One of each activation, another one each time."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            *(nn.Flatten(), nn.Linear(36, 21), nn.ELU(0.7), nn.Linear(21, 18), nn.Sigmoid()),
            *(nn.Linear(18, 17), nn.Softplus()),
        )
        self.heads = nn.Linear(17, 6)
        self.up = nn.Sequential(
            *(nn.Linear(3, 19), nn.Tanh(), nn.Linear(19, 11), nn.LeakyReLU(0.3)),
            *(nn.Linear(11, 8), nn.ReLU(), nn.Linear(8, 9), nn.ELU(), nn.Linear(9, 36)),
        )

    def encode(self, x: Tensor) -> Any:
        """Heads as halves."""
        return self.heads(self.down(x)).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        return self.up(z)  # type: ignore[no-any-return]


class Softened(Several):
    """A standard deviation by softplus, and a little, as many write it."""

    least = 1e-6

    def encode(self, x: Tensor) -> Any:
        """By name."""
        mu, raw = super().encode(x)
        return {"mu": mu, "sigma": self.least + F.softplus(raw)}


class Bare(Softened):
    """Without the little."""

    least = 0.0


class Squared(Several):
    """The same, as a logvar."""

    def encode(self, x: Tensor) -> Any:
        """Log of a square."""
        mu, raw = super().encode(x)
        return mu, torch.log(F.softplus(raw) ** 2)


class Rooted(Several):
    """Another way of adding a little: nearly the same, but where there is little else."""

    def encode(self, x: Tensor) -> Any:
        """Log of a sum of squares."""
        mu, raw = super().encode(x)
        return mu, torch.log(F.softplus(raw) ** 2 + 1e-12)


class Wide(Several):
    """A logvar that is never below 0, which its author says it is."""

    def encode(self, x: Tensor) -> Any:
        """By name."""
        mu, raw = super().encode(x)
        return {"mu": mu, "logvar": F.softplus(raw)}


class Exponential(Several):
    """A standard deviation by exp."""

    def encode(self, x: Tensor) -> Any:
        """By name."""
        mu, raw = super().encode(x)
        return {"mu": mu, "sigma": raw.exp()}


class Floored(Several):
    """A logvar that is cut off, so narrowly that it happens."""

    def encode(self, x: Tensor) -> Any:
        """Clamped."""
        mu, raw = super().encode(x)
        return mu, raw.clamp(-0.1, 0.1)


class Capped(Several):
    """Above alone."""

    def encode(self, x: Tensor) -> Any:
        """Clamped."""
        mu, raw = super().encode(x)
        return mu, raw.clamp(max=0.05)


class Bounded(Several):
    """A standard deviation by exp of what is cut off."""

    def encode(self, x: Tensor) -> Any:
        """By name."""
        mu, raw = super().encode(x)
        return {"mu": mu, "sigma": F.hardtanh(raw, -0.2, 0.1).exp()}


class Gated(nn.Module):
    """Gates as people write them: the halves of a layer, two layers, with an activation or none."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Flatten(), nn.Linear(36, 42), nn.GLU(), nn.Linear(21, 18))
        self.heads = nn.Linear(9, 6)
        self.value, self.gate = nn.Linear(3, 19), nn.Linear(3, 19)
        self.second, self.other = nn.Linear(19, 13), nn.Linear(19, 13)
        self.out = nn.Linear(13, 36)

    def encode(self, x: Tensor) -> Any:
        """The gate is the first half, or the second."""
        gate, value = self.down(x).chunk(2, 1)
        return self.heads(gate.sigmoid() * value).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        hidden = torch.tanh(self.value(z)) * torch.sigmoid(self.gate(z))
        return self.out(self.second(hidden) * self.other(hidden).sigmoid())  # type: ignore[no-any-return]


class GatedFirst(Gated):
    """Two layers at the pixels, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.by = nn.Linear(36, 21), nn.Linear(36, 21)

    def encode(self, x: Tensor) -> Any:
        """Values through ELU."""
        x = x.flatten(1)
        hidden = F.elu(self.first(x)) * self.by(x).sigmoid()
        gate, value = self.down[3](hidden).chunk(2, 1)
        return self.heads(gate.sigmoid() * value).chunk(2, 1)


class Smooth(nn.Module):
    """SiLU and GELU, whose derivatives are not of their values."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 21), nn.SiLU(), nn.Linear(21, 18), nn.GELU()
        )
        self.heads = nn.Linear(18, 6)
        self.up = nn.Sequential(
            *(nn.Linear(3, 19), nn.GELU(), nn.Linear(19, 11), nn.SiLU(), nn.Linear(11, 36))
        )

    def encode(self, x: Tensor) -> Any:
        """Heads as halves."""
        return self.heads(self.down(x)).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        return self.up(z)  # type: ignore[no-any-return]


class Conditional(nn.Module):
    """Labels behind pixels and behind z, as numbers of a class or as they are."""

    def __init__(self, one_hot: bool) -> None:
        super().__init__()
        self.one_hot = one_hot
        self.down, self.heads = nn.Linear(36 + 5, 20), nn.Linear(20, 6)
        self.up, self.out = nn.Linear(3 + 5, 14), nn.Linear(14, 36)

    def _joined(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([t, F.one_hot(y, 5).float() if self.one_hot else y], 1)

    def encode(self, x: Tensor, y: Tensor) -> Any:
        """Heads as halves."""
        return self.heads(torch.relu(self.down(self._joined(x.flatten(1), y)))).chunk(2, 1)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Logits."""
        return self.out(F.elu(self.up(self._joined(z, y))))  # type: ignore[no-any-return]


class Sub(VAE):
    """Somebody's own, that computes what the VAE computes."""


class Curbed(Several):
    """A logvar that is bent, not cut off."""

    def encode(self, x: Tensor) -> Any:
        """By tanh."""
        mu, raw = super().encode(x)
        return mu, 5 * torch.tanh(raw / 5)


class Signed(Gated):
    """Let through by tanh."""

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        hidden = self.value(z) * torch.tanh(self.gate(z))
        return self.out(self.second(hidden) * self.other(hidden).sigmoid())  # type: ignore[no-any-return]


class Crossed(Gated):
    """A gate that sees something else than what it lets through."""

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        hidden = self.value(z)
        return self.out(self.second(hidden) * self.other(hidden.relu()).sigmoid())  # type: ignore[no-any-return]


class SmoothGated(Gated):
    """Values through SiLU, and a gate."""

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        hidden = F.silu(self.value(z)) * torch.sigmoid(self.gate(z))
        return self.out(self.second(hidden) * self.other(hidden).sigmoid())  # type: ignore[no-any-return]


class Nearly(Smooth):
    """GELU by its approximation."""

    def __init__(self) -> None:
        super().__init__()
        self.up[1] = nn.GELU("tanh")


class Cut(Several):
    """Softplus of another sharpness."""

    def __init__(self) -> None:
        super().__init__()
        self.down[6] = nn.Softplus(beta=2)


class Scaled(Plain):
    """The graph of images, which want no gradient, shows nothing of this."""

    def encode(self, x: Tensor) -> Any:
        """In [-1, 1]."""
        return super().encode(2 * x - 1)


class Turned(Plain):
    """Pixels in another order."""

    def encode(self, x: Tensor) -> Any:
        """Upside down."""
        return super().encode(x.flip(1))


class Skipping(Plain):
    """Not a chain."""

    def decode(self, z: Tensor) -> Tensor:
        """With a connection past the layer."""
        hidden = torch.relu(self.fc3(z))
        return self.fc4(hidden + hidden.roll(1, 1))  # type: ignore[no-any-return]


class Tied(Plain):
    """The decoder's last weight is the encoder's first."""

    def __init__(self) -> None:
        super().__init__(width=16)
        self.fc4.weight = nn.Parameter(torch.zeros(1))

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        return F.linear(torch.relu(self.fc3(z)), self.fc1.weight.t(), self.fc4.bias)


class Noisy(Plain):
    """Drops hidden values while it trains."""

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        return self.fc4(F.dropout(torch.relu(self.fc3(z)), 0.1, self.training))  # type: ignore[no-any-return]


class Keeping(Plain):
    """Keeps what it computed, for somebody to look at."""

    def encode(self, x: Tensor) -> Any:
        """Kept."""
        self.kept = super().encode(x)
        return self.kept


def hooked() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.encoder[0].register_forward_hook(lambda *_: None)
    return model


def overridden() -> VAE:
    model = VAE((6, 6), (16,), 2)
    plain = model.decode
    model.decode = lambda z, y=None: 2 * plain(z)  # type: ignore[method-assign]
    return model


def frozen() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.mu.weight.requires_grad_(False)
    return model


def extended() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.encoder.append(nn.Dropout(0.5))
    return model


def shared() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.logvar.weight = model.mu.weight
    return model


def parametrised() -> VAE:
    model = VAE((6, 6), (16,), 2)
    nn.utils.parametrizations.weight_norm(model.output)
    return model
