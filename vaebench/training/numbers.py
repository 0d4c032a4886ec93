"""The random numbers of a training: order, noise, and what the model draws for itself."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vaebench.problem import Problem
from vaebench.system.random import MODEL, TRAINING, random_stream

# How often the progress bar moves in an epoch; an engine is called once per move. One that likes
# to be handed more steps at once is called less often.
MOVES_PER_EPOCH = 20


class Numbers:
    """The random numbers of a training: each epoch's order and noise, from one stream."""

    def __init__(self, problem: Problem, seed: int, rank: int = 0) -> None:
        self.images = len(problem.images)
        self.latent_dim, self.samples = problem.latent_dim, problem.objective.samples
        self.take(problem.batch_size)
        device = problem.device
        self.generator = random_stream(seed, TRAINING, device)
        self.models = [
            random_stream(seed, MODEL, each, rank)
            for each in dict.fromkeys((torch.device("cpu"), device))
        ]
        # All there are: what a resume puts back.
        self.generators = {"training": self.generator}
        self.generators |= {f"model.{g.device.type}": g for g in self.models}
        self.before = self.generator.get_state()
        self.models_before = [g.get_state() for g in self.models]

    def take(self, batch_size: int) -> None:
        """Cut batches of this size from now on."""
        self.batch_size = batch_size
        self.steps = math.ceil(self.images / batch_size)  # per epoch
        self.piece = math.ceil(self.steps / MOVES_PER_EPOCH) * batch_size

    @contextlib.contextmanager
    def model_draws(self) -> Iterator[None]:
        """Let what the model draws for itself (dropout) come from streams of this training's own.

        Outside, torch's own generators are the caller's.
        """
        self.models_before = [g.get_state() for g in self.models]
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @contextlib.contextmanager
    def callers_draws(self) -> Iterator[None]:
        """Amid :meth:`model_draws`: let torch's own generators be the caller's in the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Let torch's own generators and this training's have one another's states."""
        for own in self.models:
            default = _default_generator(own.device)
            state = default.get_state()
            default.set_state(own.get_state())
            own.set_state(state)

    def epoch(self, at_once: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw an epoch; give it in chunks of whole batches, so that a progress bar can move.

        Of several samples per image the noise is drawn chunk by chunk: k = 50 of an epoch's 60,000
        images would be 600 MB.

        Args:
            at_once: chunks are of a multiple of so many batches, the last one aside; but not of
                several samples per image, since what is drawn must not depend on the engine.
        """
        self.before = self.generator.get_state()
        device = self.generator.device
        order = torch.randperm(self.images, generator=self.generator, device=device)
        chunk = self.piece
        if self.samples == 1:
            noise = self._draw(self.images)
            chunk = math.ceil(chunk // self.batch_size / at_once) * at_once * self.batch_size
            yield from zip(order.split(chunk), noise.split(chunk), strict=True)
        else:
            for part in order.split(chunk):
                yield part, self._draw(len(part), self.samples)

    def same_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the same epoch again, and give it batch by batch."""
        self.generator.set_state(self.before)
        for generator, state in zip(self.models, self.models_before, strict=True):
            generator.set_state(state)
        for order, noise in self.epoch():
            yield from zip(order.split(self.batch_size), noise.split(self.batch_size), strict=True)

    def _draw(self, *sizes: int) -> Tensor:
        shape = (*sizes, self.latent_dim)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
