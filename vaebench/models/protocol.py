"""What the trainer needs of a model, and whether one has it."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vaebench.errors import InputError

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
