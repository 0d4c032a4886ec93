"""The convolutional VAE of danielwang7/MNIST-VAE, its loss, and what likelihood that loss is.

The network is AntixK/PyTorch-VAE's VanillaVAE, cut for 28x28 pixels. Parameters and buffers carry
that repository's names, so that its state_dicts fit as they are.

Its loss is ``mse + w * kl``: squared error averaged over the D = 784 pixels and the images, KL
summed over latents and averaged over the images, w = 128 / 60000. A Gaussian likelihood N(x; mean,
sigma^2 I) has the log density -SSE / (2 sigma^2) plus a constant, SSE = D mse being the squared
error of one image, so that

    (beta kl - log p(x|z)) * 2 sigma^2 / D = beta kl * 2 sigma^2 / D + mse + constant,

which is that loss for every sigma and beta with beta * 2 sigma^2 / D = w. With beta = 1, then, the
loss is the negative ELBO of a Gaussian decoder with sigma = sqrt(w D / 2) = 0.914, up to a positive
factor, w, and a constant. Both objectives have the same minima, and Adam takes the same steps on
them but for its epsilon, which is added to gradients that are 1 / w = 469 times as large here: it
equals 2e-11 there. That matters only where gradients are nearly nothing, as those of a bias before
batch norm, which has no effect.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from vaebench.errors import InputError
from vaebench.models.base import BaseVAE, check_classes
from vaebench.models.mlp import ACTIVATIONS

ACTIVATIONS_HERE = tuple(name for name in ACTIVATIONS if name != "gated")
LIKELIHOODS_HERE = ("gaussian", "bernoulli", "continuous-bernoulli")
CHANNELS = (32, 64, 128, 256, 512)
PIXELS = (28, 28)
SHAPES = (PIXELS, (1, *PIXELS), (math.prod(PIXELS),))


class ConvVAE(BaseVAE):
    """Convolutional VAE with batch norm and a diagonal Gaussian q(z|x), for 28x28 grey images.

    Each of the encoder's five layers halves height and width: 28, 14, 7, 4, 2, 1. Each of the
    decoder's five doubles them: 1, 2, 4, 8, 16, 32; a 5x5 convolution then cuts 32 to 28.

    Args:
        image_shape: ``(28, 28)``, ``(1, 28, 28)`` or ``(784,)``; the output has this shape.
        hidden_dims: channels of the encoder's five layers; the decoder has them reversed.
        latent_dim: Z, the size of z.
        activation: ``"relu"``, ``"tanh"`` or ``"leaky_relu"``.
        likelihood: ``"gaussian"``: the output is a mean in (-1, 1), by tanh, as in the original.
            ``"bernoulli"`` or ``"continuous-bernoulli"``: logits, with no tanh.
        classes: how many labels there are; encoder and decoder then take one for each image, y:
            the encoder as further channels, all 1 or all 0, the decoder beside z. None: they take
            none.

    Raises:
        InputError: an argument that cannot be.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = PIXELS,
        hidden_dims: Sequence[int] = CHANNELS,
        latent_dim: int = 2,
        activation: str = "leaky_relu",
        likelihood: str = "gaussian",
        classes: int | None = None,
    ) -> None:
        super().__init__()
        _check(image_shape, hidden_dims, latent_dim, activation, likelihood)
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.classes = check_classes(classes)
        labels = classes or 0
        down = (1 + labels, *hidden_dims)
        up = (*reversed(hidden_dims), hidden_dims[0])
        self.encoder = nn.Sequential(*(_halve(i, o, activation) for i, o in pairwise(down)))
        self.fc_mu = nn.Linear(down[-1], latent_dim)
        self.fc_var = nn.Linear(down[-1], latent_dim)
        self.decoder_input = nn.Linear(latent_dim + labels, up[0])
        doublings = [_double(i, o, activation) for i, o in pairwise(up)]
        self.decoder = nn.Sequential(*doublings[:-1])
        last = [*doublings[-1], nn.Conv2d(up[-1], 1, kernel_size=5)]
        if likelihood == "gaussian":
            last.append(nn.Tanh())
        # One more level than is needed: so are the original's parameters named.
        self.final_layer = nn.Sequential(nn.Sequential(*last))

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give (mu, logvar), each (B, Z), of q(z|x) for x (B, ...), 784 pixels each.

        With classes, of q(z|x, y); the labels y are (B,) int64.
        """
        channels = self._joined(x.reshape(-1, 1, *PIXELS), y)
        hidden = self.encoder(channels).flatten(1)  # (B, C)
        return self.fc_mu(hidden), self.fc_var(hidden)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Give the output (B, ``*image_shape``) for z (B, Z): Gaussian means, Bernoulli logits.

        With classes, for z and y; the labels y are (B,) int64.
        """
        hidden = self.decoder_input(self._joined(z, y))[:, :, None, None]  # (B, C, 1, 1)
        output = self.final_layer(self.decoder(hidden))  # (B, 1, 28, 28)
        return cast(Tensor, output.reshape(-1, *self.image_shape))


def _halve(channels_in: int, channels_out: int, activation: str) -> nn.Sequential:
    """(B, C, H, W) -> (B, C', ceil(H / 2), ceil(W / 2))."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), ACTIVATIONS[activation]())


def _double(channels_in: int, channels_out: int, activation: str) -> nn.Sequential:
    """(B, C, H, W) -> (B, C', 2 H, 2 W)."""
    convolution = nn.ConvTranspose2d(
        channels_in, channels_out, kernel_size=3, stride=2, padding=1, output_padding=1
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), ACTIVATIONS[activation]())


def _check(
    image_shape: Sequence[int],
    hidden_dims: Sequence[int],
    latent_dim: int,
    activation: str,
    likelihood: str,
) -> None:
    if tuple(image_shape) not in SHAPES:
        raise InputError(
            f"the convolutional network takes grey images of 28x28 pixels, and these have the "
            f"shape {tuple(image_shape)}: give {', '.join(map(str, SHAPES))}, or use the "
            "fully connected network"
        )
    if len(hidden_dims) != len(CHANNELS) or min(hidden_dims) < 1:
        raise InputError(
            f"hidden_dims is {tuple(hidden_dims)}: the convolutional network has exactly "
            f"{len(CHANNELS)} layers; give their channels, e.g. {' '.join(map(str, CHANNELS))}"
        )
    if latent_dim < 1:
        raise InputError(f"latent_dim is {latent_dim}: it must be at least 1")
    for name, value, accepted in (
        ("activation", activation, ACTIVATIONS_HERE),
        ("likelihood", likelihood, LIKELIHOODS_HERE),
    ):
        if value not in accepted:
            raise InputError(
                f"{name} is {value!r}: of the convolutional network choose from "
                f"{', '.join(accepted)}"
            )
