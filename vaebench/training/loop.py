"""The only training loop. It hands order and noise to an engine and reads sums back."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vaebench.data.binarize import Sampler
from vaebench.engine import Engine
from vaebench.errors import TrainingError
from vaebench.evaluation import evaluate
from vaebench.objective import Objective
from vaebench.system.distributed import Group
from vaebench.system.random import TRAINING, random_stream
from vaebench.training.divergence import Refuge, is_finite
from vaebench.training.history import EpochRecord, History
from vaebench.training.schedules import lr_factor
from vaebench.training.state import TrainState

# How often the progress bar moves in an epoch; an engine is called once per move. One that likes
# to be handed more steps at once is called less often.
MOVES_PER_EPOCH = 20


@dataclass(frozen=True)
class Plan:
    """How long to train, and what else to do in every epoch; see :func:`vaebench.fit`.

    ``sampler`` draws new binary pixels before an epoch, if there is one.
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    aim: Objective
    seed: int
    sampler: Sampler | None
    test_images: Tensor | None
    progress: bool
    on_epoch: Callable[[EpochRecord], None] | None
    on_state: Callable[[TrainState], object] | None


class Loop:
    """A training under way.

    Args:
        plan: what to do.
        model: what ``engine`` trains.
        engine: any engine.
        images: how many there are.
        latent_dim: Z.
        history: to be written to.
        group: the processes that train together; None: this one.
    """

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        engine: Engine,
        images: int,
        latent_dim: int,
        history: History,
        group: Group | None,
    ) -> None:
        self.plan, self.model, self.engine = plan, model, engine
        self.history, self.group = history, group
        samples = plan.aim.samples
        self.numbers = Numbers(
            images, latent_dim, plan.batch_size, plan.seed, engine.device, samples
        )

    def run(self, stopped: Callable[[], bool], resume: TrainState | None) -> None:
        """Train, from a state on if one is given, until all epochs are done or ``stopped()``."""
        plan, history = self.plan, self.history
        if resume:
            resume.restore(self.model, self.engine, self.numbers.generators, history)
        bar = _bar(self.numbers.images, plan, len(history.epochs))
        with bar:
            while len(history.epochs) < plan.epochs and not self._any(stopped()):
                record = self._train(bar)
                if plan.test_images is not None:
                    with history.timed("eval"):
                        record = dataclasses.replace(record, test_elbo=self._test())
                history.epochs.append(record)
                if plan.on_state:
                    generators = self.numbers.generators
                    plan.on_state(TrainState.of(self.model, self.engine, generators, history))
                if plan.on_epoch:
                    plan.on_epoch(record)

    def _any(self, flag: bool) -> bool:
        return self.group.any(flag) if self.group else flag

    def _train(self, bar: "tqdm[NoReturn]") -> EpochRecord:
        """Train one epoch.

        Raises:
            TrainingError: its numbers went wrong; the model is left as the last good epoch made it.
        """
        epoch, numbers = len(self.history.epochs) + 1, self.numbers
        self.engine.set_lr(self.plan.lr * lr_factor(self.plan.schedule, epoch))
        start = time.perf_counter()
        refuge = Refuge(self.model, self.engine)
        if self.plan.sampler:
            self.plan.sampler.draw(epoch, self.engine.images)
        sums = []
        for order, noise in numbers.epoch(self.engine.steps_at_once):
            sums.append(self.engine.epoch(order, noise))
            bar.update(len(order))
        # Turning sums into floats waits for the device: only after it is the clock's reading true.
        recon = sum(torch.stack([part.recon for part in sums]).tolist()) / numbers.images
        kl = sum(torch.stack([part.kl for part in sums]).tolist()) / numbers.images
        seconds = time.perf_counter() - start
        self.history.seconds["train"] += seconds
        if not (math.isfinite(recon - kl) and is_finite(self.model)):
            step = refuge.first_bad_step(numbers.same_epoch())
            raise TrainingError(_what_diverged(recon, kl, epoch, step, numbers.steps))
        bar.set_postfix(elbo=f"{recon - kl:.2f}", refresh=False)
        return EpochRecord(epoch, recon - kl, None, recon, kl, seconds, numbers.images / seconds)

    def _test(self) -> float:
        """Estimate the test ELBO; of several processes the first one does, for all."""
        assert self.plan.test_images is not None
        elbo = math.nan
        if self.group is None or self.group.rank == 0:
            elbo = evaluate(
                self.model,
                self.plan.test_images,
                likelihood=self.plan.aim.likelihood,
                sigma=self.plan.aim.sigma,
                seed=self.plan.seed,
            ).elbo
        return self.group.first_says(elbo) if self.group else elbo


class Numbers:
    """The random numbers of a training: each epoch's order and noise, from one stream."""

    def __init__(
        self,
        images: int,
        latent_dim: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        samples: int,
    ) -> None:
        self.images, self.latent_dim, self.batch_size = images, latent_dim, batch_size
        self.samples = samples
        self.steps = math.ceil(images / batch_size)  # per epoch
        self.generator = random_stream(seed, TRAINING, device)
        self.generators = {"training": self.generator}  # all there are: what a resume puts back
        self.before = self.generator.get_state()

    def epoch(self, at_once: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw an epoch; give it in pieces of whole batches, so that a progress bar can move.

        Of several samples per image the noise is drawn piece by piece: k = 50 of an epoch's 60,000
        images would be 600 MB.

        Args:
            at_once: pieces are of a multiple of so many batches, the last one aside; but not of
                several samples per image, since what is drawn must not depend on the engine.
        """
        self.before = self.generator.get_state()
        device = self.generator.device
        order = torch.randperm(self.images, generator=self.generator, device=device)
        steps = math.ceil(self.steps / MOVES_PER_EPOCH)
        piece = steps * self.batch_size
        if self.samples == 1:
            noise = self._draw(self.images)
            piece = math.ceil(steps / at_once) * at_once * self.batch_size
            yield from zip(order.split(piece), noise.split(piece), strict=True)
        else:
            for part in order.split(piece):
                yield part, self._draw(len(part), self.samples)

    def same_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the same epoch again, and give it batch by batch."""
        self.generator.set_state(self.before)
        for order, noise in self.epoch():
            yield from zip(order.split(self.batch_size), noise.split(self.batch_size), strict=True)

    def _draw(self, *sizes: int) -> Tensor:
        shape = (*sizes, self.latent_dim)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


def _what_diverged(recon: float, kl: float, epoch: int, step: int | None, steps: int) -> str:
    if math.isfinite(recon - kl):
        what = f"parameters are not finite after the {steps} steps of epoch {epoch}"
    else:
        where = f"step {step} of {steps}" if step else f"one of the {steps} steps"
        what = f"the training ELBO is {recon - kl} in epoch {epoch} from {where} on"
    return (
        f"{what} (recon {recon:.4g}, kl {kl:.4g}): lower the learning rate, and check the images "
        "for outliers"
    )


def _bar(images: int, plan: Plan, done: int) -> "tqdm[NoReturn]":
    """Show progress on stderr if it is wanted and there is a terminal; tqdm limits its own cost."""
    return tqdm(
        total=plan.epochs * images,
        initial=done * images,
        unit=" images",
        unit_scale=True,
        disable=None if plan.progress else True,
    )
