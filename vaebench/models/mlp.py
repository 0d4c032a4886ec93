"""The VAE: encode and decode. Nothing here knows a device, a dtype or a compiler.

Any module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output`` will do for the trainer;
this is the fully connected one of Kingma & Welling, Auto-Encoding Variational Bayes
(arXiv 1312.6114), appendix C, with any number of hidden layers.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench.errors import WIDEST, check_choice, check_count, check_counts
from vaebench.models.base import BaseVAE, check_classes

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}


class VAE(BaseVAE):
    """Fully connected VAE with a diagonal Gaussian q(z|x).

    Args:
        image_shape: shape of one image, e.g. ``(28, 28)``; D is its product.
        hidden_dims: widths of the encoder's hidden layers; the decoder has them reversed.
        latent_dim: Z, the size of z.
        activation: ``"relu"``, ``"tanh"`` or ``"leaky_relu"``.
        likelihood: ``"bernoulli"`` or ``"gaussian"``; says how :meth:`sample` turns the decoder's
            output into pixels, and is the default likelihood when this model is trained.
        classes: how many labels there are; encoder and decoder then take one for each image, y,
            beside x and z. None: they take none.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (28, 28),
        hidden_dims: Sequence[int] = (400,),
        latent_dim: int = 20,
        activation: str = "relu",
        likelihood: str = "bernoulli",
        classes: int | None = None,
    ) -> None:
        super().__init__()
        image_shape = check_counts("image_shape", image_shape)
        hidden_dims = check_counts("hidden_dims", hidden_dims, most=WIDEST)
        latent_dim = check_count("latent_dim", latent_dim, most=WIDEST)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("likelihood", likelihood, ("bernoulli", "gaussian"))
        self.image_shape = image_shape
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.classes = check_classes(classes)
        labels = classes or 0
        widths = [math.prod(image_shape), *hidden_dims]
        self.encoder = _layers([widths[0] + labels, *hidden_dims], activation)
        self.mu = nn.Linear(widths[-1], latent_dim)
        self.logvar = nn.Linear(widths[-1], latent_dim)
        self.decoder = _layers([latent_dim + labels, *reversed(widths[1:])], activation)
        self.output = nn.Linear(widths[1], widths[0])

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give (mu, logvar), each (B, Z), of q(z|x) for x (B, ``*image_shape``).

        With classes, of q(z|x, y); the labels y are (B,) int64.
        """
        hidden = self.encoder(self._joined(x.flatten(1), y))  # (B, H)
        # Both heads in one product: each is so small that starting it takes longest.
        heads = (self.mu, self.logvar)
        weight = torch.cat([head.weight for head in heads])
        bias = torch.cat([head.bias for head in heads])
        mu, logvar = F.linear(hidden, weight, bias).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Give the output (B, ``*image_shape``) for z (B, Z): Bernoulli logits, Gaussian means.

        With classes, for z and y; the labels y are (B,) int64.
        """
        output = self.output(self.decoder(self._joined(z, y)))
        return cast(Tensor, output.unflatten(-1, self.image_shape))


def _layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
