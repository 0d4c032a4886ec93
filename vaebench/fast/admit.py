"""The gate: no engine is used before it was verified and raced, here, on the model at hand.

A graph, a compiler or a hand-written kernel may be right for the models and on the machines that it
was tested with, and wrong for this one: a hook that it does not see, state that it keeps elsewhere,
another driver. So it trains the same few batches as the plain engine, from the same state, and what
the two leave must agree, but for rounding. How much that may be is measured: as far as the plain
engine's own results move when the images of each batch stand in other orders, which changes nothing
but the rounding of sums. What agrees is then raced: large products leave a compiler little
to save, and its own cost comes first. What disagrees or loses is dropped with a note. Nothing that
the gate does leaves a trace in the model.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vaebench.fast.step import StepEngine
from vaebench.system.timing import race as timed_in_turns
from vaebench.system.toolchain import CompileError

# The engine below is taken if it is faster by more than two runs of the same code may differ.
MARGIN = 1.1
# Rounding of another kind may weigh more than that of another order, by so much.
FACTOR = 8.0
# Relative to a tensor's own size.
ROUNDING = 1e-6


class Tolerance(NamedTuple):
    """What is let pass where order happens to make no difference.

    ``changes``: a share of what training changed of a tensor; ``all_changes``, of all of them: a
    bias before batch norm has no gradient but rounding, which moves it as far as it is large.
    ``sums``: relative, of the sums.
    """

    changes: float
    sums: float
    all_changes: float = 0.0


# Of several steps of float32: one rounds otherwise, and Adam carries that on. Their KL is small.
FLOAT32 = Tolerance(5e-3, 1e-4, 1e-3)
KL_SHARE = 200  # of a KL that training has only begun to move
# Where both engines round factors to 10 bits, but not alike. Small gradients, such as a bias has,
# then differ in sign, and Adam makes whole steps of them: 0.3 of a change was seen. What is plainly
# wrong, as a tensor left as it was, is off by 1 of its change or more.
ROUNDED = Tolerance(0.5, 5e-3, 0.01)
# The same of factors of 8 bits; a KL that training has only begun to move is small.
BF16 = Tolerance(0.5, 2e-2, 0.01)


class Outcome(NamedTuple):
    """Recon and kl summed, and every tensor that training changes."""

    sums: tuple[float, float]
    tensors: list[Tensor]


def disagreement(
    engine: StepEngine, plain: StepEngine, pieces: list[int], tolerance: Tolerance = FLOAT32
) -> str | None:
    """Train with both, leaving no trace; None if they agree, else in words how they differ.

    Args:
        engine: what is tried.
        plain: trains the same model with the same optimiser, and is trusted.
        pieces: numbers of images to hand over, one call each.
        tolerance: larger where products are rounded more than float32's.
    """
    order, noise = _numbers(plain, sum(pieces))
    got = _outcome(engine, order, noise, pieces)
    want = _outcome(plain, order, noise, pieces)
    same = all(torch.equal(a, b) for a, b in zip(got.tensors, want.tensors, strict=True))
    if same and _near(got.sums, want.sums, (0, 0), tolerance.sums):
        return None
    if not all(map(math.isfinite, want.sums)):
        return None  # it diverges at once, which training will tell; the trial can tell nothing
    others = [
        _outcome(plain, *_reordered(order, noise, pieces, plain.batch_size, how), pieces)
        for how in (_reversed, _rotated)
    ]
    spread = [max(abs(a - other.sums[i]) for other in others) for i, a in enumerate(want.sums)]
    if not _near(got.sums, want.sums, spread, tolerance.sums):
        return f"recon and kl add up to {_shown(got.sums)}, not {_shown(want.sums)}"
    start = [t.detach() for t in _changed(plain)]
    changed = [_norm(t - before) for t, before in zip(want.tensors, start, strict=True)]
    everything = tolerance.all_changes * math.hypot(*changed)
    for i, (mine, right, before) in enumerate(zip(got.tensors, want.tensors, start, strict=True)):
        moved = max(_norm(right - other.tensors[i]) for other in others)
        allowed = FACTOR * moved + tolerance.changes * changed[i] + everything
        error = _norm(mine - right)
        if not error <= allowed + ROUNDING * _norm(right):  # not a number: neither
            return (
                f"a tensor of shape {tuple(right.shape)} is off by {error:.2g}, where training "
                f"changed it by {_norm(right - before):.2g}"
            )
    return None


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


def _outcome(engine: StepEngine, order: Tensor, noise: Tensor, pieces: list[int]) -> Outcome:
    # A model's own random numbers (dropout) are the same in every trial: they are put back.
    with engine.unchanged(), engine.training():
        found = [
            engine.epoch(*part)
            for part in zip(order.split(pieces), noise.split(pieces), strict=True)
        ]
        recon = sum(float(sums.recon) for sums in found)
        kl = sum(float(sums.kl) for sums in found)
        return Outcome((recon, kl), [t.detach().clone() for t in _changed(engine)])


def _changed(engine: StepEngine) -> list[Tensor]:
    return [*engine.optimizer.tensors(), *engine.model.buffers()]


def _reordered(
    order: Tensor,
    noise: Tensor,
    pieces: list[int],
    batch_size: int,
    how: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The same batches, each with its images in another order."""
    both = []
    for numbers in (order, noise):
        batches = [b for piece in numbers.split(pieces) for b in piece.split(batch_size)]
        both.append(torch.cat([how(batch) for batch in batches]))
    return both[0], both[1]


def _reversed(batch: Tensor) -> Tensor:
    return batch.flip(0)


def _rotated(batch: Tensor) -> Tensor:
    return batch.roll(len(batch) // 3 + 1, 0)


def _near(
    got: tuple[float, float], want: tuple[float, float], spread: Sequence[float], share: float
) -> bool:
    return all(
        abs(a - b) <= FACTOR * s + min(share * weight, 0.05) * abs(b) and math.isfinite(a)
        for a, b, s, weight in zip(got, want, spread, (1, KL_SHARE), strict=True)
    )


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
        return disagreement(engine, plain, engine.trial_sizes, tolerance)
    except (CompileError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {(lines or ['no reason given'])[0]}"


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
    """Time both engines' steps, which train one model; leave no trace in it."""
    size = candidate.problem.batch_sizes[0]
    order = torch.arange(size, device=candidate.device)
    noise = candidate.no_noise(size)
    runs = {engine: partial(engine.epoch, order, noise) for engine in (candidate, other)}
    with candidate.unchanged():
        # What an engine enters for an epoch is none of its step's.
        around = {engine: engine.training for engine in runs}
        seconds = timed_in_turns(runs, candidate.device, around=around)
    steps = -(-len(candidate.images) // candidate.batch_size)
    return Verdict(seconds[candidate], seconds[other], steps)
