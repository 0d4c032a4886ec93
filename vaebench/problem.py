"""Try a model out before it is trained: what is wrong with it is said at once, in one line."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vaebench.errors import InputError
from vaebench.models.protocol import as_vae, latent_size
from vaebench.objective import Objective, loss_terms


def device_of(model: nn.Module) -> torch.device:
    """Give the device of a model's parameters.

    Raises:
        InputError: it has none, or they hold no values.
    """
    device = next((p.device for p in model.parameters()), None)
    if device is None:
        raise InputError(
            f"{type(model).__name__} has no parameters: give a model that has something to train"
        )
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            f"{type(model).__name__} has parameters on device 'meta', which hold no values: "
            "give them some, as by model.to_empty(device='cpu') and an initialisation"
        )
    return device


def try_out(model: nn.Module, objective: Objective, x: Tensor, sizes: Iterable[int]) -> int:
    """Run the model forward and backward on a few images, and leave no trace in it.

    Args:
        model: on the device of x.
        objective: what it will be trained for.
        x: (B, ...) floats, the first images.
        sizes: those of the batches to come. 1 and 2 stand for them: some models (batch norm) do
            not train on one image.

    Returns:
        Z, the size of z.

    Raises:
        InputError: the model does not fit the images, or cannot be trained.
    """
    device_of(model)
    latent_dim = latent_size(model, x[:1])
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            f"every parameter of {type(model).__name__} is frozen: set requires_grad on some"
        )
    for size in sorted({min(size, 2) for size in sizes}):
        try:
            reached(model, objective, x[:size], latent_dim)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{type(model).__name__} cannot be trained on a batch of "
                f"{size} image{'s' * (size > 1)}: {str(error).splitlines()[0]}"
            ) from error
    return latent_dim


def reached(model: nn.Module, objective: Objective, x: Tensor, latent_dim: int) -> list[Tensor]:
    """Give the parameters that the loss of training on x (B, ...) depends on.

    A part that is not used to encode and decode (a classifier's head) has no gradient, and an
    optimiser leaves it as it is.
    """
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    eps = torch.zeros(objective.noise_shape(len(x), latent_dim), device=x.device)
    with untouched(model):
        model.train()
        loss, _, _ = loss_terms(as_vae(model), objective, x, eps)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
    return [p for p, grad in zip(params, grads, strict=True) if grad is not None]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put buffers (batch norm's statistics) and training mode back at the end."""
    was_training = model.training
    before = [buffer.detach().clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        model.train(was_training)
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
