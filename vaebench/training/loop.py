"""The only training loop. It hands order and noise to an engine and reads sums back."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vaebench.config import OptimizerConfig
from vaebench.data.binarize import Sampler
from vaebench.errors import TrainingError
from vaebench.evaluation import evaluate
from vaebench.models.snapshot import modes_kept
from vaebench.problem import Problem
from vaebench.system.distributed import Group
from vaebench.system.random import MODEL, TRAINING, random_stream
from vaebench.system.threads import waited_seconds
from vaebench.system.worker import Worker
from vaebench.training.average import Average
from vaebench.training.divergence import Snapshot, is_finite
from vaebench.training.follow import Follower
from vaebench.training.history import Best, EpochRecord, History
from vaebench.training.inputs import Judged
from vaebench.training.schedules import Schedule
from vaebench.training.state import TrainState

# How often the progress bar moves in an epoch; an engine is called once per move. One that likes
# to be handed more steps at once is called less often.
MOVES_PER_EPOCH = 20
# Seconds of a training, and the share of its threads' time that went to waiting for a core, from
# which on the user is told.
TOLD_AFTER, DISTURBED = 5.0, 0.1


@dataclass(frozen=True)
class Plan:
    """How long to train, and what else to do in every epoch; see :func:`vaebench.fit`.

    ``lr`` gives the learning rate at a time, in epochs; ``beta`` the KL's weight, None if that does
    not change; ``changing`` says whether either does within an epoch. ``sampler`` draws new binary
    pixels before an epoch, if there is one. ``held_out`` decides which epoch is the best.
    """

    optimizer: OptimizerConfig
    lr: Schedule
    beta: Schedule | None
    seed: int
    sampler: Sampler | None
    test: Judged | None
    held_out: Judged | None
    progress: bool
    on_epoch: Callable[[EpochRecord], None] | None
    on_state: Callable[[TrainState], object] | None
    changing: bool = False

    @property
    def epochs(self) -> int:
        """Epochs in all, unless it stops before."""
        return self.optimizer.epochs


class Loop:
    """A training under way.

    Args:
        plan: what to do.
        follower: has the engine, and keeps it true to the model.
        history: to be written to.
        group: the processes that train together; None: this one.
        worker: the thread that computes; callbacks run in the calling one.
    """

    def __init__(
        self,
        plan: Plan,
        follower: Follower,
        history: History,
        group: Group | None,
        worker: Worker,
    ) -> None:
        self.plan, self.follower, self.worker = plan, follower, worker
        self.history, self.group = history, group
        self.model = follower.problem.model
        decay = plan.optimizer.ema_decay
        self.average = Average(self.model, decay) if decay else None
        self.numbers = Numbers(follower.problem, plan.seed, group.rank if group else 0)

    def run(self, stopped: Callable[[], bool], resume: TrainState | None) -> None:
        """Train, from a state on if one is given, until all epochs are done or ``stopped()``."""
        plan, history, generators = self.plan, self.history, self.numbers.generators
        if resume:
            engine = self.follower.engine
            self.worker.run(lambda: resume.restore(self.model, engine, generators, history))
            if self.average:
                self.average.load(resume.average)
        waited, trained = waited_seconds(), history.seconds["train"]
        with _bar(self.numbers.images, plan, len(history.epochs)) as bar:
            while len(history.epochs) < plan.epochs and not self._gives_up():
                record = self.worker.run(lambda: self._epoch(bar, stopped))
                if record is None:
                    break
                history.epochs.append(record)
                self._keep_best(record)
                if plan.on_state:
                    engine = self.follower.engine
                    average = self.average.values if self.average else {}
                    state = TrainState.of(self.model, engine, generators, history, average)
                    plan.on_state(state)
                if plan.on_epoch:
                    plan.on_epoch(record)
        if self.average:
            self.average.show()
        history.notes += _disturbed(waited_seconds() - waited, history.seconds["train"] - trained)

    def _epoch(self, bar: "tqdm[NoReturn]", stopped: Callable[[], bool]) -> EpochRecord | None:
        """Train one epoch and test; None if the training is to end before it."""
        if self.group.any(stopped()) if self.group else stopped():
            return None
        history, follower = self.history, self.follower
        with history.timed("compile"):
            history.notes += follower.follow()
            history.notes += follower.resize(self.plan.optimizer.size_of(len(history.epochs) + 1))
            history.actual |= follower.actual
        record = self._train(bar)
        steady = follower.problem.steady
        if steady:
            follower.left()
        with history.timed("eval"), self._averaged():
            record = dataclasses.replace(
                record,
                test_elbo=self._elbo(self.plan.test),
                validation_elbo=self._elbo(self.plan.held_out),
            )
        if not steady:  # what counts its calls counts those of the test too
            follower.left()
        return record

    def _train(self, bar: "tqdm[NoReturn]") -> EpochRecord:
        """Train one epoch.

        Raises:
            TrainingError: its numbers went wrong; the model is left as the last good epoch made it.
        """
        epoch, numbers, engine = len(self.history.epochs) + 1, self.numbers, self.follower.engine
        numbers.take(self.plan.optimizer.size_of(epoch))
        start = time.perf_counter()
        snapshot = Snapshot(self.model, engine)
        if self.plan.sampler:
            self.plan.sampler.draw(epoch, engine.images)
        sums = []
        with modes_kept(self.model), numbers.model_draws(), engine.training():
            done = 0
            for order, noise in numbers.epoch(self._at_once):
                if not done or self.plan.changing:
                    self._set(epoch - 1 + done / numbers.images)
                sums.append(engine.epoch(order, noise))
                if self.average:
                    before = self._steps_before(epoch) + done // numbers.batch_size
                    self.average.add(math.ceil(len(order) / numbers.batch_size), before)
                done += len(order)
                bar.update(len(order))
        # Turning sums into floats waits for the device: only after it is the clock's reading true.
        recon = sum(torch.stack([part.recon for part in sums]).tolist()) / numbers.images
        kl = sum(torch.stack([part.kl for part in sums]).tolist()) / numbers.images
        seconds = time.perf_counter() - start
        self.history.seconds["train"] += seconds
        if not (math.isfinite(recon - kl) and is_finite(self.model)):
            step = snapshot.first_bad_step(self._same_epoch(epoch))
            raise TrainingError(_what_diverged(recon, kl, epoch, step, numbers.steps))
        bar.set_postfix(elbo=f"{recon - kl:.2f}", refresh=False)
        return EpochRecord(epoch, recon - kl, None, recon, kl, seconds, numbers.images / seconds)

    @property
    def _at_once(self) -> int:
        """Steps to hand over at once; where anything changes on the way, whatever the engine."""
        return 1 if self.plan.changing else self.follower.engine.steps_at_once

    def _steps_before(self, epoch: int) -> int:
        """Steps of all epochs before this one."""
        sizes = (self.plan.optimizer.size_of(e) for e in range(1, epoch))
        return sum(math.ceil(self.numbers.images / size) for size in sizes)

    def _set(self, time: float) -> None:
        """Set what has a schedule, ``time`` epochs after training began."""
        engine, plan = self.follower.engine, self.plan
        engine.set_lr(plan.lr(time))
        if plan.beta:
            engine.set_beta(plan.beta(time))

    def _same_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The last epoch's batches once more, with what was set for each."""
        numbers, done = self.numbers, 0
        for order, noise in numbers.same_epoch():
            if done % numbers.piece == 0:
                self._set(epoch - 1 + done / numbers.images)
            yield order, noise
            done += len(order)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Let the model have its weights' average in the block, if one is taken."""
        return self.average.shown() if self.average else contextlib.nullcontext()

    def _elbo(self, part: Judged | None) -> float | None:
        """Estimate the ELBO, if there are images; of several processes the first does, for all."""
        if part is None:
            return None
        elbo = math.nan
        if self.group is None or self.group.rank == 0:
            objective = self.follower.problem.objective
            elbo = evaluate(
                self.model,
                part.images,
                labels=part.labels,
                likelihood=objective.likelihood,
                sigma=objective.sigma,
                seed=self.plan.seed,
            ).elbo
        return self.group.broadcast(elbo) if self.group else elbo

    def _keep_best(self, record: EpochRecord) -> None:
        """Keep the weights of the epoch that scores best on what was held out."""
        elbo, best = record.validation_elbo, self.history.best
        if elbo is None or math.isnan(elbo) or (best and elbo <= best.elbo):
            return
        with self._averaged():
            weights = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self.history.best = Best(record.epoch, elbo, weights)

    def _gives_up(self) -> bool:
        """Whether ``patience`` has run out; then it is said."""
        patience, history = self.plan.optimizer.patience, self.history
        if not patience or not history.best:
            return False
        best = history.best
        history.stopped_early = len(history.epochs) - best.epoch >= patience
        if history.stopped_early:
            history.notes.append(
                f"stopped after epoch {len(history.epochs)}: {patience} without a better ELBO of "
                f"the held-out images than epoch {best.epoch}'s, {best.elbo:.2f}"
            )
        return history.stopped_early


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
        defaults = [_default_generator(g.device) for g in self.models]
        callers = [default.get_state() for default in defaults]
        for default, own in zip(defaults, self.models, strict=True):
            default.set_state(own.get_state())
        try:
            yield
        finally:
            for default, own, state in zip(defaults, self.models, callers, strict=True):
                own.set_state(default.get_state())
                default.set_state(state)

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


def _disturbed(waited: float, trained: float) -> list[str]:
    """Say so if others kept the cores busy: threads that wait for one another then stand still."""
    share = waited / trained / torch.get_num_threads() if trained else 0.0
    if trained < TOLD_AFTER or share < DISTURBED:
        return []
    return [
        f"other programs kept the cores busy: threads waited for one for {share:.0%} of the "
        "training; without them it is much faster"
    ]


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
