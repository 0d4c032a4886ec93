"""Out of memory, explained: what was tried, and what would fit."""

import contextlib
import gc
import traceback
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vaebench.data.images import to_unit
from vaebench.data.streaming import fits
from vaebench.errors import ResourceError
from vaebench.models.adapt import adapted
from vaebench.models.protocol import as_vae, latent_size
from vaebench.objective import Objective, loss_terms


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a device's, or the machine's own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def explaining_memory(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    objective: Objective,
    batch_size: int,
    device: torch.device,
) -> Iterator[None]:
    """Turn running out of memory in the block into a ResourceError that says what would fit.

    That is found by trying: batches of half the size, a quarter and so on, until one fits.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        # What the failed step still holds would be missing when smaller ones are tried.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise ResourceError(_advice(model, images, labels, objective, batch_size, device))


def _advice(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    objective: Objective,
    batch_size: int,
    device: torch.device,
) -> str:
    said = f"out of memory on {device}: a step of {batch_size} images does not fit"
    try:
        model.to(device)
        resident = (images if fits(images, device) else images[:batch_size]).to(device)
        y = () if labels is None else (labels[:batch_size].to(device),)
        # The optimiser's two moments.
        moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        size = images.numel() * images.element_size()
        return (
            f"out of memory on {device}: the model and the {len(images)} images "
            f"({size / 2**30:.2f} GiB) do not fit; use fewer, or another device"
        )
    size = batch_size // 2
    while size and not _fits(model, objective, resident[:size], *(t[:size] for t in y)):
        size //= 2
    del moments
    if not size:
        return f"{said}, nor does one of a single image: the model is too large"
    return f"{said}; one of {size} does, as was tried: make the batch size at most that"


def _fits(model: nn.Module, objective: Objective, images: Tensor, *y: Tensor) -> bool:
    """Try the forward and backward pass of one step in float32; change nothing."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    model.eval()  # batch norm keeps its statistics
    try:
        x = to_unit(images)
        vae, _ = adapted(model, x[:2], objective.likelihood, *(t[:2] for t in y))
        shape = objective.noise_shape(len(x), latent_size(vae, x[:1], *(t[:1] for t in y)))
        eps = torch.zeros(shape, device=x.device)
        loss, _, _ = loss_terms(as_vae(vae), objective, x, eps, *y)
        torch.autograd.grad(loss, parameters, allow_unused=True)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    finally:
        model.train(was_training)
    return True
