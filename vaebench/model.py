"""The VAE: encode and decode. Nothing here knows a device, a dtype or a compiler.

Any module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output`` will do for the trainer;
this is the fully connected one of Kingma & Welling, Auto-Encoding Variational Bayes
(arXiv 1312.6114), appendix C, with any number of hidden layers.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench.checks import WIDEST, check_choice, check_count, check_counts
from vaebench.errors import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}


# What PyTorch calls in place of, or around, a module's own forward.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class EncoderDecoder(Protocol):
    """What the objective needs of a model.

    Shapes: x (B, ...) float in the data's own shape; mu, logvar, z (B, Z); the output has one
    number per pixel in any shape of B times D numbers: logits of a Bernoulli likelihood, means of
    a Gaussian one.
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give mu and logvar of q(z|x)."""

    def decode(self, z: Tensor) -> Tensor:
        """Give the output of the decoder, from which p(x|z) is computed."""


class VAE(nn.Module):
    """Fully connected VAE with a diagonal Gaussian q(z|x).

    Args:
        image_shape: shape of one image, e.g. ``(28, 28)``; D is its product.
        hidden_dims: widths of the encoder's hidden layers; the decoder has them reversed.
        latent_dim: Z, the size of z.
        activation: ``"relu"``, ``"tanh"`` or ``"leaky_relu"``.
        likelihood: ``"bernoulli"`` or ``"gaussian"``; says how :meth:`sample` turns the decoder's
            output into pixels, and is the default likelihood when this model is trained.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (28, 28),
        hidden_dims: Sequence[int] = (400,),
        latent_dim: int = 20,
        activation: str = "relu",
        likelihood: str = "bernoulli",
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
        widths = [math.prod(image_shape), *hidden_dims]
        self.encoder = _layers(widths, activation)
        self.mu = nn.Linear(widths[-1], latent_dim)
        self.logvar = nn.Linear(widths[-1], latent_dim)
        self.decoder = _layers([latent_dim, *reversed(widths[1:])], activation)
        self.output = nn.Linear(widths[1], widths[0])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give (mu, logvar), each (B, Z), of q(z|x) for x (B, ``*image_shape``)."""
        hidden = self.encoder(x.flatten(1))  # (B, H)
        # Both heads in one product: each is so small that starting it takes longest.
        heads = (self.mu, self.logvar)
        weight = torch.cat([head.weight for head in heads])
        bias = torch.cat([head.bias for head in heads])
        mu, logvar = F.linear(hidden, weight, bias).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Give the output (B, ``*image_shape``) for z (B, Z): Bernoulli logits, Gaussian means."""
        return cast(Tensor, self.output(self.decoder(z)).unflatten(-1, self.image_shape))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw z from the prior and give the n mean images (n, ``*image_shape``).

        The generator must live on the model's device.
        """
        check_count("n", n)
        weight = self.output.weight
        z = torch.randn(n, self.latent_dim, generator=generator, device=weight.device)
        return self.pixels(self.decode(z.to(weight.dtype)))

    def pixels(self, output: Tensor) -> Tensor:
        """Turn the decoder's output into mean pixel values, E[x|z]."""
        return output.sigmoid() if self.likelihood == "bernoulli" else output


def _layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def is_altered(module: nn.Module) -> bool:
    """Whether somebody has put hooks on a module, or methods of their own in its place."""
    own = ("forward", "encode", "decode")
    return any(getattr(module, hooks) for hooks in _HOOKS) or any(n in vars(module) for n in own)


def as_vae(model: nn.Module) -> EncoderDecoder:
    """Give the model under the type the objective wants, having checked that it fits.

    Raises:
        InputError: the module has no ``encode`` or no ``decode`` method.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is {model!r}: it must be a torch.nn.Module, an instance and not its class"
        )
    for method in ("encode", "decode"):
        if not callable(getattr(model, method, None)):
            raise InputError(
                f"{type(model).__name__} has no method {method}(): a VAE needs "
                "encode(x) -> (mu, logvar) and decode(z) -> output"
            )
    return cast(EncoderDecoder, model)


def likelihood_of(model: nn.Module) -> str:
    """Name the likelihood a model was made for: its ``likelihood``, else ``"bernoulli"``."""
    return getattr(model, "likelihood", "bernoulli")


@torch.no_grad()
def latent_size(model: nn.Module, x: Tensor) -> int:
    """Z, found by encoding x (B, ...), which is also checked to fit the model.

    Raises:
        InputError: the model does not take images of this shape, or does not give them back.
    """
    vae = as_vae(model)
    was_training = model.training
    model.eval()  # batch norm then takes a single image, and keeps its statistics
    try:
        mu, logvar = vae.encode(x)
        _check_encoded(mu, logvar, x)
        output = vae.decode(mu)
    except (InputError, torch.OutOfMemoryError):
        raise  # said already; no fault of the shapes
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{type(model).__name__} does not take images of shape {tuple(x.shape[1:])}: {reason}"
        ) from error
    finally:
        model.train(was_training)
    _check_floats("decode", output)
    if output.numel() != x.numel():
        raise InputError(
            f"decode gave {output.numel() // len(x)} numbers per image for images of "
            f"{x.numel() // len(x)} pixels: they must be as many"
        )
    return mu.shape[1]


def _check_encoded(mu: Tensor, logvar: Tensor, x: Tensor) -> None:
    _check_floats("encode", mu, logvar)
    if mu.dim() != 2 or mu.shape != logvar.shape or len(mu) != len(x) or mu.shape[1] == 0:
        raise InputError(
            f"encode gave mu {tuple(mu.shape)} and logvar {tuple(logvar.shape)} for {len(x)} "
            "images: both must be (batch, latent)"
        )


def _check_floats(method: str, *given: object) -> None:
    for value in given:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"{method} gave {kind}: it must give tensors of floats")
