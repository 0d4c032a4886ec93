"""What the trainer needs of a model, and whether one has it."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from vaebench.errors import InputError, in_a_line
from vaebench.models.code import is_models

# What PyTorch calls in place of, or around, a module's own forward.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Gaussian(NamedTuple):
    """A decoder's output under a Gaussian likelihood whose variance it gives itself.

    ``mean`` and ``logvar`` hold one number per pixel each, in any shape of B times D numbers.
    """

    mean: Tensor
    logvar: Tensor


class Logistic(NamedTuple):
    """A decoder's output under a likelihood of 256 grey levels: a logistic distribution per pixel.

    ``mean`` and ``logscale``, the logarithm of its width, hold one number per pixel each.
    """

    mean: Tensor
    logscale: Tensor


Output = Tensor | Gaussian | Logistic
# Of K diagonal Gaussians, in equal parts: mu and logvar, (K, Z) each.
Mixture = tuple[Tensor, Tensor]


class EncoderDecoder(Protocol):
    """What the objective needs of a model.

    Shapes: x (B, ...) float in the data's own shape; mu, logvar, z (B, Z); the output has one
    number per pixel in any shape of B times D numbers: logits of a Bernoulli likelihood, means of
    a Gaussian one; or it is a :class:`Gaussian` or a :class:`Logistic`. p(z) is N(0, I), unless a
    model has a method ``mixture_prior``, which gives a :data:`Mixture`. Models that are written
    otherwise are brought to this form by :func:`vaebench.adapt`.
    """

    @property
    def encode(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Give mu and logvar of q(z|x), for x, and labels y if there are any."""

    @property
    def decode(self) -> Callable[..., Output]:
        """Give the output of the decoder, from which p(x|z) is computed, for z, and y."""


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
                f"{model._get_name()} has no method {method}(): a VAE needs "
                "encode(x) -> (mu, logvar) and decode(z) -> output; see vaebench.adapt"
            )
    return cast(EncoderDecoder, model)


def likelihood_of(model: nn.Module) -> str:
    """Name the likelihood a model was made for: its ``likelihood``, else ``"bernoulli"``."""
    return getattr(model, "likelihood", "bernoulli")


def prior_of(model: object) -> Mixture | None:
    """Give a model's own p(z), an equal mixture of Gaussians; None: N(0, I)."""
    give = getattr(model, "mixture_prior", None)
    if give is None:
        return None
    mu, logvar = give()
    return mu, logvar


def latent_size(model: nn.Module, x: Tensor, *y: Tensor) -> int:
    """Z, found by encoding x (B, ...), which is also checked to fit the model.

    Raises:
        InputError: the model does not take images of this shape, or does not give them back.
    """
    vae = as_vae(model)
    was_training = model.training
    model.eval()  # batch norm then takes a single image, and keeps its statistics
    try:
        with explaining(refused(model, x, "encode")):
            mu, logvar = vae.encode(x, *y)
        _check_encoded(mu, logvar, x)
        with explaining(refused(model, x, "decode")):
            output = vae.decode(mu, *y)
    finally:
        model.train(was_training)
    for part in output if isinstance(output, tuple) else (output,):
        _check_floats("decode", part)
        if part.numel() != x.numel():
            raise InputError(
                f"decode gave {part.numel() // len(x)} numbers per image for images of "
                f"{x.numel() // len(x)} pixels: they must be as many"
            )
    return mu.shape[1]


def refused(model: nn.Module, x: Tensor, method: str) -> str:
    """Say that one of a model's methods does not take images x (B, ...); see explaining."""
    shape = tuple(x.shape[1:])
    return f"{model._get_name()} does not take images of shape {shape}: {method} raised"


@contextlib.contextmanager
def explaining(message: str) -> Iterator[None]:
    """Turn what a model's own code raises into one line: ``message``, what was raised, and where.

    Raises:
        InputError: the block raised anything but an InputError, or memory running out.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError, MemoryError):
        raise  # explained already; no fault of the model's code
    except Exception as error:
        raise InputError(f"{message} {reason(error)}") from error


def reason(error: Exception) -> str:
    """What was raised, and in which line of the model's own code: the deepest that is not torch's.

    Torch's messages go on for lines; the first says what happened.
    """
    message = in_a_line(error)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_models(frame.filename):
            return f"{message} ({frame.filename}:{frame.lineno})"
    return message


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
