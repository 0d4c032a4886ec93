"""verify(): is what trains fast here the plain training, for this model, on this machine?"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.config import FastConfig, TrainConfig, asks_for
from vaebench.errors import InputError, one_line
from vaebench.fast.optimizer import clipped
from vaebench.fast.register import TECHNIQUES, Technique
from vaebench.fast.step import has_hooks
from vaebench.objective import loss_terms
from vaebench.proof import rules
from vaebench.proof.report import Check, Report
from vaebench.proof.subject import SIZES_ALONE, Run, Subject
from vaebench.system.info import fingerprint
from vaebench.training.fit import configured

PLAIN = "plain"
DRAWS = (
    "the model draws random numbers of its own, others in float64: float32 is held to eager float32"
)


def verify(
    model: nn.Module | tuple[nn.Module, nn.Module],
    images: Tensor,
    *,
    labels: Tensor | None = None,
    config: TrainConfig | None = None,
    progress: Callable[[Sequence[Check]], object] | None = None,
    **options: Any,
) -> Report:
    """Hold every technique to the levels of equality, on a model, its images and this machine.

    Each technique is tried alone, then all together, whether or not it would be faster. The bars
    are in :mod:`vaebench.proof.rules`. The model is copied; the caller's is left as it is.

    Args:
        model: as for :func:`vaebench.fit`.
        images: as for ``fit``; the first dozen batches and a short one are used.
        labels: as for ``fit``.
        config: settings; ``options`` go before it. If they ask for a technique that is not on by
            default, such as ``compile=True``, those are verified that a training with these
            settings would try; else every one that there is for the device, and is not off.
        progress: called with the checks of each case at each level, as they are made.
        options: as for ``fit``, such as ``batch_size=64`` or ``compile=True``.

    Returns:
        Report: ``report.passed``; ``report.table()`` for people, ``report.as_json()`` for machines.

    Raises:
        InputError: what ``fit`` would refuse, or a model that cannot be copied.
    """
    begun = time.perf_counter()
    settled = configured(config, options)
    subject = Subject(model, images, labels, settled)
    proof = Proof(subject, progress)
    proof.run(_wanted(settled.fast, subject.device.type))
    return Report(
        str(subject),
        proof.checks,
        proof.left_out,
        time.perf_counter() - begun,
        fingerprint(subject.device),
    )


def _wanted(fast: FastConfig, device: str) -> list[Technique]:
    """The techniques to verify; settings of threads are none to be verified."""
    here = [t for t in TECHNIQUES if t.kind != "thread" and device in t.devices]
    some = any(asks_for(fast, t.name) and not t.default for t in TECHNIQUES)
    wanted = [t for t in here if asks_for(fast, t.name) or not (t.default or some)]
    names = {t.name for t in wanted}
    return [t for t in wanted if t.needs is None or t.needs in names]


class Proof:
    """Comparisons of engines for a subject, and what they are compared with, made once.

    Args:
        subject: what something is proved about.
        progress: as for :func:`verify`.
    """

    def __init__(
        self, subject: Subject, progress: Callable[[Sequence[Check]], object] | None = None
    ) -> None:
        self.subject, self.progress = subject, progress
        self.checks: list[Check] = []
        self.left_out: dict[str, str] = {}
        self.batch = subject.numbers(subject.config.optimizer.batch_size)

    def run(self, techniques: Sequence[Technique]) -> None:
        """Compare the objective, each technique with what it needs, and all of them together."""
        if has_hooks(list(self.subject.model.parameters())):
            self.left_out["hooks"] = "those on gradients: a model's copies do not have them"
        self.objective()
        self.compare([])
        for technique in techniques:
            names = [n for n in (technique.needs, technique.name) if n]
            if not self.compare(names):
                self.left_out["+".join(names)] = self.reason
        self.compare([t.name for t in techniques if not t.rounds], part=True)
        self.compare([t.name for t in techniques], part=True)

    def compare(self, names: Sequence[str], *, part: bool = False) -> str:
        """Compare the engine of some techniques, unless it was compared already; give its name.

        Args:
            names: the techniques; none: the plain step.
            part: compare those of them that run; else, if one does not, nothing: "" is given, and
                ``reason`` says why.
        """
        try:
            run = self.subject.build(names)
        except InputError:
            raise
        except Exception as error:  # what it is wrong with, on this machine, may show in any way
            case, what = "+".join(names) or PLAIN, f"{type(error).__name__}: {one_line(error)}"
            self._note(case, "L1", iter([(what, math.inf, 0.0)]))
            return case
        running = [t.name for t in TECHNIQUES if run.actual.get(t.name, t.idle) != t.idle]
        missing = [name for name in names if name not in running]
        if missing and not part:
            self.reason = _why(missing[-1], run.notes)
            return ""
        case = "+".join(sorted(running, key=_place)) or PLAIN
        if case in {check.case for check in self.checks}:
            return case
        with run.engine.unchanged():
            got = run.step(self.batch)
        if any(t.rounds for t in TECHNIQUES if t.name in running):
            found = rules.one_rounded_step(self.subject.names, got, self.rounded, self.truth)
            self._note(case, "L2", found)
        else:
            self._note(case, "L1", rules.one_step(self.moves, got, self.plains, self.truth))
            self._note(case, "L3", self._trajectory(run))
        return case

    @cached_property
    def moves(self) -> rules.Moves:
        """The parameters' names and what they begin at."""
        return rules.Moves(self.subject.names, self.subject.before)

    @cached_property
    def draws(self) -> bool:
        """Whether the model draws random numbers of its own, as dropout does."""
        other = self.subject.plain().step(self.batch, seed=1)
        return self.plain.value != other.value

    @cached_property
    def plain(self) -> rules.Outcome:
        """Eager float32's step."""
        return self._sized(self.subject.plain().step(self.batch))

    @cached_property
    def plains(self) -> list[rules.Outcome]:
        """Eager float32's step in every layout of memory."""
        if not self.subject.has_channels:
            return [self.plain]
        return [self.plain, self._sized(self.subject.plain(last=True).step(self.batch))]

    @cached_property
    def rounded(self) -> rules.Outcome:
        """Eager autocast's step."""
        return self._sized(self.subject.plain(autocast=True).step(self.batch))

    @cached_property
    def truth(self) -> rules.Outcome:
        """Eager float64's step; float32's for a model that would draw others in float64."""
        return self.plain if self.draws else self._sized(self.subject.truth().step(self.batch))

    @cached_property
    def epochs(self) -> list[tuple[float, float]]:
        """Eager float32's recon and kl of each epoch."""
        run = self.subject.plain()
        return [run.epoch(self.subject.numbers(epoch=i)) for i in range(self.subject.epochs)]

    def _sized(self, outcome: rules.Outcome) -> rules.Outcome:
        """The sizes of gradients, where an engine's optimiser remembers no more of them."""
        if self.subject.config.optimizer.name not in SIZES_ALONE:
            return outcome
        return outcome._replace(grads=[None if g is None else g.abs() for g in outcome.grads])

    def _trajectory(self, run: Run) -> Iterator[rules.Found]:
        for i, want in enumerate(self.epochs):
            yield from rules.trajectory(i + 1, run.epoch(self.subject.numbers(epoch=i)), want)

    def objective(self) -> None:
        """Compare the package's own loss and gradients with the reference's, in float64."""
        if self.draws:
            self.left_out["L0"] = DRAWS
            return
        want, run = self.subject.truth().step(self.batch), self.subject.truth()
        problem, (order, noise) = run.problem, self.batch
        x, *y = (t[order.cpu()].to(problem.device) for t in run.engine.dataset.tensors)
        problem.model.train()
        loss, recon, kl = loss_terms(problem.vae, problem.objective, x, noise.double(), *y)
        settings = problem.optimizer
        found = torch.autograd.grad(loss, problem.params, allow_unused=problem.varies)
        given = tuple(grad for grad in found if grad is not None)
        cut = iter(clipped(given, settings.clip_norm, settings.clip_value))  # as the reference's
        grads = [None if grad is None else next(cut) for grad in found]
        got = rules.Outcome(float((recon - kl).detach().sum()), grads, [], {})
        self._note("objective", "L0", rules.exactly(self.subject.names, got, want))

    def _note(self, case: str, level: str, found: Iterator[rules.Found]) -> None:
        checks = [Check(case, level, *entry) for entry in found]
        self.checks += checks
        if self.progress:
            self.progress(checks)


def _place(name: str) -> bool:
    """What others need comes first in a case's name."""
    return name not in {t.needs for t in TECHNIQUES}


def _why(name: str, notes: Sequence[str]) -> str:
    """Why a technique does not run, in a line."""
    flag = "--" + name.replace("_", "-")
    said = [note for note in notes if note.startswith(flag)]
    return said[-1].removeprefix(f"{flag}: ") if said else "nothing that it could do here"
