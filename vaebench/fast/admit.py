"""The gate: no engine is used before it was verified and raced, here, on the model at hand.

A graph, a compiler or a hand-written kernel may be right for the models and on the machines that it
was tested with, and wrong for this one: a hook that it does not see, state that it keeps elsewhere,
another driver. So it trains the same few batches as the plain engine, from the same state, and what
the two leave must agree, but for rounding. How much that may be is measured: as far as the plain
engine's own results move when the images of each batch stand in other orders, which changes nothing
but the rounding of sums, and when each parameter is off by no more than its own rounding, which
does to every layer what another order of its sums does.

Some networks make much of little: batch norm of a few images, or an activation's kink that a value
falls on either side of. After several steps, what rounding leads to there may be as much as what a
wrong kernel does. So if several steps end apart, each step is tried from the very state that the
plain engine began it in; the plain bars then hold for steps, wider ones for where they lead
together.

What agrees is then raced: large products leave a compiler little to save, and its own cost comes
first. What disagrees or loses is dropped with a note. Nothing that the gate does leaves a trace in
the model.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from vaebench.errors import in_a_line
from vaebench.fast.step import StepEngine
from vaebench.system.threads import waited_seconds
from vaebench.system.timing import race as timed_in_turns
from vaebench.system.toolchain import CompileError

# The engine below is taken if it is faster by more than two runs of the same code may differ.
MARGIN = 1.1
# Of the threads' time: if more of it went to waiting for a core, a race is run for so long again.
DISTURBED, TURNS, BUDGET = 0.1, 60, 2.0  # budget in seconds
# Rounding of another kind may weigh more than that of another order, by so much.
FACTOR = 8.0
# What parameters are moved by, relatively: two roundings of float32.
NUDGE = 2.0**-23
# Relative to a tensor's own size.
ROUNDING = 1e-6


# Steps of the plain engine before anything is compared. Adam's first one is a gradient's sign, also
# where that is nothing but rounding.
BEFORE = 2
# Steps that are tried one by one, at most. A kink that is met in one of them is not met in all.
SINGLE = 8


_open: ContextVar[bool] = ContextVar("open", default=False)


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """Let everything through, right or wrong, faster or slower: for who judges by other means."""
    before = _open.set(True)
    try:
        yield
    finally:
        _open.reset(before)


def is_open() -> bool:
    """Whether engines are neither verified nor raced."""
    return _open.get()


class Tolerance(NamedTuple):
    """What is let pass where order happens to make no difference.

    ``changes``: a share of what training changed of a tensor; ``alike``: of what it changed of all
    tensors of its kind (parameters, first moments, second ones): a bias before batch norm has no
    gradient but the rounding of the others. ``sums``: relative, of recon; ``kl``: of the KL, which
    training has only begun to move.
    """

    changes: float
    alike: float
    sums: float
    kl: float


# The original's convolutional network, of 24 initialisations, needs 4e-4, 3e-6, 3e-7 and 2e-4 where
# it needs most; of those that end too far apart after 4 steps, in their single steps.
FLOAT32 = Tolerance(3e-3, 1e-5, 1e-5, 2e-4)
# Where both engines round factors to 10 bits, but not alike. Small gradients, such as a bias has,
# then differ in sign, and Adam makes whole steps of them: 0.3 of a change was seen. What is plainly
# wrong, as a tensor left as it was, is off by 1 of its change or more.
ROUNDED = Tolerance(0.5, 5e-4, 5e-3, 0.05)
# The same of factors of 8 bits.
BF16 = Tolerance(0.5, 5e-4, 2e-2, 0.05)


class Outcome(NamedTuple):
    """Recon and kl summed, and every tensor that training changes, by kind."""

    sums: tuple[float, float]
    kinds: list[list[Tensor]]


class Difference(NamedTuple):
    """How far a number or a tensor is off, as a share of what is let pass, and in words."""

    share: float
    said: str


def disagreement(
    engine: StepEngine, plain: StepEngine, chunks: list[int], tolerance: Tolerance = FLOAT32
) -> str | None:
    """Train with both, leaving no trace; None if they agree, else in words how they differ.

    Args:
        engine: what is tried.
        plain: trains the same model with the same optimiser, and is trusted.
        chunks: numbers of images to hand over, one call each.
        tolerance: larger where products are rounded more than float32's.
    """
    before = BEFORE * plain.batch_size
    order, noise = _numbers(plain, before + sum(chunks))
    with plain.unchanged():
        plain.epoch(order[:before], noise[:before])
        order, noise = order[before:], noise[before:]
        together = _Trial(engine, plain, order, noise, chunks)
        if together.diverges:
            return None  # which training will tell; the trial can tell nothing
        if together.plainly_agrees(tolerance):
            return None
        if engine.steps_at_once > 1:
            worst = max(together.differences(tolerance))
        else:
            apart = _by_steps(engine, plain, tolerance)
            wide = Tolerance(*map(max, tolerance, ROUNDED))
            worst = max(apart, *together.differences(wide))
    return worst.said if worst.share > 1 else None


def _by_steps(engine: StepEngine, plain: StepEngine, tolerance: Tolerance) -> Difference:
    """The worst that every one of some single steps shows, of each size of batch.

    What a wrong kernel does, each step shows: they end as soon as nothing was shown by all.
    """
    worst: list[Difference] = []
    for size in plain.problem.batch_sizes:
        order, noise = _numbers(plain, SINGLE * size)
        shown: list[Difference] = []
        for batch in zip(order.split(size), noise.split(size), strict=True):
            found = _Trial(engine, plain, *batch, [size]).differences(tolerance)
            shown = [min(pair) for pair in zip(shown, found, strict=True)] if shown else found
            if max(shown).share <= 1:
                break
        worst.append(max(shown))
    return max(worst)


class _Trial:
    """What an engine and the plain one make of the same batches, and how far order matters."""

    def __init__(
        self,
        engine: StepEngine,
        plain: StepEngine,
        order: Tensor,
        noise: Tensor,
        chunks: list[int],
    ) -> None:
        self.plain, self.order, self.noise, self.chunks = plain, order, noise, chunks
        self.start = [[t.detach().clone() for t in kind] for kind in _changed(plain)]
        self.got = _outcome(engine, order, noise, chunks)
        self.want = _outcome(plain, order, noise, chunks)
        self.diverges = not all(map(math.isfinite, self.want.sums))

    @cached_property
    def others(self) -> list[Outcome]:
        """The plain engine's outcomes, rounded otherwise."""
        plain, chunks = self.plain, self.chunks
        orders = [
            _reordered(self.order, self.noise, chunks, plain.batch_size, how)
            for how in (_reversed, _rotated)
        ]
        with plain.unchanged():
            _nudge(plain.optimizer.params)
            nudged = _outcome(plain, self.order, self.noise, chunks)
        return [nudged, *(_outcome(plain, *order, chunks) for order in orders)]

    def plainly_agrees(self, tolerance: Tolerance) -> bool:
        """Whether they agree however little rounding leads to."""
        return max(self._beyond(tolerance, [])).share <= 1

    def differences(self, tolerance: Tolerance) -> list[Difference]:
        """Those of recon, kl and each tensor.

        How far rounding leads is asked only where it decides: it takes three more trainings.
        """
        plainly = self.plainly_agrees(tolerance)
        return self._beyond(tolerance, [] if plainly else self.others)

    def _beyond(self, tolerance: Tolerance, others: list[Outcome]) -> list[Difference]:
        """Each difference, where rounding is let lead as far as it does in ``others``."""
        found = []
        got, want = self.got.sums, self.want.sums
        said = f"recon and kl add up to {_shown(got)}, not {_shown(want)}"
        for i, share in enumerate((tolerance.sums, tolerance.kl)):
            moved = max((abs(want[i] - other.sums[i]) for other in others), default=0.0)
            allowed = FACTOR * moved + share * abs(want[i])
            found.append(_difference(abs(got[i] - want[i]), allowed, said))
        doubt = self._doubt()
        kinds = zip(self.got.kinds, self.want.kinds, self.start, strict=True)
        for k, (mine, right, start) in enumerate(kinds):
            changed = [_norm(t - before) for t, before in zip(right, start, strict=True)]
            alike = tolerance.alike * math.hypot(*changed)
            for i, (a, b) in enumerate(zip(mine, right, strict=True)):
                moved = max((_norm(b - other.kinds[k][i]) for other in others), default=0.0)
                allowed = FACTOR * moved + tolerance.changes * changed[i] + alike
                if k == 0:
                    allowed += doubt[i] * (changed[i] + _norm(a - start[i]))
                error = _norm(a - b)
                said = (
                    f"a tensor of shape {tuple(b.shape)} is off by {error:.2g}, where training "
                    f"changed it by {changed[i]:.2g}"
                )
                found.append(_difference(error, allowed + ROUNDING * _norm(b), said))
        return found

    def _doubt(self) -> list[float]:
        """How far each parameter's gradients differ, of themselves, by what is remembered of them.

        Those of a bias before batch norm are rounding. Whether they may differ so is judged
        where what is remembered is compared; here, that Adam steps as far by small ones as by
        large ones. SGD without momentum remembers nothing, and steps by the gradients' own size.
        """
        mine, right = self.got.kinds[1], self.want.kinds[1]
        if len(right) != len(self.want.kinds[0]):
            return [0.0] * len(self.want.kinds[0])
        return [
            min(1.0, _norm(a - b) / size) if (size := _norm(b)) else 1.0
            for a, b in zip(mine, right, strict=True)
        ]


