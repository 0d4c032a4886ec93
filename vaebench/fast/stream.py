"""Training on images that the device's memory does not hold: the same steps, on what is streamed.

The images of a chunk arrive in the epoch's order, so a batch is a slice of it, and the step, the
order and the noise are those of the engine that keeps all images on the device: so are the bits.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.data.streaming import HostImages
from vaebench.engine import Sums
from vaebench.fast.step import Step, StepEngine


class StreamEngine(StepEngine):
    """A :class:`StepEngine` whose images stay on the host.

    Args:
        device: where the model trains.
        model, images, step, and so on: as of StepEngine; the images on the host.
    """

    def __init__(
        self, device: torch.device, model: nn.Module, images: Tensor, step: Step, *args: Any
    ) -> None:
        super().__init__(model, images, step, *args)
        self.device = device
        self.source = HostImages(images, device, self.batch_size)
        self.places = torch.arange(self.source.rows, device=device)

    @property
    def steps_at_once(self) -> int:
        """A whole epoch's: between two calls nothing is fetched ahead."""
        return math.ceil(len(self.images) / self.batch_size)

    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        self.model.train()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        done = 0
        for images, count in self.source.chunks(order):
            indices = self.places[:count].split(self.batch_size)
            noises = noise[done : done + count].split(self.batch_size)
            for index, eps in zip(indices, noises, strict=True):
                self.step(images, index, eps, totals)
            done += count
        return Sums(totals[0], totals[1], len(order))
