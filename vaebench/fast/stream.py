"""Training on images that the device's memory does not hold: the same steps, on what is streamed.

The images of a chunk arrive in the epoch's order, so a batch is a slice of it, and the step, the
order and the noise are those of the engine that keeps all images on the device: so are the bits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vaebench.data.streaming import HostImages
from vaebench.engine import Sums
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.step import Context, Step, StepEngine
from vaebench.problem import Problem


class StreamEngine(StepEngine):
    """A :class:`StepEngine` whose images stay on the host.

    Args:
        problem: with its images on the host.
        step: reads labels, if there are any, from ``labels``.
        optimizer, contexts: as of StepEngine.
        labels: from :meth:`labels_of_a_chunk`, or None.
    """

    def __init__(
        self,
        problem: Problem,
        step: Step,
        optimizer: OptimizerState,
        contexts: Sequence[Context] = (),
        labels: Tensor | None = None,
    ) -> None:
        super().__init__(problem, step, optimizer, contexts)
        self.source = HostImages(problem.images, self.device, self.batch_size)
        self.places = torch.arange(self.source.rows, device=self.device)
        self.labels = labels

    @staticmethod
    def labels_of_a_chunk(problem: Problem) -> Tensor:
        """Memory on the device for the labels of a chunk, which a step reads."""
        assert problem.labels is not None
        return torch.zeros_like(problem.labels)

    @property
    def steps_at_once(self) -> int:
        """A whole epoch's: between two calls nothing is fetched ahead."""
        return math.ceil(len(self.images) / self.batch_size)

    def run(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        done = 0
        for images, count in self.source.chunks(order):
            if self.labels is not None and self.problem.labels is not None:
                self.labels[:count] = self.problem.labels[order[done : done + count]]
            indices = self.places[:count].split(self.batch_size)
            noises = noise[done : done + count].split(self.batch_size)
            for index, eps in zip(indices, noises, strict=True):
                self.step(images, index, eps, totals)
            done += count
        return Sums(totals[0], totals[1], len(order))