def _difference(error: float, allowed: float, said: str) -> Difference:
    if error <= allowed:
        return Difference(error / allowed if allowed else 0.0, said)
    return Difference(error / allowed if allowed and math.isfinite(error) else math.inf, said)


def _numbers(engine: StepEngine, images: int) -> tuple[Tensor, Tensor]:
    """An order of so many images, random, and their noise."""
    generator = torch.Generator(engine.device).manual_seed(0)
    n = len(engine.images)
    order = torch.cat(
        [
            torch.randperm(n, generator=generator, device=engine.device)
            for _ in range(-(-images // n))
        ]
    )
    return order[:images], engine.no_noise(images).normal_(generator=generator)


def _outcome(engine: StepEngine, order: Tensor, noise: Tensor, chunks: list[int]) -> Outcome:
    # A model's own random numbers (dropout) are the same in every trial: they are put back.
    with engine.unchanged():
        with engine.training():
            found = [
                engine.epoch(*part)
                for part in zip(order.split(chunks), noise.split(chunks), strict=True)
            ]
        # Only now: leaving may go wrong too.
        recon = sum(float(sums.recon) for sums in found)
        kl = sum(float(sums.kl) for sums in found)
        kinds = [[t.detach().clone() for t in kind] for kind in _changed(engine)]
        return Outcome((recon, kl), kinds)


def _changed(engine: StepEngine) -> list[list[Tensor]]:
    """What training changes: parameters, what the optimiser remembers by kind, each buffer."""
    memory: dict[str, list[Tensor]] = {}
    for name, tensor in engine.optimizer.memory().items():
        memory.setdefault(name.partition(".")[0], []).append(tensor)
    buffers = [[buffer] for buffer in engine.model.buffers()]
    return [list(engine.optimizer.params), *memory.values(), *buffers]


def _reordered(
    order: Tensor,
    noise: Tensor,
    chunks: list[int],
    batch_size: int,
    how: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The same batches, each with its images in another order."""
    both = []
    for numbers in (order, noise):
        batches = [b for chunk in numbers.split(chunks) for b in chunk.split(batch_size)]
        both.append(torch.cat([how(batch) for batch in batches]))
    return both[0], both[1]


def _reversed(batch: Tensor) -> Tensor:
    return batch.flip(0)


def _rotated(batch: Tensor) -> Tensor:
    return batch.roll(len(batch) // 3 + 1, 0)


def _nudge(params: Sequence[Tensor]) -> None:
    """Move each number up or down by ``NUDGE``, as chance has it; always the same chance."""
    generator = torch.Generator().manual_seed(0)
    for p in params:
        signs = torch.randint(2, p.shape, generator=generator).mul_(2).sub_(1).to(p.device)
        with torch.no_grad():
            p.mul_(1 + NUDGE * signs)


def _norm(t: Tensor) -> float:
    return float(t.detach().double().norm())


def _shown(sums: tuple[float, float]) -> str:
    return f"{sums[0]:.6g} and {sums[1]:.6g}"


def objection(engine: StepEngine, plain: StepEngine, tolerance: Tolerance) -> str | None:
    """Warm an engine up and verify it beside the plain one; say what is wrong, None if nothing.

    A few full batches and a short last one. What is wrong on a machine, or a model, that its code
    was never run on may show in any way.

    Raises:
        CompileError: it cannot be built.
        torch.OutOfMemoryError: it does not fit.
    """
    try:
        engine.warm_up()
        return None if is_open() else disagreement(engine, plain, engine.trial_sizes, tolerance)
    except (CompileError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_open():
            raise
        return in_a_line(error)


class Verdict(NamedTuple):
    """Seconds of a candidate's and of the other engine's step, and how many steps an epoch has."""

    candidate: float
    other: float
    steps: int

    @property
    def wins(self) -> bool:
        """Whether to train with the candidate."""
        return self.candidate <= MARGIN * self.other

    def compiling(self, seconds: float) -> str:
        """Say in a line whether compiling pays; ``seconds`` is what it took."""
        if not self.wins:
            return (
                f"--compile: a compiled step took {self.candidate / self.other:.2f}x an eager "
                "step's time here; trained eagerly"
            )
        saved = (self.other - self.candidate) * self.steps
        after = f"after {seconds / saved:.1f} epochs" if saved > 0 else "never"
        return (
            f"--compile: took {seconds:.1f} s, saves {max(saved, 0):.2f} s an epoch (a step takes "
            f"{self.candidate / self.other:.2f}x an eager one's time): it pays {after}"
        )


def race(candidate: StepEngine, other: StepEngine) -> Verdict:
    """Time both engines' steps, which train one model; leave no trace in it.

    Where other programs took the cores meanwhile, the race goes on for longer: the least of many
    turns is nearer the truth.
    """
    size = candidate.problem.batch_sizes[0]
    order = torch.arange(size, device=candidate.device)
    noise = candidate.no_noise(size)
    runs = {engine: partial(engine.epoch, order, noise) for engine in (candidate, other)}
    with candidate.unchanged():
        # What an engine enters for an epoch is none of its step's.
        around = {engine: engine.training for engine in runs}
        begun, waited = time.perf_counter(), waited_seconds()
        seconds = timed_in_turns(runs, candidate.device, around=around)
        waited = waited_seconds() - waited
        if waited > DISTURBED * (time.perf_counter() - begun) * torch.get_num_threads():
            more = timed_in_turns(runs, candidate.device, around=around, turns=TURNS, budget=BUDGET)
            seconds = {engine: min(took, more[engine]) for engine, took in seconds.items()}
    steps = -(-len(candidate.images) // candidate.batch_size)
    return Verdict(seconds[candidate], seconds[other], steps)
