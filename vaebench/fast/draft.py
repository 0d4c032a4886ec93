"""An engine in the making, which techniques are shown, and what they may offer for it."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from vaebench.config import FastConfig, asks_for
from vaebench.fast import admit
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.parallel import ParallelEngine, ParallelStep, exchange
from vaebench.fast.step import Context, Step, StepEngine, alone, make_step
from vaebench.fast.stream import StreamEngine
from vaebench.objective import Objective
from vaebench.problem import Problem
from vaebench.system.device import full_float32
from vaebench.system.distributed import Group


@dataclass(frozen=True)
class Plan:
    """How a step of PyTorch's operators is made.

    ``objective`` computes the loss; ``autocast`` is the dtype of products, None for float32;
    ``contexts`` are entered while it trains; ``compiled`` makes a compiled step of a plain one,
    for batches of so many images.
    """

    objective: Objective
    autocast: torch.dtype | None = None
    contexts: tuple[Context, ...] = ()
    compiled: Callable[[Step, int], Step] | None = None

    def within(self, context: Context) -> "Plan":
        """The same plan with one more context."""
        return dataclasses.replace(self, contexts=(*self.contexts, context))


class Offer(NamedTuple):
    """What a technique offers: an engine, to be verified and raced before it is used.

    ``plan`` is how its step is made, if by PyTorch's operators: what follows builds on it.
    ``actual`` says of the techniques that are in it what runs; ``whole``, that it has whole steps
    of its own, so that no other is to be tried. ``race`` tells by measurement whether it wins;
    None: that was measured already. ``notes`` are told if it is used, ``said`` in any case.
    ``instead`` is offered if this one is wrong. ``tolerance`` is what it may differ by from the
    engine below; None: what engines of the draft's precision may.
    """

    engine: StepEngine
    plan: Plan | None = None
    actual: Mapping[str, Any] = MappingProxyType({})
    whole: bool = False
    race: Callable[[StepEngine, StepEngine], admit.Verdict] | None = admit.race
    notes: Sequence[str] = ()
    said: Callable[[admit.Verdict], str] | None = None
    instead: "Offer | None" = None
    tolerance: admit.Tolerance | None = None


@dataclass
class Draft:
    """A problem, what is asked for, and the engine that has been admitted so far.

    ``whole`` says whether that has whole steps of its own; ``actual`` and ``notes`` are as in
    :class:`vaebench.fast.build.Built`; ``begun`` is when compiling and building kernels began.
    """

    problem: Problem
    fast: FastConfig
    group: Group | None
    optimizer: OptimizerState
    plan: Plan
    notes: list[str] = field(default_factory=list)
    actual: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    begun: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.engine = self.make(self.plan)

    def asks(self, name: str) -> Any:
        """What the config asks of a technique; None of one that there is not."""
        return asks_for(self.fast, name)

    @property
    def tolerance(self) -> admit.Tolerance:
        """What two engines of this precision may differ by."""
        if self.plan.autocast is not None:
            return admit.BF16
        return admit.ROUNDED if self.actual.get("tf32") else admit.FLOAT32

    def make(self, plan: Plan) -> StepEngine:
        """Make the engine that a plan describes."""
        problem, group = self.problem, self.group
        contexts, labels = (self.optimizer.stepping, *plan.contexts), problem.labels
        if problem.device.type == "cuda" and not self.actual.get("tf32"):
            contexts = (full_float32, *contexts)
        if labels is not None and not problem.resident:
            labels = StreamEngine.labels_of_a_chunk(problem)
        step = make_step(
            problem.vae,
            plan.objective,
            self.optimizer,
            plan.autocast,
            labels=labels,
            exchange=exchange if group else alone,
            varies=problem.varies,
            keepers=problem.keepers(),
        )
        if plan.compiled:
            part = group.share(problem.batch_size) if group else slice(0, problem.batch_size)
            step = plan.compiled(step, part.stop - part.start)
            contexts = (*contexts, getattr(step, "renew", contextlib.nullcontext))
        if not problem.resident:
            return StreamEngine(problem, step, self.optimizer, contexts, labels)
        if group is None:
            return StepEngine(problem, step, self.optimizer, contexts)
        mine = ParallelStep(step, self._idle, group)
        return ParallelEngine(group, problem, mine, self.optimizer, contexts)

    def _idle(self) -> None:
        """Take part in an exchange of gradients with no images."""
        nothing = tuple(torch.zeros_like(p) for p in self.optimizer.params)
        self.optimizer.update(exchange(nothing, 0))
