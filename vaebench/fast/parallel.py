"""Data-parallel training: every process takes its part of each batch; gradients are added up.

All processes draw the same order and the same noise from one seed, so the global batches are those
of a single process, and the result is its result, but for rounding. Between backward and Adam the
gradients travel in one flat buffer, each process's weighted by its number of images; the last
number in it counts them. So batches need not divide evenly, and a process may have no image of a
short last batch.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vaebench.engine import Sums
from vaebench.fast.step import Step, StepEngine
from vaebench.system.distributed import Group, all_reduce


def exchange(grads: tuple[Tensor, ...], images: int) -> tuple[Tensor, ...]:
    """Turn gradients of the mean loss over own images into those over all processes' images."""
    flat = torch.cat([*(grad.reshape(-1) for grad in grads), grads[0].new_ones(1)]) * images
    all_reduce(flat)
    flat = flat / flat[-1]
    chunks = flat[:-1].split([grad.numel() for grad in grads])
    return tuple(chunk.view(grad.shape) for chunk, grad in zip(chunks, grads, strict=True))


class ParallelStep:
    """A step of a global batch, of which this process takes its part.

    Args:
        step: trains on some images, exchanging gradients.
        idle: takes part in the exchange with no images.
        group: the processes.
    """

    def __init__(self, step: Step, idle: Callable[[], None], group: Group) -> None:
        self.step, self.idle, self.group = step, idle, group

    def __call__(self, images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        mine = self.group.share(len(index))
        if mine.start < mine.stop:
            self.step(images, index[mine], eps[mine], totals)
        else:
            self.idle()


class ParallelEngine(StepEngine):
    """A :class:`StepEngine` over a :class:`ParallelStep`; its sums are those of all processes."""

    def __init__(self, group: Group, *args: Any) -> None:
        super().__init__(*args)
        self.group = group

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """As alone, without a word to the others: trying out takes each its own time."""
        before, self.group.silent = self.group.silent, True
        try:
            with super().unchanged():
                yield
        finally:
            self.group.silent = before

    def run(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on this process's parts of the batches; give the sums over all parts."""
        own = super().run(order, noise)
        totals = torch.stack((own.recon, own.kl))
        self.group.all_reduce(totals)
        return Sums(totals[0], totals[1], own.images)
