"""What training changes, saved and put back: each timed round starts from the same state."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.rungs import LATENT
from vaebench.engine import Engine, Sums
from vaebench.fast.step import StepEngine
from vaebench.reference import ReferenceEngine


def restorer(engine: Engine) -> Callable[[], None]:
    """Remember an engine's state; give a function that puts it back, in place."""
    if isinstance(engine, StepEngine):
        return tensor_restorer([*engine.optimizer.tensors(), *engine.model.buffers()])
    assert isinstance(engine, ReferenceEngine)
    return module_restorer(engine.model, engine.optimizer)


def tensor_restorer(tensors: list[Tensor]) -> Callable[[], None]:
    """Remember tensors' values; give a function that puts them back."""
    values = [t.detach().clone() for t in tensors]

    def restore() -> None:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)

    return restore


def module_restorer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Remember a module and an optimiser that has not stepped yet, or whose state is to be zero."""
    weights = tensor_restorer([*model.parameters(), *model.buffers()])

    def restore() -> None:
        weights()
        for slot in optimizer.state.values():
            for tensor in slot.values():
                tensor.zero_()

    return restore


def numbers(images: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw the order and noise of ``count`` of the images, the same on every call."""
    generator = torch.Generator().manual_seed(2)
    rounds = -(-count // images)
    order = torch.cat([torch.randperm(images, generator=generator) for _ in range(rounds)])
    noise = torch.randn(count, LATENT, generator=generator)
    return order[:count].to(device), noise.to(device)


def elbo(sums: Sums) -> float:
    """Training ELBO of a timed part, in nats per image."""
    return (float(sums.recon) - float(sums.kl)) / sums.images
