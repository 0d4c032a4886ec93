"""The only training loop. It hands order and noise to an engine and reads sums back."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vaebench.config import OptimizerConfig
from vaebench.data.binarize import Sampler
from vaebench.engine import Sums
from vaebench.errors import TrainingError
from vaebench.evaluation import evaluate
from vaebench.models.snapshot import generators_of, modes_kept
from vaebench.system.distributed import Group
from vaebench.system.threads import waited_seconds
from vaebench.system.worker import Worker
from vaebench.training.average import Average
from vaebench.training.callbacks import Block, Callback, Running, told_of_blocks
from vaebench.training.divergence import Snapshot, is_finite
from vaebench.training.follow import Follower
from vaebench.training.history import Best, EpochRecord, History
from vaebench.training.inputs import Judged
from vaebench.training.numbers import Numbers
from vaebench.training.schedules import Schedule
from vaebench.training.state import TrainState

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
    callbacks: Sequence[Callback]
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
        self.running = Running(self.model, history, self._state)
        self.blocks = told_of_blocks(plan.callbacks)

    def run(self, stopped: Callable[[], bool], resume: TrainState | None) -> None:
        """Train, from a state on if one is given, until all epochs are done or ``stopped()``."""
        plan, history = self.plan, self.history
        if resume:
            engine, generators = self.follower.engine, self._generators()
            self.worker.run(lambda: resume.restore(self.model, engine, generators, history))
            if unsteady := self.follower.problem.unsteady:
                history.notes.append(
                    f"{type(self.model).__name__} {unsteady}, which no state holds: not what an "
                    "uninterrupted training gives"
                )
            if self.average:
                self.average.load(resume.average)
        waited, trained = waited_seconds(), history.seconds["train"]
        for callback in plan.callbacks:
            callback.on_start(self.running)
        with _bar(self.numbers.images, plan, len(history.epochs)) as bar:
            while len(history.epochs) < plan.epochs and not self._gives_up():
                record = self.worker.run(lambda: self._epoch(bar, stopped))
                if record is None:
                    break
                history.epochs.append(record)
                self._keep_best(record)
                if plan.on_state:
                    plan.on_state(self._state())
                for callback in plan.callbacks:
                    callback.on_epoch(self.running, record)
        if self.average:
            self.average.show()
        history.notes += self.follower.engine.remarks
        history.notes += _disturbed(waited_seconds() - waited, history.seconds["train"] - trained)
        for callback in plan.callbacks:
            callback.on_end(self.running)

    def _state(self) -> TrainState:
        """All that the training is after its last epoch."""
        average = self.average.values if self.average else {}
        engine = self.follower.engine
        return TrainState.of(self.model, engine, self._generators(), self.history, average)

    def _generators(self) -> dict[str, torch.Generator]:
        """The training's generators, and the model's own."""
        own = {f"model.own.{i}": g for i, g in enumerate(generators_of(self.model))}
        return self.numbers.generators | own

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
                if self.blocks:
                    self._tell(epoch - 1 + done / numbers.images, sums[-1])
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

    def _tell(self, time: float, sums: Sums) -> None:
        """Tell callbacks of the steps up to now, in the calling thread, which has its own draws."""
        recon, kl = (float(t) / sums.images for t in (sums.recon, sums.kl))
        block = Block(time, recon - kl, recon, kl)

        def tell() -> None:
            for callback in self.blocks:
                callback.on_step_block(self.running, block)

        with self.numbers.callers_draws():
            self.worker.ask(tell)

    @property
    def _at_once(self) -> int:
        """Steps to hand over at once; where anything happens on the way, whatever the engine."""
        return 1 if self.plan.changing or self.blocks else self.follower.engine.steps_at_once

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
        """Whether a callback, or ``patience``, ends the training; then it is said."""
        patience, history = self.plan.optimizer.patience, self.history
        asked = self.running.stopped is not None
        if self.group.any(asked) if self.group else asked:
            history.stopped_early = True
            reason = self.running.stopped or "a callback of another process asked for it"
            history.notes.append(f"stopped after epoch {len(history.epochs)}: {reason}")
            return True
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


def _disturbed(waited: float, trained: float) -> list[str]:
    """Say so if others kept the cores busy: threads that wait for one another then stand still."""
    share = waited / trained / torch.get_num_threads() if trained else 0.0
    if trained < TOLD_AFTER or share < DISTURBED:
        return []
    soon = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {*os.environ}
    less = "" if soon else ", and with GOMP_SPINCOUNT=2000 set before Python starts"
    return [
        f"other programs kept the cores busy: threads waited for one for {share:.0%} of the "
        f"training; without them it is much faster{less}"
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
