"""Many steps of a fully connected VAE in one launch of one Triton kernel.

The phases are those of :mod:`vaebench.fast.triton`; its programs, one or two a multiprocessor (by
measurement), meet after each of them. It needs a cooperative launch, and no graph.
"""

import contextlib
from functools import partial
from typing import cast

import torch
from torch import Tensor

from vaebench.engine import Sums
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.kernels.triton_offer import offer_fastest
from vaebench.fast.kernels.triton_step import MANY, Phases
from vaebench.fast.step import Optimizer, Step, StepEngine
from vaebench.problem import Problem
from vaebench.system.timing import best_seconds


def offer(draft: Draft) -> Offer | str:
    """Offer the kernel; see :mod:`vaebench.fast.build`."""
    return offer_fastest(draft, "persistent", PersistentEngine)


class PersistentEngine(StepEngine):
    """Trains many steps in one launch of one kernel; see :class:`vaebench.engine.Engine`.

    Args:
        problem: one that the kernels support.
        step: from :func:`vaebench.fast.kernels.triton_step.triton_step`.
        optimizer: Adam's state of all of the model's parameters.
    """

    def __init__(self, problem: Problem, step: Step, optimizer: Optimizer) -> None:
        super().__init__(problem, step, optimizer)
        self.phases = cast(Phases, step)
        self.programs = 1  # the interpreter's
        if self.device.type == "cuda":
            about = torch.cuda.get_device_properties(self.device)
            self.programs = about.multi_processor_count

    @property
    def steps_at_once(self) -> int:
        """Steps that it likes to be handed."""
        return MANY

    def warm_up(self) -> None:
        """Run a step of each size, and try twice as many programs; leave no trace."""
        super().warm_up()
        if self.device.type != "cuda":
            return
        count = min(MANY * self.batch_size, len(self.images))
        run = partial(self.epoch, torch.arange(count, device=self.device), self.no_noise(count))
        one, seconds = self.programs, {}
        with self.unchanged():
            for programs in (one, 2 * one):
                self.programs = programs
                with contextlib.suppress(RuntimeError):  # the GPU does not run so many at once
                    seconds[programs] = best_seconds(run, self.device, budget=0.1)
        self.programs = min(seconds, key=seconds.__getitem__, default=one)

    def run(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        whole = len(order) - len(order) % self.batch_size
        for part, batch in ((slice(0, whole), self.batch_size), (slice(whole, None), 0)):
            index, eps = order[part], noise[part]
            if len(index):
                batch = batch or len(index)
                self.phases.many(self.images, index, eps, totals, batch, self.programs)
        return Sums(totals[0], totals[1], len(order))
