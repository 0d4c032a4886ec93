"""The VAE: encode and decode. Nothing here knows a device, a dtype or a compiler.

Any module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output`` will do for the trainer;
this is the fully connected one of Kingma & Welling, Auto-Encoding Variational Bayes
(arXiv 1312.6114), appendix C, with any number of hidden layers.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench.config import LIKELIHOODS, PRIORS
from vaebench.errors import WIDEST, InputError, check_choice, check_count, check_counts, check_range
from vaebench.likelihoods import OF_PAIRS, UNIT_INTERVAL
from vaebench.models.base import BaseVAE, check_classes
from vaebench.models.protocol import Mixture

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "gated": nn.GLU,
}
# Between these, a decoder's logvar or logscale: of a pixel that is dark in all images nothing else
# would keep it from falling for ever.
NARROWEST, WIDEST_SPREAD = -4.5, 0.0


class VAE(BaseVAE):
    """Fully connected VAE with a diagonal Gaussian q(z|x).

    Args:
        image_shape: shape of one image, e.g. ``(28, 28)``; D is its product.
        hidden_dims: widths of the encoder's hidden layers; the decoder has them reversed.
        latent_dim: Z, the size of z.
        activation: ``"relu"``, ``"tanh"``, ``"leaky_relu"``, or ``"gated"``: each hidden layer is
            a linear one times the sigmoid of another.
        likelihood: one of :data:`vaebench.config.LIKELIHOODS`; says what the decoder gives, how
            :meth:`sample` turns that into pixels, and is the default likelihood when this model is
            trained.
        classes: how many labels there are; encoder and decoder then take one for each image, y,
            beside x and z. None: they take none.
        logvar_range: what logvar is cut off at, below and above; None: it is not.
        prior: ``"standard"``, N(0, I); or ``"vamp"``: p(z) is what q(z|u) is on average over
            pseudo-inputs u, images that are learned. Source: Tomczak & Welling, VAE with a
            VampPrior (arXiv 1705.07120).
        pseudo_inputs: how many of these.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (28, 28),
        hidden_dims: Sequence[int] = (400,),
        latent_dim: int = 20,
        activation: str = "relu",
        likelihood: str = "bernoulli",
        classes: int | None = None,
        logvar_range: Sequence[float] | None = None,
        prior: str = "standard",
        pseudo_inputs: int = 500,
    ) -> None:
        super().__init__()
        image_shape = check_counts("image_shape", image_shape)
        hidden_dims = check_counts("hidden_dims", hidden_dims, most=WIDEST)
        latent_dim = check_count("latent_dim", latent_dim, most=WIDEST)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("likelihood", likelihood, LIKELIHOODS)
        check_choice("prior", prior, PRIORS)
        self.image_shape = image_shape
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.classes = check_classes(classes)
        limits = logvar_range
        self.logvar_range = None if limits is None else check_range("logvar_range", limits)
        labels = classes or 0
        widths = [math.prod(image_shape), *hidden_dims]
        self.encoder = _layers([widths[0] + labels, *hidden_dims], activation)
        self.mu = nn.Linear(widths[-1], latent_dim)
        self.logvar = nn.Linear(widths[-1], latent_dim)
        self.decoder = _layers([latent_dim + labels, *reversed(widths[1:])], activation)
        # Where the likelihood needs a spread too, it is the second half.
        self.output = nn.Linear(widths[1], widths[0] * (2 if likelihood in OF_PAIRS else 1))
        self.pseudo_inputs = self._pseudo_inputs(pseudo_inputs) if prior == "vamp" else None

    def _pseudo_inputs(self, number: int) -> nn.Parameter:
        """As they are before the sigmoid: even grey with a little noise, as the authors' own."""
        if self.classes is not None:
            raise InputError(
                "prior is 'vamp', whose pseudo-inputs have no labels, and this model takes them: "
                "use the standard prior, or leave classes out"
            )
        shape = (check_count("pseudo_inputs", number, most=WIDEST), *self.image_shape)
        return nn.Parameter(-0.05 + 0.01 * torch.randn(shape))

    @property
    def mixture_prior(self) -> Callable[[], Mixture] | None:
        """Gives the components of p(z), mu and logvar of q(z|u); None: p(z) is N(0, I)."""
        return None if self.pseudo_inputs is None else self._components

    def _components(self) -> Mixture:
        images = self.pseudo_inputs
        assert images is not None
        return self.encode(images.sigmoid() if self.likelihood in UNIT_INTERVAL else images)

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
        return mu, logvar if self.logvar_range is None else F.hardtanh(logvar, *self.logvar_range)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Any:
        """Give the output (B, ``*image_shape``) for z (B, Z): Bernoulli logits, Gaussian means.

        Of a likelihood with a spread for each pixel, both. With classes, for z and y; the labels y
        are (B,) int64.
        """
        output = self.output(self.decoder(self._joined(z, y)))
        pair = OF_PAIRS.get(self.likelihood)
        if pair is None:
            return output.unflatten(-1, self.image_shape)
        mean, spread = output.chunk(2, dim=-1)
        spread = F.hardtanh(spread, NARROWEST, WIDEST_SPREAD)
        return pair(*(t.unflatten(-1, self.image_shape) for t in (mean, spread)))


def _layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        # A gate takes as many more, and is as wide as what it lets through.
        doubled = 2 if activation == "gated" else 1
        layers += [nn.Linear(n_in, doubled * n_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
